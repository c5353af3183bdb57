//! Values that the compiler must take as they come.
//!
//! The compiler knows more about a value than the verifier can follow, and drops a bounds check or
//! recomputes a pointer on the strength of it; and it turns arithmetic into branches on which a
//! later load does not depend. A value that went through [`opaque`] is known to neither.

/// `value`, with nothing known of it. Costs no instruction.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // SAFETY: the assembly is empty and leaves the register as it is.
    unsafe {
        core::arch::asm!("/* {0} */", inout(reg) value, options(pure, nomem, preserves_flags, nostack));
    }
    value
}

/// `value`: other compilers' targets have no verifier.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn opaque(value: usize) -> usize {
    core::hint::black_box(value)
}
