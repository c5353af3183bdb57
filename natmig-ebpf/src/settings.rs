//! Constants that the loader sets before the program is verified.

use core::ptr::{addr_of, read_volatile};

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident = $default:literal, $function:ident;)+) => {$(
        $(#[doc = $doc])+
        #[unsafe(no_mangle)]
        static $name: u32 = $default;

        $(#[doc = $doc])+
        #[inline(always)]
        pub(crate) fn $function() -> u32 {
            // SAFETY: the static is valid; volatile, because the loader overwrites it.
            unsafe { read_volatile(addr_of!($name)) }
        }
    )+};
}

settings! {
    /// Banks of the counters by binding, a power of two; 0 if traffic is not counted by binding.
    BINDING_BANKS = 1, binding_banks;
    /// Number of elements of `ENTRIES_IPV4`.
    ENTRY_CAPACITY_IPV4 = 1024, entry_capacity_ipv4;
    /// Number of elements of `ENTRIES_IPV6`.
    ENTRY_CAPACITY_IPV6 = 1024, entry_capacity_ipv6;
    /// Not 0 on machines that may order a store before earlier loads.
    WEAK_ORDER = 0, weak_order;
    /// Not 0 if packets that no binding touches are forwarded as well.
    FORWARD_ALL = 0, forward_all;
}
