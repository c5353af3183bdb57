//! Counting traffic by binding: one atomic addition per address, and what is done when a count gets
//! near its end.

use core::ptr::{addr_of_mut, read_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use natmig_common::{BindingKey, BindingTotal, BindingTraffic, Family as _, Ipv4, PackedTraffic};
use natmig_ebpf::Ip;

use crate::{
    atomic::{exchange, fetch_add},
    maps, settings,
};

/// The element in which this CPU counts for the entry. `None` if nothing is counted by binding.
#[inline(always)]
fn element<I: Ip>(cpu: u32, entry: u32) -> Option<*mut BindingTraffic> {
    let banks = settings::binding_banks();
    if banks == 0 {
        return None;
    }
    let bank = cpu & banks.wrapping_sub(1);
    if I::NUMBER == Ipv4::NUMBER {
        let number = bank.wrapping_mul(settings::entry_capacity_ipv4());
        maps::BINDING_COUNTERS_IPV4.get_ptr_mut(number.wrapping_add(entry))
    } else {
        let number = bank.wrapping_mul(settings::entry_capacity_ipv6());
        maps::BINDING_COUNTERS_IPV6.get_ptr_mut(number.wrapping_add(entry))
    }
}

/// Brings the entry's count near, so that it is there when it is added to.
#[inline(always)]
pub(crate) fn touch<I: Ip>(cpu: u32, entry: u32) {
    if let Some(element) = element::<I>(cpu, entry) {
        // SAFETY: the element is valid; volatile, because nothing else needs the value.
        unsafe { read_volatile(element.cast::<u64>()) };
    }
}

/// Counts a packet of `bytes` for the entry: to its address, or from it. False if an earlier count is
/// lost.
#[inline(always)]
pub(crate) fn count<I: Ip>(cpu: u32, entry: u32, to: bool, bytes: u32) -> bool {
    let Some(element) = element::<I>(cpu, entry) else {
        return true;
    };
    let traffic = PackedTraffic::packet(bytes).0;
    // SAFETY: the element is valid, and its words are aligned.
    unsafe {
        let word = if to {
            addr_of_mut!((*element).to)
        } else {
            addr_of_mut!((*element).from)
        };
        let before = fetch_add(word, traffic);
        if !PackedTraffic(before.wrapping_add(traffic)).is_full() {
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
