//! Counting traffic by binding: one atomic addition per address, at once or some packets later, and what
//! is done when a count gets near its end.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of notes, which are few"
)]

use core::{
    arch::asm,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use aya_ebpf::bindings::BPF_NOEXIST;
use natmig_common::{
    BindingKey, BindingTotal, Family as _, Ipv4, Note, PackedTraffic, UNBANKED_COUNT, Unbanked,
    binding_counter,
};
use natmig_ebpf::Ip;

use crate::{
    atomic::{compare_exchange, exchange, fetch_add},
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

/// Counts a packet of `bytes` for the entry: to its address, or from it. False if an earlier count is
/// lost.
#[inline(always)]
pub(crate) fn count<I: Ip>(cpu: u32, entry: u32, to: bool, bytes: u32) -> bool {
    let Some(word) = word::<I>(cpu, entry, to) else {
        return true;
    };
    add::<I>(word, entry, to, bytes)
}

/// As [`count`], some time later, together with other packets.
#[inline(always)]
pub(crate) fn count_later<I: Ip>(cpu: u32, entry: u32, to: bool, bytes: u32) -> bool {
    if settings::binding_banks() == 0 {
        return true;
    }
    let Some(unbanked) = maps::UNBANKED.get_ptr_mut(Unbanked::element::<I>(cpu)) else {
        return true;
    };
    // SAFETY: the element is valid, and this CPU's own while it processes a packet; volatile, because the
    // other program uses it between packets.
    unsafe {
        let state = addr_of_mut!((*unbanked).state);
        let number = read_volatile(state);
        let at = number as usize & LAST;
        let note = addr_of_mut!((*unbanked).notes).cast::<Note>();
        write_volatile(note.wrapping_add(at), Note::new(entry, to, bytes));
        write_volatile(state, number.wrapping_add(1));
        if at != LAST {
            return true;
        }
    }
    bank_all::<I>(cpu)
}

/// The last of the notes that there is room for.
const LAST: usize = UNBANKED_COUNT as usize - 1;

/// Adds all notes of the CPU to a bank: there are as many as there is room for. All counters are fetched
/// before one is added to, because an addition waits for its counter. False if an earlier count is lost.
#[inline(never)]
fn bank_all<I: Ip>(cpu: u32) -> bool {
    let Some(unbanked) = maps::UNBANKED.get_ptr_mut(Unbanked::element::<I>(cpu)) else {
        return true;
    };
    // The last note whose counter is to be taken. Others that are, their next packets find.
    let mut full = 0;
    // SAFETY: as in `count_later`, and the counters' words are aligned.
    unsafe {
        let notes = addr_of!((*unbanked).notes).cast::<Note>();
        for at in 0..=LAST {
            let note = read_volatile(notes.wrapping_add(at));
            let Some(word) = word::<I>(cpu, note.entry(), note.to()) else {
                return true;
            };
            read_volatile(word);
        }
        for at in 0..=LAST {
            let note = read_volatile(notes.wrapping_add(at));
            let Some(word) = word::<I>(cpu, note.entry(), note.to()) else {
                return true;
            };
            let traffic = PackedTraffic::packet(note.bytes());
            let sum = fetch_add(word, traffic.0).wrapping_add(traffic.0);
            // Without a branch, because the verifier would follow each of so many both ways.
            let is_full = mask(PackedTraffic(sum).guards());
            full = (full & !is_full) | (note.0 & is_full);
        }
        let state = addr_of_mut!((*unbanked).state);
        let taken = read_volatile(state) & !Unbanked::NUMBER;
        write_volatile(state, taken.wrapping_add(Unbanked::TAKEN));
    }
    if full == 0 {
        return true;
    }
    let note = Note(full);
    word::<I>(cpu, note.entry(), note.to())
        .is_none_or(|word| take::<I>(word, note.entry(), note.to()))
}

/// All ones if any bit is set, else 0; what it is, the compiler must not know.
#[inline(always)]
fn mask(bits: u64) -> u64 {
    let mut sign = bits | bits.wrapping_neg();
    // SAFETY: the assembly shifts a register.
    unsafe {
        asm!("{0} s>>= 63", inout(reg) sign, options(pure, nomem, nostack, preserves_flags));
    }
    sign
}

/// Adds the notes of the CPU to a bank, while it processes no packet. It may begin one at any time, and
/// end it: a note is taken only if all are the same still. False if some are left for that.
#[inline(always)]
pub(crate) fn bank_rest<I: Ip>(cpu: u32) -> bool {
    let Some(unbanked) = maps::UNBANKED.get_ptr_mut(Unbanked::element::<I>(cpu)) else {
        return true;
    };
    for _ in 0..2 * UNBANKED_COUNT {
        // SAFETY: the element is valid, and its words aligned.
        unsafe {
            let state = addr_of_mut!((*unbanked).state);
            let before = read_volatile(state);
            let number = before & Unbanked::NUMBER;
            if number == 0 {
                return true;
            }
            let at = (number.wrapping_sub(1)) as usize & LAST;
            let note = read_volatile(addr_of!((*unbanked).notes).cast::<Note>().wrapping_add(at));
            let Some(word) = word::<I>(cpu, note.entry(), note.to()) else {
                return true;
            };
            if PackedTraffic(read_volatile(word)).is_full() {
                // That is for `bank_all`, which some packets more come to.
                return true;
            }
            let after = before.wrapping_add(Unbanked::TAKEN).wrapping_sub(1);
            if compare_exchange(state, before, after) == before {
                fetch_add(word, PackedTraffic::packet(note.bytes()).0);
            }
        }
    }
    false
}

/// Adds a packet of `bytes` to the count of the entry.
#[inline(always)]
fn add<I: Ip>(word: *mut u64, entry: u32, to: bool, bytes: u32) -> bool {
    let traffic = PackedTraffic::packet(bytes).0;
    // SAFETY: the element is valid, and its word aligned.
    let sum = unsafe { fetch_add(word, traffic) }.wrapping_add(traffic);
    !PackedTraffic(sum).is_full() || take::<I>(word, entry, to)
}

/// Takes a count that is full, and adds it to the entry's total. False if that cannot be.
#[inline(always)]
fn take<I: Ip>(word: *mut u64, entry: u32, to: bool) -> bool {
    // SAFETY: the element is valid, and its word aligned.
    let taken = PackedTraffic(unsafe { exchange(word, 0) });
    let key = BindingKey {
        entry,
        family: u32::from(I::NUMBER),
    };
    add_to_total(&key, to, taken)
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
