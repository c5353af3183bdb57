//! Single steps and whole programs, to be timed by `BPF_PROG_TEST_RUN`.
//!
//! A test run does not restore the packet between its repetitions, so every program first writes a
//! fresh packet itself; `step_ipv4` and `step_ipv6` do no more than that, and are subtracted.
//! Programs that cannot do so (natmig's) are called behind it.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use natmig_bench_ebpf::{BINDINGS, Generator, IPV4_FRAME, IPV6_FRAME};

use crate::{
    fib,
    lane::generator,
    maps, nat,
    packet::{self, Frame, Numbers},
};

/// Element of `PROGRAMS` that does nothing.
const EMPTY: u32 = 0;
/// Element of `PROGRAMS` that is timed.
const SUBJECT: u32 = 1;

const DONE: u32 = xdp_action::XDP_TX;
const FAILED: u32 = xdp_action::XDP_ABORTED;

/// Writes the next packet.
#[inline(always)]
fn ipv4(context: &XdpContext) -> Option<(Numbers, Frame, &'static mut Generator)> {
    let generator = generator()?;
    let numbers = packet::write_ipv4(context.data(), context.data_end(), generator)?;
    let frame = Frame::new(context.data(), context.data_end(), IPV4_FRAME)?;
    Some((numbers, frame, generator))
}

#[inline(always)]
fn ipv6(context: &XdpContext) -> Option<(Numbers, Frame, &'static mut Generator)> {
    let generator = generator()?;
    let numbers = packet::write_ipv6(context.data(), context.data_end(), generator)?;
    let frame = Frame::new(context.data(), context.data_end(), IPV6_FRAME)?;
    Some((numbers, frame, generator))
}

#[inline(always)]
fn verdict(done: Option<bool>) -> u32 {
    if done == Some(true) { DONE } else { FAILED }
}

/// Nothing at all.
#[xdp(frags)]
pub(crate) fn step_empty(_context: XdpContext) -> u32 {
    DONE
}

/// Writing the packet.
#[xdp(frags)]
pub(crate) fn step_ipv4(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|_| true))
}

/// As `step_ipv4`, for IPv6.
#[xdp(frags)]
pub(crate) fn step_ipv6(context: XdpContext) -> u32 {
    verdict(ipv6(&context).map(|_| true))
}

/// Recognising headers.
#[xdp(frags)]
pub(crate) fn step_parse(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| packet::is_ipv4(frame)))
}

/// A hash look-up that finds.
#[xdp(frags)]
pub(crate) fn step_hash_hit(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| {
        // SAFETY: elements are never freed while the programs run.
        unsafe { maps::HASH_IPV4.get(frame.long(30)) }.is_some()
    }))
}

/// A hash look-up in vain.
#[xdp(frags)]
pub(crate) fn step_hash_miss(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| {
        // SAFETY: as above.
        unsafe { maps::HASH_IPV4.get(frame.long(26)) }.is_none()
    }))
}

/// A hash look-up with a key of 16 bytes.
#[xdp(frags)]
pub(crate) fn step_hash_hit_ipv6(context: XdpContext) -> u32 {
    verdict(ipv6(&context).map(|(_, frame, _)| {
        let key = [
            frame.long(38),
            frame.long(42),
            frame.long(46),
            frame.long(50),
        ];
        // SAFETY: as above.
        unsafe { maps::HASH_IPV6.get(key) }.is_some()
    }))
}

/// Reading a binding's cache line in an array.
#[xdp(frags)]
pub(crate) fn step_line(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(numbers, _, _)| {
        maps::LINES
            .get(numbers.first % BINDINGS)
            .is_some_and(|line| line[0] != u64::MAX)
    }))
}

/// Counting by binding, in a map of its own.
#[xdp(frags)]
pub(crate) fn step_binding_counter(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(numbers, _, _)| {
        let counter = maps::BINDING_COUNTERS.get_ptr_mut(numbers.first % BINDINGS);
        counter.is_some_and(|counter| {
            // SAFETY: only this program writes it, on one CPU.
            unsafe {
                (*counter)[0] += 1;
                (*counter)[1] += IPV4_FRAME as u64;
            }
            true
        })
    }))
}

/// A counter of this CPU.
#[xdp(frags)]
pub(crate) fn step_counter(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|_| {
        maps::COUNTERS.get_ptr_mut(3).is_some_and(|counter| {
            // SAFETY: the element is this CPU's own.
            unsafe {
                (*counter)[0] += 1;
                (*counter)[1] += IPV4_FRAME as u64;
            }
            true
        })
    }))
}

/// Asking the kernel's routing table.
#[xdp(frags)]
pub(crate) fn step_fib(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| {
        // SAFETY: the context is the program's own.
        let ingress = unsafe { (*context.ctx).ingress_ifindex };
        fib::forward_ipv4(context.ctx, frame, ingress).is_some()
    }))
}

/// As `step_fib`, for IPv6.
#[xdp(frags)]
pub(crate) fn step_fib_ipv6(context: XdpContext) -> u32 {
    verdict(ipv6(&context).map(|(_, frame, _)| {
        // SAFETY: the context is the program's own.
        let ingress = unsafe { (*context.ctx).ingress_ifindex };
        fib::forward_ipv6(context.ctx, frame, ingress).is_some()
    }))
}

/// Choosing the interface to send from.
#[xdp(frags)]
pub(crate) fn step_redirect(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, _, generator)| {
        // SAFETY: the helper has no preconditions.
        let answer = unsafe { aya_ebpf::helpers::bpf_redirect(generator.ifindex, 0) };
        answer as u32 == xdp_action::XDP_REDIRECT
    }))
}

/// The least NAT with two hash look-ups.
#[xdp(frags)]
pub(crate) fn step_hash_nat(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| nat::translate_ipv4(frame)))
}

/// As `step_hash_nat`, for IPv6.
#[xdp(frags)]
pub(crate) fn step_hash_nat_ipv6(context: XdpContext) -> u32 {
    verdict(ipv6(&context).map(|(_, frame, _)| nat::translate_ipv6(frame)))
}

/// The least NAT, forwarded by the routing table.
#[xdp(frags)]
pub(crate) fn step_hash_nat_fib(context: XdpContext) -> u32 {
    verdict(ipv4(&context).map(|(_, frame, _)| {
        // SAFETY: the context is the program's own.
        let ingress = unsafe { (*context.ctx).ingress_ifindex };
        nat::translate_ipv4(frame) && fib::forward_ipv4(context.ctx, frame, ingress).is_some()
    }))
}

/// Calling a program that does nothing.
#[xdp(frags)]
pub(crate) fn step_call(context: XdpContext) -> u32 {
    if ipv4(&context).is_some() {
        // SAFETY: nothing is to be dropped.
        unsafe { maps::PROGRAMS.tail_call(&context, EMPTY) };
    }
    FAILED
}

/// As `step_call`, for IPv6.
#[xdp(frags)]
pub(crate) fn step_call_ipv6(context: XdpContext) -> u32 {
    if ipv6(&context).is_some() {
        // SAFETY: nothing is to be dropped.
        unsafe { maps::PROGRAMS.tail_call(&context, EMPTY) };
    }
    FAILED
}

/// Calling the program that is timed.
#[xdp(frags)]
pub(crate) fn step_subject_ipv4(context: XdpContext) -> u32 {
    if ipv4(&context).is_some() {
        // SAFETY: nothing is to be dropped.
        unsafe { maps::PROGRAMS.tail_call(&context, SUBJECT) };
    }
    FAILED
}

/// As `step_subject_ipv4`, for IPv6.
#[xdp(frags)]
pub(crate) fn step_subject_ipv6(context: XdpContext) -> u32 {
    if ipv6(&context).is_some() {
        // SAFETY: nothing is to be dropped.
        unsafe { maps::PROGRAMS.tail_call(&context, SUBJECT) };
    }
    FAILED
}

/// Puts the binding of the generator's next number into both hash maps: its destination's address,
/// and its source's.
#[xdp]
pub(crate) fn fill(_context: XdpContext) -> u32 {
    let Some(generator) = generator() else {
        return FAILED;
    };
    let number = generator.state as u32;
    generator.state += 1;
    let whole = |side: &natmig_bench_ebpf::Side| {
        let long = |high: u16, low: u16| u32::from(high.to_be()) | u32::from(low.to_be()) << 16;
        let words = side.ipv6(number);
        let [a, b] = natmig_bench_ebpf::IPV6_PREFIX;
        [
            long(a, b),
            long(side.base as u16, words[0]),
            0,
            long(words[1], words[2]),
        ]
    };
    let done = if generator.destination.shift == 0 {
        let from = generator.destination.ipv4(number).to_be();
        let to = generator.source.ipv4(number).to_be();
        maps::HASH_IPV4.insert(from, to, 0).is_ok()
    } else {
        let from = whole(&generator.destination);
        let to = whole(&generator.source);
        maps::HASH_IPV6.insert(from, to, 0).is_ok()
    };
    verdict(Some(done))
}
