//! What the machine is told, and what it wants done.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{MigrationView, StoreOp};
use crate::{
    digest::{Parts, TableDigest},
    names::{RouterName, SegmentName},
    rule::{Change, Changes, MacAddress, TransactionId},
};

/// Nanoseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// A later time.
    pub fn after(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanoseconds))
    }

    /// Nanoseconds since an earlier time; zero if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One connection of an agent. The caller numbers them; a number is never used twice in the life of
/// a [`super::Coordinator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An agent connected and reported. An older connection of the router ends with it.
    RouterConnected {
        /// The router, by the name that the agent gave.
        router: RouterName,
        /// The connection.
        connection: ConnectionId,
        /// What the router holds.
        report: Report,
    },
    /// A connection ended.
    RouterDisconnected {
        /// The router.
        router: RouterName,
        /// The connection that ended.
        connection: ConnectionId,
    },
    /// An agent answered a command. Commands of one connection are executed and answered in the
    /// order in which they were sent.
    Reply {
        /// The router.
        router: RouterName,
        /// The connection on which the answer came.
        connection: ConnectionId,
        /// The answer.
        reply: Reply,
    },
    /// A router heard a VM at the place to which a migration brings it. It says so again whenever it
    /// connects, for as long as the transaction is not decided there.
    Announced {
        /// The router.
        router: RouterName,
        /// The connection on which it came.
        connection: ConnectionId,
        /// Who was heard.
        announced: Announced,
    },
    /// Time passed; see [`Action::Wake`].
    Tick,
}

/// What a router holds when its agent connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Report {
    /// Transactions that are not folded.
    pub held: Vec<Held>,
    /// Digest of the table as it was before the transactions held.
    pub digest: TableDigest,
    /// The segments for which the router has an access interface.
    pub segments: BTreeSet<SegmentName>,
}

/// A VM was heard at its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announced {
    /// The transaction that brings it there.
    pub id: TransactionId,
    /// The VM's MAC address.
    pub mac: MacAddress,
    /// When, by the router's clock.
    pub at: Timestamp,
}

/// A transaction that a router holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// Its number.
    pub id: TransactionId,
    /// Where it stands.
    pub state: HeldState,
}

/// Where a transaction stands on a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeldState {
    /// Its pending versions are in.
    Prepared,
    /// Its pending versions count.
    Committed {
        /// Since when.
        at: Timestamp,
    },
}

/// What a router is told. Each command is idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// These are the fabric's locator pools. Needs no answer.
    SetPools {
        /// All of them.
        pools: Vec<IpNet>,
    },
    /// The table is as it should be: a router that has just booted may take part in forwarding. Needs
    /// no answer.
    Attach,
    /// Write a transaction's pending versions.
    Prepare {
        /// The transaction.
        id: TransactionId,
        /// What it changes on this router.
        changes: Changes,
        /// Whether the router is to say when it hears a VM that the transaction brings to it:
        /// [`Event::Announced`].
        await_announcements: bool,
    },
    /// Make a transaction count.
    Commit {
        /// The transaction.
        id: TransactionId,
    },
    /// Take every trace of a transaction back.
    Abort {
        /// The transaction.
        id: TransactionId,
    },
    /// Bring the table up to a committed transaction.
    Fold {
        /// The transaction.
        id: TransactionId,
    },
    /// Remove entries.
    Retire {
        /// The transaction that left them.
        id: TransactionId,
        /// The entries' addresses.
        addresses: Vec<IpAddr>,
    },
    /// Make this all that the table has in some parts of it, but leave alone what transactions hold
    /// that are held.
    Replace {
        /// Number of the table, for the answer.
        version: u64,
        /// The parts.
        parts: Parts,
        /// Their rules, in ascending order of address.
        rules: Vec<Change>,
    },
}

impl Command {
    /// What an answer refers to.
    pub fn reference(&self) -> CommandRef {
        match self {
            Self::SetPools { .. } => CommandRef::SetPools,
            Self::Attach => CommandRef::Attach,
            Self::Prepare { id, .. } => CommandRef::Prepare(*id),
            Self::Commit { id } => CommandRef::Commit(*id),
            Self::Abort { id } => CommandRef::Abort(*id),
            Self::Fold { id } => CommandRef::Fold(*id),
            Self::Retire { id, .. } => CommandRef::Retire(*id),
            Self::Replace { version, .. } => CommandRef::Replace(*version),
        }
    }
}

/// Names a command in an answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommandRef {
    /// [`Command::SetPools`].
    SetPools,
    /// [`Command::Attach`].
    Attach,
    /// [`Command::Prepare`].
    Prepare(TransactionId),
    /// [`Command::Commit`].
    Commit(TransactionId),
    /// [`Command::Abort`].
    Abort(TransactionId),
    /// [`Command::Fold`].
    Fold(TransactionId),
    /// [`Command::Retire`].
    Retire(TransactionId),
    /// [`Command::Replace`].
    Replace(u64),
}

/// A router's answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// [`Command::Prepare`] is done.
    Prepared(TransactionId),
    /// [`Command::Commit`] is done.
    Committed {
        /// The transaction.
        id: TransactionId,
        /// When it was stored.
        at: Timestamp,
        /// How long it took until no packet was processed under the old state.
        grace: Duration,
    },
    /// [`Command::Abort`] is done.
    Aborted(TransactionId),
    /// [`Command::Fold`] is done.
    Folded(TransactionId),
    /// [`Command::Retire`] is done.
    Retired(TransactionId),
    /// [`Command::Replace`] is done.
    Replaced(u64),
    /// [`Command::SetPools`] is done; ignored.
    PoolsSet,
    /// [`Command::Attach`] is done; ignored.
    Attached,
    /// A command failed and changed nothing.
    Failed {
        /// The command.
        command: CommandRef,
        /// Why.
        failure: Failure,
    },
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The router does not hold the transaction; it is prepared again.
    UnknownTransaction,
    /// Anything else.
    Other(String),
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the changes durable, all or none, before the next action. If that fails, the caller
    /// stops: it must not go on with the machine.
    Store(Vec<StoreOp>),
    /// Send a command to an agent.
    Send {
        /// The router.
        router: RouterName,
        /// The connection to send it on; if it is gone, the command is dropped.
        connection: ConnectionId,
        /// The command.
        command: Command,
    },
    /// End a connection; the agent connects again and reports.
    Disconnect {
        /// The router.
        router: RouterName,
        /// The connection.
        connection: ConnectionId,
        /// Why, for the agent's log.
        reason: String,
    },
    /// A migration looks different from before.
    Update(Box<MigrationView>),
    /// Send [`Event::Tick`] at this time, or as soon as possible if it is past. It replaces the time
    /// of an earlier one.
    Wake(Timestamp),
}
