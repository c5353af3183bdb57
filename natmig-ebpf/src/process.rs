//! The way of a packet through the program.

use natmig_common::{Counter, FLAG_TRUNK, Family as _, Interface, Ipv4, Ipv6, Role, UNKNOWN_SLOT};

use crate::{
    address::Address as _,
    announce,
    barrier::join,
    egress,
    environment::{Environment, HopKind},
    family::Ip,
    find::Found,
    ipv4::arp,
    link::{self, Kind, Link},
    outcome::Outcome,
    plan,
    scratch::{Scratch, State},
    shared, translate,
};

/// Decides what becomes of the frame that came in on `ingress`, rewrites it accordingly and counts
/// it.
#[inline(always)]
pub fn process<E: Environment>(environment: &E, scratch: &mut Scratch, ingress: u32) -> Outcome {
    scratch.family = 0;
    let link = &mut scratch.link;
    link.length = 0;
    link.ingress = ingress;
    link.tagged = 0;
    let Some(device) = environment
        .interface(ingress)
        .filter(|device| device.role != 0 || device.flags & FLAG_TRUNK != 0)
    else {
        return count(environment, link, UNKNOWN_SLOT, unknown());
    };
    let kind = link::parse(environment, link);
    let Some(interface) = link::interface(environment, device, link) else {
        let outcome = Outcome::Pass(Counter::PassUnknownVlan);
        return count(environment, link, device.slot, outcome);
    };
    let Some(role) = Role::from_raw(interface.role) else {
        return count(environment, link, UNKNOWN_SLOT, unknown());
    };
    link.role = interface.role;
    let outcome = match decide(environment, interface, scratch, kind) {
        outcome @ Outcome::Pass(Counter::PassNoNeighbor | Counter::PassFragment) => outcome,
        // What is passed on from the router's own port would come back to it.
        Outcome::Pass(_) if role == Role::Kernel => Outcome::Drop(Counter::DropKernelPort),
        outcome @ (Outcome::Pass(_)
        | Outcome::Drop(_)
        | Outcome::Redirect(_)
        | Outcome::Reply(_)) => outcome,
    };
    count(environment, &mut scratch.link, interface.slot, outcome)
}

/// What becomes of a frame on an interface that natmig does not know.
#[inline(always)]
fn unknown() -> Outcome {
    Outcome::Pass(Counter::PassUnknownInterface)
}

/// Counts the outcome.
#[inline(always)]
fn count<E: Environment>(environment: &E, link: &mut Link, slot: u16, outcome: Outcome) -> Outcome {
    if link.length == 0 {
        link.length = environment.frame_length();
    }
    environment.count(slot, outcome.counter(), link.length);
    outcome
}

/// Decides what becomes of the frame and rewrites it.
#[inline(always)]
fn decide<E: Environment>(
    environment: &E,
    interface: &Interface,
    scratch: &mut Scratch,
    kind: Kind,
) -> Outcome {
    match kind {
        Kind::Ipv4 => packet::<E, Ipv4>(environment, interface, scratch),
        Kind::Ipv6 => packet::<E, Ipv6>(environment, interface, scratch),
        Kind::Arp => {
            let Scratch { link, ipv4, .. } = scratch;
            ipv4.lookups.begin();
            announce::hear_arp(environment, link, ipv4);
            arp::answer(environment, interface, link, ipv4)
        }
        Kind::ReverseArp => {
            announce::hear_reverse_arp(environment, &scratch.link);
            Outcome::Pass(Counter::PassOtherProtocol)
        }
        Kind::Other => Outcome::Pass(Counter::PassOtherProtocol),
        Kind::Truncated => Outcome::Pass(Counter::PassMalformed),
    }
}

/// Decides what becomes of a packet of the family, rewrites it, and counts it for its bindings.
#[inline(always)]
fn packet<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    scratch: &mut Scratch,
) -> Outcome {
    let (link, state) = I::split(scratch);
    state.begin();
    if let Some(counter) = I::parse(environment, link, &mut state.packet) {
        return Outcome::Pass(counter);
    }
    scratch.family = I::NUMBER;
    let (link, state) = I::split(scratch);
    let outcome = route(environment, interface, link, state);
    let mut counted = true;
    if state.plan.destination_index != Found::NO_ENTRY {
        counted &= environment.count_binding::<I>(state.plan.destination_index, true, link.length);
    }
    if state.plan.source_index != Found::NO_ENTRY {
        counted &= environment.count_binding::<I>(state.plan.source_index, false, link.length);
    }
    if !counted {
        environment.count(interface.slot, Counter::BindingTrafficLost, link.length);
    }
    let device = state.hop.device;
    scratch.device = device;
    outcome
}

/// Decides what becomes of the packet and rewrites it.
#[inline(always)]
fn route<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) -> Outcome {
    join(state);
    if let Some(outcome) = I::discover(environment, interface, link, state) {
        return outcome;
    }
    if I::is_confined(&state.packet) || link.destination_mac.is_group() {
        announce::hear_any(environment, link);
        return Outcome::Pass(Counter::PassMulticast);
    }
    if let Some(outcome) = plan::outer(environment, interface, link, state) {
        return outcome;
    }
    if state.packet.quote != 0
        && let Some(outcome) = plan::quote(environment, interface, link, state)
    {
        return outcome;
    }
    if state.plan.bound == 0 && !may_forward(environment, link, state) {
        state.rewrite.keep(&state.packet);
        return pass(environment, interface, link, state, Counter::PassUnbound);
    }
    join(state);
    egress::find(environment, interface, link, state);
    join(state);
    conclude(environment, interface, link, state)
}

/// Whether a packet that no binding touches is forwarded: if that is wanted, and the kernel would do
/// no more than forward it.
#[inline(always)]
fn may_forward<E: Environment, I: Ip>(environment: &E, link: &Link, state: &State<I>) -> bool {
    environment.forwards_all()
        && !link.is_from(Role::Kernel)
        && state.packet.options == 0
        && !state.packet.source.is_special()
}

/// Concludes with a packet whose next hop is known.
#[inline(always)]
fn conclude<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) -> Outcome {
    let State {
        packet,
        plan,
        hop,
        rewrite,
        ..
    } = state;
    // What the kernel may see: identities only, as the sender sent them.
    rewrite.source = plan.source_outside;
    rewrite.destination = plan.destination_identity;
    rewrite.quoted_source = packet.quoted_source;
    rewrite.quoted_destination = plan.quoted_outside;
    rewrite.hop = 0;
    let from_kernel = link.is_from(Role::Kernel);
    let mut kind = hop.kind;
    if kind == HopKind::Local {
        if plan.destination == packet.destination {
            rewrite.quoted_source = plan.quoted_source;
            return pass(environment, interface, link, state, Counter::PassLocal);
        }
        kind = HopKind::None;
    }
    // The route's MTU is too small, and the packet must not be fragmented: the egress is not known.
    let is_refused = kind == HopKind::TooBig && packet.dont_fragment != 0;
    let mut to_fabric = false;
    if kind != HopKind::None && !is_refused {
        match Role::from_raw(hop.role) {
            Some(Role::Fabric) => to_fabric = true,
            Some(Role::Access | Role::External) => {}
            Some(Role::Kernel) | None => kind = HopKind::None,
        }
    }
    if kind == HopKind::None {
        return pass(environment, interface, link, state, Counter::PassNoRoute);
    }
    if packet.hops <= 1 && !from_kernel {
        return pass(environment, interface, link, state, Counter::PassTtlExpired);
    }
    if plan.bound == 0 {
        // The kernel answers best what comes with what the sender sent; and it may want to redirect
        // a sender to a better router on its own link.
        if is_refused || kind == HopKind::TooBig {
            return pass(environment, interface, link, state, Counter::PassFragment);
        }
        if hop.ifindex == link.ingress {
            return pass(environment, interface, link, state, Counter::PassUnbound);
        }
    }
    if is_refused {
        return match I::answer_too_big(environment, interface, link, packet, hop.mtu) {
            Some(Counter::DropNoRoom) => Outcome::Drop(Counter::DropNoRoom),
            Some(counter) => Outcome::Reply(counter),
            None if from_kernel => Outcome::Drop(Counter::DropKernelPort),
            None => pass(environment, interface, link, state, Counter::PassFragment),
        };
    }
    rewrite.source = if to_fabric {
        plan.source_in_fabric
    } else {
        plan.source_outside
    };
    rewrite.destination = plan.destination;
    rewrite.quoted_source = plan.quoted_source;
    rewrite.quoted_destination = if to_fabric {
        plan.quoted_in_fabric
    } else {
        plan.quoted_outside
    };
    if kind == HopKind::NoNeighbor {
        // The kernel's error would quote a locator, and the anchor carries the packet as it is.
        if link.is_from(Role::Access) || link.is_from(Role::External) {
            rewrite.keep(packet);
        }
        return pass(environment, interface, link, state, Counter::PassNoNeighbor);
    }
    if kind == HopKind::TooBig {
        return pass(environment, interface, link, state, Counter::PassFragment);
    }
    if !to_fabric && plan.shows_locator != 0 {
        return Outcome::Drop(Counter::DropUnknownLocator);
    }
    rewrite.hop = u32::from(!from_kernel);
    join(state);
    if I::NUMBER == Ipv4::NUMBER {
        translate::apply(environment, link, &state.packet, &state.rewrite);
    } else {
        translate::apply_apart(environment, link, &state.packet, &state.rewrite);
    }
    join(state);
    let State { plan, hop, .. } = state;
    if !link::leave(environment, link, hop) {
        return Outcome::Drop(Counter::DropNoRoom);
    }
    if plan.bound == 0 {
        return Outcome::Redirect(Counter::Forwarded);
    }
    count_steps(environment, interface, link, state);
    let verdict = if state.plan.deliver != 0 || state.rewrite.changes_address(&state.packet) {
        Counter::Translated
    } else {
        Counter::Transit
    };
    Outcome::Redirect(verdict)
}

/// Passes the packet to the kernel, rewritten, in a frame that the kernel takes.
#[inline(always)]
fn pass<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &State<I>,
    counter: Counter,
) -> Outcome {
    prepare_for_kernel(environment, interface, link, state);
    Outcome::Pass(counter)
}

/// Rewrites the packet, in a frame that the kernel takes.
#[inline(never)]
fn prepare_for_kernel<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &State<I>,
) {
    let State {
        packet, rewrite, ..
    } = state;
    if rewrite.changes_address(packet) {
        translate::apply(environment, link, packet, rewrite);
    }
    let own = shared::mac(&interface.mac);
    if link.destination_mac != own {
        link::set_macs(environment, own, link.source_mac);
    }
}

/// Counts what was done with the packet on the way.
#[inline(always)]
fn count_steps<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &State<I>,
) {
    let State {
        packet,
        plan,
        rewrite,
        ..
    } = state;
    let length = link.length;
    let slot = interface.slot;
    if packet.opaque != 0 && (rewrite.changes_destination(packet) || rewrite.changes_source(packet))
    {
        environment.count(slot, Counter::AddressesOnly, length);
    }
    if rewrite.changes_destination(packet) {
        environment.count(slot, Counter::DestinationTranslated, length);
    }
    if rewrite.changes_source(packet) {
        environment.count(slot, Counter::SourceTranslated, length);
    }
    if rewrite.changes_quote(packet) {
        environment.count(slot, Counter::QuoteTranslated, length);
    }
    if plan.anchored != 0 {
        environment.count(slot, Counter::Anchored, length);
    }
    if plan.moved_on != 0 {
        environment.count(slot, Counter::MovedOn, length);
    }
    if plan.deliver != 0 {
        environment.count(slot, Counter::Delivered, length);
    }
}
