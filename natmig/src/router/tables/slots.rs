//! Transaction slots: claimed, marked, and found again.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::offset_of,
};

use bytemuck::Zeroable as _;
use natmig_common::{Reference, SLOT_COUNT, Slot, SlotState};

use super::{super::bpf::Shared, Transaction};
use crate::rule::TransactionId;

/// Finds the transactions, and which of them were being prepared or taken back.
pub(super) fn scan(
    slots: &Shared<Slot>,
) -> (BTreeMap<TransactionId, Transaction>, Vec<TransactionId>) {
    let mut held = BTreeMap::new();
    let mut doomed = Vec::new();
    for index in 0..slots.len() {
        let slot = slots.get(index);
        let state = match SlotState::from_raw(slot.state) {
            None | Some(SlotState::Free) => continue,
            Some(state) => state,
        };
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let Some(reference) = Reference::new(number, slot.generation()) else {
            continue;
        };
        let id = TransactionId(slot.transaction);
        let committed = reference.committed(slot.word);
        let transaction = Transaction {
            slot: number,
            reference,
            state: if committed && state != SlotState::Folding {
                SlotState::Committed
            } else {
                state
            },
            committed_at: if committed { slot.committed_at } else { 0 },
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        };
        if transaction.state == SlotState::Preparing {
            doomed.push(id);
        }
        held.insert(id, transaction);
    }
    (held, doomed)
}

/// Slots given back that are let rest together: half of them, so that a prepare finds a rested one as
/// long as no more than the other half are held.
const RESTING: usize = SLOT_COUNT as usize / 2;

/// Free slots, the one that has been free for longest first.
///
/// A slot that is given back rests until an RCU grace period has passed. Many rest together, so that
/// neither a prepare nor a fold waits the milliseconds that one takes.
#[derive(Debug)]
pub(super) struct FreeSlots {
    rested: VecDeque<u32>,
    resting: Vec<u32>,
}

impl FreeSlots {
    /// The free slots of a table that has just been taken up. The caller lets a grace period pass
    /// before it claims one.
    pub(super) fn of(slots: &Shared<Slot>) -> Self {
        let rested = (0..)
            .zip(0..slots.len())
            .filter(|(_, index)| slots.get(*index).state == SlotState::Free as u32)
            .map(|(number, _)| number)
            .collect();
        Self {
            rested,
            resting: Vec::new(),
        }
    }

    /// Takes a slot out; `None` if none has rested.
    fn take(&mut self) -> Option<u32> {
        self.rested.pop_front()
    }

    /// Takes a slot back that no entry refers to any longer; whether it is time for a grace period.
    #[must_use]
    pub(super) fn give_back(&mut self, slot: u32) -> bool {
        self.resting.push(slot);
        self.resting.len() >= RESTING
    }

    /// Whether any slot waits for a grace period.
    pub(super) const fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Makes the slots that rest claimable, after a grace period.
    pub(super) fn renew(&mut self) {
        self.rested.extend(self.resting.drain(..));
    }
}

/// Claims a free slot for a transaction that is being prepared; `None` if none has rested.
pub(super) fn claim(
    slots: &Shared<Slot>,
    free: &mut FreeSlots,
    id: TransactionId,
    entries: usize,
) -> Option<Reference> {
    let state = offset_of!(Slot, state);
    let number = free.take()?;
    let index = number as usize;
    let before = slots.get(index).generation();
    let generation = if before >= (1 << 31) - 1 {
        1
    } else {
        before + 1
    };
    let reference = Reference::new(number, generation)?;
    let claimed = Slot {
        word: Slot::open_word(generation),
        transaction: id.0,
        state: SlotState::Preparing as u32,
        entries: u32::try_from(entries).unwrap_or(u32::MAX),
        ..Slot::zeroed()
    };
    // The word first: a free slot's word means nothing, a claimed one's does.
    let bytes = bytemuck::bytes_of(&claimed);
    slots.store(index, 0, claimed.word);
    slots.write(index, 8, &bytes[8..state]);
    slots.write(index, offset_of!(Slot, committed_at), &[0; 8]);
    slots.write(index, state, &bytes[state..state + 8]);
    Some(reference)
}

/// Notes where a transaction stands.
pub(super) fn set_state(slots: &Shared<Slot>, slot: u32, state: SlotState) {
    let mut value = slots.get(slot as usize);
    value.state = state as u32;
    let from = offset_of!(Slot, state);
    let bytes = &bytemuck::bytes_of(&value)[from..from + 8];
    slots.write(slot as usize, from, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(slots: impl IntoIterator<Item = u32>) -> FreeSlots {
        FreeSlots {
            rested: slots.into_iter().collect(),
            resting: Vec::new(),
        }
    }

    #[test]
    fn a_slot_that_was_given_back_is_not_taken_before_it_has_rested() {
        let mut free = free([0, 1]);
        assert_eq!(free.take(), Some(0));
        assert!(!free.give_back(0));
        assert_eq!(free.take(), Some(1));
        assert_eq!(free.take(), None);
        assert!(free.is_resting());
        free.renew();
        assert!(!free.is_resting());
        assert_eq!(free.take(), Some(0));
        assert_eq!(free.take(), None);
    }

    #[test]
    fn transactions_that_follow_each_other_never_run_out_of_slots() {
        let mut free = free(0..SLOT_COUNT);
        let mut grace_periods = 0;
        for _ in 0..10 * SLOT_COUNT {
            let slot = free.take().unwrap();
            if free.give_back(slot) {
                grace_periods += 1;
                free.renew();
            }
        }
        assert_eq!(grace_periods, 20);
    }
}
