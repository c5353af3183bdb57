//! The shortest way: from an address that is not bound to a settled identity, which is most of what
//! routers outside the segments translate. It is [`crate::shortcut()`] with everything left out that
//! such a packet has not, inlined into the program: whatever it keeps beyond a call counts against the
//! 512 bytes of stack that the program shares with the long way.

use natmig_common::{Counter, Ipv4, PrefixIpv4, Role};

use super::{FRAGMENT_OFFSET, PLAIN};
use crate::{
    address::Address as _,
    barrier::opaque_u16,
    checksum::Change,
    egress,
    environment::Environment,
    find,
    frame::Frame,
    link::ETHERNET,
    packet::Packet,
    shared, shortcut,
    transport::{TCP, UDP},
};

/// Translates the frame, which carries IPv4 without tags, and counts it. The device on which it leaves;
/// `None`, and nothing has happened to it, if it is another kind of packet.
///
/// The element of the destination is read as soon as it can be, because it may be far away; what does
/// not depend on it comes after that.
#[inline(always)]
pub(crate) fn translate<E: Environment>(
    environment: &E,
    frame: &Frame<'_>,
    ingress: u32,
) -> Option<u32> {
    // Ethernet, IPv4 and UDP, or the beginning of TCP.
    let headers = frame.fixed::<0, 42>()?;
    let destination = headers.address_ipv4::<30>();
    let to = find::element_ipv4(environment, destination)?;
    let block = to.block.checked_sub(PrefixIpv4::FIRST)?;
    if to.pool != 0 {
        return None;
    }
    let index = block.wrapping_add(destination.number() & 0xff);
    let counterpart = find::settled::<E, Ipv4>(environment, index);

    let interface = shortcut::receiver(environment, frame, ingress)?;
    match Role::from_raw(interface.role)? {
        Role::Access | Role::External => {}
        Role::Fabric | Role::Kernel => return None,
    }
    let length = u32::from(headers.number::<16>());
    let protocol = headers.byte::<23>();
    let least = match protocol {
        TCP => 38,
        UDP => 28,
        _ => return None,
    };
    if headers.byte::<14>() != PLAIN
        || length < least
        || length.wrapping_add(ETHERNET.into()) > frame.length()
        || headers.number::<20>() & FRAGMENT_OFFSET != 0
        || destination.is_special()
    {
        return None;
    }
    // The length says so already; nothing may change before every field is known to be there.
    if protocol == TCP && frame.fixed::<50, 2>().is_none() {
        return None;
    }
    let hops = headers.byte::<22>();
    if hops <= 1 {
        return None;
    }
    let source = headers.address_ipv4::<26>();
    if !shared::is_unbound(find::element_ipv4(environment, source)?) {
        return None;
    }

    if counterpart.is_none() || counterpart == destination {
        return None;
    }
    let mut route = find::route_ipv4(environment, counterpart);
    if route == to.route {
        // Most often the way to the locator is the way to the identity's home. The processor foresees
        // that and goes on with the route that it has, instead of waiting for the counterpart.
        route = opaque_u16(to.route);
    }
    if route == 0 {
        return None;
    }
    let packet = Packet::<Ipv4> {
        source,
        destination,
        protocol,
        ..Packet::EMPTY
    };
    let next = egress::next_hop(environment, &packet, u32::from(route))?;
    match Role::from_raw(next.role)? {
        Role::Access | Role::Fabric | Role::External => {}
        Role::Kernel => return None,
    }
    if length > u32::from(next.mtu) || next.vlan != 0 {
        return None;
    }

    let change = Change::NONE.address(destination, counterpart).folded();
    headers.set_byte::<22>(hops.wrapping_sub(1));
    let header = change.and(Change::DECREMENT);
    headers.set_word::<24>(header.apply_folded(headers.word::<24>()));
    headers.set_address_ipv4::<30>(counterpart);
    if protocol == UDP {
        headers.set_word::<40>(change.apply_udp_folded(headers.word::<40>()));
    } else if let Some(field) = frame.fixed::<50, 2>() {
        field.set_word::<0>(change.apply_folded(field.word::<0>()));
    }
    headers.set_macs::<0>(shared::macs(next));
    let device = next.device;

    let length = frame.length();
    let slot = interface.slot;
    let [verdict, change] = [Counter::Translated, Counter::DestinationTranslated];
    environment.count_both(slot, verdict, change, length);
    if !environment.count_binding_later::<Ipv4>(index, true, length) {
        environment.count(slot, Counter::BindingTrafficLost, length);
    }
    Some(device)
}
