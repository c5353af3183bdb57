//! What becomes of a packet's addresses: the translation table, by field and ingress role.
//!
//! What depends on the egress role is planned for both cases: `*_in_fabric` if the packet leaves
//! into the fabric, `*_outside` if it leaves on access or external, or ends here. An address that a
//! rule leaves alone is planned to become itself.

use natmig_common::{Action, Counter, Interface, Role};

use crate::{
    address::{Address as _, HardwareAddress},
    announce,
    barrier::join,
    environment::Environment,
    family::Ip,
    find::{Found, find},
    link::Link,
    lookup::{Lookups, Visible, look_at, lookup},
    outcome::Outcome,
    packet::Packet,
    scratch::State,
    shared,
};

/// What becomes of a packet's addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan<I: Ip> {
    /// MAC address of the VM here to which the packet is delivered.
    pub(crate) deliver_mac: HardwareAddress,
    /// Entry of the destination, or [`Found::NO_ENTRY`].
    pub(crate) destination_index: u32,
    /// Entry of the source, or [`Found::NO_ENTRY`].
    pub(crate) source_index: u32,
    /// Access interface of the VM here to which the packet is delivered; 0 if there is none.
    pub(crate) deliver: u32,
    /// The destination under which the packet goes on.
    pub(crate) destination: I::Address,
    /// The destination by its identity, if it is a locator: what the sender sent to.
    pub(crate) destination_identity: I::Address,
    pub(crate) source_in_fabric: I::Address,
    pub(crate) source_outside: I::Address,
    pub(crate) quoted_source: I::Address,
    pub(crate) quoted_in_fabric: I::Address,
    pub(crate) quoted_outside: I::Address,
    /// Element of `ROUTES` for the destination that the packet came in with; 0 to ask the kernel.
    pub(crate) route: u16,
    /// 1 if some address of the packet is bound.
    pub(crate) bound: u8,
    /// 1 if a home edge anchors the packet.
    pub(crate) anchored: u8,
    /// 1 if the packet is sent after a VM that moved on.
    pub(crate) moved_on: u8,
    /// 1 if the packet would still have a locator where it leaves on access or external.
    pub(crate) shows_locator: u8,
}

impl<I: Ip> Plan<I> {
    /// Nothing is planned.
    pub(crate) const EMPTY: Self = Self {
        deliver_mac: HardwareAddress::NONE,
        destination_index: Found::NO_ENTRY,
        source_index: Found::NO_ENTRY,
        deliver: 0,
        destination: I::Address::NONE,
        destination_identity: I::Address::NONE,
        source_in_fabric: I::Address::NONE,
        source_outside: I::Address::NONE,
        quoted_source: I::Address::NONE,
        quoted_in_fabric: I::Address::NONE,
        quoted_outside: I::Address::NONE,
        route: 0,
        bound: 0,
        anchored: 0,
        moved_on: 0,
        shows_locator: 0,
    };

    /// Begins with a packet: sets what the planning does not set for every packet.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.destination_index = Found::NO_ENTRY;
        self.source_index = Found::NO_ENTRY;
        self.deliver = 0;
        self.bound = 0;
        self.anchored = 0;
        self.moved_on = 0;
        self.shows_locator = 0;
    }
}

/// Whether the packet comes from where only identities are known.
#[inline(always)]
fn from_outside(link: &Link) -> bool {
    link.is_from(Role::Access) || link.is_from(Role::External)
}

/// Whether the frame is one that this router takes although it is not sent to the router's own MAC
/// address: a visitor's, whatever old neighbour it is sent to, or one to a VM that is away.
#[inline(always)]
fn takes_foreign<I: Ip>(link: &Link, source: &Visible<I>, destination: &Visible<I>) -> bool {
    let is_local = destination.action() == Action::Local;
    let is_on_segment = is_local && destination.ifindex == link.ingress;
    let is_elsewhere = destination.is_away_from_here() || (is_local && !is_on_segment);
    let to_its_mac = destination.mac == link.destination_mac;
    // A frame that one VM on the segment sends to another is the link's to deliver.
    let visitor = source.is_sender() && !source.sender_locator.is_none();
    (visitor && !(is_on_segment && to_its_mac)) || (is_elsewhere && to_its_mac)
}

/// Plans for the outer header. The outcome of a packet that needs no plan.
#[inline(never)]
pub(crate) fn outer<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) -> Option<Outcome> {
    let access = link.is_from(Role::Access);
    let takes_frames = access && interface.owns_gateway();
    let ours = link.is_from(Role::Kernel)
        || link.destination_mac == shared::mac(&interface.mac)
        || (takes_frames && link.destination_mac == environment.gateway_mac());
    if !ours && !takes_frames {
        return Some(Outcome::Pass(Counter::PassForeignMac));
    }

    // Both are found before either is looked at, so that both are on their way from memory.
    state.destination.found = find::<E, I>(environment, state.packet.destination);
    state.source.found = find::<E, I>(environment, state.packet.source);
    join(state);
    let State {
        packet,
        lookups,
        destination,
        source,
        ..
    } = state;
    look_at(environment, lookups, link, packet.destination, destination);
    look_at(environment, lookups, link, packet.source, source);
    join(state);
    let State {
        packet,
        plan,
        lookups,
        destination,
        source,
        other,
        ..
    } = state;
    if !ours && !takes_foreign(link, source, destination) {
        return Some(Outcome::Pass(Counter::PassForeignMac));
    }
    if source.is_arriving() {
        announce::hear_any(environment, link);
    }
    plan.destination_index = destination.index;
    plan.source_index = source.index;
    plan.route = destination.found.prefix.route;

    if from_outside(link) {
        if destination.found.prefix.in_pool {
            return Some(Outcome::Drop(Counter::DropLocatorFromOutside));
        }
        if source.found.prefix.in_pool {
            return Some(Outcome::Drop(Counter::DropLocatorSourceFromOutside));
        }
    }
    let source_is_identity = matches!(source.action(), Action::Away | Action::Local);
    if access && source_is_identity && !source.is_sender() {
        return Some(Outcome::Drop(Counter::DropStaleSource));
    }

    plan.bound = u8::from(
        destination.action() != Action::Absent
            || source.action() != Action::Absent
            || source.is_sender(),
    );
    plan_destination(environment, link, packet, lookups, destination, other, plan);
    plan.source_in_fabric = packet.source;
    if access && source.is_sender() && !source.sender_locator.is_none() && !interface.keeps_source()
    {
        plan.source_in_fabric = source.sender_locator;
    }
    plan.source_outside = packet.source;
    if !from_outside(link) && source.is_locator() {
        plan.source_outside = source.counterpart;
    }
    plan.shows_locator = u8::from(
        (source.found.prefix.in_pool && plan.source_outside == packet.source)
            || (destination.found.prefix.in_pool && plan.destination == packet.destination),
    );
    plan.quoted_source = packet.quoted_source;
    plan.quoted_in_fabric = packet.quoted_destination;
    plan.quoted_outside = packet.quoted_destination;
    None
}

/// Plans for the outer destination.
#[inline(always)]
fn plan_destination<E: Environment, I: Ip>(
    environment: &E,
    link: &Link,
    packet: &Packet<I>,
    lookups: &mut Lookups,
    destination: &Visible<I>,
    onward: &mut Visible<I>,
    plan: &mut Plan<I>,
) {
    let from_fabric = link.is_from(Role::Fabric);
    plan.destination = packet.destination;
    plan.destination_identity = packet.destination;
    match destination.action() {
        Action::Absent => {}
        Action::Known => plan.destination_identity = destination.counterpart,
        Action::Away => {
            if !from_fabric {
                plan.destination = destination.counterpart;
            } else if destination.is_away_from_here() {
                plan.destination = destination.counterpart;
                plan.anchored = 1;
            }
        }
        Action::Local => {
            plan.deliver = destination.ifindex;
            plan.deliver_mac = destination.mac;
        }
        Action::Deliver => {
            plan.destination_identity = destination.counterpart;
            if !from_outside(link) {
                plan.destination = destination.counterpart;
                plan.deliver = destination.ifindex;
                plan.deliver_mac = destination.mac;
            }
        }
        Action::Forward => {
            plan.destination_identity = destination.counterpart;
            if !from_outside(link) {
                plan.destination = destination.forward;
                plan.moved_on = 1;
                lookup(environment, lookups, link, &destination.forward, onward);
                if onward.action() == Action::Local {
                    plan.deliver = onward.ifindex;
                    plan.deliver_mac = onward.mac;
                }
            }
        }
    }
}

/// Plans for the packet that an ICMP error quotes: its source by the rules for destinations (that
/// is where the error goes), its destination by the rules for sources.
#[inline(never)]
pub(crate) fn quote<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) -> Option<Outcome> {
    let outside = from_outside(link);
    lookup(
        environment,
        &mut state.lookups,
        link,
        &state.packet.quoted_source,
        &mut state.other,
    );
    let State {
        packet,
        plan,
        other: visible,
        lookups,
        ..
    } = state;
    if outside && visible.found.prefix.in_pool {
        return Some(Outcome::Drop(Counter::DropLocatorFromOutside));
    }
    let is_pooled = visible.found.prefix.in_pool;
    let mut bound = false;
    match visible.action() {
        Action::Absent => {}
        Action::Known | Action::Local => bound = true,
        Action::Away => {
            bound = true;
            if !link.is_from(Role::Fabric) || visible.is_away_from_here() {
                plan.quoted_source = visible.counterpart;
            }
        }
        Action::Deliver | Action::Forward => {
            bound = true;
            if !outside {
                plan.quoted_source = visible.counterpart;
            }
        }
    }
    if is_pooled && plan.quoted_source == packet.quoted_source {
        plan.shows_locator = 1;
    }

    lookup(
        environment,
        lookups,
        link,
        &packet.quoted_destination,
        visible,
    );
    if visible.action() != Action::Absent || visible.is_sender() {
        bound = true;
    }
    if link.is_from(Role::Access) && !interface.keeps_source() {
        let mut locator = I::Address::NONE;
        if visible.is_sender() {
            locator = visible.sender_locator;
        } else if visible.action() == Action::Local {
            locator = visible.counterpart;
        }
        if !locator.is_none() {
            plan.quoted_in_fabric = locator;
        }
    }
    if !outside && visible.is_locator() {
        plan.quoted_outside = visible.counterpart;
    }
    if visible.found.prefix.in_pool && plan.quoted_outside == packet.quoted_destination {
        plan.shows_locator = 1;
    }
    if bound {
        plan.bound = 1;
    }
    None
}
