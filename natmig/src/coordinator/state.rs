//! What the machine remembers between two events.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Action, CommandRef, ConnectionId, HeldState, MigrationRecord, Phase, Progress, StoreOp,
    Timestamp,
};
use crate::{
    digest::TableDigest,
    names::{RouterName, SegmentName, VmName},
    planner::Stages,
    rule::{MacAddress, TransactionId},
};

/// A router of the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Router {
    pub(super) connection: Option<Connection>,
    /// Attested not forwarding: it is told nothing and not waited for.
    pub(super) drained: bool,
    /// Since when it is connected, or not.
    pub(super) since: Option<Timestamp>,
    pub(super) problem: Option<String>,
}

/// A connection of a router's agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) sync: Sync,
    /// When it was last heard.
    pub(super) heard: Timestamp,
    /// Transactions that it reported and that go on.
    pub(super) held: BTreeMap<TransactionId, HeldState>,
    /// Digest of the table that it reported.
    pub(super) digest: TableDigest,
    /// Segments for which it has an interface.
    pub(super) segments: BTreeSet<SegmentName>,
    /// Decided transactions whose outcome it takes with a whole table.
    pub(super) joined: BTreeSet<TransactionId>,
}

/// How far a connected router is on its way to the table that it should have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sync {
    /// It is drained.
    Idle,
    /// It settles transactions that are over.
    Resolving {
        /// Commands that are not answered.
        left: BTreeSet<CommandRef>,
        /// Whether its digest says nothing about the table that it will have.
        replace: bool,
    },
    /// It takes a whole table, of this version.
    Replacing(u64),
    /// It is told what migrations need.
    Settled,
}

/// A migration under way or remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Migration {
    pub(super) record: MigrationRecord,
    pub(super) stages: Stages,
    pub(super) participants: BTreeMap<RouterName, Participant>,
    /// When waiting for routers ends: for all that prepare, or for the open stage of the commit.
    pub(super) deadline: Option<Timestamp>,
    /// The open stage of the commit.
    pub(super) stage: usize,
    /// Whether its view changed since watchers were told.
    pub(super) changed: bool,
    /// When it goes on, if it waits for a time: the element of `alarms` that counts.
    pub(super) alarm: Option<Timestamp>,
    /// The phase that watchers were told last.
    pub(super) told: Option<Phase>,
    /// The VMs whose announcements the decision waits for.
    pub(super) unheard: BTreeMap<MacAddress, Unheard>,
}

/// A VM that was not heard at its new place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Unheard {
    pub(super) vm: VmName,
    /// Where it is to be heard.
    pub(super) segment: SegmentName,
}

/// A router in a migration, as far as it needs not be remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Participant {
    /// The command that is not answered on the present connection.
    pub(super) sent: Option<CommandRef>,
    /// When to try again after a failure.
    pub(super) retry_at: Option<Timestamp>,
    pub(super) error: Option<String>,
    pub(super) passed_over: bool,
    /// Whether it may hold a trace: it was told to prepare, or that is not known any more.
    pub(super) touched: bool,
}

impl Migration {
    pub(super) fn progress(&self, router: &RouterName) -> Progress {
        self.record.routers.get(router).copied().unwrap_or_default()
    }

    pub(super) fn set_progress(&mut self, router: &RouterName, progress: Progress) {
        if self.record.routers.insert(router.clone(), progress) != Some(progress) {
            self.changed = true;
        }
    }

    pub(super) fn participant(&mut self, router: &RouterName) -> &mut Participant {
        self.participants.entry(router.clone()).or_default()
    }

    pub(super) fn has_committed(&self, router: &RouterName) -> bool {
        matches!(
            self.progress(router),
            Progress::Committed { .. } | Progress::Folded { .. } | Progress::Retired { .. }
        )
    }

    pub(super) fn phase(&self) -> Phase {
        self.record.phase
    }

    /// Enters a phase. Failures of the phase before count no longer.
    pub(super) fn enter(&mut self, phase: Phase, now: Timestamp) {
        self.record.phase = phase;
        self.record.times.push((phase, now));
        self.deadline = None;
        self.changed = true;
        for participant in self.participants.values_mut() {
            participant.retry_at = None;
        }
    }

    /// The record for the store.
    pub(super) fn stored(&self) -> StoreOp {
        StoreOp::PutMigration(Box::new(self.record.clone()))
    }

    /// Whether something remains to be done.
    pub(super) fn is_active(&self) -> bool {
        !self.phase().is_final() || !self.record.uncleared.is_empty()
    }

    /// Whether its VMs can be in no other migration.
    pub(super) fn is_busy(&self) -> bool {
        matches!(
            self.phase(),
            Phase::Preparing
                | Phase::Prepared
                | Phase::Committing
                | Phase::Committed
                | Phase::Folding
                | Phase::Aborting
        )
    }
}

/// Actions of one call.
pub(super) type Actions = Vec<Action>;
