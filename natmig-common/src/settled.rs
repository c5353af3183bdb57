//! What most entries say, in little room: an entry is a cache line or two, and a million of them are
//! more than a processor's caches hold.

use bytemuck::{Pod, Zeroable};

use crate::{Action, Entry, Family, Ipv4, Ipv6, PackedTraffic};

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
    /// [`SmallTraffic`] to an identity or from a locator, if there is one bank of counters by binding:
    /// it lies where the program has just been, and is added to the bank long before it overflows.
    pub traffic: u32,
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

/// Packets and bytes in half a word, as [`PackedTraffic`] has them in one: the highest bit of each
/// part is a guard, and who sees one set takes the word and adds it to the entry's counter in the
/// bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmallTraffic(pub u32);

impl SmallTraffic {
    /// Bits of the bytes, guard included; the packets have the rest.
    const BYTE_BITS: u32 = 24;
    /// CPUs that may count in the same word: more could not all be between their addition and the
    /// taking without a count going astray.
    pub const MOST_CPUS: u32 = 128;
    /// The guards: 2^23 bytes (8 MB) and 128 packets.
    const GUARDS: u32 = 1 << 31 | 1 << (Self::BYTE_BITS - 1);

    /// One packet of this many bytes.
    #[inline]
    pub const fn packet(bytes: u32) -> Self {
        Self(1 << Self::BYTE_BITS | bytes)
    }

    /// Whether the word is to be taken.
    #[inline]
    pub const fn is_full(self) -> bool {
        self.0 & Self::GUARDS != 0
    }

    /// The same, as the bank counts.
    #[inline]
    pub const fn packed(self) -> PackedTraffic {
        let bytes = self.0 & ((1 << Self::BYTE_BITS) - 1);
        PackedTraffic::new(self.0 >> Self::BYTE_BITS, bytes)
    }
}

// SAFETY: all fields are, of either family; the sizes asserted below leave no room for padding.
unsafe impl<F: Family> Zeroable for Settled<F> {}
// SAFETY: as above, and any bytes are a value.
unsafe impl<F: Family> Pod for Settled<F> {}

const _: () = {
    assert!(size_of::<Settled<Ipv4>>() == 8);
    assert!(core::mem::offset_of!(Settled<Ipv4>, traffic) == 4);
    assert!(size_of::<Settled<Ipv6>>() == 24);
    assert!(core::mem::offset_of!(Settled<Ipv6>, traffic) == 16);
};
