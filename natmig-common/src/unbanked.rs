//! Traffic by binding that a CPU has not added to a bank yet.

use bytemuck::{Pod, Zeroable};

use crate::Family;

/// Packets of a family that a CPU keeps back before it adds them to a bank.
pub const UNBANKED_COUNT: u32 = 32;

/// A CPU's element of the `UNBANKED` map for a family: see [`Unbanked::element`].
///
/// A counter is far away if many addresses have traffic, and an addition waits for it. So the program
/// notes packets here, and for [`UNBANKED_COUNT`] of them fetches all counters at once before it adds to
/// them. Who wants to know what was counted, or reuses a counter, first has the program
/// `natmig_bank` do that on every CPU. A CPU that is switched off keeps its notes until it is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Unbanked {
    /// The number of notes in the low 8 bits, and above it how often notes were taken: a word that is
    /// found unchanged is about the same notes.
    pub state: u64,
    /// The notes; see [`Note`].
    pub notes: [Note; UNBANKED_COUNT as usize],
    /// Unused, zero.
    pub _reserved: [u64; 7],
}

impl Unbanked {
    /// The part of `state` that is the number of notes.
    pub const NUMBER: u64 = 0xff;
    /// Added to `state` when notes are taken.
    pub const TAKEN: u64 = 0x100;

    /// The element of a CPU for a family.
    #[inline]
    pub const fn element<F: Family>(cpu: u32) -> u32 {
        cpu.wrapping_mul(2).wrapping_add((F::NUMBER == 6) as u32)
    }
}

/// A packet of a binding: the entry's index in the low 31 bits, the direction in the next one, and the
/// bytes in the high half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Note(pub u64);

impl Note {
    const TO: u32 = 1 << 31;

    /// A packet of `bytes` to the address of an entry, or from it.
    #[inline]
    pub const fn new(entry: u32, to: bool, bytes: u32) -> Self {
        let low = entry | if to { Self::TO } else { 0 };
        Self((bytes as u64) << 32 | low as u64)
    }

    /// The entry's index.
    #[inline]
    pub const fn entry(self) -> u32 {
        self.low() & (Self::TO - 1)
    }

    /// Whether the packet was to the address.
    #[inline]
    pub const fn to(self) -> bool {
        self.low() & Self::TO != 0
    }

    const fn low(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// Its bytes, link-layer headers included.
    #[inline]
    pub const fn bytes(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

const _: () = {
    assert!(size_of::<Unbanked>() == 320);
    assert!(UNBANKED_COUNT.is_power_of_two());
};
