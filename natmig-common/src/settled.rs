//! What most entries say, in little room: an entry is a cache line or two, and a million of them are
//! more than a processor's caches hold.

use bytemuck::{Pod, Zeroable};

use crate::{Action, BLOCK_LENGTH, Entry, Family, Ipv4, Ipv6};

/// Element of the `SETTLED_*` map of the family, by the entry's index.
///
/// The counterpart is all that the program needs to know of an entry of which nothing is pending, to
/// which a direct block leads, and whose version is [`Action::Known`], the address being in a
/// locator pool, or [`Action::Away`] without any flag, the address being in none. So the pool says
/// which. Of other entries it is unspecified: they are to be looked at.
///
/// It is cleared before the entry refers to a transaction, and set when that has been folded;
/// the grace periods that [prepare and fold](crate::Entry) need anyway lie between. All are cleared, a
/// grace period before, while locator pools change. Of an IPv6 address the first half is the last to
/// be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Settled<F: Family> {
    /// The other address of the binding, network order.
    pub counterpart: F::Octets,
    /// Unused, zero.
    pub _pad: F::SettledPadding,
}

impl<F: Family> Settled<F> {
    /// The counterpart that may be known of an entry without looking at it, if its address is in a
    /// locator pool, or is not; unspecified if that is not enough.
    pub fn counterpart_of(entry: &Entry<F>, in_pool: bool) -> F::Octets {
        let version = &entry.current;
        let is_enough = match Action::from_raw(version.action) {
            Some(Action::Away) => version.flags == 0 && !in_pool,
            Some(Action::Known) => in_pool,
            Some(Action::Absent | Action::Local | Action::Deliver | Action::Forward) | None => {
                false
            }
        };
        // Of an IPv6 address the program looks at the first half alone to find out whether there is one.
        let is_readable = bytemuck::bytes_of(&version.counterpart)
            .iter()
            .take(8)
            .any(|octet| *octet != 0);
        if entry.family == F::NUMBER && entry.reference == 0 && is_enough && is_readable {
            version.counterpart
        } else {
            F::UNSPECIFIED
        }
    }
}

// SAFETY: all fields are, of either family; the sizes asserted below leave no room for padding.
unsafe impl<F: Family> Zeroable for Settled<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Pod for Settled<F> {}

/// Element of the `ALIGNED_*` map of the family: of [`BLOCK_LENGTH`] entries in a row, those whose
/// counterparts lie in the same order as they do, as when all VMs of a rack went to the same segment. For
/// a million of them the elements take 256 KiB, where those of `SETTLED_*` take 8 or 16 MiB.
///
/// A bit is set only if the element in `SETTLED_*` says the same. The base changes only while no bit is
/// set and none was a grace period before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Aligned {
    /// The first octets are the counterpart that the first entry has or would have, network order;
    /// zero if none was chosen, and then no bit is set. That of entry `n` is [`Family::plus`] `n`.
    pub base: [u8; 16],
    /// The entries of which that is so: bit `n % 64` of word `n / 64`.
    pub bits: [u64; 4],
    /// Unused, zero.
    pub _reserved: [u64; 2],
}

impl Aligned {
    /// The element that has the entry, and the entry's number in it.
    #[inline]
    pub const fn place(entry: u32) -> (u32, u32) {
        (entry / BLOCK_LENGTH, entry % BLOCK_LENGTH)
    }

    /// Number of elements for so many entries.
    #[inline]
    pub const fn count(entries: u32) -> u32 {
        entries.div_ceil(BLOCK_LENGTH)
    }
}

const _: () = {
    assert!(size_of::<Settled<Ipv4>>() == 8);
    assert!(size_of::<Settled<Ipv6>>() == 16);
    assert!(size_of::<Aligned>() == 64);
    assert!(core::mem::offset_of!(Aligned, bits) == 16);
};
