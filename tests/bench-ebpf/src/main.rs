//! The programs of the benchmarks.
//!
//! `packet` writes and reads frames, `lane` has generator, sink and the routers that natmig is
//! compared with, `step` the single steps that are timed by `BPF_PROG_TEST_RUN`.

#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "the verifier and the clock see every call"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "parts of numbers and of addresses, and helpers' answers, which are verdicts"
)]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "frames' headers lie at even addresses"
)]

mod fib;
mod lane;
mod maps;
mod nat;
mod packet;
mod step;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program from which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
