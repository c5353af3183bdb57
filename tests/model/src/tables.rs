//! A router's tables, written as natmig's `router::tables` writes them: entries with a current and a
//! pending version and a reference to a slot's use; a slot's word commits.
//!
//! Each change is one step here. What lies between its stores is the subject of [`crate::flip`].

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use bytemuck::Zeroable as _;
use natmig::{
    digest::Parts,
    names::SegmentName,
    router::{CommitReport, Heard, Held, RouterError},
    rule::{Attachment, Change, Changes, MacAddress, Rule, TransactionId},
};
use natmig_common::{
    Action, Entry, FLAG_HOME_EDGE, Family as _, Ipv4, Reference, Slot, SlotState, Version,
};

/// One address's entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bound {
    current: Rule,
    pending: Rule,
    reference: u64,
}

/// A slot and what it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Use {
    generation: u32,
    id: TransactionId,
    state: SlotState,
    committed_at: u64,
}

/// A VM that is to be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Awaited {
    id: TransactionId,
    ifindex: u32,
    heard_at: Option<u64>,
}

/// A router's tables, and the same as the packet logic reads them.
#[derive(Clone, Debug)]
pub struct Tables {
    segments: BTreeMap<SegmentName, u32>,
    entries: BTreeMap<IpAddr, Bound>,
    slots: Vec<Option<Use>>,
    generations: Vec<u32>,
    awaited: BTreeMap<MacAddress, Awaited>,
    image: Vec<Entry<Ipv4>>,
}

impl Hash for Tables {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entries.hash(state);
        self.slots.hash(state);
        self.generations.hash(state);
        self.awaited.hash(state);
    }
}

impl PartialEq for Tables {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
            && self.slots == other.slots
            && self.generations == other.generations
            && self.awaited == other.awaited
    }
}

impl Eq for Tables {}

/// Slots of a router; more than transactions at once.
const SLOTS: usize = 4;

impl Tables {
    /// Empty tables of a router with these access interfaces, by segment.
    pub fn new(segments: BTreeMap<SegmentName, u32>) -> Self {
        Self {
            segments,
            entries: BTreeMap::new(),
            slots: vec![None; SLOTS],
            generations: vec![0; SLOTS],
            awaited: BTreeMap::new(),
            image: Vec::new(),
        }
    }

    /// The entries as they lie in `ENTRIES_IPV4`.
    pub fn image(&self) -> &[Entry<Ipv4>] {
        &self.image
    }

    /// The word of a slot as it lies in `TRANSACTIONS`.
    pub fn word(&self, slot: u32) -> u64 {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let generation = self.generations.get(index).copied().unwrap_or(0);
        match self.slots.get(index).copied().flatten() {
            Some(used) if used.state == SlotState::Committed => Slot::committed_word(generation),
            Some(_) | None => Slot::open_word(generation),
        }
    }

    /// The rule that counts.
    pub fn rule(&self, address: IpAddr) -> &Rule {
        let Some(bound) = self.entries.get(&address) else {
            return &Rule::Absent;
        };
        let committed = Reference::from_raw(bound.reference)
            .is_some_and(|reference| reference.committed(self.word(reference.slot())));
        if committed {
            &bound.pending
        } else {
            &bound.current
        }
    }

    /// Whether an address has an entry.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.entries.contains_key(&address)
    }

    /// Addresses that have an entry.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.entries.keys().copied()
    }

    /// Transactions that are held, and whether they are committed.
    pub fn held(&self) -> impl Iterator<Item = (TransactionId, bool)> + '_ {
        self.slots
            .iter()
            .flatten()
            .map(|used| (used.id, used.state == SlotState::Committed))
    }

    /// Whether a transaction is held.
    pub fn holds(&self, id: TransactionId) -> bool {
        self.slot_of(id).is_some()
    }

    /// The table as it was before the transactions that are held.
    pub fn table(&self) -> BTreeMap<IpAddr, Rule> {
        self.entries
            .iter()
            .filter(|(_, bound)| {
                let early = bound.reference != 0 && bound.current == bound.pending;
                !early && bound.current != Rule::Absent
            })
            .map(|(address, bound)| (*address, bound.current.clone()))
            .collect()
    }

    /// Segments for which the router has an access interface.
    pub fn segments(&self) -> BTreeSet<SegmentName> {
        self.segments.keys().cloned().collect()
    }

    /// The transactions that are held, as the router's tables say it.
    pub fn transactions(&self) -> Vec<Held> {
        let held = |used: &Use| Held {
            id: used.id,
            state: used.state,
            committed_at: used.committed_at,
        };
        self.slots.iter().flatten().map(held).collect()
    }

    /// Where a VM is awaited: the interface, and whether it was heard.
    pub fn awaits(&self, mac: MacAddress) -> Option<(u32, bool)> {
        let awaited = self.awaited.get(&mac)?;
        Some((awaited.ifindex, awaited.heard_at.is_some()))
    }

    /// A VM is heard where it is awaited.
    pub fn hear(&mut self, mac: MacAddress, now: u64) {
        if let Some(awaited) = self.awaited.get_mut(&mac) {
            awaited.heard_at.get_or_insert(now);
        }
    }

    /// The awaited VMs that were heard.
    pub fn heard(&self) -> Vec<Heard> {
        let heard = |(mac, awaited): (&MacAddress, &Awaited)| {
            let (id, mac) = (awaited.id, *mac);
            awaited.heard_at.map(|at| Heard { id, mac, at })
        };
        self.awaited.iter().filter_map(heard).collect()
    }

    /// Begins to listen for the VMs that a transaction brings here.
    pub fn await_announcements(&mut self, id: TransactionId, changes: &Changes) {
        for change in &changes.pending {
            let Rule::Local { at, .. } = &change.rule else {
                continue;
            };
            let Some(ifindex) = self.segments.get(&at.segment).copied() else {
                continue;
            };
            let same = |awaited: &Awaited| (awaited.id, awaited.ifindex) == (id, ifindex);
            if !self.awaited.get(&at.mac).is_some_and(same) {
                let heard_at = None;
                let awaited = Awaited {
                    id,
                    ifindex,
                    heard_at,
                };
                self.awaited.insert(at.mac, awaited);
            }
        }
    }

    /// Stops listening for VMs whose transactions are decided here, or gone.
    pub fn stop_awaiting_decided(&mut self) {
        let slots = &self.slots;
        self.awaited.retain(|_, awaited| {
            let mut held = slots.iter().flatten();
            held.any(|used| used.id == awaited.id && used.state == SlotState::Prepared)
        });
    }

    /// Brings what the packet logic reads up to date, after any change.
    pub fn draw(&mut self) {
        self.image = self
            .entries
            .iter()
            .filter_map(|(address, bound)| self.entry(*address, bound))
            .collect();
    }

    fn slot_of(&self, id: TransactionId) -> Option<usize> {
        self.slots
            .iter()
            .position(|used| used.is_some_and(|used| used.id == id))
    }

    fn reference(&self, slot: usize) -> u64 {
        let generation = self.generations.get(slot).copied().unwrap_or(0);
        u32::try_from(slot)
            .ok()
            .and_then(|slot| Reference::new(slot, generation))
            .map_or(0, Reference::raw)
    }

    /// Writes a transaction's pending versions: all or nothing.
    pub fn prepare(&mut self, id: TransactionId, changes: &Changes) -> Result<(), RouterError> {
        if let Some(slot) = self.slot_of(id) {
            return if self.is_held(self.reference(slot), changes) {
                Ok(())
            } else {
                Err(RouterError::DifferentChanges(id))
            };
        }
        let all = || {
            let early = changes.early.iter().map(|change| (change, true));
            early.chain(changes.pending.iter().map(|change| (change, false)))
        };
        for (Change { address, rule }, early) in all() {
            let Some(bound) = self.entries.get(address) else {
                continue;
            };
            if bound.reference != 0 {
                return Err(RouterError::Busy {
                    address: *address,
                    holder: self.holder(bound.reference),
                });
            }
            if early && bound.current != *rule && bound.current != Rule::Absent {
                return Err(RouterError::InUse {
                    address: *address,
                    rule: bound.current.clone(),
                });
            }
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return Err(RouterError::NoSlot);
        };
        self.generations[slot] += 1;
        self.slots[slot] = Some(Use {
            generation: self.generations[slot],
            id,
            state: SlotState::Prepared,
            committed_at: 0,
        });
        let reference = self.reference(slot);
        for (Change { address, rule }, early) in all() {
            let known = self.entries.get(address);
            let current = match known {
                Some(bound) if bound.current == *rule => continue,
                None if *rule == Rule::Absent => continue,
                _ if early => rule.clone(),
                Some(bound) => bound.current.clone(),
                None => Rule::Absent,
            };
            let bound = Bound {
                current,
                pending: rule.clone(),
                reference,
            };
            self.entries.insert(*address, bound);
        }
        Ok(())
    }

    /// The transaction that a reference is of; 0 for a slot that is free.
    fn holder(&self, reference: u64) -> TransactionId {
        let holder = (0..self.slots.len()).find(|slot| self.reference(*slot) == reference);
        let held = holder.and_then(|slot| self.slots[slot]);
        held.map_or(TransactionId(0), |used| used.id)
    }

    fn is_held(&self, reference: u64, changes: &Changes) -> bool {
        changes.early.iter().chain(&changes.pending).all(|change| {
            match self.entries.get(&change.address) {
                Some(bound) if bound.reference == reference => bound.pending == change.rule,
                Some(bound) => bound.current == change.rule,
                None => change.rule == Rule::Absent,
            }
        })
    }

    /// Makes a transaction count.
    pub fn commit(&mut self, id: TransactionId, now: u64) -> Result<CommitReport, RouterError> {
        let mut slots = self.slots.iter_mut().flatten();
        let Some(used) = slots.find(|used| used.id == id) else {
            return Err(RouterError::UnknownTransaction(id));
        };
        if used.state != SlotState::Committed {
            used.state = SlotState::Committed;
            used.committed_at = now;
        }
        Ok(CommitReport {
            committed_at: used.committed_at,
            grace: Duration::ZERO,
        })
    }

    /// Takes a transaction back that is not committed.
    pub fn abort(&mut self, id: TransactionId) -> Result<(), RouterError> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(());
        };
        if self.slots[slot].is_some_and(|used| used.state == SlotState::Committed) {
            return Err(RouterError::AlreadyCommitted(id));
        }
        let reference = self.reference(slot);
        self.entries.retain(|_, bound| {
            if bound.reference != reference {
                return true;
            }
            bound.reference = 0;
            bound.current != Rule::Absent && bound.current != bound.pending
        });
        self.slots[slot] = None;
        Ok(())
    }

    /// Brings current versions up to a committed transaction's.
    pub fn fold(&mut self, id: TransactionId) -> Result<(), RouterError> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(());
        };
        if self.slots[slot].is_some_and(|used| used.state != SlotState::Committed) {
            return Err(RouterError::NotCommitted(id));
        }
        let reference = self.reference(slot);
        self.entries.retain(|_, bound| {
            if bound.reference == reference {
                bound.reference = 0;
                bound.current = bound.pending.clone();
            }
            bound.current != Rule::Absent || bound.reference != 0
        });
        self.slots[slot] = None;
        Ok(())
    }

    /// Removes entries of old locators, and of identities whose VMs are at home for good.
    pub fn retire(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            let Some(bound) = self.entries.get_mut(address) else {
                continue;
            };
            let moves_again = bound.reference != 0
                && matches!(bound.pending, Rule::Away { .. } | Rule::Local { .. });
            let is_home = matches!(bound.current, Rule::Local { locator: None, .. });
            let is_away = matches!(
                bound.current,
                Rule::Away { .. }
                    | Rule::Local {
                        locator: Some(_),
                        ..
                    }
            );
            if moves_again {
                if is_home {
                    bound.current = Rule::Absent;
                }
            } else if !is_away {
                self.entries.remove(address);
            }
        }
    }

    /// Makes rules all that the table has in some parts of it, but for what transactions hold. The
    /// agent does that as a transaction of its own, which it commits and folds at once.
    pub fn replace(&mut self, parts: &Parts, rules: &BTreeMap<IpAddr, Rule>) {
        self.entries.retain(|address, bound| {
            bound.reference != 0 || !parts.contains(*address) || rules.contains_key(address)
        });
        for (address, rule) in rules {
            let bound = self.entries.entry(*address).or_insert(Bound {
                current: Rule::Absent,
                pending: Rule::Absent,
                reference: 0,
            });
            if bound.reference == 0 {
                bound.current = rule.clone();
            }
        }
    }

    fn entry(&self, address: IpAddr, bound: &Bound) -> Option<Entry<Ipv4>> {
        Some(Entry {
            address: octets(address)?,
            family: Ipv4::NUMBER,
            reference: bound.reference,
            current: self.version(&bound.current)?,
            pending: self.version(&bound.pending)?,
            ..Entry::zeroed()
        })
    }

    /// The version that does what a rule says.
    fn version(&self, rule: &Rule) -> Option<Version<Ipv4>> {
        let mut version = Version::<Ipv4>::zeroed();
        let attach = |version: &mut Version<Ipv4>, at: &Attachment| {
            version.mac = at.mac.0;
            version.ifindex = self.segments.get(&at.segment).copied().unwrap_or(0);
        };
        match rule {
            Rule::Absent => {}
            Rule::Away { locator, home } => {
                version.action = Action::Away as u8;
                version.counterpart = octets(*locator)?;
                if let Some(at) = home {
                    version.flags = FLAG_HOME_EDGE;
                    attach(&mut version, at);
                }
            }
            Rule::Local { locator, at, .. } => {
                version.action = Action::Local as u8;
                version.counterpart = locator.map_or(Some([0; 4]), octets)?;
                attach(&mut version, at);
            }
            Rule::Deliver { identity, at } => {
                version.action = Action::Deliver as u8;
                version.counterpart = octets(*identity)?;
                attach(&mut version, at);
            }
            Rule::Forward { identity, to } => {
                version.action = Action::Forward as u8;
                version.counterpart = octets(*identity)?;
                version.forward = octets(*to)?;
            }
            Rule::Known { identity } => {
                version.action = Action::Known as u8;
                version.counterpart = octets(*identity)?;
            }
        }
        Some(version)
    }
}

/// An IPv4 address's octets; the model's fabrics have no others.
pub fn octets(address: IpAddr) -> Option<[u8; 4]> {
    match address {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    }
}

/// An address by its octets.
pub fn address(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(octets))
}
