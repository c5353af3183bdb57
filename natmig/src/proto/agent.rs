//! The agent's session on the wire.

use std::time::Duration;

use super::{
    Malformed, PROTOCOL, TEXT_LIMIT, address, address_bytes, enumeration, mac, name, prefix,
    required, v1,
};
use crate::{
    coordinator::{self, Announced, CommandRef, Failure, Held, HeldState, Report, Timestamp},
    digest::{PARTS, Parts, TableDigest},
    names::{RouterName, SegmentName},
    rule::{Change, TransactionId},
};

/// What a router is and holds when its session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Name in the topology.
    pub router: RouterName,
    /// Highest term that the router has seen.
    pub term: u64,
    /// Digest of its settled table.
    pub digest: TableDigest,
    /// Transactions in doubt, or committed and not folded.
    pub held: Vec<Held>,
    /// Interfaces that natmig runs on.
    pub interfaces: Vec<RouterInterface>,
    /// Version of natmig.
    pub version: String,
}

/// An interface that natmig runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterInterface {
    /// Its name on the router.
    pub name: String,
    /// Its role; never [`natmig_common::Role::Kernel`].
    pub role: natmig_common::Role,
    /// The segment behind an access interface.
    pub segment: Option<SegmentName>,
}

/// What the controller wants of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Term of the controller's leadership.
    pub term: u64,
    /// Number within the session.
    pub sequence: u64,
    /// What is to be done.
    pub order: Order,
}

/// What a router is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take over the term; first of a session.
    Welcome,
    /// What the transaction machine says.
    Command(coordinator::Command),
}

/// The outcome of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The command's number.
    pub sequence: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// How a command went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Committed, and no packet is processed under the old state.
    Committed {
        /// Nanoseconds since the Unix epoch by the router's clock.
        at: u64,
        /// How long the grace period took.
        grace: Duration,
    },
    /// The router does not hold the transaction.
    UnknownTransaction,
    /// The router has seen a higher term.
    Fenced {
        /// That term.
        term: u64,
    },
    /// It cannot be done.
    Refused(String),
}

impl From<&Hello> for v1::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: PROTOCOL,
            router: hello.router.to_string(),
            term: hello.term,
            digests: hello.digest.parts().to_vec(),
            held: hello.held.iter().map(Into::into).collect(),
            interfaces: hello.interfaces.iter().map(Into::into).collect(),
            version: hello.version.clone(),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = Malformed;

    fn try_from(hello: v1::Hello) -> Result<Self, Malformed> {
        if hello.protocol != PROTOCOL {
            return Err(Malformed::new(
                "hello.protocol",
                format!(
                    "the agent speaks version {} and the controller version {PROTOCOL}: \
                     install the same natmig on both",
                    hello.protocol
                ),
            ));
        }
        Ok(Self {
            router: name("hello.router", &hello.router)?,
            term: hello.term,
            digest: digest(hello.digests)?,
            held: convert(hello.held)?,
            interfaces: convert(hello.interfaces)?,
            version: hello.version.chars().take(64).collect(),
        })
    }
}

/// Digests of a table's parts; none stand for an empty table.
fn digest(parts: Vec<u64>) -> Result<TableDigest, Malformed> {
    if parts.is_empty() {
        return Ok(TableDigest::default());
    }
    let found = parts.len();
    TableDigest::from_parts(parts).ok_or_else(|| {
        Malformed::new(
            "hello.digests",
            format!("a table has {PARTS} parts, not {found}"),
        )
    })
}

/// Parts of a table; none stand for all.
fn parts(numbers: &[u32]) -> Result<Parts, Malformed> {
    if numbers.is_empty() {
        return Ok(Parts::All);
    }
    let numbers = numbers
        .iter()
        .map(|number| u16::try_from(*number).ok().filter(|part| *part < PARTS))
        .collect::<Option<_>>()
        .ok_or_else(|| Malformed::new("replace.parts", "there is no such part"))?;
    Ok(Parts::Some(numbers))
}

/// Parts on the wire. A command about no part at all is never sent: it would mean all.
fn parts_numbers(parts: &Parts) -> Vec<u32> {
    match parts {
        Parts::All => Vec::new(),
        Parts::Some(parts) => parts.iter().map(|part| u32::from(*part)).collect(),
    }
}

fn convert<A, B: TryFrom<A, Error = Malformed>>(values: Vec<A>) -> Result<Vec<B>, Malformed> {
    values.into_iter().map(TryInto::try_into).collect()
}

impl From<&Held> for v1::HeldTransaction {
    fn from(held: &Held) -> Self {
        let (state, committed_at) = match held.state {
            HeldState::Prepared => (v1::HeldState::Prepared, 0),
            HeldState::Committed { at } => (v1::HeldState::Committed, at.0),
        };
        Self {
            transaction: held.id.0,
            state: state.into(),
            committed_at,
        }
    }
}

impl TryFrom<v1::HeldTransaction> for Held {
    type Error = Malformed;

    fn try_from(held: v1::HeldTransaction) -> Result<Self, Malformed> {
        let state = match enumeration("held.state", held.state)? {
            v1::HeldState::Unspecified => return Err(Malformed::new("held.state", "is missing")),
            v1::HeldState::Prepared => HeldState::Prepared,
            v1::HeldState::Committed => HeldState::Committed {
                at: Timestamp(held.committed_at),
            },
        };
        Ok(Self {
            id: TransactionId(held.transaction),
            state,
        })
    }
}

impl From<&RouterInterface> for v1::RouterInterface {
    fn from(interface: &RouterInterface) -> Self {
        use natmig_common::Role;
        let role = match interface.role {
            Role::Access => v1::InterfaceRole::Access,
            Role::Fabric => v1::InterfaceRole::Fabric,
            Role::External => v1::InterfaceRole::External,
            Role::Kernel => v1::InterfaceRole::Unspecified,
        };
        Self {
            name: interface.name.clone(),
            role: role.into(),
            segment: interface
                .segment
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::RouterInterface> for RouterInterface {
    type Error = Malformed;

    fn try_from(interface: v1::RouterInterface) -> Result<Self, Malformed> {
        use natmig_common::Role;
        let role = match enumeration("interface.role", interface.role)? {
            v1::InterfaceRole::Unspecified => {
                return Err(Malformed::new("interface.role", "is missing"));
            }
            v1::InterfaceRole::Access => Role::Access,
            v1::InterfaceRole::Fabric => Role::Fabric,
            v1::InterfaceRole::External => Role::External,
        };
        let segment = match interface.segment.as_str() {
            "" => None,
            segment => Some(name("interface.segment", segment)?),
        };
        Ok(Self {
            name: name::<RouterName>("interface.name", &interface.name)?.to_string(),
            role,
            segment,
        })
    }
}

impl From<&Command> for v1::Command {
    fn from(command: &Command) -> Self {
        use coordinator::Command as Machine;
        use v1::command::Command as Wire;
        let wire = match &command.order {
            Order::Welcome => Wire::Welcome(v1::Welcome {}),
            Order::Command(Machine::Attach) => Wire::Attach(v1::Attach {}),
            Order::Command(Machine::SetPools { pools }) => Wire::SetPools(v1::SetPools {
                pools: pools.iter().map(Into::into).collect(),
            }),
            Order::Command(Machine::Replace {
                version,
                parts,
                rules,
            }) => Wire::Replace(v1::Replace {
                rules: rules.iter().map(Into::into).collect(),
                version: *version,
                parts: parts_numbers(parts),
            }),
            Order::Command(Machine::Prepare {
                id,
                changes,
                await_announcements,
            }) => Wire::Prepare(v1::Prepare {
                transaction: id.0,
                changes: Some(changes.into()),
                await_announcements: *await_announcements,
            }),
            Order::Command(Machine::Commit { id }) => {
                Wire::Commit(v1::Commit { transaction: id.0 })
            }
            Order::Command(Machine::Abort { id }) => Wire::Abort(v1::Abort { transaction: id.0 }),
            Order::Command(Machine::Fold { id }) => Wire::Fold(v1::Fold { transaction: id.0 }),
            Order::Command(Machine::Retire { id, addresses }) => Wire::Retire(v1::Retire {
                transaction: id.0,
                addresses: addresses.iter().copied().map(address_bytes).collect(),
            }),
        };
        Self {
            term: command.term,
            sequence: command.sequence,
            command: Some(wire),
        }
    }
}

impl TryFrom<v1::Command> for Command {
    type Error = Malformed;

    fn try_from(command: v1::Command) -> Result<Self, Malformed> {
        use coordinator::Command as Machine;
        use v1::command::Command as Wire;
        let machine = match required("command", command.command)? {
            Wire::Welcome(_) => {
                return Ok(Self {
                    term: command.term,
                    sequence: command.sequence,
                    order: Order::Welcome,
                });
            }
            Wire::Attach(_) => Machine::Attach,
            Wire::SetPools(set_pools) => Machine::SetPools {
                pools: set_pools
                    .pools
                    .iter()
                    .map(|wire| prefix("set_pools.pools", wire))
                    .collect::<Result<_, _>>()?,
            },
            Wire::Replace(replace) => {
                let rules: Vec<Change> = convert(replace.rules)?;
                if !rules.is_sorted_by(|one, next| one.address < next.address) {
                    return Err(Malformed::new(
                        "replace.rules",
                        "are not in ascending order of address",
                    ));
                }
                let parts = parts(&replace.parts)?;
                if !rules.iter().all(|change| parts.contains(change.address)) {
                    return Err(Malformed::new(
                        "replace.rules",
                        "are of other parts than those to be replaced",
                    ));
                }
                Machine::Replace {
                    version: replace.version,
                    parts,
                    rules,
                }
            }
            Wire::Prepare(prepare) => Machine::Prepare {
                id: TransactionId(prepare.transaction),
                changes: required("prepare.changes", prepare.changes)?.try_into()?,
                await_announcements: prepare.await_announcements,
            },
            Wire::Commit(commit) => Machine::Commit {
                id: TransactionId(commit.transaction),
            },
            Wire::Abort(abort) => Machine::Abort {
                id: TransactionId(abort.transaction),
            },
            Wire::Fold(fold) => Machine::Fold {
                id: TransactionId(fold.transaction),
            },
            Wire::Retire(retire) => Machine::Retire {
                id: TransactionId(retire.transaction),
                addresses: retire
                    .addresses
                    .iter()
                    .map(|bytes| address("retire.addresses", bytes))
                    .collect::<Result<_, _>>()?,
            },
        };
        Ok(Self {
            term: command.term,
            sequence: command.sequence,
            order: Order::Command(machine),
        })
    }
}

impl From<&Announced> for v1::Announced {
    fn from(announced: &Announced) -> Self {
        Self {
            transaction: announced.id.0,
            mac: announced.mac.0.to_vec(),
            heard_at: announced.at.0,
        }
    }
}

impl TryFrom<v1::Announced> for Announced {
    type Error = Malformed;

    fn try_from(announced: v1::Announced) -> Result<Self, Malformed> {
        Ok(Self {
            id: TransactionId(announced.transaction),
            mac: mac("announced.mac", &announced.mac)?,
            at: Timestamp(announced.heard_at),
        })
    }
}

impl Hello {
    /// What the transaction machine needs of it.
    pub fn report(&self) -> Report {
        Report {
            held: self.held.clone(),
            digest: self.digest.clone(),
            segments: self
                .interfaces
                .iter()
                .filter_map(|interface| interface.segment.clone())
                .collect(),
        }
    }
}

impl Outcome {
    /// The transaction machine's words for how `command` went; `None` for an outcome that such a
    /// command cannot have.
    pub fn reply_to(self, command: CommandRef) -> Option<coordinator::Reply> {
        use coordinator::Reply as Machine;
        Some(match (self, command) {
            (Self::Done, CommandRef::SetPools) => Machine::PoolsSet,
            (Self::Done, CommandRef::Attach) => Machine::Attached,
            (Self::Done, CommandRef::Prepare(id)) => Machine::Prepared(id),
            (Self::Done, CommandRef::Abort(id)) => Machine::Aborted(id),
            (Self::Done, CommandRef::Fold(id)) => Machine::Folded(id),
            (Self::Done, CommandRef::Retire(id)) => Machine::Retired(id),
            (Self::Done, CommandRef::Replace(version)) => Machine::Replaced(version),
            (Self::Committed { at, grace }, CommandRef::Commit(id)) => Machine::Committed {
                id,
                at: Timestamp(at),
                grace,
            },
            (Self::UnknownTransaction, command) => Machine::Failed {
                command,
                failure: Failure::UnknownTransaction,
            },
            (Self::Refused(message), command) => Machine::Failed {
                command,
                failure: Failure::Other(message),
            },
            (Self::Done | Self::Committed { .. } | Self::Fenced { .. }, _) => return None,
        })
    }
}

impl From<&Reply> for v1::Reply {
    fn from(reply: &Reply) -> Self {
        use v1::{FailureReason, reply::Outcome as Wire};
        let failure = |reason: FailureReason, message: String, term| {
            Wire::Failure(v1::Failure {
                reason: reason.into(),
                message,
                term,
            })
        };
        let outcome = match &reply.outcome {
            Outcome::Done => Wire::Done(v1::Done {}),
            Outcome::Committed { at, grace } => Wire::Committed(v1::Committed {
                committed_at: *at,
                grace: u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX),
            }),
            Outcome::UnknownTransaction => failure(
                FailureReason::UnknownTransaction,
                "the router does not hold the transaction".to_owned(),
                0,
            ),
            Outcome::Fenced { term } => failure(
                FailureReason::Fenced,
                format!("the router has seen term {term}"),
                *term,
            ),
            Outcome::Refused(message) => failure(FailureReason::Refused, message.clone(), 0),
        };
        Self {
            sequence: reply.sequence,
            outcome: Some(outcome),
        }
    }
}

impl TryFrom<v1::Reply> for Reply {
    type Error = Malformed;

    fn try_from(reply: v1::Reply) -> Result<Self, Malformed> {
        use v1::{FailureReason, reply::Outcome as Wire};
        let outcome = match required("reply.outcome", reply.outcome)? {
            Wire::Done(_) => Outcome::Done,
            Wire::Committed(committed) => Outcome::Committed {
                at: committed.committed_at,
                grace: Duration::from_nanos(committed.grace),
            },
            Wire::Failure(failure) => match enumeration("failure.reason", failure.reason)? {
                FailureReason::Unspecified => {
                    return Err(Malformed::new("failure.reason", "is missing"));
                }
                FailureReason::Refused => {
                    Outcome::Refused(failure.message.chars().take(TEXT_LIMIT).collect())
                }
                FailureReason::UnknownTransaction => Outcome::UnknownTransaction,
                FailureReason::Fenced => Outcome::Fenced { term: failure.term },
            },
        };
        Ok(Self {
            sequence: reply.sequence,
            outcome,
        })
    }
}
