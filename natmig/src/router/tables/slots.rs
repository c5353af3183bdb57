//! Transaction slots: claimed, marked, and found again.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::offset_of,
};

use bytemuck::Zeroable as _;
use natmig_common::{Reference, SLOT_COUNT, Slot, SlotState};

use super::{
    super::{bpf::Shared, grace::Period},
    Transaction,
};
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

/// Slots given back for which a grace period is begun: a quarter of them, so that it is over long
/// before others are needed.
const RESTING: usize = SLOT_COUNT as usize / 4;

/// Free slots, the one that has been free for longest first.
///
/// A slot that is given back rests until an RCU grace period has passed. Many rest together, and the
/// grace period passes while others are taken, so that neither a prepare nor a fold waits for one.
#[derive(Debug)]
pub(super) struct FreeSlots {
    rested: VecDeque<u32>,
    /// Those for which no grace period was begun yet.
    resting: Vec<u32>,
    /// Those that rest until a grace period is over, the first first.
    passing: VecDeque<(Period, Vec<u32>)>,
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
            passing: VecDeque::new(),
        }
    }

    /// Takes a slot out; `None` if none has rested.
    fn take(&mut self) -> Option<u32> {
        self.rested.pop_front()
    }

    /// Takes a slot back that no entry refers to any longer. `begin` begins a grace period, when it is
    /// time for one.
    pub(super) fn give_back(&mut self, slot: u32, begin: impl FnOnce() -> Period) {
        self.resting.push(slot);
        if self.resting.len() >= RESTING {
            self.passing
                .push_back((begin(), std::mem::take(&mut self.resting)));
        }
    }

    /// Whether any slot waits for a grace period.
    pub(super) fn is_resting(&self) -> bool {
        !self.resting.is_empty() || !self.passing.is_empty()
    }

    /// Makes the slots claimable whose grace period is over.
    pub(super) fn renew_over(&mut self, is_over: impl Fn(Period) -> bool) {
        while let Some((_, rested)) = self.passing.pop_front_if(|(until, _)| is_over(*until)) {
            self.rested.extend(rested);
        }
    }

    /// Makes all slots claimable that rest, after a grace period.
    pub(super) fn renew_all(&mut self) {
        self.renew_over(|_| true);
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

/// Notes when a transaction's commit had been stored.
pub(super) fn set_committed_at(slots: &Shared<Slot>, slot: u32, at: u64) {
    slots.store(slot as usize, offset_of!(Slot, committed_at), at);
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
    use super::{super::super::grace::Passing, *};

    fn free(slots: impl IntoIterator<Item = u32>) -> FreeSlots {
        FreeSlots {
            rested: slots.into_iter().collect(),
            resting: Vec::new(),
            passing: VecDeque::new(),
        }
    }

    #[test]
    fn a_slot_that_was_given_back_is_not_taken_before_it_has_rested() {
        let mut free = free([0, 1]);
        assert_eq!(free.take(), Some(0));
        free.give_back(0, || unreachable!("one slot is not worth a grace period"));
        assert_eq!(free.take(), Some(1));
        free.renew_over(|_| true);
        assert_eq!(free.take(), None);
        assert!(free.is_resting());
        free.renew_all();
        assert!(!free.is_resting());
        assert_eq!(free.take(), Some(0));
        assert_eq!(free.take(), None);
    }

    #[test]
    fn transactions_that_follow_each_other_never_run_out_of_slots() {
        let mut free = free(0..SLOT_COUNT);
        let mut passing = Passing::default();
        let mut begun = Vec::new();
        for _ in 0..10 * SLOT_COUNT {
            // The latest one is never over yet.
            let latest = begun.last().copied();
            free.renew_over(|until| Some(until) != latest);
            let slot = free.take().unwrap();
            free.give_back(slot, || {
                begun.push(passing.begin());
                begun[begun.len() - 1]
            });
        }
        assert_eq!(begun.len(), 40);
    }
}
