//! Hash maps by address, fast enough for millions: addresses come from operators, so nobody attacks
//! their hashes.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// A map by address, or number of one.
pub(super) type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;
/// A set of addresses.
pub(super) type AddressSet<K> = HashSet<K, BuildHasherDefault<AddressHasher>>;

/// Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 =
                (self.0 ^ u64::from(u32::from_be_bytes(word))).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_usize(&mut self, _length: usize) {
        // The length of an address says nothing.
    }

    fn finish(&self) -> u64 {
        // The product's upper half is well mixed, unless only the upper bits of its factor differ,
        // as in an address whose bytes are read the other way round. So once more, with the halves
        // folded; the table takes its place from the lower half.
        let folded = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        folded ^ (folded >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn places<K: std::hash::Hash>(keys: impl Iterator<Item = K>) -> usize {
        let place = |key: K| {
            let mut hasher = AddressHasher::default();
            key.hash(&mut hasher);
            hasher.finish() % 4096
        };
        keys.map(place).collect::<HashSet<u64>>().len()
    }

    #[test]
    fn neighbouring_addresses_are_spread() {
        let ipv6 = |number: u32| u128::from(number) | 0x2001_0db8 << 96;
        let spreads = [
            places((0..4096_u32).map(|number| 0x0a00_0000 + number)),
            // Prefixes.
            places((0..4096_u32).map(|number| 0x0a00_0000 + (number << 8))),
            places((0..4096_u32).map(ipv6)),
            places((0..4096_u32).map(|number| ipv6(number << 8))),
            places((0..4096_u32).map(|number| ipv6(0) | u128::from(number) << 64)),
            places((0..4096_u32).map(|number| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number)))),
            places((0..4096_u32).map(|number| IpAddr::from(Ipv6Addr::from(ipv6(number))))),
        ];
        assert!(
            spreads.iter().all(|used| *used > 2000),
            "{spreads:?} of 4096 places"
        );
    }
}
