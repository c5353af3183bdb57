//! Recording packets for a tracer: the maps and helpers around `natmig_ebpf::trace`.
//!
//! Nothing in here runs while nothing is traced. The frame's first bytes are kept when it comes in;
//! what became of it decides whether an event is made of them.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths of frames and numbers of CPUs and actions, which are small"
)]

use core::{arch::asm, ptr::addr_of_mut};

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
};
use natmig_common::{Counter, TRACE_SNAP, TraceEvent};
use natmig_ebpf::{Outcome, Scratch, trace};

use crate::{activity::Active, atomic::fetch_add, maps, xdp::count};

/// What a CPU keeps of the packet that it is processing.
#[repr(C)]
pub(crate) struct Record {
    /// The packet's number, as its CPU's activity has it: what is kept is of no other packet.
    number: u64,
    event: TraceEvent,
}

/// Keeps the frame as it comes in, if it is of the sample.
#[inline(never)]
pub(crate) fn begin(context: *mut xdp_md, active: &Active) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if now >= active.traced_until() {
        // The tracer is gone, and did not switch tracing off.
        active.end_trace();
        return;
    }
    let (Some(filter), Some(record)) = (maps::TRACE.get(0), maps::RECORD.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_get_prandom_u32() } > filter.sample {
        return;
    }
    // SAFETY: the record is this CPU's own, and the context the program's.
    unsafe {
        let event = addr_of_mut!((*record).event);
        (*event).time = now;
        (*event).length_before = bpf_xdp_get_buff_len(context) as u32;
        (*event).kept_before = keep(
            context,
            addr_of_mut!((*event).packet_before),
            (*event).length_before,
            filter.snap,
        );
        (*record).number = active.number();
    }
}

/// Makes an event of the frame, if it was kept and the filter wants it.
#[inline(always)]
pub(crate) fn end(context: *mut xdp_md, active: &Active, scratch: &Scratch, outcome: Outcome) {
    let action = match outcome {
        Outcome::Pass(..) => xdp_action::XDP_PASS,
        Outcome::Drop(..) => xdp_action::XDP_DROP,
        Outcome::Reply(..) => xdp_action::XDP_TX,
        Outcome::Redirect(..) => xdp_action::XDP_REDIRECT,
    };
    let Some(record) = maps::RECORD.get_ptr_mut(0) else {
        return;
    };
    // Through memory, of which the verifier knows nothing: it would examine the rest once for each
    // verdict otherwise.
    // SAFETY: the record is this CPU's own.
    unsafe {
        (*record).event.counter = outcome.counter().raw();
        (*record).event.action = action as u8;
        (*record).event.egress = trace::egress(scratch, outcome);
    }
    report(context, active, scratch);
}

/// As [`end`], with the verdict in the record.
#[inline(never)]
fn report(context: *mut xdp_md, active: &Active, scratch: &Scratch) {
    let (Some(filter), Some(record)) = (maps::TRACE.get_ptr_mut(0), maps::RECORD.get_ptr_mut(0))
    else {
        return;
    };
    // SAFETY: the record is this CPU's own; the context is the program's; the filter does not change
    // while anything is traced, but for its count of lost events.
    unsafe {
        if (*record).number != active.number() {
            return;
        }
        let event = &mut (*record).event;
        event.ingress = scratch.link.ingress;
        event.counters = trace::counters(scratch, event.counter);
        event.cpu = bpf_get_smp_processor_id() as u16;
        event.length_after = 0;
        event.kept_after = 0;
        if u32::from(event.action) != xdp_action::XDP_DROP {
            event.length_after = bpf_xdp_get_buff_len(context) as u32;
            event.kept_after = keep(
                context,
                addr_of_mut!(event.packet_after),
                event.length_after,
                (*filter).snap,
            );
        }
        trace::addresses(&event.packet_before, event.kept_before, &mut event.before);
        trace::addresses(&event.packet_after, event.kept_after, &mut event.after);
        if !trace::wants(&*filter, event) {
            return;
        }
        if maps::EVENTS.output::<TraceEvent>(&*event, 0).is_err() {
            fetch_add(addr_of_mut!((*filter).lost), 1);
            count_lost(event.ingress, event.length_before);
        }
    }
}

/// Counts a lost event for the interface.
///
/// # Safety
///
/// The program must run, which has its CPU for itself.
#[inline(always)]
unsafe fn count_lost(ifindex: u32, bytes: u32) {
    let Some(interface) = maps::INTERFACES.get(ifindex) else {
        return;
    };
    if let Some(traffic) = maps::COUNTERS.get_ptr_mut(interface.slot.into()) {
        count(traffic, Counter::TraceLost, bytes);
    }
}

/// Copies a frame's first bytes; how many.
///
/// # Safety
///
/// `context` must be the program's, `bytes` memory of a map.
#[inline(always)]
unsafe fn keep(context: *mut xdp_md, bytes: *mut [u8; TRACE_SNAP], length: u32, snap: u32) -> u16 {
    const { assert!(TRACE_SNAP.is_power_of_two()) };
    let count = length.min(snap).min(TRACE_SNAP as u32);
    if count == 0 {
        return 0;
    }
    let mut last = u64::from(count) - 1;
    // In assembly: the compiler knows more of the number than the verifier, and would drop the bound;
    // with a mask, the verifier of every kernel knows that it is neither too large nor zero.
    // SAFETY: nothing but a register is touched.
    unsafe {
        asm!("{0} = {0}", inout(reg) last, options(pure, nomem, nostack, preserves_flags));
    }
    last &= TRACE_SNAP as u64 - 1;
    // SAFETY: the caller vouches for both; `last + 1` is at most the array's length.
    let failed = unsafe { bpf_xdp_load_bytes(context, 0, bytes.cast(), last as u32 + 1) };
    if failed == 0 { count as u16 } else { 0 }
}
