//! Forwarding by the kernel's routing table, as plain XDP forwarding does.

use core::mem::zeroed;

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Query},
    helpers::bpf_fib_lookup,
};

use crate::packet::{Frame, decrement_ttl};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[inline(always)]
fn ask<C>(context: *mut C, query: &mut Query) -> bool {
    // SAFETY: context and query are valid, and the size is the query's.
    let answer = unsafe {
        bpf_fib_lookup(
            context.cast(),
            (&raw mut *query).cast(),
            size_of::<Query>() as i32,
            0,
        )
    };
    answer as u32 == BPF_FIB_LKUP_RET_SUCCESS
}

/// Finds the next hop of the IPv4 packet, writes its MAC addresses and decrements the TTL; the
/// egress interface.
#[inline(always)]
pub(crate) fn forward_ipv4<C>(context: *mut C, frame: Frame, ingress: u32) -> Option<u32> {
    if frame.byte(22) <= 1 {
        return None;
    }
    // SAFETY: all zero is a valid value of the kernel's structure.
    let mut query: Query = unsafe { zeroed() };
    query.family = AF_INET;
    query.l4_protocol = frame.byte(23);
    query.__bindgen_anon_1.tot_len = u16::from_be(frame.word(16));
    query.__bindgen_anon_2.tos = frame.byte(15);
    query.__bindgen_anon_3.ipv4_src = frame.long(26);
    query.__bindgen_anon_4.ipv4_dst = frame.long(30);
    query.ifindex = ingress;
    if !ask(context, &mut query) {
        return None;
    }
    frame.set_macs(query.dmac, query.smac);
    decrement_ttl(frame);
    Some(query.ifindex)
}

/// As [`forward_ipv4`], for IPv6.
#[inline(always)]
pub(crate) fn forward_ipv6<C>(context: *mut C, frame: Frame, ingress: u32) -> Option<u32> {
    if frame.byte(21) <= 1 {
        return None;
    }
    // SAFETY: all zero is a valid value of the kernel's structure.
    let mut query: Query = unsafe { zeroed() };
    query.family = AF_INET6;
    query.l4_protocol = frame.byte(20);
    query.__bindgen_anon_1.tot_len = u16::from_be(frame.word(18)) + 40;
    query.__bindgen_anon_3.ipv6_src = [
        frame.long(22),
        frame.long(26),
        frame.long(30),
        frame.long(34),
    ];
    query.__bindgen_anon_4.ipv6_dst = [
        frame.long(38),
        frame.long(42),
        frame.long(46),
        frame.long(50),
    ];
    query.ifindex = ingress;
    if !ask(context, &mut query) {
        return None;
    }
    frame.set_macs(query.dmac, query.smac);
    frame.set_byte(21, frame.byte(21) - 1);
    Some(query.ifindex)
}
