//! Values that the compiler must take as they come.
//!
//! The compiler knows more about a value than the verifier can follow, and drops a bounds check or
//! recomputes a pointer on the strength of it; and it turns arithmetic into branches on which a
//! later load does not depend. A value that went through [`opaque`] is one of which
//! the compiler knows nothing.

/// `value`, with nothing known of it. Costs one instruction: without any, its line information would
/// name an instruction twice, which the kernel refuses.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // SAFETY: the assembly copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, preserves_flags, nostack));
    }
    value
}

/// As [`opaque`], for pointers.
#[cfg(target_arch = "bpf")]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "nothing is read or written through the pointer"
)]
#[inline(always)]
pub(crate) fn opaque_pointer(mut pointer: *mut u8) -> *mut u8 {
    // SAFETY: the assembly copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, preserves_flags, nostack));
    }
    pointer
}

/// `value`: other compilers' targets have no verifier.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn opaque(value: usize) -> usize {
    core::hint::black_box(value)
}

/// As [`opaque`], for pointers.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn opaque_pointer(pointer: *mut u8) -> *mut u8 {
    pointer
}

/// As [`opaque`], for shorter numbers.
#[inline(always)]
pub(crate) fn opaque_u16(value: u16) -> u16 {
    let [low, high, ..] = opaque(usize::from(value)).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// `pointer`, by way of `value`: what is read through the result is read after `value`, on every
/// machine (an address dependency).
#[cfg(target_arch = "bpf")]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "nothing is read or written through the pointer"
)]
#[inline(always)]
pub(crate) fn dependent<T>(pointer: *const T, value: u64) -> *const T {
    let mut pointer = pointer;
    // SAFETY: the assembly adds 0.
    unsafe {
        core::arch::asm!(
            "{1} &= 0",
            "{0} += {1}",
            inout(reg) pointer,
            inout(reg) value => _,
            options(pure, nomem, preserves_flags, nostack),
        );
    }
    pointer
}

/// `pointer`: other targets are for tests in one thread.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn dependent<T>(pointer: *const T, _value: u64) -> *const T {
    pointer
}

/// Lets the compiler forget what it knows of memory, so that it stores and loads what it might have
/// kept in registers. Of what a program loads from a map the verifier knows nothing: behind this it
/// examines the rest of the program once, not once for each way that leads here.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn join<T>(value: &mut T) {
    // SAFETY: the assembly copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) core::ptr::from_mut(value) => _, options(preserves_flags, nostack));
    }
}

/// Nothing: other targets have no verifier.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn join<T>(_value: &mut T) {}

/// Lets the compiler forget what is at `place`: it is written before, and read again after. What is in
/// memory of a map the verifier does not follow, so that in a loop it sees one state, not one for each
/// way on which the loop came there.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn forget<T>(place: &mut T) {
    // SAFETY: the assembly copies a register to itself; that it might write `place`, which it may, is
    // all that the compiler knows.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) core::ptr::from_mut(place) => _, options(preserves_flags, nostack));
    }
}

/// As on BPF, where it matters.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn forget<T>(place: &mut T) {
    core::hint::black_box(place);
}

/// Uses `value`, so that whoever computes it does compute it.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn consume(value: usize) {
    // SAFETY: the assembly copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value => _, options(nomem, preserves_flags, nostack));
    }
}

/// Nothing: other targets have no verifier.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn consume(_value: usize) {}
