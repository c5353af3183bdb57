//! Reading entries that userspace writes while packets are processed.
//!
//! The version is selected by arithmetic and loaded through the result, so that the load depends on
//! the reference and on the transaction's word by address. That is the order that weakly ordered
//! machines keep without a barrier: whoever sees a cleared reference sees the current version that
//! was written before it. A branch would not do (a load may be executed ahead of one).

use core::ptr::{addr_of, read_volatile};

use natmig_common::{Entry, Reference, Version};

use crate::{address::Address, barrier::opaque};

/// The address that the entry is of.
#[inline(always)]
pub(crate) fn entry_address(entry: &Entry) -> Address {
    // SAFETY: the reference is valid; volatile, because userspace may write the entry.
    Address::new(unsafe { read_volatile(addr_of!(entry.address)) })
}

/// The entry's reference: 0, or the transaction of the pending version.
#[inline(always)]
pub(crate) fn entry_reference(entry: &Entry) -> u64 {
    // SAFETY: the reference is valid; volatile, because userspace may write the entry.
    unsafe { read_volatile(addr_of!(entry.reference)) }
}

/// The word of a transaction slot.
#[inline(always)]
pub fn slot_word(slot: &natmig_common::Slot) -> u64 {
    // SAFETY: the reference is valid; volatile, because userspace may write the slot.
    unsafe { read_volatile(addr_of!(slot.word)) }
}

/// The version that counts, if `word` is the word of the slot that `reference` names.
#[inline(always)]
pub(crate) fn version_that_counts(entry: &Entry, reference: u64, word: u64) -> Version {
    // Zero exactly if the reference's transaction is committed, which no reference 0 is.
    let difference = word ^ Reference::committed_word(reference);
    let difference = mix(difference);
    // All ones if they differ, else 0.
    let differ = opaque_u64(difference | difference.wrapping_neg()) >> 63;
    let pending = differ ^ 1;
    version_at(entry, pending)
}

/// The pending version.
#[inline(always)]
pub(crate) fn pending_version(entry: &Entry) -> Version {
    version_at(entry, 1)
}

#[inline(always)]
fn mix(value: u64) -> u64 {
    opaque_u64(value)
}

#[inline(always)]
fn opaque_u64(value: u64) -> u64 {
    match usize::try_from(value) {
        Ok(value) => u64::try_from(opaque(value)).unwrap_or(0),
        Err(_) => value,
    }
}

/// The current (0) or the pending (1) version.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "both versions lie at multiples of 8 in an entry"
)]
fn version_at(entry: &Entry, which: u64) -> Version {
    let versions = addr_of!(entry.current).cast::<[u64; 3]>();
    let which = usize::try_from(which & 1).unwrap_or(0);
    // SAFETY: `current` and `pending` follow each other (their offsets are asserted next to `Entry`),
    // and any bytes are a valid `Version`; volatile, because userspace may write the entry.
    unsafe {
        let words = read_volatile(versions.wrapping_add(which));
        core::mem::transmute::<[u64; 3], Version>(words)
    }
}
