//! Constants that the loader sets before the program is verified.

use core::ptr::{addr_of, read_volatile};

/// Not 0 if traffic is counted by binding.
#[unsafe(no_mangle)]
static BINDING_COUNTERS_ON: u32 = 1;

/// Not 0 on machines that may order a store before earlier loads.
#[unsafe(no_mangle)]
static WEAK_ORDER: u32 = 0;

/// Whether traffic is counted by binding.
#[inline(always)]
pub(crate) fn counts_bindings() -> bool {
    // SAFETY: the static is valid; volatile, because the loader overwrites it.
    unsafe { read_volatile(addr_of!(BINDING_COUNTERS_ON)) != 0 }
}

/// Whether the machine may order a store before earlier loads.
#[inline(always)]
pub(crate) fn is_weakly_ordered() -> bool {
    // SAFETY: the static is valid; volatile, because the loader overwrites it.
    unsafe { read_volatile(addr_of!(WEAK_ORDER)) != 0 }
}
