//! Prefixes of either family, with their bits at the front of one number, so that one table serves
//! both.

use std::net::IpAddr;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The place of the family's element in a pair.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::V4 => 0,
            Self::V6 => 1,
        }
    }
}

/// A prefix. Sorted by first address, then length, so that what lies inside a prefix follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    /// The first address, its first bit in front, zeros behind.
    pub(super) bits: u128,
    /// Length in bits.
    pub(super) length: u8,
}

impl Prefix {
    /// The prefix of this length that has these bits in front.
    pub(super) const fn new(bits: u128, length: u8) -> Self {
        Self {
            bits: bits & mask(length),
            length,
        }
    }

    pub(super) fn of(address: IpAddr, length: u8) -> Self {
        Self::new(bits(address), length)
    }

    /// The bits of the last address, ones behind.
    pub(super) const fn last(self) -> u128 {
        self.bits | !mask(self.length)
    }

    /// The first `length` bits of the first and of the last address, as numbers.
    pub(super) const fn span(self, length: u8) -> (u64, u64) {
        (front(self.bits, length), front(self.last(), length))
    }
}

/// An address's bits, the first one in front.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The first `length` bits (1 to 64) as a number.
#[expect(
    clippy::cast_possible_truncation,
    reason = "no more than 64 bits are left"
)]
pub(super) const fn front(bits: u128, length: u8) -> u64 {
    (bits >> (128 - length as u32)) as u64
}

/// The inverse of [`front`].
pub(super) const fn at_front(number: u64, length: u8) -> u128 {
    (number as u128) << (128 - length as u32)
}

const fn mask(length: u8) -> u128 {
    match (!0_u128).checked_shl(128 - length as u32) {
        Some(mask) => mask,
        // Length 0.
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_ends() {
        let prefix = Prefix::of("10.1.2.77".parse().unwrap(), 23);
        assert_eq!(prefix.bits, bits("10.1.2.0".parse().unwrap()));
        assert_eq!(prefix.last() >> 96, 0x0a01_03ff);
        assert_eq!(prefix.span(24), (0x0a_0102, 0x0a_0103));
        assert_eq!(Prefix::new(0, 0).span(16), (0, 0xffff));
        assert_eq!(front(at_front(0x0a01, 16), 16), 0x0a01);
        assert_eq!(Prefix::new(7, 128).last(), 7);
    }
}
