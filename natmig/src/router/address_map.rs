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
        // The product's upper half is well mixed; the table takes its place from the lower.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_addresses_are_spread() {
        let place = |number: u32| {
            let mut hasher = AddressHasher::default();
            std::hash::Hash::hash(&(0x0a00_0000 + number), &mut hasher);
            hasher.finish() % 4096
        };
        let mut used = HashSet::new();
        used.extend((0..4096).map(place));
        assert!(used.len() > 2000, "{} of 4096 places", used.len());
    }
}
