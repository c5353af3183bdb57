//! One router: its tables, programs and kernel state, and the transactions on them.
//!
//! [`Router`] is the only writer of an instance. Everything in here blocks; it works in the network
//! namespace of the calling thread.

pub mod announce;
mod error;
pub mod reader;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;
use natmig_common::{Role, SlotState};

pub use self::{announce::Announcement, error::RouterError};
use crate::{
    config::RouterConfig,
    rule::{Changes, Rule, TransactionId},
};

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Attach in generic mode where it has to be attached: slow, for tests without driver support.
    pub generic: bool,
    /// The eBPF object to load instead of the one in the binary.
    pub object: Option<Vec<u8>>,
}

/// A router that runs, and what was found and done on the way.
#[must_use]
pub struct Started {
    /// The router.
    pub router: Router,
    /// What starting it found and did.
    pub report: StartReport,
}

/// What starting a router found and did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StartReport {
    /// Whether pinned maps were adopted, so that bindings survived.
    pub adopted: bool,
    /// The interfaces.
    pub interfaces: Vec<AttachedInterface>,
    /// Bound addresses found in adopted maps.
    pub addresses: usize,
    /// Transactions that were half prepared or half aborted and were taken back.
    pub rolled_back: usize,
    /// Bytes of kernel memory that the maps take.
    pub map_bytes: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// An interface that natmig runs on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its role's name.
    pub role: &'static str,
    /// `native` or `generic`.
    pub mode: &'static str,
    /// Whether the program of an attached link was replaced, instead of attached anew.
    pub replaced: bool,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// When the commit was stored: nanoseconds since the Unix epoch.
    pub committed_at: u64,
    /// How long it took until no packet was any longer processed under the old state. Zero when
    /// the transaction had been committed before.
    pub grace: Duration,
}

/// What replacing the table did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ApplyReport {
    /// Addresses bound for the first time.
    pub added: usize,
    /// Addresses whose rule changed.
    pub changed: usize,
    /// Addresses that are no longer bound.
    pub removed: usize,
    /// Addresses whose rule was right already.
    pub unchanged: usize,
    /// Addresses left alone because an unfinished transaction holds them.
    pub held: usize,
}

/// A transaction that the router holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub id: TransactionId,
    /// Where it stands: prepared or committed.
    pub state: SlotState,
    /// When it was committed: nanoseconds since the Unix epoch, 0 before.
    pub committed_at: u64,
}

/// The single writer of an instance's tables.
pub struct Router {
    _config: RouterConfig,
    _role: Role,
}

impl Router {
    /// Opens or creates the instance's tables, recovers what a killed process left, sets up guard
    /// and port, loads the program and attaches it.
    pub fn start(_config: &RouterConfig, _options: &StartOptions) -> Result<Started, RouterError> {
        Err(RouterError::NoProgram)
    }

    /// Opens the tables of a loaded instance for writing, without touching programs and links.
    pub fn open(_config: &RouterConfig) -> Result<Self, RouterError> {
        Err(RouterError::NoProgram)
    }

    /// Writes pending versions of everything a transaction changes. All or nothing, idempotent.
    pub fn prepare(&mut self, id: TransactionId, _changes: &Changes) -> Result<(), RouterError> {
        Err(RouterError::UnknownTransaction(id))
    }

    /// Makes a transaction count: one store. Idempotent.
    pub fn commit(&mut self, id: TransactionId) -> Result<CommitReport, RouterError> {
        Err(RouterError::UnknownTransaction(id))
    }

    /// Takes every trace of a transaction back. Idempotent, also for transactions that the router
    /// does not hold; refused after the commit.
    pub fn abort(&mut self, _id: TransactionId) -> Result<(), RouterError> {
        Ok(())
    }

    /// Brings current versions up to a committed transaction's and frees its slot. Idempotent, also
    /// for transactions that the router does not hold.
    pub fn fold(&mut self, _id: TransactionId) -> Result<(), RouterError> {
        Ok(())
    }

    /// Removes the entries of old locators and of identities that are at home for good. Idempotent.
    pub fn retire(&mut self, _addresses: &[Ipv4Addr]) -> Result<(), RouterError> {
        Ok(())
    }

    /// Makes `rules` the whole table, as one transaction. Entries that an unfinished transaction
    /// holds are left alone.
    pub fn replace(&mut self, _rules: &BTreeMap<Ipv4Addr, Rule>) -> Result<ApplyReport, RouterError> {
        Ok(ApplyReport::default())
    }

    /// Transactions that are prepared or committed and not folded.
    pub fn held(&self) -> Vec<Held> {
        Vec::new()
    }

    /// The table as it was before the transactions that are held.
    pub fn table(&self) -> BTreeMap<Ipv4Addr, Rule> {
        BTreeMap::new()
    }

    /// [`crate::rule::digest`] of [`Router::table`].
    pub fn digest(&self) -> u64 {
        crate::rule::digest(self.table().iter().map(|(address, rule)| (*address, rule)))
    }

    /// Sets the fabric's locator pools, in the tables and in the guard.
    pub fn set_pools(&mut self, _pools: &[Ipv4Net]) -> Result<(), RouterError> {
        Ok(())
    }

    /// The highest term of a controller that this router has seen.
    pub fn term(&self) -> u64 {
        0
    }

    /// Stores a higher term; a lower one is left alone.
    pub fn set_term(&mut self, _term: u64) -> Result<(), RouterError> {
        Ok(())
    }

    /// Announcements of the commits since the last call; the caller sends them with
    /// [`announce::send`] on [`announce::SCHEDULE`].
    #[must_use]
    pub fn take_announcements(&mut self) -> Vec<Announcement> {
        Vec::new()
    }

    /// Reads the interfaces' MAC addresses, MTUs and addresses again, after netlink said that they
    /// changed.
    pub fn refresh_interfaces(&mut self) -> Result<(), RouterError> {
        Ok(())
    }
}

/// Detaches an instance and removes all that it holds in the kernel: links, maps, port, guard, routes.
pub fn unload(_instance: &str) -> Result<(), RouterError> {
    Ok(())
}
