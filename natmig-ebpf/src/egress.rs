//! The next hop of a packet: the VM's own attachment for what is delivered here, else a route of our
//! own, else the kernel's routing table.

use natmig_common::{Counter, Interface, NextHop, Route};

use crate::{
    address::Address as _,
    environment::{Environment, HopKind, RouteQuery},
    family::Ip,
    link::Link,
    packet::Packet,
    scratch::State,
    shared,
};

/// Finds the next hop of the packet under its planned destination.
#[inline(always)]
pub(crate) fn find<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) {
    if state.plan.deliver != 0 {
        deliver(environment, state);
        return;
    }
    let route = if state.plan.destination == state.packet.destination {
        state.plan.route
    } else {
        I::route(environment, state.plan.destination)
    };
    if route != 0
        && environment.believes_routes()
        && let Some(next) = next_hop(environment, &state.packet, u32::from(route))
    {
        let State { packet, hop, .. } = state;
        hop.kind = if packet.length > u32::from(next.mtu) {
            HopKind::TooBig
        } else {
            HopKind::Forward
        };
        hop.role = next.role;
        hop.vlan = next.vlan;
        hop.ifindex = next.ifindex;
        hop.device = next.device;
        hop.mtu = next.mtu;
        hop.source_mac = shared::mac(&next.source_mac);
        hop.destination_mac = shared::mac(&next.destination_mac);
        return;
    }
    ask(environment, interface, link, state);
}

/// The next hop that the packet's flow takes.
#[inline(always)]
pub(crate) fn next_hop<'a, E: Environment, I: Ip>(
    environment: &'a E,
    packet: &Packet<I>,
    route: u32,
) -> Option<&'a NextHop> {
    let Route { first, count } = Route::from_word(environment.route(route))?;
    let mut number = first;
    if count > 1 {
        number = number.wrapping_add(spread(packet, u32::from(count)));
    }
    let next = environment.next_hop(number)?;
    if shared::is_valid(next) {
        Some(next)
    } else {
        None
    }
}

/// A number below `count` that all packets of a flow share, fragments included.
#[inline(always)]
fn spread<I: Ip>(packet: &Packet<I>, count: u32) -> u32 {
    let mixed = packet
        .source
        .sum()
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(packet.destination.sum())
        .wrapping_add(u64::from(packet.protocol));
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32;
    // The high half of a product of halves: evenly spread, without a division.
    u32::try_from(mixed.wrapping_mul(u64::from(count)) >> 32).unwrap_or(0)
}

/// Out of the VM's access interface to its MAC address.
#[inline(always)]
fn deliver<E: Environment, I: Ip>(environment: &E, state: &mut State<I>) {
    let State {
        packet, plan, hop, ..
    } = state;
    hop.kind = HopKind::None;
    let Some(interface) = environment.interface(plan.deliver) else {
        return;
    };
    hop.leave_on(plan.deliver, interface);
    hop.source_mac = shared::mac(&interface.mac);
    hop.destination_mac = plan.deliver_mac;
    hop.mtu = interface.mtu;
    hop.kind = if packet.length > u32::from(interface.mtu) {
        HopKind::TooBig
    } else {
        HopKind::Forward
    };
}

/// Asks the kernel.
#[inline(never)]
fn ask<E: Environment, I: Ip>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    state: &mut State<I>,
) {
    let State {
        packet, plan, hop, ..
    } = state;
    let mut query = RouteQuery::<I> {
        ingress: link.ingress,
        source: packet.source,
        destination: plan.destination,
        length: u16::try_from(packet.length).unwrap_or(u16::MAX),
        protocol: packet.protocol,
        class: packet.class,
    };
    environment.fib(&query, hop);
    if hop.kind == HopKind::TooBig && packet.dont_fragment == 0 {
        // The kernel is to fragment it, and the egress role decides what it gets.
        let mtu = hop.mtu;
        query.length = 0;
        environment.fib(&query, hop);
        hop.mtu = mtu;
        if hop.kind == HopKind::Forward {
            hop.kind = HopKind::TooBig;
        }
    }
    hop.role = 0;
    if let Some(egress) = environment.interface(hop.ifindex) {
        hop.leave_on(hop.ifindex, egress);
    }
    if plan.bound != 0 {
        environment.count(interface.slot, Counter::FibAsked, link.length);
    }
}
