//! Transaction slots: claimed, marked, and found again.

use std::{collections::BTreeMap, mem::offset_of};

use bytemuck::Zeroable as _;
use natmig_common::{Reference, Slot, SlotState};

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

/// Claims a free slot for a transaction that is being prepared; `None` if there is none.
pub(super) fn claim(slots: &Shared<Slot>, id: TransactionId, entries: usize) -> Option<Reference> {
    let state = offset_of!(Slot, state);
    let is_free = |index: &usize| slots.get(*index).state == SlotState::Free as u32;
    let index = (0..slots.len()).find(is_free)?;
    let before = slots.get(index).generation();
    let generation = if before >= (1 << 31) - 1 {
        1
    } else {
        before + 1
    };
    let reference = Reference::new(u32::try_from(index).ok()?, generation)?;
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
