//! What is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{Progress, Timestamp};
use crate::{
    audit::{self, AuditRecord},
    names::{RouterName, VmName},
    planner::{Move, VmState},
    rule::TransactionId,
    topology::Topology,
};

/// Everything that the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stored {
    /// The topology.
    pub topology: Option<Topology>,
    /// The inventory, with bindings.
    pub vms: Vec<VmState>,
    /// Unfinished and remembered migrations.
    pub migrations: Vec<MigrationRecord>,
    /// Locators that are not given out yet.
    pub quarantined: Vec<Quarantined>,
    /// Routers attested not forwarding.
    pub drained: BTreeSet<RouterName>,
    /// The number of the next migration; 0 in an empty store.
    pub next_id: u64,
    /// What operators did, as far as it is kept.
    #[serde(default)]
    pub audit: Vec<AuditRecord>,
}

/// A locator that is not given out before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quarantined {
    /// The locator.
    pub locator: IpAddr,
    /// From when on it may be given out.
    pub until: Timestamp,
}

/// One change of the store. Putting what is there replaces it, deleting what is not does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StoreOp {
    /// Sets the topology.
    PutTopology(Topology),
    /// Sets a VM, by its name.
    PutVm(VmState),
    /// Removes a VM.
    DeleteVm(VmName),
    /// Sets a migration, by its number.
    PutMigration(Box<MigrationRecord>),
    /// Forgets a migration.
    DeleteMigration(TransactionId),
    /// Sets a locator's quarantine, by its address.
    PutQuarantined(Quarantined),
    /// Ends a locator's quarantine.
    DeleteQuarantined(IpAddr),
    /// A router is attested not forwarding.
    PutDrained(RouterName),
    /// A router is needed again.
    DeleteDrained(RouterName),
    /// Sets the number of the next migration.
    PutNextId(u64),
    /// Sets an audit record, by its number, and forgets the one [`audit::KEPT`] numbers before.
    PutAudit(Box<AuditRecord>),
    /// Forgets an audit record.
    DeleteAudit(u64),
}

impl Stored {
    /// Applies a change, as every store does: the reference for stores, and the store of tests.
    pub fn apply(&mut self, op: StoreOp) {
        match op {
            StoreOp::PutTopology(topology) => self.topology = Some(topology),
            StoreOp::PutVm(state) => {
                self.vms.retain(|other| other.vm.name != state.vm.name);
                self.vms.push(state);
            }
            StoreOp::DeleteVm(name) => self.vms.retain(|other| other.vm.name != name),
            StoreOp::PutMigration(record) => {
                self.migrations.retain(|other| other.id != record.id);
                self.migrations.push(*record);
            }
            StoreOp::DeleteMigration(id) => self.migrations.retain(|other| other.id != id),
            StoreOp::PutQuarantined(quarantined) => {
                self.quarantined
                    .retain(|other| other.locator != quarantined.locator);
                self.quarantined.push(quarantined);
            }
            StoreOp::DeleteQuarantined(locator) => {
                self.quarantined.retain(|other| other.locator != locator);
            }
            StoreOp::PutDrained(router) => {
                self.drained.insert(router);
            }
            StoreOp::DeleteDrained(router) => {
                self.drained.remove(&router);
            }
            StoreOp::PutNextId(next_id) => self.next_id = next_id,
            StoreOp::PutAudit(record) => {
                let forgotten = record.id.checked_sub(audit::KEPT);
                self.audit
                    .retain(|other| other.id != record.id && Some(other.id) != forgotten);
                self.audit.push(*record);
            }
            StoreOp::DeleteAudit(id) => self.audit.retain(|record| record.id != id),
        }
    }
}

/// What triggers the decision to commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Every needed router is prepared.
    #[default]
    Immediate,
    /// An operator says so.
    Manual,
    /// Every VM was heard at its new place; or an operator says so.
    OnAnnounce,
}

/// Where and when a VM was heard at its new place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heard {
    /// The edge router that heard it.
    pub router: RouterName,
    /// When, by that router's clock.
    pub at: Timestamp,
}

/// What becomes of a migration when a needed router cannot be reached before the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unreachable {
    /// It waits.
    Wait,
    /// It aborts after the prepare deadline.
    #[default]
    Abort,
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Routers prepare.
    Preparing,
    /// All needed routers are prepared; the trigger is missing.
    Prepared,
    /// Decided; routers commit, in order.
    Committing,
    /// Success: every needed router has committed, or was passed over and is caught up.
    Committed,
    /// Every needed router has committed; they fold.
    Folding,
    /// Old locators are forwarded until the drain time is over.
    Draining,
    /// Old locators are removed.
    Retiring,
    /// Over; old locators are in quarantine.
    Done,
    /// Decided; routers take it back.
    Aborting,
    /// Over; nothing has changed.
    Aborted,
}

impl Phase {
    /// Whether the migration succeeded: from here on it is never undone, and traffic flows.
    pub fn is_success(self) -> bool {
        matches!(
            self,
            Self::Committed | Self::Folding | Self::Draining | Self::Retiring | Self::Done
        )
    }

    /// Whether the outcome is known and reported: success or aborted.
    pub fn is_settled(self) -> bool {
        self.is_success() || self == Self::Aborted
    }

    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }

    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Folding => "folding",
            Self::Draining => "draining",
            Self::Retiring => "retiring",
            Self::Done => "done",
            Self::Aborting => "aborting",
            Self::Aborted => "aborted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A migration, as it is stored at every change of its phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// Its number, which is its transaction's.
    pub id: TransactionId,
    /// What moves, with the states before and after.
    pub moves: Vec<Move>,
    /// What triggers the decision.
    pub activation: Activation,
    /// Whether the trigger came.
    pub activated: bool,
    /// The VMs that were heard at their new places, as of the last time that the record was stored:
    /// routers say it again whenever they connect.
    #[serde(default)]
    pub heard: BTreeMap<VmName, Heard>,
    /// What an unreachable router means.
    pub unreachable: Unreachable,
    /// Where it stands.
    pub phase: Phase,
    /// When each phase began, in the order in which they came.
    pub times: Vec<(Phase, Timestamp)>,
    /// When the drain time is over, from [`Phase::Draining`] on.
    pub drain_until: Option<Timestamp>,
    /// Why it aborted.
    pub error: Option<String>,
    /// How far each router got, as of the last change of phase.
    pub routers: BTreeMap<RouterName, Progress>,
    /// After an abort: routers that may still hold a trace of it. Its locators are not given out
    /// before that is empty.
    pub uncleared: BTreeSet<RouterName>,
}

impl MigrationRecord {
    /// When it was announced.
    pub fn announced(&self) -> Option<Timestamp> {
        self.times.first().map(|(_, at)| *at)
    }

    /// When a phase began, the last time.
    pub fn began(&self, phase: Phase) -> Option<Timestamp> {
        let mut times = self.times.iter().rev();
        let (_, at) = times.find(|(entered, _)| *entered == phase)?;
        Some(*at)
    }

    /// From the first to the last of the commits that are known, by the routers' clocks.
    pub fn commit_spread_ns(&self) -> Option<u64> {
        let routers = self.routers.values().copied();
        let commits = routers.filter_map(Progress::committed_at);
        Some(commits.clone().max()?.since(commits.min()?))
    }
}
