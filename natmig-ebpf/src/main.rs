//! The XDP program: wires context and maps to the pure packet logic in `lib.rs`.

#![no_std]
#![no_main]
#![expect(unstable_features, reason = "inline assembly for BPF")]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "the verifier and the clock see every call"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers' answers, which are verdicts"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macro hands the context over"
)]

mod activity;
mod atomic;
mod binding;
mod maps;
mod settings;
mod tracer;
mod xdp;

use core::ptr::addr_of_mut;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_redirect},
    macros::{raw_tracepoint, xdp},
    programs::{RawTracePointContext, XdpContext},
};
use natmig_common::{Ipv4, Ipv6};
use natmig_ebpf::{Outcome, Shortcut, process, shortcut};

use crate::{activity::Active, xdp::Xdp};

/// The program on every interface of a router.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn natmig(context: XdpContext) -> u32 {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(active) = activity::enter(cpu) else {
        return xdp_action::XDP_PASS;
    };
    let Some(environment) = Xdp::new(context.ctx, cpu) else {
        activity::leave(&active);
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*context.ctx).ingress_ifindex };
    // Of a packet that is traced, the tracer wants to know all that the whole process finds out.
    if active.traced_until() == 0
        && let Some(done) = shortcut(&environment, ingress)
    {
        activity::leave(&active);
        return match done {
            Shortcut::Pass(_) => xdp_action::XDP_PASS,
            Shortcut::Redirect(device, _) => redirect(device),
        };
    }
    whole(&environment, &active)
}

/// What becomes of a packet that did not take the shortcut. A function of its own, so that the
/// verifier examines it once, and the shortcut has the registers for itself.
#[inline(never)]
fn whole(environment: &Xdp, active: &Active) -> u32 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else {
        activity::leave(active);
        return xdp_action::XDP_PASS;
    };
    let context = environment.context();
    if active.traced_until() != 0 {
        tracer::begin(context, active);
    }
    // SAFETY: the context is the program's own, and so is this CPU's scratch memory: the program is
    // not entered again on a CPU on which it runs.
    let (scratch, ingress) = unsafe { (&mut *scratch, (*context).ingress_ifindex) };
    let outcome = process(environment, scratch, ingress);
    // Asked again, so that the verifier need not tell packets that are traced from others.
    if active.traced_until() != 0 {
        tracer::end(context, active, scratch, outcome);
    }
    activity::leave(active);
    match outcome {
        Outcome::Pass(_) => xdp_action::XDP_PASS,
        Outcome::Drop(_) => xdp_action::XDP_DROP,
        Outcome::Reply(_) => xdp_action::XDP_TX,
        Outcome::Redirect(_) => redirect(scratch.device),
    }
}

/// Has the frame leave on the device.
#[inline(always)]
fn redirect(device: u32) -> u32 {
    match maps::DEVICES.redirect(device, 0) {
        Ok(verdict) => verdict,
        // Not in the map: the kernel looks for it.
        // SAFETY: the helper has no preconditions, and its answer is the verdict.
        Err(_) => unsafe { bpf_redirect(device, 0) as u32 },
    }
}

/// Stamps the heartbeat with the kernel's clock, which userspace cannot read: the agent runs this
/// program while its routes are right.
#[xdp]
#[inline(always)]
pub(crate) fn natmig_heartbeat(_context: XdpContext) -> u32 {
    if let Some(heartbeat) = maps::HEARTBEAT.get_ptr_mut(0) {
        // SAFETY: the element is valid, and aligned; volatile, because packets read it meanwhile. The
        // helper has no preconditions.
        unsafe { addr_of_mut!((*heartbeat).beat).write_volatile(bpf_jiffies64()) };
    }
    xdp_action::XDP_PASS
}

/// Adds to the banks what the CPU has not added yet: see [`natmig_common::names::BANK_PROGRAM`]. Userspace runs it
/// on every CPU: on another one it interrupts whatever runs there, on its own it may be interrupted.
#[raw_tracepoint]
#[inline(always)]
pub(crate) fn natmig_bank(_context: RawTracePointContext) -> u32 {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let is_done = activity::between_packets(cpu, || {
        binding::bank_rest::<Ipv4>(cpu) && binding::bank_rest::<Ipv6>(cpu)
    });
    u32::from(is_done != Some(true))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program from which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
