//! Atomic operations, in assembly, because the target offers none to Rust.

use core::arch::asm;

/// Exchanges the value at `place` for `value`: a full barrier. The value that was there.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
pub(crate) unsafe fn exchange(place: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        asm!(
            "{value} = xchg_64({place} + 0, {value})",
            place = in(reg) place,
            value = inout(reg) value,
            options(nostack, preserves_flags),
        );
    }
    value
}

/// Adds `value` to the value at `place`. The value that was there.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
pub(crate) unsafe fn fetch_add(place: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({place} + 0), {value})",
            place = in(reg) place,
            value = inout(reg) value,
            options(nostack, preserves_flags),
        );
    }
    value
}

/// As [`exchange`], of half a word.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
pub(crate) unsafe fn exchange_32(place: *mut u32, mut value: u32) -> u32 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        asm!(
            "{value} = xchg32_32({place} + 0, {value})",
            place = in(reg) place,
            value = inout(wreg) value,
            options(nostack, preserves_flags),
        );
    }
    value
}

/// As [`fetch_add`], of half a word.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
pub(crate) unsafe fn fetch_add_32(place: *mut u32, mut value: u32) -> u32 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u32 *)({place} + 0), {value})",
            place = in(reg) place,
            value = inout(wreg) value,
            options(nostack, preserves_flags),
        );
    }
    value
}
