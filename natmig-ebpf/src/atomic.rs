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

/// Exchanges the value at `place` for `new` if it is `old`. The value that was there.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(place: *mut u64, mut old: u64, new: u64) -> u64 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            place = in(reg) place,
            new = in(reg) new,
            inout("r0") old,
            options(nostack, preserves_flags),
        );
    }
    old
}
