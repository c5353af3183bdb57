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

use tokio::sync::{mpsc, oneshot};

use super::{
    announcer::Announcer,
    execute::{self, TableReport, carry_out},
    links::Changed,
    tables::Tables,
    term::TermFile,
};
use crate::{
    coordinator::{Announced, Command as Machine, Timestamp},
    proto::{Command, Order, Outcome, Reply, v1},
    router::{Heard, next_hops::PrefixRoute},
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
    Refresh(Changed),
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
                if report
                    .send(execute::report(&self.tables, &self.term))
                    .is_err()
                {
                    tracing::debug!("the session ended before its report was made");
                }
            }
            Work::Refresh(changed) => {
                let refreshed = match changed {
                    Changed::Promiscuity => self.tables.refresh_promiscuity(),
                    Changed::Anything => self.tables.refresh_interfaces(),
                };
                if let Err(error) = refreshed {
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
                // Neighbours are told of a commit, and the kernel's own routes follow it, behind its
                // acknowledgement: other routers wait for that.
                self.announcer.announce(self.tables.take_announcements());
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

    fn carry_out(&mut self, command: Command) -> Outcome {
        let ready = self.ready;
        carry_out(&mut self.tables, &mut self.term, command, || {
            tracing::info!("the table is whole: data plane attached");
            ready();
        })
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
