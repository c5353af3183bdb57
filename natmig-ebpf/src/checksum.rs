//! The Internet checksum, updated incrementally (RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`).
//!
//! All values are in memory order: the one's complement sum does not depend on byte order
//! (RFC 1071, section 2).

use crate::address::Address;

/// What replacing some words of a packet does to a checksum that covers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    /// Nothing is replaced.
    pub const NONE: Self = Self(0);

    /// The first byte of a word that the checksum covers, which is not 0, is decremented.
    #[expect(clippy::as_conversions, reason = "no other conversion is constant")]
    pub const DECREMENT: Self = Self(u16::from_ne_bytes([0xfe, 0xff]) as u64);

    /// The checksum covers a word that is replaced.
    #[inline(always)]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(
            self.0
                .wrapping_add(u64::from(!old))
                .wrapping_add(u64::from(new)),
        )
    }

    /// The checksum covers an address that is replaced.
    #[inline(always)]
    pub fn address<A: Address>(self, old: A, new: A) -> Self {
        Self(
            self.0
                .wrapping_add(old.complement_sum())
                .wrapping_add(new.sum()),
        )
    }

    /// The checksum covers both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The same change in 18 bits, so that it is cheap to apply more than once.
    #[inline(always)]
    pub fn folded(self) -> Self {
        let sum = (self.0 & 0xffff_ffff).wrapping_add(self.0 >> 32);
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        Self(sum)
    }

    /// As [`Change::apply`], of a [`Change::folded`] one and at most a word.
    #[inline(always)]
    pub fn apply_folded(self, checksum: u16) -> u16 {
        let sum = self.0.wrapping_add(u64::from(!checksum));
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let [low, high, ..] = sum.to_le_bytes();
        !u16::from_le_bytes([low, high])
    }

    /// As [`Change::apply_udp`], of such a change.
    #[inline(always)]
    pub fn apply_udp_folded(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply_folded(checksum) {
            0 => 0xffff,
            updated => updated,
        }
    }

    /// The checksum that becomes of `checksum`.
    #[inline(always)]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(self.0.wrapping_add(u64::from(!checksum)))
    }

    /// As [`Change::apply`] for UDP and UDP-Lite: zero means "no checksum" and stays, and a computed
    /// zero becomes 0xffff (RFC 768).
    #[inline(always)]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            updated => updated,
        }
    }
}

/// The checksum of words whose sum is `sum`.
#[inline(always)]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// One's complement sum of the 16-bit words of `sum`.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff)
        .wrapping_add((sum >> 16) & 0xffff)
        .wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let [low, high, ..] = sum.to_le_bytes();
    u16::from_le_bytes([low, high])
}
