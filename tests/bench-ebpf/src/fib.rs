//! Forwarding by the kernel's routing table, as plain XDP forwarding does.

use core::{mem::MaybeUninit, ptr::write_volatile};

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Query},
    helpers::bpf_fib_lookup,
};

use crate::packet::{Frame, decrement_ttl};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Room for a query, aligned to words.
#[repr(C, align(8))]
struct Room(MaybeUninit<Query>);

/// Clears a query. In place and word by word: the compiler would make a call of anything shorter, to a
/// function that clears byte by byte and takes almost as long as the kernel takes to answer.
#[inline(always)]
fn clear(room: &mut Room) -> &mut Query {
    let words = core::ptr::from_mut(room).cast::<u64>();
    // SAFETY: the structure consists of so many words and is aligned to them, and all zero is a valid
    // value of it.
    unsafe {
        for word in 0..size_of::<Room>() / 8 {
            write_volatile(words.add(word), 0);
        }
        room.0.assume_init_mut()
    }
}

#[inline(always)]
fn ask<C>(context: *mut C, query: &mut Query) -> bool {
    // SAFETY: context and query are valid, and the size is the query's.
    let answer = unsafe {
        bpf_fib_lookup(
            context.cast(),
            core::ptr::from_mut(query).cast(),
            size_of::<Query>() as i32,
            0,
        )
    };
    answer as u32 == BPF_FIB_LKUP_RET_SUCCESS
}

/// A MAC address of the kernel's answer, as words in memory order.
#[inline(always)]
fn words(mac: &[u8; 6]) -> [u16; 3] {
    let words = core::ptr::from_ref(mac).cast::<u16>();
    // SAFETY: the six bytes are valid, and lie at an even address in the query.
    unsafe { [words.read(), words.add(1).read(), words.add(2).read()] }
}

/// Finds the next hop of the IPv4 packet, writes its MAC addresses and decrements the TTL; the
/// egress interface.
#[inline(always)]
pub(crate) fn forward_ipv4<C>(context: *mut C, frame: Frame, ingress: u32) -> Option<u32> {
    if frame.byte(22) <= 1 {
        return None;
    }
    let mut room = Room(MaybeUninit::uninit());
    let query = clear(&mut room);
    query.family = AF_INET;
    query.l4_protocol = frame.byte(23);
    query.__bindgen_anon_1.tot_len = u16::from_be(frame.word(16));
    query.__bindgen_anon_2.tos = frame.byte(15);
    query.__bindgen_anon_3.ipv4_src = frame.long(26);
    query.__bindgen_anon_4.ipv4_dst = frame.long(30);
    query.ifindex = ingress;
    if !ask(context, query) {
        return None;
    }
    frame.set_macs(words(&query.dmac), words(&query.smac));
    decrement_ttl(frame);
    Some(query.ifindex)
}

/// As [`forward_ipv4`], for IPv6.
#[inline(always)]
pub(crate) fn forward_ipv6<C>(context: *mut C, frame: Frame, ingress: u32) -> Option<u32> {
    if frame.byte(21) <= 1 {
        return None;
    }
    let mut room = Room(MaybeUninit::uninit());
    let query = clear(&mut room);
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
    if !ask(context, query) {
        return None;
    }
    frame.set_macs(words(&query.dmac), words(&query.smac));
    frame.set_byte(21, frame.byte(21) - 1);
    Some(query.ifindex)
}
