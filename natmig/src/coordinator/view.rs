//! What operators are shown.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Activation, Coordinator, Heard, Phase, Timestamp, Unreachable, state::Migration};
use crate::{
    addresses::Addresses,
    names::{RouterName, SegmentName, VmName},
    planner::VmState,
    rule::{MacAddress, TransactionId},
    topology::Tier,
};

/// A place of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    /// The segment.
    pub segment: SegmentName,
    /// The locators there; none at home.
    pub locators: Addresses,
}

/// One VM of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveView {
    /// The VM.
    pub vm: VmName,
    /// Its addresses.
    pub identities: Addresses,
    /// Where it was.
    pub from: PlaceView,
    /// Where it goes.
    pub to: PlaceView,
    /// Where and when it was heard there; `None` if it was not, or the migration does not wait for
    /// that.
    #[serde(default)]
    pub heard: Option<Heard>,
}

/// When a phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// When it began.
    pub at: Timestamp,
}

/// How far a router got in a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Progress {
    /// It holds nothing of it, as far as is known.
    #[default]
    Waiting,
    /// It holds the pending versions.
    Prepared,
    /// The pending versions count.
    Committed {
        /// Since when, by the router's clock.
        at: Timestamp,
        /// How long it took until no packet was processed under the old state, in nanoseconds;
        /// `None` if the answer was lost.
        grace_ns: Option<u64>,
    },
    /// The table holds the outcome; `at` is when it was committed, if known.
    Folded {
        /// When the commit was, by the router's clock.
        at: Option<Timestamp>,
        /// As in [`Progress::Committed`].
        grace_ns: Option<u64>,
    },
    /// Old locators are removed.
    Retired {
        /// When the commit was, by the router's clock.
        at: Option<Timestamp>,
        /// As in [`Progress::Committed`].
        grace_ns: Option<u64>,
    },
    /// Nothing of it is left.
    Aborted,
}

impl Progress {
    /// When the router committed.
    pub fn committed_at(self) -> Option<Timestamp> {
        match self {
            Self::Committed { at, .. } => Some(at),
            Self::Folded { at, .. } | Self::Retired { at, .. } => at,
            Self::Waiting | Self::Prepared | Self::Aborted => None,
        }
    }

    /// How long the commit's grace period took.
    pub fn grace_ns(self) -> Option<u64> {
        match self {
            Self::Committed { grace_ns, .. }
            | Self::Folded { grace_ns, .. }
            | Self::Retired { grace_ns, .. } => grace_ns,
            Self::Waiting | Self::Prepared | Self::Aborted => None,
        }
    }
}

/// A router in a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterProgressView {
    /// The router.
    pub router: RouterName,
    /// Its place in the order of commits, from 0.
    pub stage: usize,
    /// How far it got.
    pub progress: Progress,
    /// Whether the migration needs it: it is not drained.
    pub needed: bool,
    /// Whether it was passed over because it was silent, and is not caught up yet.
    pub passed_over: bool,
    /// Its last error in this migration.
    pub error: Option<String>,
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationView {
    /// Its number.
    pub id: TransactionId,
    /// Where it stands.
    pub phase: Phase,
    /// What moves.
    pub vms: Vec<MoveView>,
    /// What triggers the decision.
    pub activation: Activation,
    /// What an unreachable router means.
    pub unreachable: Unreachable,
    /// When each phase began.
    pub times: Vec<PhaseTime>,
    /// Its routers.
    pub routers: Vec<RouterProgressView>,
    /// Routers that the present phase waits for.
    pub waiting_for: Vec<RouterName>,
    /// From the request until every needed router was prepared.
    pub prepare_ns: Option<u64>,
    /// From the decision until success.
    pub commit_ns: Option<u64>,
    /// From the first to the last router's commit, by the routers' clocks; `None` before all have
    /// committed.
    pub commit_spread_ns: Option<u64>,
    /// Why it aborted.
    pub error: Option<String>,
}

/// A router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterView {
    /// Its name.
    pub name: RouterName,
    /// Its layer.
    pub tier: Tier,
    /// The segments that it serves.
    pub segments: BTreeSet<SegmentName>,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Since when it is connected, or not.
    pub since: Option<Timestamp>,
    /// Whether its table is known to be as it should be.
    pub in_sync: bool,
    /// Whether it is attested not forwarding.
    pub drained: bool,
    /// Unfinished migrations that wait for it.
    pub holds_back: Vec<TransactionId>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its addresses.
    pub identities: Addresses,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its home segment.
    pub home: SegmentName,
    /// Where it is.
    pub segment: SegmentName,
    /// Its locators there; none at home.
    pub locators: Addresses,
    /// Old locators that are still forwarded.
    pub draining: Vec<IpAddr>,
    /// The migration that it is in, if one is under way.
    pub migration: Option<TransactionId>,
}

impl Coordinator {
    /// One migration.
    pub fn migration(&self, id: TransactionId) -> Option<MigrationView> {
        self.migrations
            .get(&id)
            .map(|migration| self.view_of(migration))
    }

    /// All migrations that are remembered, in the order of their numbers.
    pub fn migrations(&self) -> Vec<MigrationView> {
        self.migrations
            .values()
            .map(|migration| self.view_of(migration))
            .collect()
    }

    /// All routers.
    pub fn routers(&self) -> Vec<RouterView> {
        let decided = self.decided();
        self.routers
            .iter()
            .map(|(name, router)| RouterView {
                name: name.clone(),
                tier: self.tier(name),
                segments: self.segments_of(name),
                connected: router.connection.is_some(),
                since: router.since,
                in_sync: self.is_in_sync(name, &decided),
                drained: router.drained,
                holds_back: self
                    .active
                    .iter()
                    .filter_map(|id| self.migrations.get(id))
                    .filter(|migration| self.waits_for(migration, name))
                    .map(|migration| migration.record.id)
                    .collect(),
                problem: router.problem.clone(),
            })
            .collect()
    }

    /// One VM.
    pub fn vm(&self, name: &VmName) -> Option<VmView> {
        self.vms.get(name).map(|state| self.vm_view(state))
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<VmView> {
        self.vms.values().map(|state| self.vm_view(state)).collect()
    }

    fn vm_view(&self, state: &VmState) -> VmView {
        VmView {
            name: state.vm.name.clone(),
            identities: state.vm.identities,
            mac: state.vm.mac,
            home: state.vm.home.clone(),
            segment: state.segment().clone(),
            locators: place(state).locators,
            draining: state
                .draining
                .iter()
                .flat_map(|binding| binding.locators.iter())
                .collect(),
            migration: self.busy.get(&state.vm.name).copied(),
        }
    }

    pub(super) fn tier(&self, router: &RouterName) -> Tier {
        self.topology
            .as_ref()
            .and_then(|topology| topology.routers.get(router))
            .copied()
            .unwrap_or(Tier::Edge)
    }

    /// Migrations whose outcome not every router has yet.
    pub(super) fn decided(&self) -> Vec<&Migration> {
        self.active
            .iter()
            .filter_map(|id| self.migrations.get(id))
            .filter(|it| matches!(it.phase(), Phase::Committing | Phase::Committed))
            .collect()
    }

    /// Whether a router has the table that it should have, with every migration that is decided.
    pub(super) fn is_in_sync(&self, router: &RouterName, decided: &[&Migration]) -> bool {
        self.settled(router).is_some()
            && decided
                .iter()
                .all(|migration| migration.has_committed(router))
    }

    /// Whether a migration cannot go on before a router does something.
    fn waits_for(&self, migration: &Migration, router: &RouterName) -> bool {
        if migration.phase() == Phase::Aborted {
            return migration.record.uncleared.contains(router);
        }
        if !self.is_needed(router) {
            return false;
        }
        let progress = migration.progress(router);
        match migration.phase() {
            Phase::Preparing => progress != Progress::Prepared,
            Phase::Committing | Phase::Committed => !migration.has_committed(router),
            Phase::Folding => {
                !matches!(progress, Progress::Folded { .. } | Progress::Retired { .. })
            }
            Phase::Retiring => !matches!(progress, Progress::Retired { .. }),
            Phase::Aborting => progress != Progress::Aborted,
            Phase::Prepared | Phase::Draining | Phase::Done | Phase::Aborted => false,
        }
    }

    pub(super) fn view_of(&self, migration: &Migration) -> MigrationView {
        let record = &migration.record;
        let began = |phase| record.began(phase);
        let start = record.announced();
        let between = |from: Option<Timestamp>, to: Option<Timestamp>| Some(to?.since(from?));
        // A router may have left the topology since: its commit is remembered all the same.
        let names: BTreeSet<_> = self.routers.keys().chain(record.routers.keys()).collect();
        let routers: Vec<_> = names
            .into_iter()
            .map(|name| {
                let participant = migration.participants.get(name);
                RouterProgressView {
                    router: name.clone(),
                    stage: migration.stages.stage_of(name).unwrap_or(0),
                    progress: migration.progress(name),
                    needed: self.is_needed(name),
                    passed_over: participant.is_some_and(|participant| participant.passed_over),
                    error: participant.and_then(|participant| participant.error.clone()),
                }
            })
            .collect();
        let all = routers
            .iter()
            .all(|router| !router.needed || migration.has_committed(&router.router));
        MigrationView {
            id: record.id,
            phase: record.phase,
            vms: record
                .moves
                .iter()
                .map(|step| MoveView {
                    vm: step.after.vm.name.clone(),
                    identities: step.after.vm.identities,
                    from: place(&step.before),
                    to: place(&step.after),
                    heard: record.heard.get(&step.after.vm.name).cloned(),
                })
                .collect(),
            activation: record.activation,
            unreachable: record.unreachable,
            times: record
                .times
                .iter()
                .map(|(phase, at)| PhaseTime {
                    phase: *phase,
                    at: *at,
                })
                .collect(),
            waiting_for: self
                .routers
                .keys()
                .filter(|router| self.waits_for(migration, router))
                .cloned()
                .collect(),
            prepare_ns: between(start, began(Phase::Prepared)),
            commit_ns: between(began(Phase::Committing), began(Phase::Committed)),
            commit_spread_ns: record.commit_spread_ns().filter(|_| all),
            error: record.error.clone(),
            routers,
        }
    }
}

fn place(state: &VmState) -> PlaceView {
    PlaceView {
        segment: state.segment().clone(),
        locators: state
            .current
            .as_ref()
            .map(|binding| binding.locators)
            .unwrap_or_default(),
    }
}
