//! Which entries are in use, by slabs of 256 in a row: a slab is free, a direct block, or holds
//! single entries.

use natmig_common::BLOCK_LENGTH;

/// What a slab is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    Singles,
    Block,
}

#[derive(Clone, Copy, Debug)]
struct Slab {
    /// Bits of entries that cannot be taken, by their place in the slab: in use, or resting.
    taken: [u64; 4],
    /// Bits of those among them that rest.
    resting: [u64; 4],
    purpose: Use,
}

impl Slab {
    /// Bits of the entries in use, a word.
    fn in_use(&self, word: usize) -> u64 {
        self.taken[word] & !self.resting[word]
    }

    fn count(&self) -> u32 {
        (0..4).map(|word| self.in_use(word).count_ones()).sum()
    }
}

/// The slabs of one family.
#[derive(Debug)]
pub(super) struct Slabs {
    all: Vec<Slab>,
    capacity: u32,
    /// Free slabs, and others.
    free: Vec<u32>,
    /// Slabs of singles with free entries, and others.
    open: Vec<u32>,
    /// Entries in use.
    used: u32,
}

const fn slab_of(entry: u32) -> usize {
    (entry / BLOCK_LENGTH) as usize
}

const fn bit_of(entry: u32) -> (usize, u64) {
    let place = entry % BLOCK_LENGTH;
    ((place / 64) as usize, 1 << (place % 64))
}

impl Slabs {
    /// All entries free.
    pub(super) fn new(capacity: u32) -> Self {
        let free = Slab {
            taken: [0; 4],
            resting: [0; 4],
            purpose: Use::Free,
        };
        let mut slabs = vec![free; capacity.div_ceil(BLOCK_LENGTH) as usize];
        let whole = capacity / BLOCK_LENGTH;
        let mut open = Vec::new();
        if let Some(last) = slabs.get_mut(whole as usize) {
            // What is left over is too short for a block; entries beyond the end are never free.
            last.purpose = Use::Singles;
            for entry in capacity..(whole + 1) * BLOCK_LENGTH {
                let (word, bit) = bit_of(entry);
                last.taken[word] |= bit;
            }
            open.push(whole);
        }
        Self {
            all: slabs,
            capacity,
            free: (0..whole).rev().collect(),
            open,
            used: 0,
        }
    }

    /// Number of entries.
    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Entries in use.
    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// Whether 256 entries from `first` on can be a block.
    pub(super) fn can_be_block(&self, first: u32) -> bool {
        first.is_multiple_of(BLOCK_LENGTH)
            && first
                .checked_add(BLOCK_LENGTH)
                .is_some_and(|end| end <= self.capacity)
            && self.all[slab_of(first)].purpose == Use::Free
    }

    /// Whether an entry is in use.
    pub(super) fn is_used(&self, entry: u32) -> bool {
        let (word, bit) = bit_of(entry);
        entry < self.capacity && self.all[slab_of(entry)].in_use(word) & bit != 0
    }

    /// Whether an entry is no longer in use and cannot be taken yet.
    pub(super) fn is_resting(&self, entry: u32) -> bool {
        let (word, bit) = bit_of(entry);
        entry < self.capacity && self.all[slab_of(entry)].resting[word] & bit != 0
    }

    /// Whether an entry is in a block.
    pub(super) fn is_in_block(&self, entry: u32) -> bool {
        self.all[slab_of(entry)].purpose == Use::Block
    }

    /// Entries in use in the slab of this one.
    pub(super) fn count(&self, entry: u32) -> u32 {
        self.all[slab_of(entry)].count()
    }

    /// Says that an entry is in use.
    pub(super) fn mark(&mut self, entry: u32) {
        let slab = slab_of(entry);
        if self.all[slab].purpose == Use::Free {
            self.all[slab].purpose = Use::Singles;
            self.open.push(entry / BLOCK_LENGTH);
        }
        let (word, bit) = bit_of(entry);
        if self.all[slab].taken[word] & bit == 0 {
            self.all[slab].taken[word] |= bit;
            self.used += 1;
        }
    }

    /// Takes an entry out of use; it cannot be taken again before it is freed.
    pub(super) fn rest(&mut self, entry: u32) {
        if self.is_used(entry) {
            let (word, bit) = bit_of(entry);
            self.all[slab_of(entry)].resting[word] |= bit;
            self.used -= 1;
        }
    }

    /// Frees an entry.
    pub(super) fn free(&mut self, entry: u32) {
        let number = entry / BLOCK_LENGTH;
        let slab = &mut self.all[number as usize];
        let (word, bit) = bit_of(entry);
        if slab.taken[word] & bit == 0 {
            return;
        }
        let full = slab.taken == [u64::MAX; 4];
        if slab.resting[word] & bit == 0 {
            self.used -= 1;
        }
        slab.taken[word] &= !bit;
        slab.resting[word] &= !bit;
        if slab.purpose != Use::Singles {
            return;
        }
        if slab.taken == [0; 4] {
            slab.purpose = Use::Free;
            self.free.push(number);
        } else if full {
            self.open.push(number);
        }
    }

    /// Takes a free single entry; `None` if there is none. It is in use.
    pub(super) fn take_single(&mut self) -> Option<u32> {
        loop {
            let Some(number) = self.open.last().copied() else {
                let number = self.take_slab(Use::Singles)?;
                self.open.push(number);
                continue;
            };
            let slab = &self.all[number as usize];
            let place = (0..4_u32).find_map(|word| {
                let free = !slab.taken[word as usize];
                (free != 0).then(|| word * 64 + free.trailing_zeros())
            });
            match place {
                Some(place) if slab.purpose == Use::Singles => {
                    let entry = number * BLOCK_LENGTH + place;
                    self.mark(entry);
                    return Some(entry);
                }
                Some(_) | None => {
                    self.open.pop();
                }
            }
        }
    }

    /// Whether no slab is free to be a block.
    pub(super) fn is_without_block(&self) -> bool {
        let mut free = self.free.iter();
        !free.any(|number| self.all[*number as usize].purpose == Use::Free)
    }

    fn take_slab(&mut self, purpose: Use) -> Option<u32> {
        while let Some(number) = self.free.pop() {
            let slab = &mut self.all[number as usize];
            if slab.purpose == Use::Free {
                slab.purpose = purpose;
                return Some(number);
            }
        }
        None
    }

    /// Takes a free slab to be a block; its first entry.
    pub(super) fn take_block(&mut self) -> Option<u32> {
        Some(self.take_slab(Use::Block)? * BLOCK_LENGTH)
    }

    /// Says that a free slab is a block.
    pub(super) fn mark_block(&mut self, first: u32) {
        self.all[slab_of(first)].purpose = Use::Block;
    }

    /// Makes a block a slab of singles, or a free one if it is empty.
    pub(super) fn release_block(&mut self, first: u32) {
        let number = first / BLOCK_LENGTH;
        let slab = &mut self.all[number as usize];
        if slab.taken == [0; 4] {
            slab.purpose = Use::Free;
            self.free.push(number);
        } else {
            slab.purpose = Use::Singles;
            self.open.push(number);
        }
    }

    /// The block with the fewest entries in use that is not full.
    pub(super) fn emptiest_block(&self) -> Option<u32> {
        (0..)
            .zip(&self.all)
            .filter(|(_, slab)| slab.purpose == Use::Block && slab.taken != [u64::MAX; 4])
            .min_by_key(|(_, slab)| slab.count())
            .map(|(number, _)| number * BLOCK_LENGTH)
    }

    /// Blocks in which no entry is in use.
    pub(super) fn empty_blocks(&self) -> Vec<u32> {
        (0..)
            .zip(&self.all)
            .filter(|(_, slab)| slab.purpose == Use::Block && slab.taken == [0; 4])
            .map(|(number, _)| number * BLOCK_LENGTH)
            .collect()
    }

    /// Entries in use, in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.all).flat_map(|(number, slab)| {
            (0..BLOCK_LENGTH)
                .map(move |place| number * BLOCK_LENGTH + place)
                .filter(|entry| {
                    let (word, bit) = bit_of(*entry);
                    *entry < self.capacity && slab.in_use(word) & bit != 0
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_can_be_taken_once() {
        for capacity in [1, 255, 256, 300, 1024, 1500] {
            let mut slabs = Slabs::new(capacity);
            let taken: std::collections::HashSet<u32> =
                std::iter::from_fn(|| slabs.take_single()).collect();
            assert_eq!(taken.len(), capacity as usize);
            assert!(taken.iter().all(|entry| *entry < capacity));
            assert_eq!(slabs.iter().count(), capacity as usize);
            assert_eq!(slabs.take_block(), None);
            for entry in &taken {
                slabs.free(*entry);
            }
            assert_eq!(slabs.used(), 0);
            let blocks = std::iter::from_fn(|| slabs.take_block()).count();
            assert_eq!(blocks, (capacity / BLOCK_LENGTH) as usize);
            let left = std::iter::from_fn(|| slabs.take_single()).count();
            assert_eq!(left, (capacity % BLOCK_LENGTH) as usize);
        }
    }

    #[test]
    fn an_entry_that_rests_is_neither_in_use_nor_taken() {
        let mut slabs = Slabs::new(256);
        let taken: Vec<u32> = std::iter::from_fn(|| slabs.take_single()).collect();
        assert_eq!(taken.len(), 256);
        slabs.rest(7);
        slabs.rest(7);
        assert_eq!(slabs.used(), 255);
        assert!(slabs.is_resting(7) && !slabs.is_used(7));
        assert_eq!(slabs.count(7), 255);
        assert_eq!(slabs.iter().count(), 255);
        assert_eq!(slabs.take_single(), None);
        slabs.free(7);
        assert_eq!(slabs.used(), 255);
        assert!(!slabs.is_resting(7));
        assert_eq!(slabs.take_single(), Some(7));
        for entry in &taken {
            slabs.rest(*entry);
        }
        assert_eq!(slabs.take_block(), None);
        for entry in &taken {
            slabs.free(*entry);
        }
        assert_eq!(slabs.used(), 0);
        assert_eq!(slabs.take_block(), Some(0));
    }

    #[test]
    fn a_block_that_is_given_up_lends_its_holes_to_singles() {
        let mut slabs = Slabs::new(512);
        let first = slabs.take_block().unwrap();
        for place in 0..200 {
            slabs.mark(first + place);
        }
        assert_eq!(std::iter::from_fn(|| slabs.take_single()).count(), 256);
        assert_eq!(slabs.emptiest_block(), Some(first));
        slabs.release_block(first);
        assert_eq!(std::iter::from_fn(|| slabs.take_single()).count(), 56);
        assert_eq!(slabs.used(), 512);
    }
}
