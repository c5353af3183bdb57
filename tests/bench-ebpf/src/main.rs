//! The programs of the benchmarks.
//!
//! `packet` writes and reads frames, `lane` has generator, sink and the routers that natmig is
//! compared with, `step` the single steps that are timed by `BPF_PROG_TEST_RUN`.

#![no_std]
#![no_main]

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
