//! The tables' writer: entries, index and transaction slots, changed so that a packet sees all of a
//! transaction or none of it, and so that a process killed between any two stores leaves a state
//! that [`Tables::open`] can take up.
//!
//! The order, and what it protects:
//! - A new entry is complete before the index leads to it, and `family` is its last word.
//! - A pending version is written while the entry refers to no transaction, after a grace period.
//! - Commit is one store into the slot's word; that word, not `state`, says what was decided.
//! - Fold writes current versions, waits until every packet that could have read the old ones has
//!   ended, and only then clears references.
//! - A removed entry is `Absent`, then out of the index, then a grace period later free.
//!
//! An early change is an entry whose pending version equals its current one: it counts at once, and
//! the reference tells which transaction takes it back.

use std::{
    collections::{BTreeMap, HashMap, hash_map},
    mem::offset_of,
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytemuck::Zeroable as _;
use natmig_common::{
    Action, BindingTraffic, Entry, FAMILY_IPV4, Reference, Slot, SlotState, Version,
};

use super::{
    CommitReport, RouterError,
    address_map::{AddressMap, AddressSet},
    grace,
    maps::Maps,
    version::{Segments, action, same},
};
use crate::rule::TransactionId;

/// The transaction of a whole table, which no controller decides on: a router that finds it half
/// done finishes or forgets it by itself.
pub(super) const APPLY: TransactionId = TransactionId(u64::MAX);

/// One address of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) address: Ipv4Addr,
    pub(super) version: Version,
    /// In force from prepare on.
    pub(super) early: bool,
}

/// Told how far a long operation is: what it does, done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

#[derive(Debug)]
struct Transaction {
    slot: u32,
    reference: Reference,
    state: SlotState,
    committed_at: u64,
    /// Entries that refer to the transaction, or did when it was prepared.
    entries: Vec<u32>,
}

/// What opening the tables found and mended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recovery {
    /// Bound addresses.
    pub(super) addresses: usize,
    /// Transactions taken back.
    pub(super) rolled_back: usize,
}

/// The single writer of an instance's tables.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) maps: Maps,
    by_address: AddressMap<u32>,
    /// Entries from here on were never used.
    next: u32,
    /// Entries that were used and are free.
    free: Vec<u32>,
    held: BTreeMap<TransactionId, Transaction>,
}

/// Where a step of the protocol is; tests kill the process there.
macro_rules! step {
    ($name:literal) => {
        super::failpoint::reach($name);
    };
}

impl Tables {
    /// Takes up the tables in whatever state a predecessor left them.
    pub(super) fn open(maps: Maps) -> Result<(Self, Recovery), RouterError> {
        let mut tables = Self {
            by_address: AddressMap::default(),
            next: 0,
            free: Vec::new(),
            held: BTreeMap::new(),
            maps,
        };
        let doomed = tables.scan_slots();
        let dead = tables.scan_entries()?;
        // What a predecessor unlinked may still be in a packet's hands.
        grace::fast(&tables.maps.activity)?;
        grace::rcu()?;
        tables.release(&dead)?;
        let mut recovery = Recovery {
            addresses: 0,
            rolled_back: doomed.len(),
        };
        for id in doomed {
            tables.take_back(id)?;
        }
        match tables.held.get(&APPLY).map(|transaction| transaction.state) {
            Some(SlotState::Committed | SlotState::Folding) => tables.fold(APPLY)?,
            Some(_) => {
                tables.abort(APPLY)?;
                recovery.rolled_back += 1;
            }
            None => {}
        }
        let begun: Vec<TransactionId> = tables
            .held
            .iter()
            .filter(|(_, transaction)| transaction.state == SlotState::Folding)
            .map(|(id, _)| *id)
            .collect();
        for id in begun {
            tables.fold(id)?;
        }
        recovery.addresses = tables.by_address.len();
        Ok((tables, recovery))
    }

    /// Finds the transactions; returns those that were being prepared or taken back.
    fn scan_slots(&mut self) -> Vec<TransactionId> {
        let mut doomed = Vec::new();
        for index in 0..self.maps.transactions.len() {
            let slot = self.maps.transactions.get(index);
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
                entries: Vec::new(),
            };
            if transaction.state == SlotState::Preparing {
                doomed.push(id);
            }
            self.held.insert(id, transaction);
        }
        doomed
    }

    /// Finds the entries, mends the index; returns entries that are out of use.
    fn scan_entries(&mut self) -> Result<Vec<u32>, RouterError> {
        let doing = || RouterError::system("read the index");
        let mut index: AddressMap<u32> = self
            .maps
            .index
            .read_all::<[u8; 4], u32>()
            .map_err(doing())?
            .into_iter()
            .map(|(address, entry)| (Ipv4Addr::from(address), entry))
            .collect();
        let references: HashMap<u64, TransactionId> = self
            .held
            .iter()
            .map(|(id, held)| (held.reference.raw(), *id))
            .collect();
        let mut dead = Vec::new();
        let mut missing = Vec::new();
        for number in 0..self.capacity() {
            let at = number as usize;
            if !in_use(self.maps.entries.load(at, 0)) {
                continue;
            }
            // Everything below that is not in use is free.
            self.free.extend(self.next..number);
            self.next = number + 1;
            let entry = self.maps.entries.get(at);
            let address = Ipv4Addr::from(entry.address);
            let holder = references.get(&entry.reference);
            if let Some(id) = holder
                && let Some(held) = self.held.get_mut(id)
            {
                held.entries.push(number);
            } else if entry.reference != 0 {
                self.maps.entries.store(at, offset_of!(Entry, reference), 0);
            }
            let known = index.get(&address).copied();
            if holder.is_none() && action(&entry.current) == Action::Absent
                || known.is_some_and(|known| known != number)
            {
                dead.push(number);
                continue;
            }
            if index.remove(&address).is_none() {
                missing.push((address.octets(), number));
            }
            self.by_address.insert(address, number);
        }
        let stale: Vec<[u8; 4]> = index.keys().map(Ipv4Addr::octets).collect();
        self.maps.index.delete_batch(&stale).map_err(doing())?;
        let (keys, values): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
        self.maps
            .index
            .update_batch(&keys, &values)
            .map_err(doing())?;
        Ok(dead)
    }

    /// Number of entries.
    pub(super) fn capacity(&self) -> u32 {
        u32::try_from(self.maps.entries.len()).unwrap_or(u32::MAX)
    }

    /// Addresses in the tables.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, Entry)> {
        self.by_address
            .iter()
            .map(|(address, number)| (*address, self.maps.entries.get(*number as usize)))
    }

    /// The entry of an address.
    pub(super) fn entry(&self, address: Ipv4Addr) -> Option<Entry> {
        self.by_address
            .get(&address)
            .map(|number| self.maps.entries.get(*number as usize))
    }

    /// The version that counts.
    pub(super) fn effective(&self, entry: &Entry) -> Version {
        let committed = entry.reference().is_some_and(|reference| {
            let word = self.maps.transactions.load(reference.slot() as usize, 0);
            reference.committed(word)
        });
        if committed {
            entry.pending
        } else {
            entry.current
        }
    }

    /// Transactions that are held, with their state and time of commit.
    pub(super) fn held(&self) -> impl Iterator<Item = (TransactionId, SlotState, u64)> {
        self.held
            .iter()
            .map(|(id, held)| (*id, held.state, held.committed_at))
    }

    /// Entries of a transaction that is held.
    pub(super) fn entries_of(&self, id: TransactionId) -> Vec<Entry> {
        let Some(held) = self.held.get(&id) else {
            return Vec::new();
        };
        held.entries
            .iter()
            .map(|number| self.maps.entries.get(*number as usize))
            .filter(|entry| entry.reference == held.reference.raw())
            .collect()
    }

    /// Writes a transaction's pending versions. All or nothing; the same again changes nothing.
    pub(super) fn prepare(
        &mut self,
        id: TransactionId,
        writes: &[Write],
        segments: &Segments,
        progress: Progress<'_>,
    ) -> Result<(), RouterError> {
        if self.held.contains_key(&id) {
            return self.check_held(id, writes);
        }
        let (fresh, changed) = self.plan(writes, segments)?;
        let needed = self.by_address.len() as u64 + fresh.len() as u64;
        if needed > u64::from(self.capacity()) {
            return Err(RouterError::Full {
                capacity: self.capacity(),
                needed,
            });
        }
        let (slot, reference) = self.claim_slot(id, fresh.len() + changed.len())?;
        step!("prepare:claimed");
        self.held.insert(
            id,
            Transaction {
                slot,
                reference,
                state: SlotState::Preparing,
                committed_at: 0,
                entries: Vec::with_capacity(fresh.len() + changed.len()),
            },
        );
        let result = self
            .create(id, reference, &fresh, progress)
            .and_then(|()| self.change(id, reference, &changed));
        if let Err(error) = result {
            self.take_back(id)?;
            return Err(error);
        }
        step!("prepare:written");
        self.set_state(id, SlotState::Prepared);
        step!("prepare:marked");
        grace::fast(&self.maps.activity)?;
        Ok(())
    }

    /// Whether what is held under this number is what is asked for.
    fn check_held(&self, id: TransactionId, writes: &[Write]) -> Result<(), RouterError> {
        let Some(held) = self.held.get(&id) else {
            return Err(RouterError::UnknownTransaction(id));
        };
        let mut ours = 0;
        for write in writes {
            let entry = self.entry(write.address).unwrap_or_default();
            if entry.reference == held.reference.raw() {
                ours += 1;
                if !same(&entry.pending, &write.version) {
                    return Err(RouterError::DifferentChanges(id));
                }
            } else if !same(&entry.current, &write.version) {
                return Err(RouterError::DifferentChanges(id));
            }
        }
        if ours == self.entries_of(id).len() {
            Ok(())
        } else {
            Err(RouterError::DifferentChanges(id))
        }
    }

    /// Sorts a transaction's changes into new entries and changed ones, and refuses what cannot be.
    #[expect(
        clippy::type_complexity,
        reason = "two lists, named where they are used"
    )]
    fn plan(
        &self,
        writes: &[Write],
        segments: &Segments,
    ) -> Result<(Vec<Write>, Vec<(u32, Write)>), RouterError> {
        let mut seen = AddressSet::default();
        seen.reserve(writes.len());
        let mut fresh = Vec::new();
        let mut changed = Vec::new();
        for write in writes {
            let address = write.address;
            if !seen.insert(address) {
                return Err(RouterError::Twice { address });
            }
            let Some(&number) = self.by_address.get(&address) else {
                if action(&write.version) != Action::Absent {
                    fresh.push(*write);
                }
                continue;
            };
            let entry = self.maps.entries.get(number as usize);
            if let Some(reference) = entry.reference() {
                let holder = self.holder(reference).unwrap_or(APPLY);
                return Err(RouterError::Busy { address, holder });
            }
            if same(&entry.current, &write.version) {
                continue;
            }
            if write.early && action(&entry.current) != Action::Absent {
                let rule = segments.rule(&entry.current);
                return Err(RouterError::InUse { address, rule });
            }
            changed.push((number, *write));
        }
        Ok((fresh, changed))
    }

    fn holder(&self, reference: Reference) -> Option<TransactionId> {
        self.held
            .iter()
            .find(|(_, held)| held.reference == reference)
            .map(|(id, _)| *id)
    }

    fn claim_slot(
        &self,
        id: TransactionId,
        entries: usize,
    ) -> Result<(u32, Reference), RouterError> {
        let slots = &self.maps.transactions;
        for index in 0..slots.len() {
            let slot = slots.get(index);
            if slot.state != SlotState::Free as u32 {
                continue;
            }
            let generation = if slot.generation() >= (1 << 31) - 1 {
                1
            } else {
                slot.generation() + 1
            };
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let Some(reference) = Reference::new(number, generation) else {
                return Err(RouterError::NoSlot);
            };
            let claimed = Slot {
                word: Slot::open_word(generation),
                transaction: id.0,
                state: SlotState::Preparing as u32,
                entries: u32::try_from(entries).unwrap_or(u32::MAX),
                ..Slot::zeroed()
            };
            // The word first: a free slot's word means nothing, a claimed one's does.
            let bytes = bytemuck::bytes_of(&claimed);
            let state = offset_of!(Slot, state);
            slots.store(index, 0, claimed.word);
            slots.write(index, 8, &bytes[8..state]);
            slots.write(index, offset_of!(Slot, committed_at), &[0; 8]);
            slots.write(index, state, &bytes[state..state + 8]);
            return Ok((number, reference));
        }
        Err(RouterError::NoSlot)
    }

    fn set_state(&mut self, id: TransactionId, state: SlotState) {
        if let Some(held) = self.held.get_mut(&id) {
            held.state = state;
            let mut slot = self.maps.transactions.get(held.slot as usize);
            slot.state = state as u32;
            let from = offset_of!(Slot, state);
            let bytes = &bytemuck::bytes_of(&slot)[from..from + 8];
            self.maps
                .transactions
                .write(held.slot as usize, from, bytes);
        }
    }

    /// Writes entries of addresses that have none, then leads the index to them.
    fn create(
        &mut self,
        id: TransactionId,
        reference: Reference,
        fresh: &[Write],
        progress: Progress<'_>,
    ) -> Result<(), RouterError> {
        let total = fresh.len() as u64;
        for (chunk, writes) in fresh.chunks(65_536).enumerate() {
            progress("writing entries", (chunk * 65_536) as u64, total);
            let mut keys = Vec::with_capacity(writes.len());
            let mut values = Vec::with_capacity(writes.len());
            for write in writes {
                let number = self.take_free()?;
                let entry = Entry {
                    address: write.address.octets(),
                    family: FAMILY_IPV4,
                    reference: reference.raw(),
                    current: if write.early {
                        write.version
                    } else {
                        Version::default()
                    },
                    pending: write.version,
                    ..Entry::default()
                };
                let bytes = bytemuck::bytes_of(&entry);
                self.maps.entries.write(number as usize, 8, &bytes[8..]);
                self.maps.entries.write(number as usize, 0, &bytes[..8]);
                self.by_address.insert(write.address, number);
                self.note(id, number);
                keys.push(entry.address);
                values.push(number);
            }
            step!("prepare:entries");
            self.maps
                .index
                .update_batch(&keys, &values)
                .map_err(RouterError::system("lead the index to new entries"))?;
            step!("prepare:indexed");
        }
        progress("writing entries", total, total);
        Ok(())
    }

    /// Writes pending versions into entries that exist.
    fn change(
        &mut self,
        id: TransactionId,
        reference: Reference,
        changed: &[(u32, Write)],
    ) -> Result<(), RouterError> {
        let entries = &self.maps.entries;
        let current = offset_of!(Entry, current);
        // An early change of an entry that was absent: all but the action first, and the action
        // when no packet can have read the rest before.
        let early = || changed.iter().filter(|(_, write)| write.early);
        for (number, write) in early() {
            let bytes = bytemuck::bytes_of(&write.version);
            entries.write(*number as usize, current + 8, &bytes[8..]);
        }
        if early().next().is_some() {
            grace::fast(&self.maps.activity)?;
        }
        for (number, write) in changed {
            let at = *number as usize;
            let bytes = bytemuck::bytes_of(&write.version);
            entries.write(at, offset_of!(Entry, pending), bytes);
            entries.store(at, offset_of!(Entry, reference), reference.raw());
            if write.early {
                entries.write(at, current, &bytes[..8]);
            }
            step!("prepare:pending");
        }
        for (number, _) in changed {
            self.note(id, *number);
        }
        Ok(())
    }

    fn note(&mut self, id: TransactionId, number: u32) {
        if let Some(held) = self.held.get_mut(&id) {
            held.entries.push(number);
        }
    }

    fn take_free(&mut self) -> Result<u32, RouterError> {
        if let Some(number) = self.free.pop() {
            return Ok(number);
        }
        let number = self.next;
        if number >= self.capacity() {
            return Err(RouterError::Full {
                capacity: self.capacity(),
                needed: u64::from(self.capacity()) + 1,
            });
        }
        self.next += 1;
        Ok(number)
    }

    /// Commits a transaction: one store.
    pub(super) fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        let Some(held) = self.held.get_mut(&id) else {
            return Err(RouterError::UnknownTransaction(id));
        };
        if matches!(held.state, SlotState::Committed | SlotState::Folding) {
            return Ok(CommitReport {
                committed_at: held.committed_at,
                grace: Duration::ZERO,
            });
        }
        let slot = held.slot as usize;
        let committed_at = now();
        self.maps
            .transactions
            .store(slot, offset_of!(Slot, committed_at), committed_at);
        held.committed_at = committed_at;
        step!("commit:before");
        let word = Slot::committed_word(held.reference.generation());
        self.maps
            .transactions
            .store(slot, offset_of!(Slot, word), word);
        step!("commit:stored");
        self.set_state(id, SlotState::Committed);
        let grace = grace::fast(&self.maps.activity)?;
        step!("commit:acknowledged");
        Ok(CommitReport {
            committed_at,
            grace,
        })
    }

    /// Takes a transaction back that is not committed.
    pub(super) fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        match self.held.get(&id).map(|held| held.state) {
            None => Ok(()),
            Some(SlotState::Committed | SlotState::Folding) => {
                Err(RouterError::AlreadyCommitted(id))
            }
            Some(_) => self.take_back(id),
        }
    }

    fn take_back(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.set_state(id, SlotState::Preparing);
        step!("abort:marked");
        let Some(held) = self.held.get(&id) else {
            return Ok(());
        };
        let reference = held.reference.raw();
        let mut dead = Vec::new();
        for number in held.entries.clone() {
            let entry = self.maps.entries.get(number as usize);
            if entry.reference != reference {
                continue;
            }
            if action(&entry.current) == Action::Absent || entry.current == entry.pending {
                // The reference stays until the entry is gone: it tells a successor whose it is.
                dead.push(number);
            } else {
                self.maps
                    .entries
                    .store(number as usize, offset_of!(Entry, reference), 0);
            }
        }
        step!("abort:cleared");
        self.remove(&dead)?;
        self.close(id)
    }

    /// Brings current versions up to a committed transaction's.
    pub(super) fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        let Some(held) = self.held.get(&id) else {
            return Ok(());
        };
        if !matches!(held.state, SlotState::Committed | SlotState::Folding) {
            return Err(RouterError::NotCommitted(id));
        }
        self.set_state(id, SlotState::Folding);
        step!("fold:marked");
        let Some(held) = self.held.get(&id) else {
            return Ok(());
        };
        let reference = held.reference.raw();
        let numbers: Vec<u32> = held
            .entries
            .iter()
            .copied()
            .filter(|number| {
                let at = *number as usize;
                self.maps.entries.load(at, offset_of!(Entry, reference)) == reference
            })
            .collect();
        let mut dead = Vec::new();
        for number in &numbers {
            let at = *number as usize;
            let entry = self.maps.entries.get(at);
            let bytes = bytemuck::bytes_of(&entry.pending);
            self.maps
                .entries
                .write(at, offset_of!(Entry, current), bytes);
            if action(&entry.pending) == Action::Absent {
                dead.push(*number);
            }
        }
        step!("fold:written");
        grace::fast(&self.maps.activity)?;
        for number in &numbers {
            self.maps
                .entries
                .store(*number as usize, offset_of!(Entry, reference), 0);
            step!("fold:clearing");
        }
        step!("fold:cleared");
        self.remove(&dead)?;
        self.close(id)
    }

    /// Frees a transaction's slot, once no packet can hold a reference to it.
    fn close(&mut self, id: TransactionId) -> Result<(), RouterError> {
        grace::fast(&self.maps.activity)?;
        grace::rcu()?;
        self.set_state(id, SlotState::Free);
        self.held.remove(&id);
        step!("close:freed");
        Ok(())
    }

    /// Removes entries of old locators, and of identities whose VMs are at home for good.
    pub(super) fn retire(&mut self, addresses: &[Ipv4Addr]) -> Result<(), RouterError> {
        let mut dead = Vec::new();
        for address in addresses {
            let Some(&number) = self.by_address.get(address) else {
                continue;
            };
            let entry = self.maps.entries.get(number as usize);
            let pending = entry
                .reference()
                .map_or(Action::Absent, |_| action(&entry.pending));
            let visits =
                action(&entry.current) == Action::Local && entry.current.counterpart != [0; 4];
            if matches!(pending, Action::Away | Action::Local) {
                // The VM moves again: the entry stays for that, only its old version goes.
                if action(&entry.current) == Action::Local && !visits {
                    self.set_absent(number);
                }
            } else if action(&entry.current) == Action::Away || visits {
                tracing::warn!(%address, "not retired: its VM is away again");
            } else {
                dead.push(number);
            }
        }
        self.remove(&dead)
    }

    fn set_absent(&self, number: u32) {
        // One store of the word that holds the action.
        self.maps
            .entries
            .store(number as usize, offset_of!(Entry, current), 0);
    }

    /// Takes entries out of use and frees them.
    fn remove(&mut self, numbers: &[u32]) -> Result<(), RouterError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut keys = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.set_absent(*number);
            let entry = self.maps.entries.get(*number as usize);
            let address = Ipv4Addr::from(entry.address);
            if let hash_map::Entry::Occupied(known) = self.by_address.entry(address)
                && known.get() == number
            {
                known.remove();
                keys.push(entry.address);
            }
        }
        step!("remove:absent");
        self.maps
            .index
            .delete_batch(&keys)
            .map_err(RouterError::system("take addresses out of the index"))?;
        step!("remove:unindexed");
        grace::fast(&self.maps.activity)?;
        grace::rcu()?;
        self.release(numbers)
    }

    /// Frees entries that nothing leads to and no packet holds.
    fn release(&mut self, numbers: &[u32]) -> Result<(), RouterError> {
        let zero = [0; size_of::<Entry>()];
        for number in numbers {
            self.maps.entries.write(*number as usize, 0, &zero);
        }
        let counted: Vec<u32> = numbers
            .iter()
            .copied()
            .filter(|number| *number < self.maps.binding_counters.info.max_entries)
            .collect();
        self.maps
            .binding_counters
            .zero_per_cpu_batch::<u32, BindingTraffic>(&counted, self.maps.activity.len())
            .map_err(RouterError::system("reset the counters of freed entries"))?;
        self.free.extend(numbers);
        Ok(())
    }
}

/// Whether an entry's first word says that it is in use.
fn in_use(word: u64) -> bool {
    word.to_ne_bytes()[offset_of!(Entry, family)] != 0
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
