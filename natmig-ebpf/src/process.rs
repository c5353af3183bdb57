//! The way of a packet through the program.

use natmig_common::{Counter, Interface, Role, UNKNOWN_SLOT};

use crate::{
    address::HardwareAddress,
    arp, egress,
    environment::{Environment, HopKind},
    frag_needed,
    lookup::Visible,
    outcome::Outcome,
    parse::{self, Link},
    plan,
    scratch::Scratch,
    translate,
};

/// Decides what becomes of the frame that came in on `ingress`, rewrites it accordingly and counts
/// it.
#[inline(always)]
pub fn process<E: Environment>(environment: &E, scratch: &mut Scratch, ingress: u32) -> Outcome {
    let length = environment.frame_length();
    let known = environment.interface(ingress);
    let known = known.and_then(|found| Role::from_raw(found.role).map(|role| (found, role)));
    let Some((interface, role)) = known else {
        environment.count(UNKNOWN_SLOT, Counter::PassUnknownInterface, length);
        return Outcome::Pass(Counter::PassUnknownInterface);
    };
    scratch.packet.begin(ingress, interface.role);
    scratch.plan.begin();
    scratch.lookups.begin();
    let outcome = match decide(environment, interface, scratch) {
        outcome @ Outcome::Pass(Counter::PassNoNeighbor | Counter::PassFragment) => outcome,
        // What is passed on from the router's own port would come back to it.
        Outcome::Pass(_) if role == Role::Kernel => Outcome::Drop(Counter::DropKernelPort),
        outcome @ (Outcome::Pass(_)
        | Outcome::Drop(_)
        | Outcome::Redirect(..)
        | Outcome::Reply(_)) => outcome,
    };
    environment.count(interface.slot, outcome.counter(), length);
    if scratch.plan.destination_index != Visible::NO_ENTRY {
        environment.count_binding(scratch.plan.destination_index, true, length);
    }
    if scratch.plan.source_index != Visible::NO_ENTRY {
        environment.count_binding(scratch.plan.source_index, false, length);
    }
    outcome
}

/// Decides what becomes of the frame and rewrites it.
#[inline(always)]
fn decide<E: Environment>(
    environment: &E,
    interface: &Interface,
    scratch: &mut Scratch,
) -> Outcome {
    match parse::link(environment, &mut scratch.packet) {
        Link::Ipv4 => {}
        Link::Arp => return arp::answer(environment, interface, scratch),
        Link::Other => return Outcome::Pass(Counter::PassOtherProtocol),
        Link::Truncated => return Outcome::Pass(Counter::PassMalformed),
    }
    if let Some(counter) = parse::ipv4(environment, &mut scratch.packet) {
        return Outcome::Pass(counter);
    }
    if scratch.packet.destination_mac.is_group() {
        return Outcome::Pass(Counter::PassMulticast);
    }
    if let Some(outcome) = plan::outer(environment, interface, scratch) {
        return outcome;
    }
    if scratch.packet.quote != 0
        && let Some(outcome) = plan::quote(environment, interface, scratch)
    {
        return outcome;
    }
    if scratch.plan.bound == 0 {
        scratch.rewrite.keep(&scratch.packet);
        return pass(environment, interface, scratch, Counter::PassUnbound);
    }
    egress::find(environment, scratch);
    conclude(environment, interface, scratch)
}

/// Concludes with a packet whose next hop is known.
#[inline(never)]
fn conclude<E: Environment>(
    environment: &E,
    interface: &Interface,
    scratch: &mut Scratch,
) -> Outcome {
    let Scratch {
        packet,
        plan,
        hop,
        rewrite,
        ..
    } = scratch;
    // What the kernel may see: identities only, as the sender sent them.
    rewrite.source = plan.source_outside;
    rewrite.destination = plan.destination_identity;
    rewrite.quoted_source = packet.quoted_source;
    rewrite.quoted_destination = plan.quoted_outside;
    rewrite.hop = 0;
    let from_kernel = packet.is_from(Role::Kernel);
    let mut kind = hop.kind;
    if kind == HopKind::Local {
        if plan.destination == packet.destination {
            rewrite.quoted_source = plan.quoted_source;
            return pass(environment, interface, scratch, Counter::PassLocal);
        }
        kind = HopKind::None;
    }
    // The route's MTU is too small, and the packet must not be fragmented: the egress is not known.
    let is_refused = kind == HopKind::TooBig && packet.dont_fragment != 0;
    let mut to_fabric = false;
    if kind != HopKind::None && !is_refused {
        match environment
            .interface(hop.ifindex)
            .and_then(|found| Role::from_raw(found.role))
        {
            Some(Role::Fabric) => to_fabric = true,
            Some(Role::Access | Role::External) => {}
            Some(Role::Kernel) | None => kind = HopKind::None,
        }
    }
    if kind == HopKind::None {
        return pass(environment, interface, scratch, Counter::PassNoRoute);
    }
    if packet.ttl <= 1 && !from_kernel {
        return pass(environment, interface, scratch, Counter::PassTtlExpired);
    }
    if is_refused {
        return match frag_needed::answer(environment, interface, packet, hop.mtu) {
            Some(outcome) => outcome,
            None if from_kernel => Outcome::Drop(Counter::DropKernelPort),
            None => pass(environment, interface, scratch, Counter::PassFragment),
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
        if packet.is_from(Role::Access) || packet.is_from(Role::External) {
            rewrite.keep(packet);
        }
        return pass(environment, interface, scratch, Counter::PassNoNeighbor);
    }
    if kind == HopKind::TooBig {
        return pass(environment, interface, scratch, Counter::PassFragment);
    }
    rewrite.hop = u32::from(!from_kernel);
    translate::apply(environment, packet, rewrite);
    translate::address_frame(environment, hop.destination_mac, hop.source_mac);
    count_steps(environment, interface, scratch);
    let verdict = if scratch.plan.deliver != 0 || scratch.rewrite.changes_address(&scratch.packet) {
        Counter::Translated
    } else {
        Counter::Transit
    };
    Outcome::Redirect(scratch.hop.ifindex, verdict)
}

/// Passes the packet to the kernel, rewritten, in a frame that the kernel takes.
#[inline(never)]
fn pass<E: Environment>(
    environment: &E,
    interface: &Interface,
    scratch: &Scratch,
    counter: Counter,
) -> Outcome {
    let Scratch {
        packet, rewrite, ..
    } = scratch;
    if rewrite.changes_address(packet) {
        translate::apply(environment, packet, rewrite);
    }
    let own = HardwareAddress::new(interface.mac);
    if packet.destination_mac != own {
        translate::address_frame(environment, own, packet.source_mac);
    }
    Outcome::Pass(counter)
}

/// Counts what was done with the packet on the way.
#[inline(never)]
fn count_steps<E: Environment>(environment: &E, interface: &Interface, scratch: &Scratch) {
    let Scratch {
        packet,
        plan,
        rewrite,
        ..
    } = scratch;
    let length = environment.frame_length();
    let slot = interface.slot;
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
