//! The tables' writer: entries, what leads to them, and transaction slots, changed so that a packet
//! sees all of a transaction or none of it, and so that a process killed between any two stores
//! leaves a state that [`Tables::open`] can take up.
//!
//! The order, and what it protects:
//! - A new entry is complete before anything leads to it ([`entries`] says how).
//! - A pending version is written while the entry refers to no transaction, after a grace period.
//! - Commit is one store into the slot's word; that word, not `state`, says what was decided.
//! - Fold writes current versions, waits until every packet that could have read the old ones has
//!   ended, and only then clears references.
//! - A removed entry is `Absent`, then nothing leads to it, then a grace period later it is free. The
//!   writer goes on meanwhile: it frees what has rested when it removes or prepares something else.
//!
//! An early change is an entry whose pending version equals its current one: it counts at once, and
//! the reference tells which transaction takes it back.
//!
//! Entries are the truth. Blocks are read from the tables of prefixes, and everything else (what is
//! free, what the index and the prefixes say) is found out from the entries when the tables are opened.

/// Where a step of the protocol is; tests kill the process there.
macro_rules! step {
    ($name:literal) => {
        $crate::router::failpoint::reach($name);
    };
}

mod entries;
mod prefixes;
mod prefixes_ipv4;
mod prefixes_ipv6;
mod protocol;
mod slabs;
mod slots;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use bytemuck::Zeroable as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use natmig_common::{Entry, Ipv4, Ipv6, Reference, SlotState, Version};

pub(super) use self::{
    entries::{Entries, total_key},
    prefixes::Prefixes,
    prefixes_ipv4::PrefixesIpv4,
    prefixes_ipv6::PrefixesIpv6,
};
use super::{
    RouterError,
    family::Net,
    grace::{self, Passing},
    maps::Maps,
    version::Decoded,
};
use crate::rule::TransactionId;

/// The transaction of a whole table, which no controller decides on: a router that finds it half
/// done finishes or forgets it by itself.
pub(super) const APPLY: TransactionId = TransactionId(u64::MAX);

/// One address of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<F: Net> {
    pub(super) address: F::Number,
    pub(super) version: Version<F>,
    /// In force from prepare on.
    pub(super) early: bool,
}

impl<F: Net> Write<F> {
    /// The entry of an address that had none.
    fn entry(&self, reference: u64) -> Entry<F> {
        Entry {
            address: F::octets(self.address),
            family: F::NUMBER,
            reference,
            current: if self.early {
                self.version
            } else {
                Version::zeroed()
            },
            pending: self.version,
            ..Entry::zeroed()
        }
    }
}

/// All addresses of a transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    pub(super) ipv4: Vec<Write<Ipv4>>,
    pub(super) ipv6: Vec<Write<Ipv6>>,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// Brings the addresses of each family into ascending order.
    pub(super) fn sort(&mut self) {
        sort(&mut self.ipv4);
        sort(&mut self.ipv6);
    }

    /// An address that is there twice; they are in order.
    pub(super) fn twice(&self) -> Option<IpAddr> {
        twice(&self.ipv4).or_else(|| twice(&self.ipv6))
    }

    /// The addresses and what becomes of them.
    pub(super) fn decoded(&self) -> impl Iterator<Item = (IpAddr, Decoded)> {
        fn each<F: Net>(writes: &[Write<F>]) -> impl Iterator<Item = (IpAddr, Decoded)> {
            writes
                .iter()
                .map(|write| (F::address(write.address), Decoded::of(&write.version)))
        }
        each(&self.ipv4).chain(each(&self.ipv6))
    }
}

fn sort<F: Net>(writes: &mut [Write<F>]) {
    // Stable, because that is fast with a few ascending runs one after the other.
    writes.sort_by_key(|write| write.address);
}

fn twice<F: Net>(writes: &[Write<F>]) -> Option<IpAddr> {
    let mut pairs = writes.windows(2);
    let pair = pairs.find(|pair| pair[0].address == pair[1].address)?;
    Some(F::address(pair[0].address))
}

/// An address's entry, of whichever family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) address: IpAddr,
    pub(super) current: Decoded,
    /// What is pending, if something is.
    pub(super) pending: Option<Decoded>,
    pub(super) reference: Option<Reference>,
}

impl Bound {
    /// An address without an entry.
    pub(super) const fn none(address: IpAddr) -> Self {
        Self {
            address,
            current: Decoded::ABSENT,
            pending: None,
            reference: None,
        }
    }

    fn of<F: Net>(entry: &Entry<F>) -> Self {
        let reference = entry.reference();
        Self {
            address: F::address(F::number(entry.address)),
            current: Decoded::of(&entry.current),
            pending: reference.map(|_| Decoded::of(&entry.pending)),
            reference,
        }
    }
}

/// Told how far a long operation is: what it does, done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// A transaction that is held.
#[derive(Debug)]
pub(super) struct Transaction {
    slot: u32,
    reference: Reference,
    state: SlotState,
    committed_at: u64,
    /// IPv4 entries that refer to the transaction, or did when it was prepared.
    pub(super) ipv4: Vec<u32>,
    /// As `ipv4`.
    pub(super) ipv6: Vec<u32>,
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
    pub(super) ipv4: Entries<Ipv4>,
    pub(super) ipv6: Entries<Ipv6>,
    held: BTreeMap<TransactionId, Transaction>,
    free_slots: slots::FreeSlots,
    passing: Passing,
}

/// What was removed is freed when its writer ends in order; a killed one leaves that to its successor.
impl Drop for Tables {
    fn drop(&mut self) {
        let freed = self.ipv4.end_rest(&self.maps);
        if let Err(error) = freed.and_then(|()| self.ipv6.end_rest(&self.maps)) {
            tracing::warn!(%error, "removed addresses are freed at the next start");
        }
    }
}

/// Addresses that the tables hold, and have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) ipv4: u32,
    pub(super) ipv6: u32,
}

impl Tables {
    /// Takes up the tables in whatever state a predecessor left them.
    pub(super) fn open(maps: Maps) -> Result<(Self, Recovery), RouterError> {
        let (mut held, doomed) = slots::scan(&maps.transactions);
        for held in held.values_mut() {
            let committed = matches!(held.state, SlotState::Committed | SlotState::Folding);
            if committed && held.committed_at == 0 {
                // Its writer was killed between the commit and the note of it.
                held.committed_at = protocol::now();
                slots::set_committed_at(&maps.transactions, held.slot, held.committed_at);
            }
        }
        let references: HashMap<u64, TransactionId> = held
            .iter()
            .map(|(id, held)| (held.reference.raw(), *id))
            .collect();
        let (ipv4, remains_ipv4) = open_family::<Ipv4>(&maps, &references, &mut held)?;
        let (ipv6, remains_ipv6) = open_family::<Ipv6>(&maps, &references, &mut held)?;
        let free_slots = slots::FreeSlots::of(&maps.transactions);
        let mut tables = Self {
            maps,
            ipv4,
            ipv6,
            held,
            free_slots,
            passing: Passing::default(),
        };
        // What a predecessor unlinked may still be in a packet's hands.
        grace::fast(&tables.maps.activity)?;
        grace::rcu()?;
        tables.ipv4.bury(&tables.maps, remains_ipv4)?;
        tables.ipv6.bury(&tables.maps, remains_ipv6)?;
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
        recovery.addresses = tables.ipv4.len() + tables.ipv6.len();
        Ok((tables, recovery))
    }

    /// Addresses that there is room for.
    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            ipv4: self.ipv4.capacity(),
            ipv6: self.ipv6.capacity(),
        }
    }

    /// Addresses that are in the tables.
    pub(super) fn used(&self) -> Capacity {
        Capacity {
            ipv4: self.ipv4.used(),
            ipv6: self.ipv6.used(),
        }
    }

    /// Addresses in the tables, by family.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Bound> {
        let ipv4 = self.ipv4.iter(&self.maps).map(|entry| Bound::of(&entry));
        let ipv6 = self.ipv6.iter(&self.maps).map(|entry| Bound::of(&entry));
        ipv4.chain(ipv6)
    }

    /// What the tables hold of an address.
    pub(super) fn bound(&self, address: IpAddr) -> Option<Bound> {
        match address {
            IpAddr::V4(_) => self.entry::<Ipv4>(Ipv4::of(address)?),
            IpAddr::V6(_) => self.entry::<Ipv6>(Ipv6::of(address)?),
        }
    }

    fn entry<F: Net>(&self, address: F::Number) -> Option<Bound> {
        let number = F::entries(self).find(address)?;
        let entry = F::maps(&self.maps).entries.get(number as usize);
        Some(Bound::of(&entry))
    }

    /// The version that counts.
    pub(super) fn effective(&self, bound: &Bound) -> Decoded {
        let committed = bound.reference.is_some_and(|reference| {
            let word = self.maps.transactions.load(reference.slot() as usize, 0);
            reference.committed(word)
        });
        match bound.pending {
            Some(pending) if committed => pending,
            Some(_) | None => bound.current,
        }
    }

    /// Transactions that are held, with their state and time of commit.
    pub(super) fn held(&self) -> impl Iterator<Item = (TransactionId, SlotState, u64)> {
        self.held
            .iter()
            .map(|(id, held)| (*id, held.state, held.committed_at))
    }

    /// What a transaction that is held changes.
    pub(super) fn changed_by(&self, id: TransactionId) -> impl Iterator<Item = Bound> {
        let held = self.held.get(&id);
        let ipv4 = held.map(|held| self.entries_of::<Ipv4>(held));
        let ipv6 = held.map(|held| self.entries_of::<Ipv6>(held));
        ipv4.into_iter().flatten().chain(ipv6.into_iter().flatten())
    }

    fn entries_of<'a, F: Net>(
        &'a self,
        held: &'a Transaction,
    ) -> impl Iterator<Item = Bound> + use<'a, F> {
        let family = F::maps(&self.maps);
        F::numbers(held)
            .iter()
            .map(|number| family.entries.get(*number as usize))
            .filter(|entry| entry.reference == held.reference.raw())
            .map(|entry| Bound::of(&entry))
    }

    /// The fabric's locator pools, as few prefixes as say the same.
    pub(super) fn pools(maps: &Maps) -> Vec<IpNet> {
        let mut pools = prefixes_ipv4::pools(maps);
        pools.extend(prefixes_ipv6::pools(maps));
        pools
    }

    /// Sets the fabric's locator pools. No address that was in a pool and stays in one counts as in
    /// none at any time.
    pub(super) fn set_pools(&mut self, pools: &[IpNet]) -> Result<(), RouterError> {
        let before = IpNet::aggregate(&Self::pools(&self.maps));
        let changes = before != IpNet::aggregate(&pools.to_vec());
        if changes {
            // The pools say what a settled entry is: with other ones it would be something else.
            self.ipv4.unsettle(&self.maps);
            self.ipv6.unsettle(&self.maps);
            grace::fast(&self.maps.activity)?;
            self.ipv4.forget_bases(&self.maps);
            self.ipv6.forget_bases(&self.maps);
        }
        let ipv6 = self.ipv6.prefixes.set_pools(&self.maps, pools);
        let result = ipv6.and_then(|()| self.ipv4.prefixes.set_pools(&self.maps, pools));
        if changes {
            grace::fast(&self.maps.activity)?;
            self.ipv4.settle(&self.maps);
            self.ipv6.settle(&self.maps);
        }
        result
    }

    /// Sets the element of `ROUTES` that packets to a prefix take: a /16, with all /24s in it, or a
    /// /24 alone. 0 asks the kernel. One store per element; a route that is not set any longer may
    /// be reused after a grace period.
    ///
    /// Fails without a change if there is no room to say it of a /24 alone: the caller says 0 of
    /// its /16 instead.
    pub(super) fn set_route_ipv4(
        &mut self,
        prefix: Ipv4Net,
        route: u16,
    ) -> Result<(), RouterError> {
        self.ipv4.prefixes.set_route(&self.maps, prefix, route)
    }

    /// As [`Tables::set_route_ipv4`], of a /64. Prefixes of which nothing is known take 0.
    ///
    /// Fails without a change if there is no room to say anything of the prefix: then it takes 0.
    pub(super) fn set_route_ipv6(
        &mut self,
        prefix: Ipv6Net,
        route: u16,
    ) -> Result<(), RouterError> {
        self.ipv6.prefixes.set_route(&self.maps, prefix, route)
    }
}

fn open_family<F: Net>(
    maps: &Maps,
    references: &HashMap<u64, TransactionId>,
    held: &mut BTreeMap<TransactionId, Transaction>,
) -> Result<(Entries<F>, entries::Remains), RouterError> {
    Entries::<F>::open(maps, |reference, number| {
        let transaction = references.get(&reference).and_then(|id| held.get_mut(id));
        let Some(transaction) = transaction else {
            return false;
        };
        F::numbers_mut(transaction).push(number);
        true
    })
}
