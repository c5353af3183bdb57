//! What operators ask for, and why it may be refused.

use std::net::IpAddr;

use super::{Activation, Phase, Unreachable};
use crate::{
    names::{RouterName, SegmentName, VmName},
    planner::{PlanError, Vm},
    rule::TransactionId,
    topology::Topology,
};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Use this topology from here on.
    ApplyTopology(Topology),
    /// Add VMs to the inventory: all or none. One that is there as it is, is left as it is.
    AddVms(Vec<Vm>),
    /// Remove VMs from the inventory: all or none.
    RemoveVms(Vec<VmName>),
    /// Move VMs: all or none.
    Migrate(MigrateRequest),
    /// The trigger of a migration with manual activation; of one that awaits announcements, in their
    /// place.
    Activate(TransactionId),
    /// Abort a migration that is not decided.
    Abort(TransactionId),
    /// A router is attested not forwarding: it is no longer needed.
    DrainRouter(RouterName),
    /// A drained router is needed again.
    UndrainRouter(RouterName),
    /// Forget a drained router.
    RemoveRouter(RouterName),
}

/// A migration to be started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MigrateRequest {
    /// The VMs and where each goes.
    pub moves: Vec<(VmName, SegmentName)>,
    /// What triggers the decision.
    pub activation: Activation,
    /// What an unreachable router means before the decision.
    pub unreachable: Unreachable,
}

/// What a request led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// A migration was started.
    Started(TransactionId),
}

/// What kind of refusal it is, for exit codes and status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request makes no sense.
    Invalid,
    /// Something that it names does not exist.
    NotFound,
    /// It cannot be done in this state.
    Refused,
    /// There is too much to do: it can be done later.
    Exhausted,
}

/// Why a request was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no topology.
    #[error("there is no topology; apply one with `natmig topology apply FILE`")]
    NoTopology,
    /// A VM is not in the inventory.
    #[error("there is no VM {0}; add it with `natmig vm add`")]
    UnknownVm(VmName),
    /// A router is not in the topology.
    #[error("there is no router {0} in the topology; see `natmig router list`")]
    UnknownRouter(RouterName),
    /// A migration is not remembered.
    #[error("there is no migration {0}; see `natmig migration list`")]
    UnknownMigration(TransactionId),
    /// A migration cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A VM is in a migration that is not folded.
    #[error(
        "VM {vm} is busy: migration {migration} is {phase}; wait for it, or see `natmig migration show {migration}`"
    )]
    Busy {
        /// The VM.
        vm: VmName,
        /// The migration that it is in.
        migration: TransactionId,
        /// Where that stands.
        phase: Phase,
    },
    /// So many migrations are under way that no other can begin.
    #[error(
        "{limit} migrations are under way or wait, which is the most that there can be; try again when \
         some of them are done, see `natmig migration list`"
    )]
    TooMany {
        /// The most that there can be.
        limit: usize,
    },
    /// A VM cannot be added.
    #[error("VM {vm} cannot be added: {problem}")]
    InvalidVm {
        /// The VM.
        vm: VmName,
        /// Why, and what to do.
        problem: String,
    },
    /// A VM cannot be removed.
    #[error("VM {vm} cannot be removed: {problem}")]
    VmInUse {
        /// The VM.
        vm: VmName,
        /// Why, and what to do.
        problem: String,
    },
    /// The topology contradicts what is there.
    #[error("the topology cannot be applied: {0}")]
    TopologyInUse(String),
    /// A migration is past the point where this could be done.
    #[error("migration {id} is {phase}: {problem}")]
    WrongPhase {
        /// The migration.
        id: TransactionId,
        /// Where it stands.
        phase: Phase,
        /// What that means.
        problem: &'static str,
    },
    /// A router cannot be removed.
    #[error("router {router} cannot be removed: {problem}")]
    RouterInUse {
        /// The router.
        router: RouterName,
        /// Why, and what to do.
        problem: String,
    },
    /// An address is used twice.
    #[error("{address} is used by VM {by} already")]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: VmName,
    },
}

impl Refusal {
    /// What kind of refusal it is.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::UnknownVm(_) | Self::UnknownRouter(_) | Self::UnknownMigration(_) => {
                RefusalKind::NotFound
            }
            Self::Plan(error) => error.kind(),
            Self::TooMany { .. } => RefusalKind::Exhausted,
            Self::InvalidVm { .. } => RefusalKind::Invalid,
            Self::NoTopology
            | Self::Busy { .. }
            | Self::VmInUse { .. }
            | Self::TopologyInUse(_)
            | Self::WrongPhase { .. }
            | Self::RouterInUse { .. }
            | Self::AddressInUse { .. } => RefusalKind::Refused,
        }
    }
}
