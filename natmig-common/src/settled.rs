//! What most entries say, in little room: an entry is a cache line or two, and a million of them are
//! more than a processor's caches hold.

use bytemuck::{Pod, Zeroable};

use crate::{Action, Entry, Family, Ipv4, Ipv6};

/// Element of the `SETTLED_*` map of the family, by the entry's index: all that the program needs to
/// know of an entry of which nothing is pending, and whose version is [`Action::Away`] without any
/// flag or [`Action::Known`]. It spares the program the entry, if a direct block leads there.
///
/// `action` is 0 for an entry that is to be looked at. It is cleared before the entry refers to a
/// transaction, and set, after `counterpart`, when that has been folded. The grace periods that
/// [prepare and fold](crate::Entry) need anyway lie between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Settled<F: Family> {
    /// The other address of the binding, network order.
    pub counterpart: F::Octets,
    /// [`Action`]; 0 if the entry is to be looked at.
    pub action: u8,
    /// Unused, zero.
    pub _pad: F::Padding,
}

impl<F: Family> Settled<F> {
    /// What may be said of the entry without looking at it; nothing, if that is not enough.
    pub fn of(entry: &Entry<F>) -> Self {
        let version = &entry.current;
        let is_enough = match Action::from_raw(version.action) {
            Some(Action::Away) => version.flags == 0,
            Some(Action::Known) => true,
            Some(Action::Absent | Action::Local | Action::Deliver | Action::Forward) | None => {
                false
            }
        };
        if entry.family != F::NUMBER || entry.reference != 0 || !is_enough {
            return Self::zeroed();
        }
        Self {
            counterpart: version.counterpart,
            action: version.action,
            _pad: Default::default(),
        }
    }
}

// SAFETY: all fields are, of either family; the sizes asserted below leave no room for padding.
unsafe impl<F: Family> Zeroable for Settled<F> {}
// SAFETY: as above, and any bytes are a value.
unsafe impl<F: Family> Pod for Settled<F> {}

const _: () = {
    assert!(size_of::<Settled<Ipv4>>() == 8);
    assert!(size_of::<Settled<Ipv6>>() == 24);
};
