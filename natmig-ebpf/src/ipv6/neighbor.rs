//! Answering neighbour discovery (RFC 4861) for VMs that are away, and for the old neighbours of
//! visitors.
//!
//! Never answered: whoever tries whether an address is free (source unspecified, RFC 4862), a VM's
//! question for its own address, and what a host on the segment answers itself. What RFC 4861,
//! section 7.1.1, demands to discard silently is left to the kernel, which does so.

use natmig_common::{Action, Counter, Interface, Ipv6, Role};

use super::HEADER;
use crate::{
    address::{Address as _, AddressIpv6},
    announce, checksum,
    environment::Environment,
    link::Link,
    lookup::lookup,
    outcome::Outcome,
    packet::Packet,
    scratch::State,
    transport::ICMPV6,
};

/// Router solicitation to redirect: what never leaves its link.
const MESSAGES: core::ops::RangeInclusive<u8> = 133..=137;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Options: the link-layer address of the source, of the target.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

/// The hop limit of what has not been forwarded.
const HOPS: u8 = 255;

/// A message up to its options, and an option that holds a MAC address.
const MESSAGE: u16 = 24;
const OPTION: u16 = 8;
/// Options, in units of 8 bytes, that are looked at; a longer message is not answered.
const OPTIONS: u16 = 8;

/// Flags of an advertisement. "Override" makes a neighbour forget the MAC address that it knows;
/// "router" keeps a host from forgetting a router of that address.
const OF_ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// What becomes of a message that natmig does not answer.
const PASS: Outcome = Outcome::Pass(Counter::PassNeighbor);

/// The outcome of a message of neighbour discovery; `None` if the `ICMPv6` packet is none.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<Ipv6>,
) -> Option<Outcome> {
    let packet = &state.packet;
    let frame = environment.frame();
    let message = frame.window::<4>(packet.transport)?;
    let kind = message.byte::<0>();
    if !MESSAGES.contains(&kind) {
        return None;
    }
    announce::hear_neighbor(environment, link, state, kind == ADVERTISEMENT);
    let packet = &state.packet;
    if kind != SOLICITATION
        || message.byte::<1>() != 0
        || packet.hops != HOPS
        || packet.transport != link.network.wrapping_add(HEADER)
        || !link.is_from(Role::Access)
        || !interface.owns_gateway()
        || link.source_mac.is_group()
    {
        return Some(PASS);
    }
    let Some(flags) = flags(environment, interface, link, state) else {
        return Some(PASS);
    };
    let packet = &state.packet;
    // No function is called between this and the last use of what it says. Linux 6.1 may forget that two
    // ways into a function differ in a number that its caller keeps ("bpf: propagate precision across all
    // frames, not just the last one" of 6.2 is about that): it examined the answers without an option
    // alone, and removed what writes one.
    let Some(has_source) = read(environment, packet) else {
        return Some(PASS);
    };
    let length = if has_source {
        MESSAGE.wrapping_add(OPTION)
    } else {
        MESSAGE
    };
    // Without further options and padding, of which the answer has none.
    let whole = packet.transport.wrapping_add(length);
    if link.length != u32::from(whole) && !environment.reshape(0, whole) {
        return Some(PASS);
    }
    Some(match write(environment, link, packet, flags, length) {
        Some(()) => Outcome::Reply(Counter::NeighborAnswered),
        None => Outcome::Drop(Counter::DropNoRoom),
    })
}

/// Reads the solicitation, if it is a valid one from an address: whether it says its sender's MAC
/// address.
#[inline(never)]
fn read<E: Environment>(environment: &E, packet: &Packet<Ipv6>) -> Option<bool> {
    let frame = environment.frame();
    let message = frame.window::<24>(packet.transport)?;
    let target = message.address_ipv6::<8>();
    let length = u16::try_from(packet.length).ok()?.wrapping_sub(HEADER);
    let is_multicast = packet.destination.is_multicast();
    if length < MESSAGE
        || length > MESSAGE.wrapping_add(OPTION.wrapping_mul(OPTIONS))
        || length % OPTION != 0
        || packet.source.is_none()
        || packet.source.is_multicast()
        || packet.source == target
        || target.is_none()
        || target.is_multicast()
        || !(is_multicast || packet.destination == target)
    {
        return None;
    }
    let mut sum =
        message
            .sum()
            .wrapping_add(pseudo_header(packet.source, packet.destination, length));
    let mut has_source = false;
    // Units of the current option that are still to come.
    let mut rest: u8 = 0;
    for number in 0..OPTIONS {
        let offset = MESSAGE.wrapping_add(OPTION.wrapping_mul(number));
        if offset >= length {
            break;
        }
        let unit = frame.window::<8>(packet.transport.wrapping_add(offset))?;
        if rest == 0 {
            rest = unit.byte::<1>();
            if rest == 0 {
                return None;
            }
            has_source |= unit.byte::<0>() == SOURCE;
        }
        rest = rest.wrapping_sub(1);
        sum = sum.wrapping_add(unit.sum());
    }
    if rest != 0 || checksum::finish(sum) != 0 || (is_multicast && !has_source) {
        return None;
    }
    Some(has_source)
}

/// The flags of natmig's answer, if it answers the solicitation.
#[inline(never)]
fn flags<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<Ipv6>,
) -> Option<u8> {
    let State {
        packet,
        lookups,
        other: visible,
        ..
    } = state;
    let frame = environment.frame();
    let target = frame.window::<24>(packet.transport)?.address_ipv6::<8>();
    // One place for both look-ups, which is not on the stack: Linux 6.1 rounds its frames up.
    lookup(environment, lookups, link, &target, visible);
    let is_local = visible.action() == Action::Local;
    if is_local && visible.ifindex == link.ingress {
        return None;
    }
    let prefix = AddressIpv6::new(interface.prefix_ipv6);
    let in_segment = target.shares_prefix(prefix, interface.prefix_length_ipv6);
    // Its home may be this segment and its place another segment of this router.
    let is_away = visible.is_away_from_here() || (is_local && in_segment);
    if is_away && link.source_mac != visible.mac {
        return Some(SOLICITED | OVERRIDE);
    }
    if in_segment {
        return None;
    }
    let is_bound = visible.action() != Action::Absent;
    // Nobody but a visitor believes that an address outside of the segment has the gateway's MAC
    // address: it was told so. A host asks from its address on the link whether that still holds.
    let believes =
        packet.source.is_link_local() && link.destination_mac == environment.gateway_mac();
    if !believes {
        lookup(environment, lookups, link, &packet.source, visible);
        if !visible.is_sender() || visible.sender_locator.is_none() {
            return None;
        }
    }
    if is_bound {
        return Some(SOLICITED | OVERRIDE);
    }
    // It may be the old gateway, which must stay a router.
    if target.is_link_local() && link.destination_mac.is_group() {
        // A host on this segment may have that address: its own answer is to win.
        return Some(OF_ROUTER | SOLICITED);
    }
    Some(OF_ROUTER | SOLICITED | OVERRIDE)
}

/// Turns the solicitation into an advertisement of `length` bytes.
#[inline(always)]
fn write<E: Environment>(
    environment: &E,
    link: &Link,
    packet: &Packet<Ipv6>,
    flags: u8,
    length: u16,
) -> Option<()> {
    let frame = environment.frame();
    let message = frame.window::<24>(packet.transport)?;
    let target = message.address_ipv6::<8>();
    let gateway = environment.gateway_mac();
    let ethernet = frame.window::<14>(0)?;
    ethernet.set_mac::<0>(link.source_mac);
    ethernet.set_mac::<6>(gateway);

    let header = frame.window::<40>(link.network)?;
    header.set_double_word::<0>(0x6000_0000_u32.to_be());
    header.set_number::<4>(length);
    header.set_byte::<6>(ICMPV6);
    header.set_byte::<7>(HOPS);
    header.set_address_ipv6::<8>(target);
    header.set_address_ipv6::<24>(packet.source);

    message.set_byte::<0>(ADVERTISEMENT);
    message.set_byte::<1>(0);
    message.set_word::<2>(0);
    message.set_byte::<4>(flags);
    message.set_byte::<5>(0);
    message.set_word::<6>(0);
    let mut sum = pseudo_header(target, packet.source, length).wrapping_add(message.sum());
    if length != MESSAGE {
        let option = frame.window::<8>(packet.transport.wrapping_add(MESSAGE))?;
        option.set_byte::<0>(TARGET);
        option.set_byte::<1>(1);
        option.set_mac::<2>(gateway);
        sum = sum.wrapping_add(option.sum());
    }
    message.set_word::<2>(checksum::finish(sum));
    Some(())
}

/// Sum of the pseudo-header (RFC 8200, section 8.1) of an `ICMPv6` message of `length` bytes.
#[inline(always)]
pub(super) fn pseudo_header(source: AddressIpv6, destination: AddressIpv6, length: u16) -> u64 {
    source
        .sum()
        .wrapping_add(destination.sum())
        .wrapping_add(u64::from(length.to_be()))
        .wrapping_add(u64::from(u16::from(ICMPV6).to_be()))
}
