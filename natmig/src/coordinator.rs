//! The transaction machine of the controller: sans-IO.
//!
//! It is told what happens ([`Event`]) and what operators ask for ([`Request`]), with the time, and
//! answers with [`Action`]s that the caller executes in order; a [`Command::Commit`] may be sent before
//! what is stored of other migrations. Invariants:
//! - nothing is sent that depends on a state before that state is stored: [`Action::Store`] stands
//!   before the commands that rely on it;
//! - the decision to commit is stored once every needed router holds the transaction, and is never
//!   revised;
//! - fold follows only when every needed router has committed;
//! - what a router is told next depends on what it holds, never on what it was told before: a router
//!   that connects is first brought to the table it should have, then to where each migration stands.

mod advance;
mod announced;
mod event;
mod operate;
mod record;
mod request;
mod settle;
mod state;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod times;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use self::announced::unheard;
use self::state::{Actions, Migration, Participant, Router, Sync};
pub use self::{
    event::{
        Action, Announced, Command, CommandRef, ConnectionId, Event, Failure, Held, HeldState,
        Reply, Report, Timestamp,
    },
    record::{
        Activation, Heard, MigrationRecord, Phase, Quarantined, StoreOp, Stored, Unreachable,
    },
    request::{Answer, MigrateRequest, Refusal, RefusalKind, Request},
    table::RouterTable,
    tally::{RouterTally, Tally},
    view::{
        MigrationView, MoveView, PhaseTime, PlaceView, Progress, RouterProgressView, RouterView,
        VmView,
    },
};
use crate::{
    names::{RouterName, VmName},
    planner::{Stages, VmState},
    rule::{MacAddress, TransactionId},
    topology::Topology,
};

/// Times that the machine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long routers may take to prepare, before the migration aborts.
    pub prepare_deadline: Duration,
    /// How long a stage of the commit waits for a silent router, before it is passed over.
    pub commit_deadline: Duration,
    /// How long after a failure a command is tried again.
    pub retry: Duration,
    /// How many finished migrations are remembered.
    pub history: usize,
    /// How many migrations may be under way, or wait, until they are folded. Each takes one of a
    /// router's transaction slots, of which there are a few more.
    pub under_way: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prepare_deadline: Duration::from_secs(5),
            commit_deadline: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            history: 1000,
            under_way: 1000,
        }
    }
}

/// The controller's state and what it does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    config: Config,
    topology: Option<Topology>,
    vms: BTreeMap<VmName, VmState>,
    identities: BTreeMap<IpAddr, VmName>,
    macs: BTreeMap<MacAddress, VmName>,
    /// The routers of the topology.
    routers: BTreeMap<RouterName, Router>,
    migrations: BTreeMap<TransactionId, Migration>,
    /// Migrations with which something remains to be done.
    active: BTreeSet<TransactionId>,
    /// Those of them that may be able to go on. Empty between events.
    due: BTreeSet<TransactionId>,
    /// When those that wait for a time go on.
    alarms: BTreeSet<(Timestamp, TransactionId)>,
    /// VMs that no other migration may touch, and the migration that holds them.
    busy: BTreeMap<VmName, TransactionId>,
    /// Locators that must not be given out: bound, draining, or in quarantine.
    used: BTreeSet<IpAddr>,
    /// Locators in quarantine, by when it ends.
    quarantined: BTreeSet<(Timestamp, IpAddr)>,
    next_id: u64,
    /// Version of the next whole table that is sent.
    next_version: u64,
}

impl Coordinator {
    /// Takes up where the stored records end; an empty store is an empty controller. The actions
    /// are executed before anything else. Quarantines and drain times go on, deadlines begin again.
    pub fn restore(config: Config, stored: Stored, now: Timestamp) -> (Self, Vec<Action>) {
        let mut coordinator = Self {
            config,
            vms: BTreeMap::new(),
            identities: BTreeMap::new(),
            macs: BTreeMap::new(),
            routers: BTreeMap::new(),
            migrations: BTreeMap::new(),
            active: BTreeSet::new(),
            due: BTreeSet::new(),
            alarms: BTreeSet::new(),
            busy: BTreeMap::new(),
            used: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            next_id: stored.next_id.max(1),
            next_version: 1,
            topology: stored.topology,
        };
        if let Some(topology) = &coordinator.topology {
            for name in topology.routers.keys() {
                let router = Router {
                    drained: stored.drained.contains(name),
                    ..Router::default()
                };
                coordinator.routers.insert(name.clone(), router);
            }
        }
        for state in stored.vms {
            coordinator.insert_vm(state);
        }
        for quarantined in stored.quarantined {
            coordinator.used.insert(quarantined.locator);
            coordinator
                .quarantined
                .insert((quarantined.until, quarantined.locator));
        }
        for record in stored.migrations {
            coordinator.restore_migration(record, now);
        }
        let mut out = Actions::new();
        coordinator.all_are_due();
        coordinator.advance_due(now, &mut out);
        (coordinator, out)
    }

    fn insert_vm(&mut self, state: VmState) {
        let name = state.vm.name.clone();
        for identity in state.vm.identities.iter() {
            self.identities.insert(identity, name.clone());
        }
        self.macs.insert(state.vm.mac, name.clone());
        self.used.extend(state.locators());
        self.vms.insert(name, state);
    }

    fn restore_migration(&mut self, mut record: MigrationRecord, now: Timestamp) {
        if record.phase == Phase::Prepared {
            record.phase = Phase::Preparing;
        }
        for progress in record.routers.values_mut() {
            if *progress == Progress::Prepared {
                *progress = Progress::Waiting;
            }
        }
        let id = record.id;
        let mut migration = Migration {
            stages: self
                .topology
                .as_ref()
                .and_then(|topology| Stages::new(topology, &record.moves).ok())
                .unwrap_or_default(),
            participants: BTreeMap::new(),
            deadline: None,
            stage: 0,
            changed: false,
            told: None,
            alarm: None,
            unheard: unheard(&record),
            record,
        };
        if migration.is_active() {
            self.active.insert(id);
            for name in self.routers.keys() {
                let participant = Participant {
                    touched: true,
                    ..Participant::default()
                };
                migration.participants.insert(name.clone(), participant);
            }
            // What moves is bound, draining or about to be: its locators are not free.
            for step in &migration.record.moves {
                self.used.extend(step.new_locators().iter());
                self.used.extend(step.old_locators().iter());
            }
            if migration.is_busy() {
                for step in &migration.record.moves {
                    self.busy.insert(step.after.vm.name.clone(), id);
                }
            }
            if migration.phase() == Phase::Committed {
                // All stages are open; whoever has not committed was passed over.
                migration.stage = migration.stages.stages.len();
                for name in self.routers.keys() {
                    let passed_over = !migration.has_committed(name);
                    migration.participant(name).passed_over = passed_over;
                }
            }
            self.set_deadline(&mut migration, now);
        }
        self.migrations.insert(id, migration);
    }

    /// Takes note of an event. Stale ones are ignored: replies of a previous connection, of a
    /// phase that is over, of an unknown migration.
    #[must_use]
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut out = Actions::new();
        match event {
            Event::RouterConnected {
                router,
                connection,
                report,
            } => {
                self.connect(now, &router, connection, report, &mut out);
                self.all_are_due();
            }
            Event::RouterDisconnected { router, connection } => {
                if self.is_connection(&router, connection) {
                    self.disconnect(now, &router);
                    self.all_are_due();
                }
            }
            Event::Reply {
                router,
                connection,
                reply,
            } => {
                if self.is_connection(&router, connection) {
                    self.reply(now, &router, &reply, &mut out);
                }
            }
            Event::Announced {
                router,
                connection,
                announced,
            } => {
                if self.is_connection(&router, connection) {
                    self.due.insert(announced.id);
                    self.announced(&router, announced, &mut out);
                }
            }
            Event::Tick => {}
        }
        self.advance_due(now, &mut out);
        out
    }

    /// Does what an operator asks for, or refuses and changes nothing. The caller executes the
    /// actions, then answers: what is answered is durable.
    pub fn request(
        &mut self,
        now: Timestamp,
        request: Request,
    ) -> Result<(Answer, Vec<Action>), Refusal> {
        let mut out = Actions::new();
        let answer = self.operate(now, request, &mut out);
        if answer.is_err() {
            self.due.clear();
        }
        let answer = answer?;
        self.advance_due(now, &mut out);
        Ok((answer, out))
    }

    /// The topology that was applied last.
    pub fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    /// Whether this is the router's present connection.
    fn is_connection(&self, router: &RouterName, connection: ConnectionId) -> bool {
        self.connection(router)
            .is_some_and(|present| present.id == connection)
    }

    fn connection(&self, router: &RouterName) -> Option<&state::Connection> {
        self.routers
            .get(router)
            .and_then(|router| router.connection.as_ref())
    }

    /// The connection of a router that can be told what migrations need.
    fn settled(&self, router: &RouterName) -> Option<ConnectionId> {
        self.connection(router)
            .filter(|connection| connection.sync == Sync::Settled)
            .map(|connection| connection.id)
    }

    /// The routers that migrations need.
    fn needed(&self) -> Vec<RouterName> {
        self.routers
            .iter()
            .filter(|(_, router)| !router.drained)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn is_needed(&self, router: &RouterName) -> bool {
        self.routers
            .get(router)
            .is_some_and(|router| !router.drained)
    }
}
