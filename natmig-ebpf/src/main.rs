//! The XDP program: wires context and maps to the pure packet logic in `lib.rs`.

#![no_std]
#![no_main]
#![expect(unstable_features, reason = "inline assembly for BPF")]
#![feature(asm_experimental_arch)]

mod activity;
mod maps;
mod settings;
mod xdp;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use natmig_ebpf::{Outcome, process};

use crate::xdp::Xdp;

/// The program on every interface of a router.
#[xdp(frags)]
pub(crate) fn natmig(context: XdpContext) -> u32 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else {
        return xdp_action::XDP_PASS;
    };
    let Some(active) = activity::enter() else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the context is the program's own, and so is this CPU's scratch memory: the program is
    // not entered again on a CPU on which it runs.
    let outcome = unsafe {
        process(
            &Xdp::new(context.ctx),
            &mut *scratch,
            (*context.ctx).ingress_ifindex,
        )
    };
    activity::leave(&active);
    match outcome {
        Outcome::Pass(_) => xdp_action::XDP_PASS,
        Outcome::Drop(_) => xdp_action::XDP_DROP,
        Outcome::Reply(_) => xdp_action::XDP_TX,
        // SAFETY: the helper has no preconditions; its answer is the verdict.
        Outcome::Redirect(ifindex, _) => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program from which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
