//! The entries of one family: where each address has its own, and what leads there.
//!
//! An address is in the direct block of its narrow prefix, if that has one, or else in the index.
//! The writer finds an entry the way a packet does, but in its own memory.
//!
//! - An entry is complete before anything leads to it, and the word that says whose it is comes last.
//! - A block is built aside, of copies of entries of which nothing is pending, and put in place with
//!   one store; index elements and the entries that were copied go a grace period later.
//! - A block is given up in place: the index leads to its entries before the block does so no more.
//! - What leads to an entry goes, then a grace period, then the entry, and after another it is free:
//!   a block goes on leading to an entry that its address may soon have again. Few entries rest
//!   meanwhile, and nobody waits for that: `Absent`, with no reference, and nothing but a block leads
//!   to them.

use std::{collections::VecDeque, mem::offset_of};

use natmig_common::{
    Action, Aligned, BLOCK_LENGTH, BindingKey, BindingTotal, Entry, Settled, Version,
};

use super::{
    super::{
        RouterError,
        address_map::AddressMap,
        family::{Net, in_use, use_offset},
        grace::{self, Passing, Period},
        maps::{FamilyMaps, Maps},
        version::action,
    },
    Write,
    prefixes::Prefixes,
    slabs::Slabs,
};

/// Addresses for which a narrow prefix gets a block.
const WORTH_A_BLOCK: usize = 128;
/// Elements of the index written at once.
const CHUNK: usize = 65_536;
/// Entries that are removed together and rest; more are waited for, so that what follows later need not
/// free them all.
const MOST_RESTING: usize = 1024;
/// Freed entries whose totals are looked for one by one.
const FEW: usize = 16;

/// The entries of one family.
#[derive(Debug)]
pub(in crate::router) struct Entries<F: Net> {
    slabs: Slabs,
    /// Entries of addresses that are in the index.
    singles: AddressMap<F::Number, u32>,
    /// How many addresses of a narrow prefix are in the index.
    hashed: AddressMap<F::Number, usize>,
    /// First entries of blocks, by narrow prefix.
    blocks: AddressMap<F::Number, u32>,
    pub(super) prefixes: F::Prefixes,
    /// Entries that were copied into a block, with their copies; they are freed after grace.
    leaving: Vec<(u32, u32)>,
    /// Entries that were removed, the first removed first.
    resting: VecDeque<Resting>,
    /// Elements that entries to be created need in the index.
    keys: Vec<F::Octets>,
    values: Vec<u32>,
}

/// Entries that are freed when a grace period is over.
#[derive(Debug)]
struct Resting {
    until: Period,
    numbers: Vec<u32>,
    /// First entries of the blocks that were given up with them.
    blocks: Vec<u32>,
}

/// What opening found that has to go after a grace period.
#[derive(Debug)]
pub(super) struct Remains {
    dead: Vec<u32>,
    /// Entries of which there is a copy in a block, with the copy.
    copied: Vec<(u32, u32)>,
}

/// Writes an entry that nothing leads to, or that is not in use.
fn write_entry<F: Net>(maps: &Maps, number: u32, entry: &Entry<F>) {
    let family = F::maps(maps);
    let bytes = bytemuck::bytes_of(entry);
    let rest = use_offset::<F>() + 8;
    family.entries.write(number as usize, rest, &bytes[rest..]);
    family.entries.write(number as usize, 0, &bytes[..rest]);
    // Never for an entry that is not in use: a block that is built later may not write all of its own.
    settle(maps, number, entry);
}

/// Clears an entry.
fn clear_entry<F: Net>(maps: &FamilyMaps<F>, number: u32) {
    unsettle(maps, number);
    let zero = [0; 128];
    let from = use_offset::<F>();
    let at = number as usize;
    maps.entries.write(at, from, &zero[..8]);
    maps.entries
        .write(at, from + 8, &zero[from + 8..size_of::<Entry<F>>()]);
    maps.entries.write(at, 0, &zero[..from]);
}

impl<F: Net> Entries<F> {
    /// Takes up the family's entries: finds out whose each is and mends what leads to them.
    /// `holds` says whether a reference is a held transaction's, and is told of the entry if so.
    pub(super) fn open(
        maps: &Maps,
        mut holds: impl FnMut(u64, u32) -> bool,
    ) -> Result<(Self, Remains), RouterError> {
        let family = F::maps(maps);
        let doing = || RouterError::system("read the index");
        let mut index: AddressMap<F::Number, u32> = family
            .index
            .read_all::<F::Octets, u32>()
            .map_err(doing())?
            .into_iter()
            .map(|(octets, entry)| (F::number(octets), entry))
            .collect();
        let mut entries = Self {
            slabs: Slabs::new(family.capacity()),
            singles: AddressMap::default(),
            hashed: AddressMap::default(),
            blocks: AddressMap::default(),
            prefixes: F::Prefixes::adopt(maps),
            leaving: Vec::new(),
            resting: VecDeque::new(),
            keys: Vec::new(),
            values: Vec::new(),
        };
        for (narrow, first) in entries.prefixes.blocks(maps) {
            if entries.slabs.can_be_block(first) {
                entries.slabs.mark_block(first);
                entries.blocks.insert(narrow, first);
            } else {
                entries.prefixes.take_block(maps, narrow);
            }
        }
        let mut remains = Remains {
            dead: Vec::new(),
            copied: Vec::new(),
        };
        for number in 0..family.capacity() {
            let at = number as usize;
            if !in_use::<F>(family.entries.load(at, use_offset::<F>())) {
                continue;
            }
            entries.slabs.mark(number);
            let entry = family.entries.get(at);
            let address = F::number(entry.address);
            let held = entry.reference != 0 && holds(entry.reference, number);
            if entry.reference != 0 && !held {
                set_reference::<F>(maps, number, 0);
            }
            if !held {
                settle(maps, number, &family.entries.get(at));
            }
            let absent = !held && action(&entry.current) == Action::Absent;
            if let Some(first) = entries.blocks.get(&F::narrow(address)) {
                let proper = first + u32::from(F::last(address));
                if number != proper {
                    remains.copied.push((number, proper));
                } else if absent {
                    remains.dead.push(number);
                }
                continue;
            }
            let known = index.get(&address).copied();
            if absent
                || known.is_some_and(|known| known != number)
                || entries.singles.contains_key(&address)
            {
                remains.dead.push(number);
                continue;
            }
            if index.remove(&address).is_none() {
                entries.keys.push(entry.address);
                entries.values.push(number);
            }
            entries.add_single(maps, address, number)?;
        }
        let stale: Vec<F::Octets> = index.into_keys().map(F::octets).collect();
        family.index.delete_batch(&stale).map_err(doing())?;
        entries.flush_index(maps)?;
        entries.prefixes.mend(maps);
        Ok((entries, remains))
    }

    /// Frees what opening found; a grace period after it.
    pub(super) fn bury(&mut self, maps: &Maps, remains: Remains) -> Result<(), RouterError> {
        let Remains { mut dead, copied } = remains;
        maps.bank_for_reuse();
        for (from, to) in &copied {
            if self.slabs.is_used(*to) {
                carry_over::<F>(maps, *from, *to)?;
            }
        }
        dead.extend(copied.into_iter().map(|(from, _)| from));
        self.release(maps, &dead)?;
        let empty = self.slabs.empty_blocks();
        if empty.is_empty() {
            return Ok(());
        }
        for first in &empty {
            self.unplace(maps, *first);
        }
        grace::fast(&maps.activity)?;
        grace::rcu()?;
        for first in empty {
            self.slabs.release_block(first);
        }
        Ok(())
    }

    /// Says that all entries must be looked at.
    pub(super) fn unsettle(&self, maps: &Maps) {
        for number in self.slabs.iter() {
            unsettle(F::maps(maps), number);
        }
    }

    /// Says, a grace period after that, that what is known of entries may lie anywhere.
    pub(super) fn forget_bases(&self, maps: &Maps) {
        let numbers: Vec<u32> = self.slabs.iter().collect();
        let family = F::maps(maps);
        family.forget_bases(&family.unaligned(&numbers));
    }

    /// Says of all entries what may be known of them without looking.
    pub(super) fn settle(&self, maps: &Maps) {
        for number in self.slabs.iter() {
            settle(maps, number, &F::maps(maps).entries.get(number as usize));
        }
    }

    /// Number of entries.
    pub(super) fn capacity(&self) -> u32 {
        self.slabs.capacity()
    }

    /// Number of entries in use, without those that rest.
    pub(super) fn used(&self) -> u32 {
        self.slabs.used()
    }

    /// As [`Entries::used`].
    pub(super) fn len(&self) -> usize {
        self.slabs.used() as usize
    }

    /// The number of an address's entry.
    pub(super) fn find(&self, address: F::Number) -> Option<u32> {
        match self.blocks.get(&F::narrow(address)) {
            Some(first) => {
                let entry = first + u32::from(F::last(address));
                self.slabs.is_used(entry).then_some(entry)
            }
            None => self.singles.get(&address).copied(),
        }
    }

    /// All entries in use, by number.
    pub(super) fn iter<'a>(&'a self, maps: &'a Maps) -> impl Iterator<Item = Entry<F>> + 'a {
        let family = F::maps(maps);
        self.slabs
            .iter()
            .map(|number| family.entries.get(number as usize))
    }

    fn add_single(
        &mut self,
        maps: &Maps,
        address: F::Number,
        number: u32,
    ) -> Result<(), RouterError> {
        self.singles.insert(address, number);
        let narrow = F::narrow(address);
        let count = self.hashed.entry(narrow).or_default();
        *count += 1;
        if *count == 1 {
            self.prefixes.lead_to_index(maps, narrow)?;
        }
        Ok(())
    }

    fn remove_single(&mut self, maps: &Maps, address: F::Number) {
        self.singles.remove(&address);
        let narrow = F::narrow(address);
        let Some(count) = self.hashed.get_mut(&narrow) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.hashed.remove(&narrow);
            self.prefixes.leave_index(maps, narrow);
        }
    }

    /// Writes entries of addresses that have none, in ascending order, and lets everything lead to
    /// them; narrow prefixes that are worth it get blocks. The numbers of the entries are added to
    /// `numbers`, also of those before an error. Says whether other entries moved.
    pub(super) fn create(
        &mut self,
        maps: &Maps,
        reference: u64,
        fresh: &[Write<F>],
        numbers: &mut Vec<u32>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool, RouterError> {
        let family = F::maps(maps);
        // In a block that packets follow already, what is in force early becomes so with one store.
        let mut early: Vec<(u32, Version<F>)> = Vec::new();
        let mut moved = false;
        let mut done = 0;
        for group in fresh.chunk_by(|one, other| F::narrow(one.address) == F::narrow(other.address))
        {
            done += group.len() as u64;
            let narrow = F::narrow(group[0].address);
            if let Some(first) = self.blocks.get(&narrow).copied() {
                for write in group {
                    let number = first + u32::from(F::last(write.address));
                    if self.slabs.is_resting(number) {
                        self.end_rest(maps)?;
                    }
                    let mut entry = write.entry(reference);
                    if write.early {
                        entry.current.action = Action::Absent as u8;
                        early.push((number, write.version));
                    }
                    write_entry(maps, number, &entry);
                    self.slabs.mark(number);
                    numbers.push(number);
                }
                step!("prepare:entries");
                continue;
            }
            let singles = self.hashed.get(&narrow).copied().unwrap_or(0);
            if group.len() + singles >= WORTH_A_BLOCK
                && self.build_block(maps, reference, group, numbers)?
            {
                moved |= singles != 0;
                progress(done);
                continue;
            }
            for write in group {
                let number = self.take_single(maps)?;
                write_entry(maps, number, &write.entry(reference));
                numbers.push(number);
                self.keys.push(F::octets(write.address));
                self.values.push(number);
                self.add_single(maps, write.address, number)?;
            }
            if self.keys.len() >= CHUNK {
                self.flush_index(maps)?;
                progress(done);
            }
        }
        self.flush_index(maps)?;
        if !early.is_empty() {
            grace::fast(&maps.activity)?;
        }
        for (number, version) in early {
            set_action(family, number, &version);
        }
        self.free_leaving(maps)?;
        Ok(moved)
    }

    /// Leads the index to entries that are complete.
    fn flush_index(&mut self, maps: &Maps) -> Result<(), RouterError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        step!("prepare:entries");
        let result = F::maps(maps)
            .index
            .update_batch(&self.keys, &self.values)
            .map_err(RouterError::system("lead the index to new entries"));
        step!("prepare:indexed");
        self.keys.clear();
        self.values.clear();
        result
    }

    /// Builds the block of the prefix of these addresses and of those that it has already; `false`
    /// if that cannot be.
    fn build_block(
        &mut self,
        maps: &Maps,
        reference: u64,
        group: &[Write<F>],
        numbers: &mut Vec<u32>,
    ) -> Result<bool, RouterError> {
        let family = F::maps(maps);
        let narrow = F::narrow(group[0].address);
        let mut old = Vec::new();
        if self.hashed.contains_key(&narrow) {
            for last in 0..=u8::MAX {
                let address = F::member(narrow, last);
                let Some(number) = self.singles.get(&address).copied() else {
                    continue;
                };
                let entry = family.entries.get(number as usize);
                if entry.reference != 0 {
                    return Ok(false);
                }
                old.push((address, number, entry));
            }
        }
        if self.slabs.is_without_block() {
            self.end_rest(maps)?;
        }
        let Some(first) = self.slabs.take_block() else {
            return Ok(false);
        };
        if !self.prefixes.make_room(maps, narrow)? {
            self.slabs.release_block(first);
            return Ok(false);
        }
        // Nothing has been said of its entries since before they were freed.
        family.forget_bases(&[Aligned::place(first).0]);
        let place = |address| first + u32::from(F::last(address));
        for (address, _, entry) in &old {
            write_entry(maps, place(*address), entry);
            self.slabs.mark(place(*address));
        }
        step!("block:copied");
        for write in group {
            let number = place(write.address);
            write_entry(maps, number, &write.entry(reference));
            self.slabs.mark(number);
            numbers.push(number);
        }
        step!("block:filled");
        self.prefixes.put_block(maps, narrow, first)?;
        self.blocks.insert(narrow, first);
        step!("block:placed");
        for (address, number, _) in old {
            self.remove_single(maps, address);
            self.leaving.push((number, place(address)));
        }
        Ok(true)
    }

    /// Frees entries that were copied into blocks.
    fn free_leaving(&mut self, maps: &Maps) -> Result<(), RouterError> {
        let leaving = std::mem::take(&mut self.leaving);
        if leaving.is_empty() {
            return Ok(());
        }
        let family = F::maps(maps);
        let keys: Vec<F::Octets> = leaving
            .iter()
            .map(|(number, _)| family.entries.get(*number as usize).address)
            .collect();
        family
            .index
            .delete_batch(&keys)
            .map_err(RouterError::system("take addresses out of the index"))?;
        step!("block:unindexed");
        grace::fast(&maps.activity)?;
        grace::rcu()?;
        maps.bank_for_reuse();
        for (from, to) in &leaving {
            carry_over::<F>(maps, *from, *to)?;
        }
        step!("block:counted");
        let numbers: Vec<u32> = leaving.into_iter().map(|(number, _)| number).collect();
        self.release(maps, &numbers)
    }

    /// Takes a free entry for an address in the index, from a block if there is no other.
    fn take_single(&mut self, maps: &Maps) -> Result<u32, RouterError> {
        loop {
            if let Some(number) = self.slabs.take_single() {
                return Ok(number);
            }
            if !self.leaving.is_empty() {
                self.free_leaving(maps)?;
            } else if !self.resting.is_empty() {
                self.end_rest(maps)?;
            } else if !self.dissolve_block(maps)? {
                let capacity = self.capacity();
                let needed = u64::from(capacity) + 1;
                return Err(RouterError::Full { capacity, needed });
            }
        }
    }

    /// Gives the emptiest block up: its entries stay where they are, and the index leads to them.
    fn dissolve_block(&mut self, maps: &Maps) -> Result<bool, RouterError> {
        let Some(first) = self.slabs.emptiest_block() else {
            return Ok(false);
        };
        let family = F::maps(maps);
        let numbers: Vec<u32> = (first..first + BLOCK_LENGTH)
            .filter(|number| self.slabs.is_used(*number))
            .collect();
        let keys: Vec<F::Octets> = numbers
            .iter()
            .map(|number| family.entries.get(*number as usize).address)
            .collect();
        family
            .index
            .update_batch(&keys, &numbers)
            .map_err(RouterError::system("lead the index to a block's entries"))?;
        step!("block:indexed");
        for (octets, number) in keys.into_iter().zip(numbers) {
            self.add_single(maps, F::number(octets), number)?;
        }
        self.unplace(maps, first);
        step!("block:dissolved");
        self.slabs.release_block(first);
        Ok(true)
    }

    /// Takes a block out of its place.
    fn unplace(&mut self, maps: &Maps, first: u32) {
        let narrow = self.blocks.iter().find(|(_, block)| **block == first);
        if let Some(narrow) = narrow.map(|(narrow, _)| *narrow) {
            self.blocks.remove(&narrow);
            self.prefixes.take_block(maps, narrow);
        }
    }

    /// Takes entries out of use, and frees them or lets them rest.
    pub(super) fn remove(
        &mut self,
        maps: &Maps,
        passing: &mut Passing,
        numbers: Vec<u32>,
    ) -> Result<(), RouterError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let family = F::maps(maps);
        let mut keys = Vec::new();
        let mut leaving: AddressMap<u32, (u32, F::Number)> = AddressMap::default();
        for number in &numbers {
            set_absent(family, *number);
        }
        step!("remove:absent");
        for number in &numbers {
            // What is absent needs nobody to tell whose it was.
            let reference = offset_of!(Entry<F>, reference);
            family.entries.publish(*number as usize, reference, 0);
            let octets = family.entries.get(*number as usize).address;
            let address = F::number(octets);
            if self.slabs.is_in_block(*number) {
                let first = number - number % BLOCK_LENGTH;
                leaving.entry(first).or_insert((0, F::narrow(address))).0 += 1;
            } else if self.singles.get(&address) == Some(number) {
                self.remove_single(maps, address);
                keys.push(octets);
            }
        }
        family
            .index
            .delete_batch(&keys)
            .map_err(RouterError::system("take addresses out of the index"))?;
        step!("remove:unindexed");
        leaving.retain(|first, (count, _)| *count == self.slabs.count(*first));
        for (_, narrow) in leaving.values() {
            self.blocks.remove(narrow);
            self.prefixes.take_block(maps, *narrow);
            step!("block:taken");
        }
        grace::fast(&maps.activity)?;
        for number in &numbers {
            self.slabs.rest(*number);
        }
        let at_once = numbers.len() > MOST_RESTING;
        self.resting.push_back(Resting {
            until: passing.begin(),
            numbers,
            blocks: leaving.into_keys().collect(),
        });
        if at_once { self.end_rest(maps) } else { Ok(()) }
    }

    /// Frees entries that have rested.
    pub(super) fn free_rested(
        &mut self,
        maps: &Maps,
        passing: &Passing,
    ) -> Result<(), RouterError> {
        while let Some(rested) = self
            .resting
            .pop_front_if(|resting| passing.is_over(resting.until))
        {
            self.free_resting(maps, &rested)?;
        }
        Ok(())
    }

    /// Waits until all entries have rested, and frees them.
    pub(super) fn end_rest(&mut self, maps: &Maps) -> Result<(), RouterError> {
        if self.resting.is_empty() {
            return Ok(());
        }
        grace::rcu()?;
        while let Some(rested) = self.resting.pop_front() {
            self.free_resting(maps, &rested)?;
        }
        Ok(())
    }

    fn free_resting(&mut self, maps: &Maps, rested: &Resting) -> Result<(), RouterError> {
        self.release(maps, &rested.numbers)?;
        for first in &rested.blocks {
            self.slabs.release_block(*first);
        }
        Ok(())
    }

    /// Frees entries that are `Absent` or that nothing leads to, and that no packet holds.
    fn release(&mut self, maps: &Maps, numbers: &[u32]) -> Result<(), RouterError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let family = F::maps(maps);
        maps.bank_for_reuse();
        for number in numbers {
            for word in family.counters_of(*number).flatten() {
                if word.load(std::sync::atomic::Ordering::Relaxed) != 0 {
                    word.store(0, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
        forget_totals::<F>(maps, numbers)
            .map_err(RouterError::system("reset the counters of freed entries"))?;
        step!("release:counters");
        for number in numbers {
            clear_entry(family, *number);
        }
        grace::fast(&maps.activity)?;
        for number in numbers {
            self.slabs.free(*number);
        }
        Ok(())
    }
}

/// Stores the word of an entry that refers to a transaction. While it refers to one, the entry must be
/// looked at; when it no longer does, its current version is in force.
pub(super) fn set_reference<F: Net>(maps: &Maps, number: u32, reference: u64) {
    let family = F::maps(maps);
    if reference != 0 {
        unsettle(family, number);
    }
    let offset = std::mem::offset_of!(Entry<F>, reference);
    family.entries.publish(number as usize, offset, reference);
    if reference == 0 {
        settle(maps, number, &family.entries.get(number as usize));
    }
}

/// Says what may be known of an entry without looking at it.
fn settle<F: Net>(maps: &Maps, number: u32, entry: &Entry<F>) {
    F::maps(maps).set_settled(number, counterpart_of(maps, entry));
}

/// The counterpart that may be known of an entry without looking at it.
fn counterpart_of<F: Net>(maps: &Maps, entry: &Entry<F>) -> F::Octets {
    let in_pool = F::Prefixes::in_pool(maps, F::number(entry.address));
    Settled::counterpart_of(entry, in_pool)
}

/// Chooses the bases of elements that have said nothing of any entry for a grace period: as most of the first of
/// these entries of theirs would have it, which are about to be settled.
pub(super) fn choose_bases<F: Net>(maps: &Maps, elements: &[u32], numbers: &[u32]) {
    /// Entries of an element that are asked.
    const ASKED: usize = 16;
    let family = F::maps(maps);
    family.forget_bases(elements);
    for group in numbers.chunk_by(|one, other| Aligned::place(*one).0 == Aligned::place(*other).0) {
        let element = Aligned::place(group[0]).0;
        if elements.binary_search(&element).is_err() {
            continue;
        }
        // The one that remains if each is struck out together with one that differs.
        let (mut base, mut votes) = (F::UNSPECIFIED, 0);
        for number in group.iter().take(ASKED) {
            let mut entry = family.entries.get(*number as usize);
            entry.reference = 0;
            let counterpart = counterpart_of(maps, &entry);
            if counterpart == F::UNSPECIFIED {
                continue;
            }
            let wanted = F::minus(counterpart, Aligned::place(*number).1);
            if votes == 0 {
                base = wanted;
            }
            votes += if wanted == base { 1 } else { -1 };
        }
        family.set_base(element, bytemuck::bytes_of(&base));
    }
}

/// Says that an entry must be looked at.
fn unsettle<F: Net>(maps: &FamilyMaps<F>, number: u32) {
    maps.set_settled(number, F::UNSPECIFIED);
}

/// Ends what the current version does: one store of the word that holds the action.
pub(super) fn set_absent<F: Net>(maps: &FamilyMaps<F>, number: u32) {
    unsettle(maps, number);
    let offset = std::mem::offset_of!(Entry<F>, current);
    maps.entries.publish(number as usize, offset, 0);
}

/// Puts a current version in force of which all but the first word is there: one store.
pub(super) fn set_action<F: Net>(maps: &FamilyMaps<F>, number: u32, version: &Version<F>) {
    let offset = std::mem::offset_of!(Entry<F>, current);
    let word = &bytemuck::bytes_of(version)[..8];
    maps.entries.write(number as usize, offset, word);
}

/// Moves the traffic that an entry counted to its copy, which counts already; all of it is in the banks.
fn carry_over<F: Net>(maps: &Maps, from: u32, to: u32) -> Result<(), RouterError> {
    use std::sync::atomic::Ordering::Relaxed;
    let family = F::maps(maps);
    for (from, to) in family.counters_of(from).zip(family.counters_of(to)) {
        for (from, to) in from.into_iter().zip(to) {
            if from.load(Relaxed) != 0 {
                to.fetch_add(from.swap(0, Relaxed), Relaxed);
            }
        }
    }
    let doing = || RouterError::system("carry counters over to another entry");
    let [from, to] = [from, to].map(total_key::<F>);
    let Some(total) = maps
        .totals
        .lookup::<_, BindingTotal>(&from)
        .map_err(doing())?
    else {
        return Ok(());
    };
    if !maps.totals.insert(&to, &total).map_err(doing())? {
        let known: BindingTotal = maps
            .totals
            .lookup(&to)
            .map_err(doing())?
            .unwrap_or_default();
        let sum = BindingTotal {
            packets_to: known.packets_to + total.packets_to,
            bytes_to: known.bytes_to + total.bytes_to,
            packets_from: known.packets_from + total.packets_from,
            bytes_from: known.bytes_from + total.bytes_from,
        };
        maps.totals.update(&to, &sum).map_err(doing())?;
    }
    Ok(())
}

pub(in crate::router) fn total_key<F: Net>(entry: u32) -> BindingKey {
    BindingKey {
        entry,
        family: u32::from(F::NUMBER),
    }
}

/// Removes what freed entries have in the table of totals.
fn forget_totals<F: Net>(maps: &Maps, numbers: &[u32]) -> std::io::Result<()> {
    if numbers.len() <= FEW {
        for number in numbers {
            maps.totals.delete(&total_key::<F>(*number))?;
        }
        return Ok(());
    }
    let keys = maps.totals.read_all::<BindingKey, BindingTotal>()?;
    if keys.is_empty() {
        return Ok(());
    }
    let numbers: std::collections::HashSet<u32> = numbers.iter().copied().collect();
    for (key, _) in keys {
        if key.family == u32::from(F::NUMBER) && numbers.contains(&key.entry) {
            maps.totals.delete(&key)?;
        }
    }
    Ok(())
}
