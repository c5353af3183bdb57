//! The shortcut: what most packets are, decided and done in one straight line.
//!
//! It is for TCP and UDP without options, tags or quotes, sent to the interface's own MAC address,
//! between addresses that no binding touches or whose entries are settled, out of a next hop of our
//! own. Of such a packet it makes what [`crate::process()`] would; of any other it makes nothing,
//! and says so before it has changed or counted anything.
//!
//! No transaction slot is read here: an entry of which something is pending is not settled.

use natmig_common::{Action, Counter, Interface, Ipv4, Ipv6, Role};

use crate::{
    address::Address as _,
    egress,
    environment::Environment,
    family::Ip,
    find::Found,
    link::{self, ETHERNET, Link},
    shared,
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
fn take_apart<E: Environment, I: Ip>(environment: &E, interface: &Interface, ingress: u32) -> u64 {
    take::<E, I>(environment, interface, ingress).map_or(0, Shortcut::word)
}

/// Decides what becomes of the frame that came in on `ingress`, rewrites it accordingly and counts
/// it, if it is of the common kind. If not, nothing has happened to it, and [`crate::process()`] is
/// to be asked.
#[inline(always)]
pub fn shortcut<E: Environment>(environment: &E, ingress: u32) -> Option<Shortcut> {
    // First, because a router without an agent would go a good part of the way in vain.
    if !environment.believes_routes() {
        return None;
    }
    let interface = environment.interface(ingress)?;
    let ethernet = environment.frame().fixed::<0, 14>()?;
    let mac = ethernet.mac::<0>();
    if mac != shared::mac(&interface.mac) || mac.is_group() {
        return None;
    }
    match ethernet.number::<12>() {
        link::IPV4 => Shortcut::from_word(take_apart::<E, Ipv4>(environment, interface, ingress)),
        link::IPV6 => Shortcut::from_word(take_apart::<E, Ipv6>(environment, interface, ingress)),
        _ => None,
    }
}

/// As [`shortcut`], for a frame of the family to the interface's own MAC address.
#[inline(always)]
fn take<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    ingress: u32,
) -> Option<Shortcut> {
    let role = Role::from_raw(interface.role)?;
    let from_fabric = match role {
        Role::Fabric => true,
        Role::Access | Role::External => false,
        Role::Kernel => return None,
    };
    let frame = environment.frame();
    let length = frame.length();
    let packet = I::glance(&frame)?;
    if I::is_confined(&packet) {
        return None;
    }

    let to = I::find_directly(environment, packet.destination)?;
    touch::<E, I>(environment, &to);
    let from = I::find_directly(environment, packet.source)?;
    touch::<E, I>(environment, &from);
    if !from_fabric && (to.prefix.in_pool || from.prefix.in_pool) {
        return None;
    }
    let to_action = action::<E, I>(environment, &to)?;
    let from_action = action::<E, I>(environment, &from)?;
    // The source of a VM that is not here.
    if from_action == Action::Away && role == Role::Access {
        return None;
    }
    let bound = to_action != Action::Absent || from_action != Action::Absent;
    if !bound && (!environment.forwards_all() || packet.source.is_special()) {
        environment.count(interface.slot, Counter::PassUnbound, length);
        return Some(Shortcut::Pass(Counter::PassUnbound));
    }

    let mut destination = packet.destination;
    let mut route = to.prefix.route;
    // A settled entry is not of a home edge, which would anchor what comes from the fabric.
    if to_action == Action::Away && !from_fabric {
        destination = counterpart::<E, I>(environment, &to, Action::Away)?;
        route = I::prefix(environment, destination).route;
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
    if from_action == Action::Known && from_fabric && !to_fabric {
        source = counterpart::<E, I>(environment, &from, Action::Known)?;
    }

    let link = Link {
        network: ETHERNET,
        ..Link::EMPTY
    };
    let rewrite = Rewrite::<I> {
        source,
        destination,
        hop: 1,
        ..Rewrite::EMPTY
    };
    let device = next.device;
    translate::apply(environment, &link, &packet, &rewrite);
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
    let mut counted = true;
    if to.index != Found::NO_ENTRY {
        counted &= environment.count_binding::<I>(to.index, true, length);
    }
    if from.index != Found::NO_ENTRY {
        counted &= environment.count_binding::<I>(from.index, false, length);
    }
    if !counted {
        environment.count(slot, Counter::BindingTrafficLost, length);
    }
    let mut verdict = Counter::Transit;
    if rewrite.changes_destination(&packet) {
        environment.count(slot, Counter::DestinationTranslated, length);
        verdict = Counter::Translated;
    }
    if rewrite.changes_source(&packet) {
        environment.count(slot, Counter::SourceTranslated, length);
        verdict = Counter::Translated;
    }
    environment.count(slot, verdict, length);
    Some(Shortcut::Redirect(device, verdict))
}

/// Brings near what will be needed of the address's binding.
#[inline(always)]
fn touch<E: Environment, I: Ip>(environment: &E, found: &Found) {
    if found.index != Found::NO_ENTRY {
        if let Some(settled) = environment.settled::<I>(found.index) {
            shared::touch_settled(settled);
        }
        environment.touch_binding::<I>(found.index);
    }
}

/// What its settled entry says of the address; [`Action::Absent`] if it has no entry. `None` if that
/// has to be looked at.
#[inline(always)]
fn action<E: Environment, I: Ip>(environment: &E, found: &Found) -> Option<Action> {
    if found.index == Found::NO_ENTRY {
        return Some(Action::Absent);
    }
    let (action, _) = shared::settled(environment.settled::<I>(found.index)?)?;
    Some(action)
}

/// The counterpart of an address of which the entry said this. `None` if it is settled no more.
#[inline(always)]
fn counterpart<E: Environment, I: Ip>(
    environment: &E,
    found: &Found,
    said: Action,
) -> Option<I::Address> {
    let (action, counterpart) = shared::settled(environment.settled::<I>(found.index)?)?;
    (action == said).then_some(counterpart)
}
