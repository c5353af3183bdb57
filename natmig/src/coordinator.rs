//! The transaction machine of the controller: sans-IO.
//!
//! It is told what happens ([`Event`]) and what operators ask for ([`Request`]), with the time, and
//! answers with [`Action`]s that the caller executes in order. Invariants:
//! - nothing is sent that depends on a state before that state is stored: [`Action::Store`] stands
//!   before the commands that rely on it;
//! - the decision to commit is stored once every needed router holds the transaction, and is never
//!   revised;
//! - fold follows only when every needed router has committed;
//! - what a router is told next depends on what it holds, never on what it was told before: a router
//!   that connects is first brought to the table it should have, then to where each migration stands.

mod event;
mod record;
mod request;
mod view;

use std::time::Duration;

pub use self::{
    event::{
        Action, Command, CommandRef, ConnectionId, Event, Failure, Held, HeldState, Reply, Report,
        Timestamp,
    },
    record::{Activation, MigrationRecord, Phase, Quarantined, StoreOp, Stored, Unreachable},
    request::{Answer, MigrateRequest, Refusal, RefusalKind, Request},
    view::{
        MigrationView, MoveView, PhaseTime, PlaceView, Progress, RouterProgressView, RouterView,
        VmView,
    },
};
use crate::{names::VmName, rule::TransactionId, topology::Topology};

/// Times that the machine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long routers may take to prepare, before the migration aborts.
    pub prepare_deadline: Duration,
    /// How long a stage of the commit waits for a silent router, before it is passed over.
    pub commit_deadline: Duration,
    /// How long after a failure a command is tried again.
    pub retry: Duration,
    /// How many finished migrations are remembered.
    pub history: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prepare_deadline: Duration::from_secs(5),
            commit_deadline: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            history: 1000,
        }
    }
}

/// The controller's state and what it does next.
#[derive(Debug)]
pub struct Coordinator {}

impl Coordinator {
    /// Takes up where the stored records end; an empty store is an empty controller. The actions
    /// are executed before anything else. Quarantines, deadlines and drain times go on from `now`.
    pub fn restore(_config: Config, _stored: Stored, _now: Timestamp) -> (Self, Vec<Action>) {
        todo!()
    }

    /// Takes note of an event. Stale ones are ignored: replies of a previous connection, of a
    /// phase that is over, of an unknown migration.
    #[must_use]
    pub fn handle(&mut self, _now: Timestamp, _event: Event) -> Vec<Action> {
        todo!()
    }

    /// Does what an operator asks for, or refuses and changes nothing. The caller executes the
    /// actions, then answers: what is answered is durable.
    pub fn request(
        &mut self,
        _now: Timestamp,
        _request: Request,
    ) -> Result<(Answer, Vec<Action>), Refusal> {
        todo!()
    }

    /// The topology that was applied last.
    pub fn topology(&self) -> Option<&Topology> {
        todo!()
    }

    /// One migration.
    pub fn migration(&self, _id: TransactionId) -> Option<MigrationView> {
        todo!()
    }

    /// All migrations that are remembered, in the order of their numbers.
    pub fn migrations(&self) -> Vec<MigrationView> {
        todo!()
    }

    /// All routers.
    pub fn routers(&self) -> Vec<RouterView> {
        todo!()
    }

    /// One VM.
    pub fn vm(&self, _name: &VmName) -> Option<VmView> {
        todo!()
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<VmView> {
        todo!()
    }
}
