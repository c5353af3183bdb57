//! Counting traffic by binding: one atomic addition per address, and what is done when a count gets
//! near its end.

use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use natmig_common::{
    BindingKey, BindingTotal, Family as _, Ipv4, PackedTraffic, Settled, SmallTraffic,
    binding_counter,
};
use natmig_ebpf::Ip;

use crate::{
    atomic::{exchange, exchange_32, fetch_add, fetch_add_32},
    maps, settings,
};

/// The word in which this CPU counts for the entry. `None` if nothing is counted by binding.
#[inline(always)]
fn word<I: Ip>(cpu: u32, entry: u32, to: bool) -> Option<*mut u64> {
    let banks = settings::binding_banks();
    if banks == 0 {
        return None;
    }
    let bank = cpu & banks.wrapping_sub(1);
    let counter = if I::NUMBER == Ipv4::NUMBER {
        let number = binding_counter(bank, settings::entry_capacity_ipv4(), entry, to);
        maps::BINDING_COUNTERS_IPV4.get_ptr_mut(number)
    } else {
        let number = binding_counter(bank, settings::entry_capacity_ipv6(), entry, to);
        maps::BINDING_COUNTERS_IPV6.get_ptr_mut(number)
    };
    Some(counter?.cast())
}

/// Brings the entry's count near, so that it is there when it is added to.
#[inline(always)]
pub(crate) fn touch<I: Ip>(cpu: u32, entry: u32, to: bool) {
    if let Some(word) = word::<I>(cpu, entry, to) {
        // SAFETY: the element is valid; volatile, because nothing else needs the value.
        unsafe { read_volatile(word) };
    }
}

/// Counts a packet of `bytes` for the entry: to its address, or from it. False if an earlier count is
/// lost.
#[inline(always)]
pub(crate) fn count<I: Ip>(cpu: u32, entry: u32, to: bool, bytes: u32) -> bool {
    add::<I>(cpu, entry, to, PackedTraffic::packet(bytes))
}

/// As [`count`], next to what the program knows of the entry, if nobody counts elsewhere.
#[inline(always)]
pub(crate) fn count_settled<I: Ip>(
    cpu: u32,
    entry: u32,
    settled: &Settled<I>,
    to: bool,
    bytes: u32,
) -> bool {
    if settings::binding_banks() != 1 {
        return count::<I>(cpu, entry, to, bytes);
    }
    let place = addr_of!(settled.traffic).cast_mut();
    let traffic = SmallTraffic::packet(bytes).0;
    // SAFETY: the element is valid, and its word aligned; all accesses to it are atomic.
    let taken = unsafe {
        let before = fetch_add_32(place, traffic);
        if !SmallTraffic(before.wrapping_add(traffic)).is_full() {
            return true;
        }
        SmallTraffic(exchange_32(place, 0))
    };
    add_apart::<I>(cpu, entry, to, taken)
}

/// [`add`], as a function of its own.
#[inline(never)]
fn add_apart<I: Ip>(cpu: u32, entry: u32, to: bool, taken: SmallTraffic) -> bool {
    add::<I>(cpu, entry, to, taken.packed())
}

/// Adds to the count of the entry.
#[inline(always)]
fn add<I: Ip>(cpu: u32, entry: u32, to: bool, traffic: PackedTraffic) -> bool {
    let Some(word) = word::<I>(cpu, entry, to) else {
        return true;
    };
    // SAFETY: the element is valid, and its word aligned.
    unsafe {
        let before = fetch_add(word, traffic.0);
        if !PackedTraffic(before.wrapping_add(traffic.0)).is_full() {
            return true;
        }
        let taken = PackedTraffic(exchange(word, 0));
        let key = BindingKey {
            entry,
            family: u32::from(I::NUMBER),
        };
        add_to_total(&key, to, taken)
    }
}

/// Adds what was taken out of a count to the entry's total. False if that cannot be.
#[inline(never)]
fn add_to_total(key: &BindingKey, to: bool, taken: PackedTraffic) -> bool {
    if maps::BINDING_TOTALS.get_ptr(key).is_none() {
        // Another CPU may be faster; whether there is a total shows below.
        let _ignored = maps::BINDING_TOTALS
            .insert(key, BindingTotal::default(), u64::from(BPF_NOEXIST))
            .is_ok();
    }
    let Some(total) = maps::BINDING_TOTALS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: the element is valid for as long as the program runs, and its words are aligned.
    unsafe {
        let (packets, bytes) = if to {
            (
                addr_of_mut!((*total).packets_to),
                addr_of_mut!((*total).bytes_to),
            )
        } else {
            (
                addr_of_mut!((*total).packets_from),
                addr_of_mut!((*total).bytes_from),
            )
        };
        fetch_add(packets, taken.packets());
        fetch_add(bytes, taken.bytes());
    }
    true
}
