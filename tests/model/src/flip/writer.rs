//! The writer's stores, in the order of `router/tables/protocol.rs`.

use bytemuck::Zeroable as _;
use natmig_common::{Action, Entry, Family as _, Ipv4, Reference, Slot, Version};

use super::{ACCESS, Plant};

/// The packet's addresses: two locators, whose VMs are in one transaction.
pub(super) const DESTINATION: [u8; 4] = [10, 1, 1, 250];
pub(super) const SOURCE: [u8; 4] = [10, 1, 2, 250];
pub(super) const ADDRESSES: [[u8; 4]; 2] = [DESTINATION, SOURCE];

/// The slot through which both transactions go.
pub(super) const SLOT: u32 = 5;

/// What the writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// A slot's word.
    Word(u32, u64),
    /// An entry's pending version: that of this transaction.
    Pending(usize, u8),
    /// An entry's current version: a copy of the pending one.
    Current(usize),
    /// An entry's reference.
    Reference(usize, u64),
    /// Waits for the packets that began before.
    Grace,
}

/// Entries and slots.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) entries: [Entry<Ipv4>; 2],
    words: [u64; 2],
}

/// An entry before any transaction; its versions' identities end in the number of the transaction.
fn entry(number: usize) -> Entry<Ipv4> {
    Entry {
        address: ADDRESSES[number],
        family: Ipv4::NUMBER,
        current: version(number, 0),
        ..Entry::zeroed()
    }
}

/// What a transaction makes of an entry.
fn version(entry: usize, transaction: u8) -> Version<Ipv4> {
    let deliver = entry == 0;
    Version {
        action: if deliver {
            Action::Deliver as u8
        } else {
            Action::Known as u8
        },
        counterpart: [10, 9, u8::from(deliver), transaction],
        mac: [2; 6],
        ifindex: if deliver { ACCESS } else { 0 },
        ..Version::zeroed()
    }
}

pub(super) fn program(plant: Option<Plant>) -> Vec<Store> {
    let mut program = Vec::new();
    for transaction in [1, 2] {
        let generation = if plant == Some(Plant::GenerationKept) {
            1
        } else {
            u32::from(transaction)
        };
        let slot = |entry: usize| {
            let other = plant == Some(Plant::TwoStores) && entry == 1;
            if other { SLOT + 1 } else { SLOT }
        };
        let reference = |entry| Reference::new(slot(entry), generation).map_or(0, Reference::raw);
        program.push(Store::Word(slot(0), Slot::open_word(generation)));
        if plant == Some(Plant::TwoStores) {
            program.push(Store::Word(slot(1), Slot::open_word(generation)));
        }
        for entry in [0, 1] {
            program.push(Store::Pending(entry, transaction));
            program.push(Store::Reference(entry, reference(entry)));
        }
        program.push(Store::Grace);
        program.push(Store::Word(slot(0), Slot::committed_word(generation)));
        if plant == Some(Plant::TwoStores) {
            program.push(Store::Word(slot(1), Slot::committed_word(generation)));
        }
        if plant != Some(Plant::FoldWithoutGrace) {
            program.push(Store::Grace);
        }
        program.extend([Store::Current(0), Store::Current(1), Store::Grace]);
        let clear = [Store::Reference(0, 0), Store::Reference(1, 0)];
        match plant {
            Some(Plant::SlotReusedEarly) => program.extend(clear),
            // The slot is claimed again, and entries refer to it that are not cleared yet.
            Some(Plant::GenerationKept) => {}
            _ => {
                program.extend(clear);
                program.push(Store::Grace);
            }
        }
    }
    program
}

impl Memory {
    /// Before any store.
    fn initial() -> Self {
        Self {
            entries: [entry(0), entry(1)],
            words: [0; 2],
        }
    }

    /// Memory after none of the stores, after the first, and so on.
    pub(super) fn after_each(program: &[Store]) -> Vec<Self> {
        let mut memory = Self::initial();
        let mut memories = vec![memory];
        for store in program {
            memory.apply(*store);
            memories.push(memory);
        }
        memories
    }

    /// The word of a slot.
    pub(super) fn word(&self, slot: u32) -> u64 {
        self.words[usize::from(slot != SLOT)]
    }

    fn apply(&mut self, store: Store) {
        match store {
            Store::Word(slot, word) => self.words[usize::from(slot != SLOT)] = word,
            Store::Pending(number, transaction) => {
                self.entries[number].pending = version(number, transaction);
            }
            Store::Current(number) => self.entries[number].current = self.entries[number].pending,
            Store::Reference(number, reference) => self.entries[number].reference = reference,
            Store::Grace => {}
        }
    }
}
