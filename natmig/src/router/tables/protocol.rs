//! What happens to a transaction on a router: prepared, committed or aborted, folded; and addresses
//! retired.

use std::{
    mem::offset_of,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytemuck::Zeroable as _;
use natmig_common::{Action, Entry, Ipv4, Ipv6, Reference, Slot, SlotState, Version};

use super::{
    super::{
        ApplyReport, CommitReport, RouterError,
        family::Net,
        grace,
        version::{Decoded, Segments, action, same},
    },
    APPLY, Progress, Tables, Transaction, Write, Writes,
    entries::{choose_bases, set_absent, set_action, set_reference},
    slots, sort, twice,
};
use crate::{digest::Parts, rule::TransactionId};

/// A transaction's changes of one family, by what has to be done.
struct Plan<F: Net> {
    /// Addresses without an entry, ascending.
    fresh: Vec<Write<F>>,
    /// Addresses with an entry, and its number.
    changed: Vec<(u32, Write<F>)>,
}

/// What folding has to do with the entries of a family.
struct Folding {
    /// All of them.
    numbers: Vec<u32>,
    /// Those whose addresses are no longer bound.
    dead: Vec<u32>,
}

impl Tables {
    /// Writes a transaction's pending versions. All or nothing; the same again changes nothing.
    pub(in crate::router) fn prepare(
        &mut self,
        id: TransactionId,
        writes: Writes,
        segments: &Segments,
        progress: Progress<'_>,
    ) -> Result<(), RouterError> {
        if self.held.contains_key(&id) {
            return self.check_held(id, &writes);
        }
        self.free_rested()?;
        let ipv4 = self.plan(writes.ipv4, segments)?;
        let ipv6 = self.plan(writes.ipv6, segments)?;
        let count = ipv4.count() + ipv6.count();
        let reference = self.claim(id, count)?;
        step!("prepare:claimed");
        self.held.insert(
            id,
            Transaction {
                slot: reference.slot(),
                reference,
                state: SlotState::Preparing,
                committed_at: 0,
                ipv4: Vec::new(),
                ipv6: Vec::new(),
            },
        );
        let result = self
            .write(id, reference, ipv4, progress)
            .and_then(|()| self.write(id, reference, ipv6, progress));
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

    /// Claims a slot; waits for a grace period only if all slots that are free need one.
    fn claim(&mut self, id: TransactionId, entries: usize) -> Result<Reference, RouterError> {
        self.free_slots
            .renew_over(|until| self.passing.is_over(until));
        let slots = &self.maps.transactions;
        if let Some(reference) = slots::claim(slots, &mut self.free_slots, id, entries) {
            return Ok(reference);
        }
        if self.free_slots.is_resting() {
            grace::rcu()?;
            self.free_slots.renew_all();
        }
        slots::claim(slots, &mut self.free_slots, id, entries).ok_or(RouterError::NoSlot)
    }

    /// Whether what is held under this number is what is asked for.
    fn check_held(&self, id: TransactionId, writes: &Writes) -> Result<(), RouterError> {
        let Some(held) = self.held.get(&id) else {
            return Err(RouterError::UnknownTransaction(id));
        };
        let same = self.is_held::<Ipv4>(held, &writes.ipv4) && self.is_held(held, &writes.ipv6);
        same.then_some(()).ok_or(RouterError::DifferentChanges(id))
    }

    fn is_held<F: Net>(&self, held: &Transaction, writes: &[Write<F>]) -> bool {
        let (family, entries) = (F::maps(&self.maps), F::entries(self));
        let mut ours = 0;
        for write in writes {
            let entry = entries
                .find(write.address)
                .map_or_else(Entry::zeroed, |number| family.entries.get(number as usize));
            let version = if entry.reference == held.reference.raw() {
                ours += 1;
                entry.pending
            } else {
                entry.current
            };
            if !same(&version, &write.version) {
                return false;
            }
        }
        ours == self.entries_of::<F>(held).count()
    }

    /// Sorts a transaction's changes into new entries and changed ones, and refuses what cannot be.
    fn plan<F: Net>(
        &self,
        mut writes: Vec<Write<F>>,
        segments: &Segments,
    ) -> Result<Plan<F>, RouterError> {
        let (family, entries) = (F::maps(&self.maps), F::entries(self));
        sort(&mut writes);
        if let Some(address) = twice(&writes) {
            return Err(RouterError::Twice { address });
        }
        let mut changed = Vec::new();
        let mut refused = None;
        writes.retain(|write| {
            let Some(number) = entries.find(write.address) else {
                return action(&write.version) != Action::Absent;
            };
            let entry = family.entries.get(number as usize);
            let address = F::address(write.address);
            if let Some(reference) = entry.reference() {
                let holder = self.holder(reference).unwrap_or(APPLY);
                refused.get_or_insert(RouterError::Busy { address, holder });
            } else if !same(&entry.current, &write.version) {
                if write.early && action(&entry.current) != Action::Absent {
                    let rule = segments.rule(&Decoded::of(&entry.current));
                    refused.get_or_insert(RouterError::InUse { address, rule });
                }
                changed.push((number, *write));
            }
            false
        });
        if let Some(error) = refused {
            return Err(error);
        }
        let needed = entries.len() as u64 + writes.len() as u64;
        if needed > u64::from(entries.capacity()) {
            return Err(RouterError::Full {
                capacity: entries.capacity(),
                needed,
            });
        }
        Ok(Plan {
            fresh: writes,
            changed,
        })
    }

    fn holder(&self, reference: Reference) -> Option<TransactionId> {
        self.held
            .iter()
            .find(|(_, held)| held.reference == reference)
            .map(|(id, _)| *id)
    }

    fn set_state(&mut self, id: TransactionId, state: SlotState) {
        if let Some(held) = self.held.get_mut(&id) {
            held.state = state;
            slots::set_state(&self.maps.transactions, held.slot, state);
        }
    }

    /// Writes the planned entries of a family.
    fn write<F: Net>(
        &mut self,
        id: TransactionId,
        reference: Reference,
        plan: Plan<F>,
        progress: Progress<'_>,
    ) -> Result<(), RouterError> {
        let Plan { fresh, mut changed } = plan;
        let total = fresh.len() as u64;
        let mut numbers = Vec::with_capacity(fresh.len() + changed.len());
        let (maps, entries) = F::split(self);
        let created = entries.create(maps, reference.raw(), &fresh, &mut numbers, &mut |done| {
            progress("writing entries", done, total);
        });
        if let Ok(true) = created {
            for (number, write) in &mut changed {
                if let Some(found) = entries.find(write.address) {
                    *number = found;
                }
            }
        }
        let result = created.and_then(|_| self.change(reference, &changed));
        numbers.extend(changed.iter().map(|(number, _)| *number));
        if let Some(held) = self.held.get_mut(&id) {
            F::numbers_mut(held).append(&mut numbers);
        }
        result
    }

    /// Writes pending versions into entries that exist.
    fn change<F: Net>(
        &self,
        reference: Reference,
        changed: &[(u32, Write<F>)],
    ) -> Result<(), RouterError> {
        let family = F::maps(&self.maps);
        let current = offset_of!(Entry<F>, current);
        // An early change of an entry that was absent: all but the action first, and the action
        // when no packet can have read the rest before.
        let early = || changed.iter().filter(|(_, write)| write.early);
        for (number, write) in early() {
            let bytes = bytemuck::bytes_of(&write.version);
            family
                .entries
                .write(*number as usize, current + 8, &bytes[8..]);
        }
        if early().next().is_some() {
            grace::fast(&self.maps.activity)?;
        }
        for (number, write) in changed {
            let bytes = bytemuck::bytes_of(&write.version);
            family
                .entries
                .write(*number as usize, offset_of!(Entry<F>, pending), bytes);
            set_reference::<F>(&self.maps, *number, reference.raw());
            if write.early {
                set_action(family, *number, &write.version);
            }
            step!("prepare:pending");
        }
        Ok(())
    }

    /// Commits a transaction: one store.
    pub(in crate::router) fn commit(
        &mut self,
        id: TransactionId,
    ) -> Result<CommitReport, RouterError> {
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
        step!("commit:before");
        let word = Slot::committed_word(held.reference.generation());
        self.maps
            .transactions
            .store(slot, offset_of!(Slot, word), word);
        step!("commit:stored");
        // Behind the store: this thread may have to wait for a CPU at any place, and a packet that comes
        // after the time that is told must not meet the old state.
        let committed_at = now();
        slots::set_committed_at(&self.maps.transactions, held.slot, committed_at);
        held.committed_at = committed_at;
        self.set_state(id, SlotState::Committed);
        let grace = grace::fast(&self.maps.activity)?;
        step!("commit:acknowledged");
        Ok(CommitReport {
            committed_at,
            grace,
        })
    }

    /// Takes a transaction back that is not committed.
    pub(in crate::router) fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        match self.held.get(&id).map(|held| held.state) {
            None => Ok(()),
            Some(SlotState::Committed | SlotState::Folding) => {
                Err(RouterError::AlreadyCommitted(id))
            }
            Some(_) => self.take_back(id),
        }
    }

    pub(super) fn take_back(&mut self, id: TransactionId) -> Result<(), RouterError> {
        self.set_state(id, SlotState::Preparing);
        step!("abort:marked");
        let Some(held) = self.held.get(&id) else {
            return Ok(());
        };
        let dead_ipv4 = self.take_back_entries::<Ipv4>(held);
        let dead_ipv6 = self.take_back_entries::<Ipv6>(held);
        step!("abort:cleared");
        self.remove(dead_ipv4, dead_ipv6)?;
        self.close(id)
    }

    /// Clears the references of entries that stay; the others.
    fn take_back_entries<F: Net>(&self, held: &Transaction) -> Vec<u32> {
        let family = F::maps(&self.maps);
        let reference = held.reference.raw();
        let mut dead = Vec::new();
        for number in F::numbers(held) {
            let entry = family.entries.get(*number as usize);
            if entry.reference != reference {
                continue;
            }
            if action(&entry.current) == Action::Absent || entry.current == entry.pending {
                // The reference stays until the entry is gone: it tells a successor whose it is.
                dead.push(*number);
            } else {
                set_reference::<F>(&self.maps, *number, 0);
            }
        }
        dead
    }

    /// Brings current versions up to a committed transaction's.
    pub(in crate::router) fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
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
        let ipv4 = self.fold_entries::<Ipv4>(held);
        let ipv6 = self.fold_entries::<Ipv6>(held);
        step!("fold:written");
        // Of entries that all changed nothing is known until their references are cleared.
        let elements_ipv4 = self.maps.ipv4.unaligned(&ipv4.numbers);
        let elements_ipv6 = self.maps.ipv6.unaligned(&ipv6.numbers);
        grace::fast(&self.maps.activity)?;
        choose_bases::<Ipv4>(&self.maps, &elements_ipv4, &ipv4.numbers);
        choose_bases::<Ipv6>(&self.maps, &elements_ipv6, &ipv6.numbers);
        self.clear_references::<Ipv4>(&ipv4.numbers);
        self.clear_references::<Ipv6>(&ipv6.numbers);
        step!("fold:cleared");
        self.remove(ipv4.dead, ipv6.dead)?;
        self.close(id)
    }

    /// Writes current versions.
    fn fold_entries<F: Net>(&self, held: &Transaction) -> Folding {
        let family = F::maps(&self.maps);
        let (current, pending) = (offset_of!(Entry<F>, current), offset_of!(Entry<F>, pending));
        let mut folding = Folding {
            numbers: Vec::with_capacity(F::numbers(held).len()),
            dead: Vec::new(),
        };
        for number in F::numbers(held) {
            let at = *number as usize;
            let entry = family.entries.get(at);
            if entry.reference != held.reference.raw() {
                continue;
            }
            let bytes = &bytemuck::bytes_of(&entry)[pending..pending + size_of::<Version<F>>()];
            family.entries.write(at, current, bytes);
            folding.numbers.push(*number);
            if action(&entry.pending) == Action::Absent {
                folding.dead.push(*number);
            }
        }
        folding
    }

    fn clear_references<F: Net>(&self, numbers: &[u32]) {
        for number in numbers {
            set_reference::<F>(&self.maps, *number, 0);
            step!("fold:clearing");
        }
    }

    /// Frees a transaction's slot, once no packet can hold a reference to it.
    fn close(&mut self, id: TransactionId) -> Result<(), RouterError> {
        grace::fast(&self.maps.activity)?;
        self.set_state(id, SlotState::Free);
        let held = self.held.remove(&id);
        step!("close:freed");
        if let Some(held) = held {
            self.free_slots
                .give_back(held.slot, || self.passing.begin());
        }
        Ok(())
    }

    /// Removes entries of both families.
    fn remove(&mut self, ipv4: Vec<u32>, ipv6: Vec<u32>) -> Result<(), RouterError> {
        self.free_rested()?;
        self.ipv4.remove(&self.maps, &mut self.passing, ipv4)?;
        self.ipv6.remove(&self.maps, &mut self.passing, ipv6)
    }

    /// Frees the entries that were removed a grace period ago.
    fn free_rested(&mut self) -> Result<(), RouterError> {
        self.ipv4.free_rested(&self.maps, &self.passing)?;
        self.ipv6.free_rested(&self.maps, &self.passing)
    }

    /// Removes entries of old locators, and of identities whose VMs are at home for good.
    pub(in crate::router) fn retire(&mut self, addresses: &[IpAddr]) -> Result<(), RouterError> {
        let ipv4 = self.to_retire::<Ipv4>(addresses);
        let ipv6 = self.to_retire::<Ipv6>(addresses);
        self.remove(ipv4, ipv6)
    }

    /// The entries of the family that are to go.
    fn to_retire<F: Net>(&self, addresses: &[IpAddr]) -> Vec<u32> {
        let (family, entries) = (F::maps(&self.maps), F::entries(self));
        let mut dead = Vec::new();
        for address in addresses {
            let Some(number) = F::of(*address).and_then(|number| entries.find(number)) else {
                continue;
            };
            let entry = family.entries.get(number as usize);
            let pending = entry
                .reference()
                .map_or(Action::Absent, |_| action(&entry.pending));
            let visits = action(&entry.current) == Action::Local
                && entry.current.counterpart != F::UNSPECIFIED;
            if matches!(pending, Action::Away | Action::Local) {
                // The VM moves again: the entry stays for that, only its old version goes.
                if action(&entry.current) == Action::Local && !visits {
                    set_absent(family, number);
                }
            } else if action(&entry.current) == Action::Away || visits {
                tracing::warn!(%address, "not retired: its VM is away again");
            } else {
                dead.push(number);
            }
        }
        dead.sort_unstable();
        dead.dedup();
        dead
    }

    /// What has to be written to make `wanted` all that the table has in the parts `whole`; other
    /// addresses that it does not name stay as they are. Entries that a transaction holds are left
    /// alone.
    pub(in crate::router) fn difference(
        &self,
        wanted: Writes,
        whole: &Parts,
        report: &mut ApplyReport,
    ) -> Writes {
        Writes {
            ipv4: self.difference_of(wanted.ipv4, whole, report),
            ipv6: self.difference_of(wanted.ipv6, whole, report),
        }
    }

    fn difference_of<F: Net>(
        &self,
        mut wanted: Vec<Write<F>>,
        whole: &Parts,
        report: &mut ApplyReport,
    ) -> Vec<Write<F>> {
        let (family, entries) = (F::maps(&self.maps), F::entries(self));
        sort(&mut wanted);
        let mut removed = Vec::new();
        if !whole.is_empty() {
            // Entries in a row are mostly addresses in a row.
            let mut next = 0;
            for entry in entries.iter(&self.maps) {
                let address = F::number(entry.address);
                let after = |at: usize| at == 0 || wanted[at - 1].address < address;
                let before = wanted
                    .get(next)
                    .is_none_or(|write| write.address >= address);
                if !(before && after(next)) {
                    next = wanted.partition_point(|write| write.address < address);
                }
                if wanted
                    .get(next)
                    .is_some_and(|write| write.address == address)
                {
                    next += 1;
                    continue;
                }
                if !whole.contains(F::address(address)) {
                    continue;
                }
                if entry.reference != 0 {
                    report.held += 1;
                } else if action(&entry.current) != Action::Absent {
                    removed.push(Write {
                        address,
                        version: Version::zeroed(),
                        early: false,
                    });
                }
            }
        }
        report.removed += removed.len();
        wanted.retain(|write| {
            let Some(number) = entries.find(write.address) else {
                report.added += 1;
                return true;
            };
            let entry = family.entries.get(number as usize);
            if entry.reference != 0 {
                report.held += 1;
                return false;
            }
            if same(&entry.current, &write.version) {
                report.unchanged += 1;
                return false;
            }
            if action(&entry.current) == Action::Absent {
                report.added += 1;
            } else {
                report.changed += 1;
            }
            true
        });
        wanted.append(&mut removed);
        wanted
    }
}

impl<F: Net> Plan<F> {
    fn count(&self) -> usize {
        self.fresh.len() + self.changed.len()
    }
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
