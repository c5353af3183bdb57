//! Reading memory that userspace writes while packets are processed.
//!
//! Of an entry the version is selected by arithmetic and loaded through the result, so that the load
//! depends on the reference and on the transaction's word by address. That is the order that weakly
//! ordered machines keep without a barrier: whoever sees a cleared reference sees the current version
//! that was written before it. A branch would not do (a load may be executed ahead of one). What is
//! read of a bucket's slot depends on its `used` in the same way.

use core::{
    mem::offset_of,
    ptr::{addr_of, read_volatile},
};

use natmig_common::{
    Action, Aligned, BlockIpv6, Entry, Family, Ipv4, Ipv6, Mac, NextHop, PoolMask, PrefixIpv4,
    PrefixIpv6, Reference, Settled, Version,
};

use crate::{
    address::{Address as _, AddressIpv4, AddressIpv6, HardwareAddress},
    barrier::{dependent, opaque},
    family::Ip,
};

/// The address that the entry is of.
#[inline(always)]
pub(crate) fn entry_address<I: Ip>(entry: &Entry<I>) -> I::Address {
    // SAFETY: the reference is valid; volatile, because userspace may write the entry.
    I::Address::new(unsafe { read_volatile(addr_of!(entry.address)) })
}

/// [`Family::NUMBER`] of an entry in use.
#[inline(always)]
pub(crate) fn entry_family<F: Family>(entry: &Entry<F>) -> u8 {
    // SAFETY: the reference is valid; volatile, because userspace may write the entry.
    unsafe { read_volatile(addr_of!(entry.family)) }
}

/// Where the base is, which the element begins with, if the entry at `place` is one of which it says the
/// counterpart. The base is read after the bit.
#[inline(always)]
fn aligned_base(aligned: &Aligned, place: u32) -> Option<*const Aligned> {
    let number = usize::try_from((place >> 6) & 3).unwrap_or(0);
    let words = addr_of!(aligned.bits).cast::<u64>();
    // SAFETY: the reference is valid, and has four words; volatile, because userspace may write them.
    let word = unsafe { read_volatile(words.wrapping_add(number)) };
    if word >> (place & 63) & 1 == 0 {
        return None;
    }
    Some(dependent(aligned, word))
}

/// The counterpart of the entry at `place`, if it lies where the base says.
#[inline(always)]
pub(crate) fn aligned_ipv4(aligned: &Aligned, place: u32) -> Option<AddressIpv4> {
    let base = aligned_base(aligned, place)?;
    // SAFETY: the base is valid, and aligned to a cache line; volatile, because userspace may write it.
    let first = u32::from_be(unsafe { read_volatile(base.cast::<u32>()) });
    Some(AddressIpv4::from_raw(first.wrapping_add(place).to_be()))
}

/// As [`aligned_ipv4`].
#[inline(always)]
pub(crate) fn aligned_ipv6(aligned: &Aligned, place: u32) -> Option<AddressIpv6> {
    let base = aligned_base(aligned, place)?.cast::<u64>();
    // SAFETY: as above.
    let (high, low) = unsafe { (read_volatile(base), read_volatile(base.wrapping_add(1))) };
    let low = u64::from_be(low).wrapping_add(u64::from(place));
    Some(AddressIpv6::from_raw(high, low.to_be()))
}

/// The counterpart of an entry, none if the entry is to be looked at.
#[inline(always)]
pub(crate) fn settled_ipv4(settled: &Settled<Ipv4>) -> AddressIpv4 {
    // SAFETY: the reference is valid, and aligned; volatile, because userspace may write it.
    AddressIpv4::from_raw(unsafe { read_volatile(core::ptr::from_ref(settled).cast::<u32>()) })
}

/// As [`settled_ipv4`]. The second half is read after the first.
#[inline(always)]
pub(crate) fn settled_ipv6(settled: &Settled<Ipv6>) -> AddressIpv6 {
    let halves = core::ptr::from_ref(settled).cast::<u64>();
    // SAFETY: the reference is valid, and aligned; volatile, because userspace may write it.
    unsafe {
        let first = read_volatile(halves);
        let halves: *const u64 = dependent(halves, first);
        let second = read_volatile(halves.wrapping_add(1));
        if first == 0 {
            return AddressIpv6::NONE;
        }
        AddressIpv6::from_raw(first, second)
    }
}

/// The entry's reference: 0, or the transaction of the pending version.
#[inline(always)]
pub(crate) fn entry_reference<F: Family>(entry: &Entry<F>) -> u64 {
    // SAFETY: the reference is valid; volatile, because userspace may write the entry.
    unsafe { read_volatile(addr_of!(entry.reference)) }
}

/// The word of a transaction slot.
#[inline(always)]
pub fn slot_word(slot: &natmig_common::Slot) -> u64 {
    // SAFETY: the reference is valid; volatile, because userspace may write the slot.
    unsafe { read_volatile(addr_of!(slot.word)) }
}

/// A version of an entry, in the entry.
#[derive(Clone, Copy)]
pub(crate) struct Selected<'a, I: Ip> {
    version: &'a Version<I>,
}

/// The first fields of a version.
#[derive(Clone, Copy)]
#[repr(C)]
struct Head {
    action: u8,
    flags: u8,
    mac: Mac,
}

impl<I: Ip> Selected<'_, I> {
    /// Action, flags and MAC address.
    #[inline(always)]
    pub(crate) fn head(&self) -> (Option<Action>, u8, HardwareAddress) {
        // SAFETY: the reference is valid, a version begins with these 8 bytes and is aligned to
        // them; any bytes are a valid `Head`; volatile, because userspace may write the entry.
        let head = unsafe {
            let word = read_volatile(core::ptr::from_ref(self.version).cast::<u64>());
            core::mem::transmute::<u64, Head>(word)
        };
        (
            Action::from_raw(head.action),
            head.flags,
            HardwareAddress::new(head.mac),
        )
    }

    /// The VM's access interface.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the reference is valid; volatile, because userspace may write the entry.
        unsafe { read_volatile(addr_of!(self.version.ifindex)) }
    }

    /// The other address of the binding.
    #[inline(always)]
    pub(crate) fn counterpart(&self) -> I::Address {
        // SAFETY: as above.
        I::Address::new(unsafe { read_volatile(addr_of!(self.version.counterpart)) })
    }

    /// Where packets to the locator go on to.
    #[inline(always)]
    pub(crate) fn forward(&self) -> I::Address {
        // SAFETY: as above.
        I::Address::new(unsafe { read_volatile(addr_of!(self.version.forward)) })
    }
}

/// The version that counts, if `word` is the word of the slot that `reference` names.
#[inline(always)]
pub(crate) fn version_that_counts<I: Ip>(
    entry: &Entry<I>,
    reference: u64,
    word: u64,
) -> Selected<'_, I> {
    // Zero exactly if the reference's transaction is committed, which no reference 0 is.
    let difference = opaque_u64(word ^ Reference::committed_word(reference));
    // All ones if they differ, else 0.
    let differ = opaque_u64(difference | difference.wrapping_neg()) >> 63;
    version_at(entry, differ ^ 1)
}

/// The pending version.
#[inline(always)]
pub(crate) fn pending_version<I: Ip>(entry: &Entry<I>) -> Selected<'_, I> {
    version_at(entry, 1)
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
fn version_at<I: Ip>(entry: &Entry<I>, which: u64) -> Selected<'_, I> {
    let versions = addr_of!(entry.current);
    let which = usize::try_from(which & 1).unwrap_or(0);
    // SAFETY: `current` and `pending` follow each other (their offsets are asserted next to `Entry`).
    let version = unsafe { &*versions.wrapping_add(which) };
    Selected { version }
}

/// The element, read at once.
#[inline(always)]
pub(crate) fn prefix_ipv4(element: &PrefixIpv4) -> PrefixIpv4 {
    // SAFETY: the reference is valid, and any 8 bytes are an element; volatile, because userspace
    // may write it.
    unsafe {
        let word = read_volatile(core::ptr::from_ref(element).cast::<u64>());
        core::mem::transmute::<u64, PrefixIpv4>(word)
    }
}

/// Whether no address with the element's prefix has an entry or is in a pool.
#[inline(always)]
pub(crate) fn is_unbound(element: PrefixIpv4) -> bool {
    element.block == PrefixIpv4::NONE && element.pool == 0
}

/// Whether the pool has the address that ends in `octet`.
#[inline(always)]
pub(crate) fn pool_mask_has(mask: &PoolMask, octet: u32) -> bool {
    let word = usize::try_from((octet >> 6) & 3).unwrap_or(0);
    let words = addr_of!(mask.bits).cast::<u64>();
    // SAFETY: there are four words; volatile, because userspace may write them.
    let bits = unsafe { read_volatile(words.wrapping_add(opaque(word) & 3)) };
    bits >> (octet & 63) & 1 != 0
}

/// `flags` of a slot.
#[inline(always)]
pub(crate) fn flags(flags: &u8) -> u8 {
    // SAFETY: the reference is valid; volatile, because userspace may write it.
    unsafe { read_volatile(flags) }
}

/// What a slot says of a /64.
#[derive(Clone, Copy)]
pub(crate) struct SlotIpv6 {
    /// `PREFIX_*` bits.
    pub(crate) flags: u8,
    pub(crate) pool_length: u8,
    pub(crate) route: u16,
    /// Last half of the pool's first address, in memory order.
    pub(crate) pool: u64,
}

/// What the slot says of the /64 whose first half is `prefix` in memory order, if it is of that.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "a slot's addresses are aligned to 8 bytes"
)]
pub(crate) fn prefix_ipv6(slot: &PrefixIpv6, prefix: u64) -> Option<SlotIpv6> {
    // SAFETY: the reference is valid; volatile, because userspace may write the slot.
    unsafe {
        let used = read_volatile(addr_of!(slot.used));
        let slot: *const PrefixIpv6 = dependent(slot, u64::from(used));
        if used == 0 || read_volatile(addr_of!((*slot).prefix).cast::<u64>()) != prefix {
            return None;
        }
        Some(SlotIpv6 {
            flags: read_volatile(addr_of!((*slot).flags)),
            pool_length: read_volatile(addr_of!((*slot).pool_length)),
            route: read_volatile(addr_of!((*slot).route)),
            pool: read_volatile(addr_of!((*slot).pool).cast::<u64>()),
        })
    }
}

/// The first entry of the /120, if the slot is of that.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "a slot's address is aligned to 8 bytes"
)]
pub(crate) fn block_ipv6(slot: &natmig_common::BlockIpv6, prefix: AddressIpv6) -> Option<u32> {
    let [high, low] = prefix.raw();
    // SAFETY: the reference is valid; volatile, because userspace may write the slot.
    unsafe {
        let used = read_volatile(addr_of!(slot.used));
        let slot: *const BlockIpv6 = dependent(slot, u64::from(used));
        let words = addr_of!((*slot).prefix).cast::<u64>();
        if used == 0 || read_volatile(words) != high || read_volatile(words.wrapping_add(1)) != low
        {
            return None;
        }
        Some(read_volatile(addr_of!((*slot).first)))
    }
}

/// A MAC address in a table. (Byte by byte, as the compiler would have it, costs six loads.)
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the BPF target reads at any address"
)]
pub(crate) fn mac(mac: &Mac) -> HardwareAddress {
    if cfg!(target_arch = "bpf") {
        let pointer = core::ptr::from_ref(mac);
        // SAFETY: the six bytes are valid; the target reads them wherever they lie, see `frame.rs`.
        let (first, second) = unsafe {
            (
                pointer.cast::<u32>().read(),
                pointer.cast::<u16>().wrapping_add(2).read(),
            )
        };
        HardwareAddress::from_parts(first, second)
    } else {
        HardwareAddress::new(*mac)
    }
}

/// The MAC addresses of a frame that leaves by way of the next hop: the destination's, and behind it
/// the source's, as the first eight and the last four bytes in memory order.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "what is read unaligned is read as such"
)]
pub(crate) fn macs(next: &NextHop) -> (u64, u32) {
    let macs = core::ptr::from_ref(next)
        .cast::<u8>()
        .wrapping_add(const { offset_of!(NextHop, destination_mac) });
    let (first, last) = (macs.cast::<u64>(), macs.wrapping_add(8).cast::<u32>());
    // SAFETY: the twelve bytes are valid, one address behind the other (asserted below); the BPF target
    // reads them wherever they lie, see `frame.rs`.
    unsafe {
        if cfg!(target_arch = "bpf") {
            (first.read(), last.read())
        } else {
            (first.read_unaligned(), last.read_unaligned())
        }
    }
}

const _: () = assert!(offset_of!(Aligned, base) == 0);
const _: () = assert!(
    offset_of!(NextHop, source_mac) == offset_of!(NextHop, destination_mac).wrapping_add(6)
);

/// Whether the next hop can be used.
#[inline(always)]
pub(crate) fn is_valid(next: &NextHop) -> bool {
    // SAFETY: the reference is valid; volatile, because userspace may write it.
    unsafe { read_volatile(addr_of!(next.valid)) != 0 }
}
