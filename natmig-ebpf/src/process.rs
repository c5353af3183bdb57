//! The way of a packet through the program.

use natmig_common::{Counter, Interface, Role, UNKNOWN_SLOT};

use crate::{
    address::HardwareAddress,
    arp,
    egress,
    environment::{Environment, Hop, HopKind},
    frag_needed,
    lookup::{Lookups, Visible},
    outcome::Outcome,
    packet::Packet,
    parse::{self, Link},
    plan::{self, Plan},
    translate::{self, Rewrite},
};

/// Decides what becomes of the frame that came in on `ingress`, rewrites it accordingly and counts
/// it.
#[inline(always)]
pub fn process<E: Environment>(environment: &E, ingress: u32) -> Outcome {
    let length = environment.frame_length();
    let known = environment.interface(ingress);
    let known = known.and_then(|found| Role::from_raw(found.role).map(|role| (found, role)));
    let Some((interface, role)) = known else {
        environment.count(UNKNOWN_SLOT, Counter::PassUnknownInterface, length);
        return Outcome::Pass(Counter::PassUnknownInterface);
    };
    let mut packet = Packet::new(ingress, interface.role);
    let mut plan = Plan::new();
    let outcome = decide(environment, interface, &mut packet, &mut plan);
    // A frame that is passed on from the router's own port would come back to it.
    let outcome = match outcome {
        Outcome::Pass(Counter::PassNoNeighbor | Counter::PassFragment) => outcome,
        Outcome::Pass(_) if role == Role::Kernel => Outcome::Drop(Counter::DropKernelPort),
        Outcome::Pass(_) | Outcome::Drop(_) | Outcome::Redirect(..) | Outcome::Reply(_) => outcome,
    };
    environment.count(interface.slot, outcome.counter(), length);
    if plan.destination_index != Visible::NO_ENTRY {
        environment.count_binding(plan.destination_index, true, length);
    }
    if plan.source_index != Visible::NO_ENTRY {
        environment.count_binding(plan.source_index, false, length);
    }
    outcome
}

/// Decides what becomes of the frame and rewrites it.
#[inline(always)]
fn decide<E: Environment>(
    environment: &E,
    interface: &Interface,
    packet: &mut Packet,
    plan: &mut Plan,
) -> Outcome {
    let mut lookups = Lookups::new();
    match parse::link(environment, packet) {
        Link::Ipv4 => {}
        Link::Arp => return arp::answer(environment, interface, packet, &mut lookups),
        Link::Other => return Outcome::Pass(Counter::PassOtherProtocol),
        Link::Truncated => return Outcome::Pass(Counter::PassMalformed),
    }
    if let Some(counter) = parse::ipv4(environment, packet) {
        return Outcome::Pass(counter);
    }
    if packet.destination_mac.is_group() {
        return Outcome::Pass(Counter::PassMulticast);
    }
    if let Some(counter) = plan::outer(environment, interface, packet, &mut lookups, plan) {
        return plan::refusal(counter);
    }
    if packet.quote != 0
        && let Some(counter) = plan::quote(environment, interface, packet, &mut lookups, plan)
    {
        return plan::refusal(counter);
    }
    if plan.bound == 0 {
        let rewrite = Rewrite::nothing(packet);
        return pass(environment, interface, packet, &rewrite, Counter::PassUnbound);
    }
    let mut hop = Hop::NONE;
    egress::find(environment, packet, plan, &mut hop);
    conclude(environment, interface, packet, plan, &hop)
}

/// Concludes with a packet whose next hop is known.
#[inline(never)]
fn conclude<E: Environment>(
    environment: &E,
    interface: &Interface,
    packet: &Packet,
    plan: &Plan,
    hop: &Hop,
) -> Outcome {
    // What the kernel may see: identities only, as the sender sent them.
    let exposed = Rewrite {
        source: plan.source_outside,
        destination: plan.destination_identity,
        quoted_source: packet.quoted_source,
        quoted_destination: plan.quoted_outside,
        hop: 0,
    };
    let from_kernel = packet.is_from(Role::Kernel);
    let mut kind = hop.kind;
    if kind == HopKind::Local {
        if plan.destination == packet.destination {
            let rewrite = Rewrite { quoted_source: plan.quoted_source, ..exposed };
            return pass(environment, interface, packet, &rewrite, Counter::PassLocal);
        }
        kind = HopKind::None;
    }
    // The route's MTU is too small, and the packet must not be fragmented: the egress is not known.
    let is_refused = kind == HopKind::TooBig && packet.dont_fragment != 0;
    let mut to_fabric = false;
    if kind != HopKind::None && !is_refused {
        match environment.interface(hop.ifindex).and_then(|found| Role::from_raw(found.role)) {
            Some(Role::Fabric) => to_fabric = true,
            Some(Role::Access | Role::External) => {}
            Some(Role::Kernel) | None => kind = HopKind::None,
        }
    }
    if kind == HopKind::None {
        return pass(environment, interface, packet, &exposed, Counter::PassNoRoute);
    }
    if packet.ttl <= 1 && !from_kernel {
        return pass(environment, interface, packet, &exposed, Counter::PassTtlExpired);
    }
    if is_refused {
        return match frag_needed::answer(environment, interface, packet, hop.mtu) {
            Some(outcome) => outcome,
            None if from_kernel => Outcome::Drop(Counter::DropKernelPort),
            None => pass(environment, interface, packet, &exposed, Counter::PassFragment),
        };
    }
    let mut rewrite = Rewrite {
        source: if to_fabric { plan.source_in_fabric } else { plan.source_outside },
        destination: plan.destination,
        quoted_source: plan.quoted_source,
        quoted_destination: if to_fabric { plan.quoted_in_fabric } else { plan.quoted_outside },
        hop: 0,
    };
    if kind == HopKind::NoNeighbor {
        // The kernel's error would quote a locator, and the anchor carries the packet as it is.
        if packet.is_from(Role::Access) || packet.is_from(Role::External) {
            rewrite = Rewrite::nothing(packet);
        }
        return pass(environment, interface, packet, &rewrite, Counter::PassNoNeighbor);
    }
    if kind == HopKind::TooBig {
        return pass(environment, interface, packet, &rewrite, Counter::PassFragment);
    }
    rewrite.hop = u32::from(!from_kernel);
    translate::apply(environment, packet, &rewrite);
    translate::address_frame(environment, hop.destination_mac, hop.source_mac);
    count_steps(environment, interface, packet, plan, &rewrite);
    let verdict = if plan.deliver != 0 || rewrite.changes_address(packet) {
        Counter::Translated
    } else {
        Counter::Transit
    };
    Outcome::Redirect(hop.ifindex, verdict)
}

/// Passes the packet to the kernel, rewritten, in a frame that the kernel takes.
#[inline(never)]
fn pass<E: Environment>(
    environment: &E,
    interface: &Interface,
    packet: &Packet,
    rewrite: &Rewrite,
    counter: Counter,
) -> Outcome {
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
#[inline(always)]
fn count_steps<E: Environment>(
    environment: &E,
    interface: &Interface,
    packet: &Packet,
    plan: &Plan,
    rewrite: &Rewrite,
) {
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
