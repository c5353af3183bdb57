//! The shortcut: what most packets are, decided and done in one straight line.
//!
//! It is for TCP and UDP without options, tags or quotes, sent to the interface's own MAC address,
//! between addresses that no binding touches or whose entries are settled, out of a next hop of our
//! own. Of such a packet it makes what [`crate::process()`] would; of any other it makes nothing,
//! and says so before it has changed or counted anything.
//!
//! No transaction slot is read here: an entry of which something is pending is not settled.

use natmig_common::{Counter, Interface, Ipv4, Ipv6, Role};

use crate::{
    address::Address as _,
    egress,
    environment::Environment,
    family::Ip,
    find::{self, Found},
    frame::Frame,
    ipv4::to_identity,
    link, shared,
    translate::{self, Rewrite},
};

/// What became of a packet that took the shortcut, and the counter that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// The kernel gets the frame.
    Pass(Counter),
    /// The frame leaves on the device.
    Redirect(u32, Counter),
}

impl Shortcut {
    /// As one word, which is not 0: that is all that a function of the program can return.
    #[inline(always)]
    fn word(self) -> u64 {
        match self {
            Self::Pass(counter) => u64::from(counter.raw()).wrapping_add(1),
            Self::Redirect(device, counter) => {
                u64::from(device) << 32 | REDIRECTED | u64::from(counter.raw()).wrapping_add(1)
            }
        }
    }

    /// What a word says; `None` of 0.
    #[inline(always)]
    fn from_word(word: u64) -> Option<Self> {
        let [counter, ..] = word.wrapping_sub(1).to_le_bytes();
        let counter = Counter::from_raw(counter)?;
        if word & REDIRECTED == 0 {
            return Some(Self::Pass(counter));
        }
        Some(Self::Redirect(u32::try_from(word >> 32).ok()?, counter))
    }
}

/// Bit of a [`Shortcut::word`].
const REDIRECTED: u64 = 1 << 16;

/// [`take`], as a function of its own: all programs' stacks together have 512 bytes, and it needs some
/// of them only until it is known that the packet has to go the long way.
#[inline(never)]
fn take_apart<E: Environment, I: Ip>(environment: &E, ingress: u32) -> u64 {
    take::<E, I>(environment, ingress).map_or(0, Shortcut::word)
}

/// Decides what becomes of the frame that came in on `ingress`, rewrites it accordingly and counts
/// it, if it is of the common kind. If not, nothing has happened to it, and [`crate::process()`] is
/// to be asked.
#[inline(always)]
pub fn shortcut<E: Environment>(environment: &E, ingress: u32) -> Option<Shortcut> {
    let frame = environment.frame();
    let ethernet = frame.fixed::<0, 14>()?;
    match ethernet.number::<12>() {
        link::IPV4 => match to_identity::translate(environment, &frame, ingress) {
            Some(device) => Some(Shortcut::Redirect(device, Counter::Translated)),
            None => Shortcut::from_word(take_apart::<E, Ipv4>(environment, ingress)),
        },
        link::IPV6 => Shortcut::from_word(take_apart::<E, Ipv6>(environment, ingress)),
        _ => None,
    }
}

/// As [`shortcut`], for a frame of the family to the interface's own MAC address.
#[inline(always)]
fn take<E: Environment, I: Ip>(environment: &E, ingress: u32) -> Option<Shortcut> {
    let frame = environment.frame();
    let packet = I::glance(&frame)?;
    if I::is_confined(&packet) {
        return None;
    }
    // Before all other tables, because this may be far away, and what follows does not wait for it.
    let to = find::<E, I>(environment, packet.destination, true)?;
    let interface = receiver(environment, &frame, ingress)?;
    let role = Role::from_raw(interface.role)?;
    let from_fabric = match role {
        Role::Fabric => true,
        Role::Access | Role::External => false,
        Role::Kernel => return None,
    };
    let length = frame.length();
    let from = find::<E, I>(environment, packet.source, false)?;
    if !from_fabric && (to.in_pool || from.in_pool) {
        return None;
    }
    if to.is_unsettled() || from.is_unsettled() {
        return None;
    }
    // The source of a VM that is not here.
    if from.is_bound() && !from.in_pool && role == Role::Access {
        return None;
    }
    let bound = to.is_bound() || from.is_bound();
    if !bound && (!environment.forwards_all() || packet.source.is_special()) {
        environment.count(interface.slot, Counter::PassUnbound, length);
        return Some(Shortcut::Pass(Counter::PassUnbound));
    }

    let mut destination = packet.destination;
    let mut route = to.route;
    // An identity's. A settled entry is not of a home edge, which would anchor what comes from the fabric.
    if to.is_bound() && !from_fabric {
        destination = to.counterpart;
        route = I::route(environment, destination);
    }
    if route == 0 {
        return None;
    }
    let next = egress::next_hop(environment, &packet, u32::from(route))?;
    let to_fabric = match Role::from_raw(next.role)? {
        Role::Fabric => true,
        Role::Access | Role::External => false,
        Role::Kernel => return None,
    };
    let returns = !bound && next.ifindex == ingress;
    if packet.length > u32::from(next.mtu) || packet.hops <= 1 || next.vlan != 0 || returns {
        return None;
    }
    let mut source = packet.source;
    if !to_fabric {
        // Locators do not leave the fabric.
        if to.in_pool || (from.in_pool && !from.is_bound()) {
            return None;
        }
        if from.in_pool {
            source = from.counterpart;
            if source == packet.source {
                return None;
            }
        }
    }

    let rewrite = Rewrite::<I> {
        source,
        destination,
        hop: 1,
        ..Rewrite::EMPTY
    };
    let device = next.device;
    translate::apply_plain(&environment.frame(), &packet, &rewrite);
    link::set_macs(
        environment,
        shared::mac(&next.destination_mac),
        shared::mac(&next.source_mac),
    );

    let slot = interface.slot;
    if !bound {
        environment.count(slot, Counter::Forwarded, length);
        return Some(Shortcut::Redirect(device, Counter::Forwarded));
    }
    let mut counted = to.count(environment, length);
    counted &= from.count(environment, length);
    if !counted {
        environment.count(slot, Counter::BindingTrafficLost, length);
    }
    let changes_source = rewrite.changes_source(&packet);
    if rewrite.changes_destination(&packet) {
        let verdict = Counter::Translated;
        environment.count_both(slot, verdict, Counter::DestinationTranslated, length);
        if changes_source {
            environment.count(slot, Counter::SourceTranslated, length);
        }
        return Some(Shortcut::Redirect(device, verdict));
    }
    if changes_source {
        let verdict = Counter::Translated;
        environment.count_both(slot, verdict, Counter::SourceTranslated, length);
        return Some(Shortcut::Redirect(device, verdict));
    }
    environment.count(slot, Counter::Transit, length);
    Some(Shortcut::Redirect(device, Counter::Transit))
}

/// The interface that took the frame, if the frame was sent to its own MAC address, and if routes of our
/// own are believed: without them nothing takes the shortcut.
#[inline(always)]
pub(crate) fn receiver<'a, E: Environment>(
    environment: &'a E,
    frame: &Frame<'_>,
    ingress: u32,
) -> Option<&'a Interface> {
    if !environment.believes_routes() {
        return None;
    }
    let interface = environment.interface(ingress)?;
    let mac = frame.fixed::<0, 14>()?.mac::<0>();
    if mac != shared::mac(&interface.mac) || mac.is_group() {
        return None;
    }
    Some(interface)
}

/// What the shortcut knows of one of the packet's addresses.
#[derive(Clone, Copy)]
struct Known<I: Ip> {
    /// Whether it is the destination.
    to: bool,
    /// Whether it is in a locator pool.
    in_pool: bool,
    /// Element of `ROUTES`; 0 to ask the kernel.
    route: u16,
    /// Its entry; [`Found::NO_ENTRY`] if it has none.
    index: u32,
    /// The other address of its binding; none if it has no entry, or one that is to be looked at.
    counterpart: I::Address,
}

impl<I: Ip> Known<I> {
    /// Whether it has an entry.
    #[inline(always)]
    fn is_bound(&self) -> bool {
        self.index != Found::NO_ENTRY
    }

    /// Whether it has an entry that is to be looked at.
    #[inline(always)]
    fn is_unsettled(&self) -> bool {
        self.is_bound() && self.counterpart.is_none()
    }

    /// Counts the packet for the binding, if there is one. False if it could not be counted.
    #[inline(always)]
    fn count<E: Environment>(&self, environment: &E, length: u32) -> bool {
        !self.is_bound() || environment.count_binding_later::<I>(self.index, self.to, length)
    }
}

/// Finds an address, for which the index need not be asked.
#[inline(always)]
fn find<E: Environment, I: Ip>(environment: &E, address: I::Address, to: bool) -> Option<Known<I>> {
    let Found { index, prefix, .. } = I::find_directly(environment, address)?;
    let mut known = Known {
        to,
        in_pool: prefix.in_pool,
        route: prefix.route,
        index,
        counterpart: I::Address::NONE,
    };
    if known.is_bound() {
        known.counterpart = find::settled::<E, I>(environment, index);
    }
    Some(known)
}
