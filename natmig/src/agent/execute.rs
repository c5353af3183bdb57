//! What an agent makes of its controller's commands: without threads, connections or files.

use natmig_common::SlotState;

use super::{tables::Tables, term::TermError};
use crate::{
    coordinator::{Command as Machine, Held, HeldState, Timestamp},
    digest::TableDigest,
    proto::{Command, Order, Outcome},
    router::RouterError,
};

/// Keeps the highest term that the router has seen where a reboot does not reach it.
pub trait TermKeeper {
    /// The highest term.
    fn term(&self) -> u64;
    /// Keeps a higher term, durably.
    fn raise(&mut self, term: u64) -> Result<(), TermError>;
}

/// What a router holds, as its agent says it when it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableReport {
    /// The highest term that it has seen.
    pub term: u64,
    /// Digest of the table as it was before the transactions held.
    pub digest: TableDigest,
    /// Transactions that are not folded.
    pub held: Vec<Held>,
}

/// Says what a router holds.
pub fn report<T: Tables>(tables: &T, keeper: &impl TermKeeper) -> TableReport {
    TableReport {
        term: seen(tables, keeper),
        digest: tables.digest(),
        held: tables.held().iter().filter_map(held).collect(),
    }
}

/// Carries out a command, unless a controller with a higher term was here before. `attached` is called
/// when the router begins to forward.
pub fn carry_out<T: Tables>(
    tables: &mut T,
    keeper: &mut impl TermKeeper,
    command: Command,
    attached: impl FnOnce(),
) -> Outcome {
    let seen = seen(tables, keeper);
    if command.term < seen {
        tracing::warn!(
            term = command.term,
            seen,
            "a controller that lost its leadership was refused"
        );
        return Outcome::Fenced { term: seen };
    }
    if command.term > seen {
        if let Err(error) = keeper.raise(command.term) {
            tracing::error!(%error, "cannot keep the term");
            return Outcome::Refused(error.to_string());
        }
        if let Err(error) = tables.set_term(command.term) {
            return refused(&error);
        }
    }
    let command = match command.order {
        Order::Welcome => return Outcome::Done,
        Order::Command(command) => command,
    };
    let done = match command {
        Machine::SetPools { pools } => tables.set_pools(&pools),
        Machine::Attach => tables.attach().map(|first| {
            if first {
                attached();
            }
        }),
        Machine::Replace {
            version,
            parts,
            rules,
        } => {
            tracing::info!(version, %parts, addresses = rules.len(), "taking over a table");
            let rules = rules
                .into_iter()
                .map(|change| (change.address, change.rule))
                .collect();
            tables.replace(&parts, &rules)
        }
        Machine::Prepare {
            id,
            changes,
            await_announcements,
        } => {
            // It listens first: a router that holds a transaction is not told to prepare it again, so
            // an agent that is killed in between must be found without it.
            let listening = if await_announcements {
                tables.await_announcements(id, &changes)
            } else {
                Ok(())
            };
            listening.and_then(|()| tables.prepare(id, &changes))
        }
        Machine::Commit { id } => {
            return match tables.commit(id) {
                Ok(report) => {
                    tracing::debug!(transaction = %id, grace = ?report.grace, "committed");
                    Outcome::Committed {
                        at: report.committed_at,
                        grace: report.grace,
                    }
                }
                Err(error) => refused(&error),
            };
        }
        Machine::Abort { id } => tables.abort(id),
        Machine::Fold { id } => tables.fold(id),
        Machine::Retire { id: _, addresses } => tables.retire(&addresses),
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(error) => refused(&error),
    }
}

fn seen<T: Tables>(tables: &T, keeper: &impl TermKeeper) -> u64 {
    keeper.term().max(tables.term())
}

fn refused(error: &RouterError) -> Outcome {
    if matches!(error, RouterError::UnknownTransaction(_)) {
        return Outcome::UnknownTransaction;
    }
    tracing::warn!(%error, "a command was refused");
    Outcome::Refused(error.to_string())
}

fn held(held: &crate::router::Held) -> Option<Held> {
    let state = match held.state {
        SlotState::Free | SlotState::Preparing => return None,
        SlotState::Prepared => HeldState::Prepared,
        SlotState::Committed | SlotState::Folding => HeldState::Committed {
            at: Timestamp(held.committed_at),
        },
    };
    Some(Held { id: held.id, state })
}
