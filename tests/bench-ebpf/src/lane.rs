//! Generators, the sink, and the routers that natmig is compared with.

use aya_ebpf::{
    bindings::{TC_ACT_OK, xdp_action},
    helpers::{bpf_redirect, bpf_xdp_load_bytes},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use natmig_bench_ebpf::{Captured, Generator, IN, IPV4_FRAME, IPV6_FRAME, LANES, OUT};

use crate::{
    fib, maps, nat,
    packet::{self, Frame},
};

/// This CPU's generator.
#[inline(always)]
pub(crate) fn generator<'a>() -> Option<&'a mut Generator> {
    let generator = maps::GENERATORS.get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own, and programs of one CPU do not interrupt each other.
    Some(unsafe { &mut *generator })
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions; its answer is the verdict.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// Turns the frame into the next packet and sends it.
#[xdp]
pub(crate) fn generate_ipv4(context: XdpContext) -> u32 {
    let Some(generator) = generator() else {
        return xdp_action::XDP_ABORTED;
    };
    match packet::write_ipv4(context.data(), context.data_end(), generator) {
        Some(_) => redirect(generator.ifindex),
        None => xdp_action::XDP_ABORTED,
    }
}

/// As `generate_ipv4`, for IPv6.
#[xdp]
pub(crate) fn generate_ipv6(context: XdpContext) -> u32 {
    let Some(generator) = generator() else {
        return xdp_action::XDP_ABORTED;
    };
    match packet::write_ipv6(context.data(), context.data_end(), generator) {
        Some(_) => redirect(generator.ifindex),
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn ingress(context: &XdpContext) -> u32 {
    // SAFETY: the context is the program's own.
    unsafe { (*context.ctx).ingress_ifindex }
}

/// Counts what arrives, and drops it. Neighbours' questions are left to the kernel.
#[xdp]
pub(crate) fn sink(context: XdpContext) -> u32 {
    match frame(&context) {
        Some(frame) if packet::is_udp(frame) => {}
        _ => return xdp_action::XDP_PASS,
    }
    let lane = ingress(&context) % LANES;
    let Some(arrived) = maps::ARRIVED.get_ptr_mut(lane) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the element is this CPU's own.
    unsafe { *arrived += 1 };
    if maps::CAPTURE.get(0).is_some_and(|capture| *capture != 0) {
        capture(&context, lane);
    }
    xdp_action::XDP_DROP
}

#[inline(never)]
fn capture(context: &XdpContext, lane: u32) {
    let length = context.data_end() - context.data();
    let Some(mut entry) = maps::CAPTURED.reserve::<Captured>(0) else {
        return;
    };
    let captured = entry.as_mut_ptr();
    // SAFETY: the entry is this program's until it is submitted; lengths are those of its bytes.
    let loaded = unsafe {
        captured.write(Captured {
            lane,
            length: length as u32,
            bytes: [0; 64],
        });
        let bytes = (&raw mut (*captured).bytes).cast();
        if length == IPV6_FRAME {
            bpf_xdp_load_bytes(context.ctx, 0, bytes, IPV6_FRAME as u32)
        } else {
            bpf_xdp_load_bytes(context.ctx, 0, bytes, IPV4_FRAME as u32)
        }
    };
    if loaded == 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
}

/// The floor: sends what comes in out of the other interface, as it is.
#[xdp]
pub(crate) fn bare(context: XdpContext) -> u32 {
    maps::DEVICES
        .redirect(ingress(&context) + (OUT - IN), 0)
        .unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn frame(context: &XdpContext) -> Option<Frame> {
    Frame::new(context.data(), context.data_end(), IPV4_FRAME)
}

#[inline(always)]
fn send(egress: Option<u32>) -> u32 {
    egress.map_or(xdp_action::XDP_PASS, |egress| {
        maps::DEVICES
            .redirect(egress, 0)
            .unwrap_or(xdp_action::XDP_ABORTED)
    })
}

/// Forwards by the kernel's routing table, without translation.
#[xdp]
pub(crate) fn forward(context: XdpContext) -> u32 {
    let Some(frame) = frame(&context) else {
        return xdp_action::XDP_PASS;
    };
    if packet::is_ipv4(frame) {
        return send(fib::forward_ipv4(context.ctx, frame, ingress(&context)));
    }
    match Frame::new(context.data(), context.data_end(), IPV6_FRAME) {
        Some(frame) if packet::is_ipv6(frame) => {
            send(fib::forward_ipv6(context.ctx, frame, ingress(&context)))
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// The least NAT on XDP: hash, routing table, redirect.
#[xdp]
pub(crate) fn hash_nat(context: XdpContext) -> u32 {
    match frame(&context) {
        Some(frame) if packet::is_ipv4(frame) => {
            nat::translate_ipv4(frame);
            send(fib::forward_ipv4(context.ctx, frame, ingress(&context)))
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// The same on the kernel's packets, behind its receive path.
#[classifier]
pub(crate) fn hash_nat_tc(context: TcContext) -> i32 {
    match Frame::new(context.data(), context.data_end(), IPV4_FRAME) {
        Some(frame) if packet::is_ipv4(frame) => {
            nat::translate_ipv4(frame);
            // SAFETY: the context is the program's own.
            let ingress = unsafe { (*context.skb.skb).ingress_ifindex };
            match fib::forward_ipv4(context.skb.skb, frame, ingress) {
                Some(egress) => redirect(egress) as i32,
                None => TC_ACT_OK,
            }
        }
        _ => TC_ACT_OK,
    }
}
