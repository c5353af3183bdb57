//! The thread that owns the router's tables: it carries out one command after the other, in the
//! order in which they came, and answers each.
//!
//! Everything about the tables blocks (grace periods, netlink), so it happens here and never on the
//! runtime. A session that ends leaves its commands in the queue: they are still carried out
//! before the next session's report is made, so that the report tells the truth.

use std::{
    collections::BTreeSet,
    io,
    thread::{self, JoinHandle},
    time::Instant,
};

use natmig_common::SlotState;
use tokio::sync::{mpsc, oneshot};

use super::{announcer::Announcer, tables::Tables, term::TermFile};
use crate::{
    coordinator::{Announced, Command as Machine, Held, HeldState, Timestamp},
    digest::TableDigest,
    proto::{Command, Order, Outcome, Reply, v1},
    router::{Heard, RouterError, next_hops::PrefixRoute},
    rule::{MacAddress, TransactionId},
};

/// Commands that may wait for the tables; more than that stop the stream, not the memory.
const QUEUE: usize = 256;

/// Something for the worker to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Say what the tables hold.
    Report(oneshot::Sender<TableReport>),
    /// The kernel's interfaces or addresses changed: read them again.
    Refresh,
    /// Set routes of prefixes, and say so.
    Routes {
        routes: Vec<PrefixRoute>,
        done: oneshot::Sender<()>,
    },
    /// VMs were heard; some of them may have been told of already.
    Heard(Vec<Heard>),
    /// Carry out a command, and send the reply to its session.
    Command {
        command: Command,
        replies: mpsc::Sender<v1::FromAgent>,
    },
}

/// What the tables hold.
#[derive(Debug)]
pub(super) struct TableReport {
    pub(super) term: u64,
    pub(super) digest: TableDigest,
    pub(super) held: Vec<Held>,
}

/// The running thread, which gives the tables back when all senders of work are gone.
pub(super) type Worker<T> = JoinHandle<T>;

/// Starts the thread.
pub(super) fn start<T: Tables>(
    tables: T,
    term: TermFile,
    ready: fn(),
) -> io::Result<(mpsc::Sender<Work>, Worker<T>)> {
    let (work, mut queue) = mpsc::channel(QUEUE);
    let announcer = Announcer::start::<T>()?;
    let mut state = State {
        tables,
        term,
        announcer,
        ready,
        session: None,
        told: BTreeSet::new(),
    };
    let queue_for_routes = work.downgrade();
    let set_routes = move |routes| set_routes(&queue_for_routes, routes);
    if let Err(error) = state.tables.keep_next_hops(Box::new(set_routes)) {
        tracing::warn!(%error, "next hops are asked of the kernel for every packet");
    }
    let queue_for_heard = work.downgrade();
    let tell_heard = move |heard| {
        let queue = queue_for_heard.upgrade();
        queue.is_some_and(|queue| queue.blocking_send(Work::Heard(heard)).is_ok())
    };
    if let Err(error) = state.tables.listen(Box::new(tell_heard)) {
        tracing::warn!(%error, "announcements are heard only when a session begins");
    }
    let thread = thread::Builder::new()
        .name("tables".to_owned())
        .spawn(move || {
            while let Some(work) = queue.blocking_recv() {
                state.perform(work);
            }
            state.tables
        })?;
    Ok((work, thread))
}

/// Has the thread of the tables set routes of prefixes, and waits until it has; whether it did.
fn set_routes(queue: &mpsc::WeakSender<Work>, routes: Vec<PrefixRoute>) -> bool {
    let (done, set) = oneshot::channel();
    let sent = queue
        .upgrade()
        .is_some_and(|queue| queue.blocking_send(Work::Routes { routes, done }).is_ok());
    sent && set.blocking_recv().is_ok()
}

struct State<T> {
    tables: T,
    term: TermFile,
    announcer: Announcer,
    ready: fn(),
    /// Where VMs that are heard are told, once a session was welcomed.
    session: Option<mpsc::Sender<v1::FromAgent>>,
    /// What was told in this session.
    told: BTreeSet<(TransactionId, MacAddress)>,
}

impl<T: Tables> State<T> {
    fn perform(&mut self, work: Work) {
        match work {
            Work::Report(report) => {
                let held = self.tables.held().iter().filter_map(held).collect();
                let report_is_gone = report
                    .send(TableReport {
                        term: self.term(),
                        digest: self.tables.digest(),
                        held,
                    })
                    .is_err();
                if report_is_gone {
                    tracing::debug!("the session ended before its report was made");
                }
            }
            Work::Refresh => {
                if let Err(error) = self.tables.refresh_interfaces() {
                    tracing::warn!(%error, "cannot read the interfaces again");
                }
                self.announcer.announce(self.tables.take_announcements());
            }
            Work::Routes { routes, done } => {
                self.tables.set_routes(&routes);
                if done.send(()).is_err() {
                    tracing::debug!("the keeper of next hops ended before its routes were set");
                }
            }
            Work::Heard(heard) => self.tell(&heard),
            Work::Command { command, replies } => {
                let sequence = command.sequence;
                let ended = ended(&command.order);
                let begins = matches!(command.order, Order::Welcome);
                let begun = Instant::now();
                let outcome = self.carry_out(command);
                tracing::debug!(sequence, took = ?begun.elapsed(), ?outcome, "carried out");
                let begins = begins && matches!(outcome, Outcome::Done);
                let reply = v1::FromAgent {
                    message: Some(v1::from_agent::Message::Reply(
                        (&Reply { sequence, outcome }).into(),
                    )),
                };
                if replies.blocking_send(reply).is_err() {
                    tracing::debug!(sequence, "the session ended before this reply");
                }
                // The kernel's own routes follow a commit behind its acknowledgement.
                if let Err(error) = self.tables.settle() {
                    tracing::error!(%error, "host routes do not follow yet");
                }
                self.told.retain(|(id, _)| Some(*id) != ended);
                if begins {
                    self.begin_telling(replies);
                }
            }
        }
    }

    /// Tells a session that has begun of all VMs that were heard, and of those that will be.
    fn begin_telling(&mut self, session: mpsc::Sender<v1::FromAgent>) {
        self.session = Some(session);
        self.told.clear();
        match self.tables.heard() {
            Ok(heard) => self.tell(&heard),
            Err(error) => tracing::error!(%error, "VMs that were heard are told late"),
        }
    }

    /// Tells the session of VMs that were heard, each once.
    fn tell(&mut self, heard: &[Heard]) {
        for Heard { id, mac, at } in heard.iter().copied() {
            let Some(session) = &self.session else { return };
            if !self.told.insert((id, mac)) {
                continue;
            }
            tracing::info!(transaction = %id, %mac, "heard a VM");
            let at = Timestamp(at);
            let announced = v1::from_agent::Message::Announced((&Announced { id, mac, at }).into());
            let message = v1::FromAgent {
                message: Some(announced),
            };
            if session.blocking_send(message).is_err() {
                // The next session is told of all of them.
                self.session = None;
            }
        }
    }

    fn term(&self) -> u64 {
        self.term.term().max(self.tables.term())
    }

    fn carry_out(&mut self, command: Command) -> Outcome {
        let seen = self.term();
        if command.term < seen {
            tracing::warn!(
                term = command.term,
                seen,
                "a controller that lost its leadership was refused"
            );
            return Outcome::Fenced { term: seen };
        }
        if command.term > seen {
            if let Err(error) = self.term.raise(command.term) {
                tracing::error!(%error, "cannot keep the term");
                return Outcome::Refused(error.to_string());
            }
            if let Err(error) = self.tables.set_term(command.term) {
                return refused(&error);
            }
        }
        let command = match command.order {
            Order::Welcome => return Outcome::Done,
            Order::Command(command) => command,
        };
        let done = match command {
            Machine::SetPools { pools } => self.tables.set_pools(&pools),
            Machine::Attach => self.tables.attach().map(|attached| {
                if attached {
                    tracing::info!("the table is whole: data plane attached");
                    (self.ready)();
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
                self.tables.replace(&parts, &rules)
            }
            Machine::Prepare {
                id,
                changes,
                await_announcements,
            } => self.tables.prepare(id, &changes).and_then(|()| {
                if await_announcements {
                    self.tables.await_announcements(id, &changes)
                } else {
                    Ok(())
                }
            }),
            Machine::Commit { id } => {
                return match self.tables.commit(id) {
                    Ok(report) => {
                        self.announcer.announce(self.tables.take_announcements());
                        tracing::debug!(transaction = %id, grace = ?report.grace, "committed");
                        Outcome::Committed {
                            at: report.committed_at,
                            grace: report.grace,
                        }
                    }
                    Err(error) => refused(&error),
                };
            }
            Machine::Abort { id } => self.tables.abort(id),
            Machine::Fold { id } => self.tables.fold(id),
            Machine::Retire { id: _, addresses } => self.tables.retire(&addresses),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(error) => refused(&error),
        }
    }
}

/// The transaction of which nothing is to be heard after this.
fn ended(order: &Order) -> Option<TransactionId> {
    match order {
        Order::Command(Machine::Commit { id } | Machine::Abort { id }) => Some(*id),
        Order::Welcome
        | Order::Command(
            Machine::SetPools { .. }
            | Machine::Attach
            | Machine::Prepare { .. }
            | Machine::Fold { .. }
            | Machine::Retire { .. }
            | Machine::Replace { .. },
        ) => None,
    }
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
