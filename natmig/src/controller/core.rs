//! The thread that owns the transaction machine and the store: everything that happens comes to it
//! through one bounded queue, and it does what the machine says, in order.
//!
//! Invariants:
//! - an action is carried out only when every store before it is durable. When the store fails the
//!   core ends, because the machine is ahead of what is stored;
//! - nothing is sent while the leadership is not sure to last;
//! - the machine hears of a router only when that router keeps this leadership's term, and after the
//!   store was asked, later than the router connected, whether this leadership lasts. So whatever the
//!   machine decides, no controller before it can reach its participants, and a router gets its whole
//!   table from no one but the leader.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::timeout_at,
};
use tonic::Status;

use crate::{
    audit::{Asked, AuditLog, AuditOutcome, AuditRecord},
    coordinator::{
        Action, Announced, Answer, CommandRef, Config, ConnectionId, Coordinator, Event,
        MigrationView, Refusal, Report, Request, StoreOp, Timestamp,
    },
    names::RouterName,
    proto::{Command, Hello, Order, Outcome, Reply},
    store::{Store, StoreError},
};

/// Inputs that may wait for the machine; more than that hold up those who bring them.
const QUEUE: usize = 4096;

/// Updates of migrations that a slow watcher may be behind before it is given whole states instead.
const UPDATES: usize = 1024;

/// Commands that may wait for a router's connection; a router that is further behind is
/// disconnected, and brought up to date when it connects again.
pub(super) const COMMANDS: usize = 1024;

/// What the session's task is given to send.
pub(super) type Outgoing = Result<Command, Status>;

/// An agent's connection, as the core holds it. When the core drops it, the session ends.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) commands: mpsc::Sender<Outgoing>,
    /// Dropped with the connection: tells the reading task to end.
    pub(super) _alive: oneshot::Sender<()>,
}

/// A look at the machine's state.
type Query = Box<dyn FnOnce(&Coordinator) + Send>;

/// What comes to the core.
pub(super) enum Input {
    Connected {
        hello: Box<Hello>,
        connection: Connection,
    },
    Reply {
        router: RouterName,
        connection: ConnectionId,
        reply: Reply,
    },
    Announced {
        router: RouterName,
        connection: ConnectionId,
        announced: Announced,
    },
    Disconnected {
        router: RouterName,
        connection: ConnectionId,
    },
    Request {
        request: Box<Request>,
        asked: Asked,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// Something that did not get as far as the machine.
    Turned {
        asked: Asked,
        outcome: AuditOutcome,
    },
    Audit {
        since: Timestamp,
        limit: usize,
        answer: oneshot::Sender<Vec<AuditRecord>>,
    },
    Query(Query),
    Shutdown,
}

/// How the services reach the core.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    inputs: mpsc::Sender<Input>,
    updates: broadcast::WeakSender<Arc<MigrationView>>,
    /// Term of this controller's leadership.
    pub(super) term: u64,
}

/// The core has ended.
fn ended() -> Status {
    Status::unavailable("the controller is ending, or does not lead any longer")
}

impl Handle {
    pub(super) async fn tell(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| ended())
    }

    /// Asks the machine to do something; what is answered is durable.
    pub(super) async fn request(&self, asked: Asked, request: Request) -> Result<Answer, Status> {
        let (answer, outcome) = oneshot::channel();
        self.tell(Input::Request {
            request: Box::new(request),
            asked,
            answer,
        })
        .await?;
        Ok(outcome.await.map_err(|_| ended())??)
    }

    /// Has something noted in the audit log that did not get as far as the machine, unless more is
    /// under way than the core keeps up with.
    pub(super) fn note(&self, asked: Asked, outcome: AuditOutcome) {
        if let Err(error) = self.inputs.try_send(Input::Turned { asked, outcome }) {
            tracing::warn!("not in the audit log: {error}");
        }
    }

    /// The newest audit records from a time on.
    pub(super) async fn audit(
        &self,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, Status> {
        let (answer, records) = oneshot::channel();
        let input = Input::Audit {
            since,
            limit,
            answer,
        };
        self.tell(input).await?;
        records.await.map_err(|_| ended())
    }

    /// Looks at the machine's state.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, outcome) = oneshot::channel();
        let query = Box::new(move |coordinator: &Coordinator| {
            if answer.send(look(coordinator)).is_err() {
                tracing::debug!("nobody waits for the answer any longer");
            }
        });
        self.tell(Input::Query(query)).await?;
        outcome.await.map_err(|_| ended())
    }

    /// Every change of every migration from here on.
    pub(super) fn watch(&self) -> Result<broadcast::Receiver<Arc<MigrationView>>, Status> {
        Ok(self.updates.upgrade().ok_or_else(ended)?.subscribe())
    }
}

/// The running thread, and how it ended.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) thread: JoinHandle<()>,
    /// Ready when the core has ended.
    pub(super) outcome: oneshot::Receiver<Result<(), StoreError>>,
}

/// Takes up where the store ends, and starts the thread.
pub(super) fn start(
    mut store: Box<dyn Store>,
    config: Config,
) -> Result<(Handle, Running), StartError> {
    let clock = Clock::new();
    let term = store.begin_term(clock.now().0 / 1_000_000_000)?;
    let mut stored = store.load()?;
    let audit = AuditLog::new(std::mem::take(&mut stored.audit));
    tracing::info!(
        term,
        vms = stored.vms.len(),
        migrations = stored.migrations.len(),
        "store loaded"
    );
    let (inputs, queue) = mpsc::channel(QUEUE);
    let (updates, _) = broadcast::channel(UPDATES);
    let handle = Handle {
        inputs,
        updates: updates.downgrade(),
        term,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (report, outcome) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("core".to_owned())
        .spawn(move || {
            let (coordinator, actions) = Coordinator::restore(config, stored, clock.now());
            let mut core = Core {
                coordinator,
                store,
                audit,
                clock,
                term,
                sessions: HashMap::new(),
                updates,
                wake: None,
                lost: VecDeque::new(),
                confirmed: clock.start,
            };
            let outcome = runtime.block_on(core.run(actions, queue));
            drop(core);
            if report.send(outcome).is_err() {
                tracing::debug!("nobody waits for the core any longer");
            }
        })?;
    Ok((handle, Running { thread, outcome }))
}

/// The core cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Time since the Unix epoch that never goes back while the controller runs.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    base: Timestamp,
}

impl Clock {
    fn new() -> Self {
        let base = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            base: Timestamp(0).after(base),
        }
    }

    fn now(&self) -> Timestamp {
        self.base.after(self.start.elapsed())
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.start + std::time::Duration::from_nanos(at.since(self.base))
    }
}

/// A router's session.
#[derive(Debug)]
struct Session {
    connection: Connection,
    next_sequence: u64,
    /// Commands without reply, in order; `None` is the welcome.
    outstanding: VecDeque<(u64, Option<CommandRef>)>,
    /// When it began.
    begun: Instant,
    /// What the router reported, until the machine hears of it.
    report: Option<Report>,
}

struct Core {
    coordinator: Coordinator,
    store: Box<dyn Store>,
    audit: AuditLog,
    clock: Clock,
    term: u64,
    sessions: HashMap<RouterName, Session>,
    updates: broadcast::Sender<Arc<MigrationView>>,
    wake: Option<Instant>,
    /// Connections that the core gave up, of which the machine has yet to hear.
    lost: VecDeque<(RouterName, ConnectionId)>,
    /// When the store was last asked whether this leadership lasts, and said so.
    confirmed: Instant,
}

impl Core {
    async fn run(
        &mut self,
        actions: Vec<Action>,
        mut queue: mpsc::Receiver<Input>,
    ) -> Result<(), StoreError> {
        self.execute(actions)?;
        loop {
            let input = match self.wake {
                None => queue.recv().await,
                Some(at) => {
                    let Ok(input) = timeout_at(at.into(), queue.recv()).await else {
                        self.wake = None;
                        self.happened(Event::Tick)?;
                        continue;
                    };
                    input
                }
            };
            match input {
                None | Some(Input::Shutdown) => return Ok(()),
                Some(input) => self.take(input)?,
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Connected { hello, connection } => self.connected(&hello, connection),
            Input::Reply {
                router,
                connection,
                reply,
            } => self.replied(router, connection, reply),
            Input::Announced {
                router,
                connection,
                announced,
            } => {
                tracing::info!(%router, migration = %announced.id, mac = %announced.mac, "heard a VM");
                self.happened(Event::Announced {
                    router,
                    connection,
                    announced,
                })
            }
            Input::Disconnected { router, connection } => {
                if self.is_current(&router, connection) {
                    tracing::warn!(%router, "disconnected");
                    self.sessions.remove(&router);
                    self.happened(Event::RouterDisconnected { router, connection })?;
                }
                Ok(())
            }
            Input::Request {
                request,
                asked,
                answer,
            } => {
                let (outcome, mut actions) =
                    match self.coordinator.request(self.clock.now(), *request) {
                        Ok((done, actions)) => (Ok(done), actions),
                        Err(refusal) => (Err(refusal), Vec::new()),
                    };
                let noted = match &outcome {
                    Ok(Answer::Done) => AuditOutcome::Done(None),
                    Ok(Answer::Started(id)) => AuditOutcome::Done(Some(id.0)),
                    Err(refusal) => AuditOutcome::Refused(refusal.to_string()),
                };
                let record = self.record(asked, noted);
                store_with(&mut actions, record);
                self.execute(actions)?;
                if answer.send(outcome).is_err() {
                    tracing::debug!("nobody waits for the answer any longer");
                }
                Ok(())
            }
            Input::Turned { asked, outcome } => {
                let record = self.record(asked, outcome);
                self.execute(vec![Action::Store(vec![record])])
            }
            Input::Audit {
                since,
                limit,
                answer,
            } => {
                if answer.send(self.audit.since(since, limit)).is_err() {
                    tracing::debug!("nobody waits for the answer any longer");
                }
                Ok(())
            }
            Input::Query(look) => {
                look(&self.coordinator);
                Ok(())
            }
            Input::Shutdown => Ok(()),
        }
    }

    /// Notes what was asked for; what is returned is to be stored.
    fn record(&mut self, asked: Asked, outcome: AuditOutcome) -> StoreOp {
        let record = AuditRecord {
            id: self.audit.next_id(),
            at: self.clock.now(),
            asked,
            outcome,
        };
        self.audit.push(record.clone());
        StoreOp::PutAudit(Box::new(record))
    }

    fn is_current(&self, router: &RouterName, connection: ConnectionId) -> bool {
        self.sessions
            .get(router)
            .is_some_and(|session| session.connection.id == connection)
    }

    fn connected(&mut self, hello: &Hello, connection: Connection) -> Result<(), StoreError> {
        let router = hello.router.clone();
        let id = connection.id;
        tracing::info!(%router, version = hello.version, held = hello.held.len(), "connected");
        let session = Session {
            connection,
            next_sequence: 0,
            outstanding: VecDeque::new(),
            begun: Instant::now(),
            report: Some(hello.report()),
        };
        if let Some(older) = self.sessions.insert(router.clone(), session) {
            tracing::warn!(
                %router,
                "connected anew while an older session was open; if that repeats, two agents have \
                 this router's name"
            );
            close(&older, "a newer session of this router has begun");
            self.happened(Event::RouterDisconnected {
                router: router.clone(),
                connection: older.connection.id,
            })?;
        }
        self.send(&router, id, Order::Welcome, None)?;
        self.tell_lost()
    }

    /// A router keeps this leadership's term: no controller before can reach it any longer.
    fn welcomed(&mut self, router: RouterName, connection: ConnectionId) -> Result<(), StoreError> {
        let Some(session) = self.sessions.get_mut(&router) else {
            return Ok(());
        };
        let Some(report) = session.report.take() else {
            return Ok(());
        };
        if self.confirmed <= session.begun {
            let asked = Instant::now();
            self.store.confirm()?;
            self.confirmed = asked;
        }
        self.happened(Event::RouterConnected {
            router,
            connection,
            report,
        })
    }

    fn replied(
        &mut self,
        router: RouterName,
        connection: ConnectionId,
        reply: Reply,
    ) -> Result<(), StoreError> {
        let Some(session) = self.sessions.get_mut(&router) else {
            return Ok(());
        };
        if session.connection.id != connection {
            return Ok(());
        }
        let reply = match (session.outstanding.pop_front(), reply.outcome) {
            (_, Outcome::Fenced { term }) => {
                tracing::error!(
                    %router,
                    term,
                    own = self.term,
                    "another controller leads: this one's commands are refused"
                );
                return self.give_up(&router, connection, "another controller leads");
            }
            (Some((sequence, _)), _) if sequence != reply.sequence => None,
            (Some((_, None)), Outcome::Done) => return self.welcomed(router, connection),
            (Some((_, Some(command))), outcome) => outcome.reply_to(command),
            (Some((_, None)) | None, _) => None,
        };
        match reply {
            Some(reply) => self.happened(Event::Reply {
                router,
                connection,
                reply,
            }),
            None => self.give_up(&router, connection, "the reply fits no command"),
        }
    }

    /// Ends a session from this side.
    fn give_up(
        &mut self,
        router: &RouterName,
        connection: ConnectionId,
        why: &str,
    ) -> Result<(), StoreError> {
        self.drop_session(router, connection, why);
        self.tell_lost()
    }

    fn drop_session(&mut self, router: &RouterName, connection: ConnectionId, why: &str) {
        if self.is_current(router, connection)
            && let Some(session) = self.sessions.remove(router)
        {
            tracing::warn!(%router, "session ended: {why}");
            close(&session, why);
            self.lost.push_back((router.clone(), connection));
        }
    }

    /// Tells the machine of sessions that ended while its actions were carried out.
    fn tell_lost(&mut self) -> Result<(), StoreError> {
        while let Some((router, connection)) = self.lost.pop_front() {
            let event = Event::RouterDisconnected { router, connection };
            let actions = self.coordinator.handle(self.clock.now(), event);
            self.carry_out(actions)?;
        }
        Ok(())
    }

    fn happened(&mut self, event: Event) -> Result<(), StoreError> {
        let actions = self.coordinator.handle(self.clock.now(), event);
        self.execute(actions)
    }

    fn execute(&mut self, actions: Vec<Action>) -> Result<(), StoreError> {
        self.carry_out(actions)?;
        self.tell_lost()
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), StoreError> {
        for action in actions {
            match action {
                Action::Store(ops) => {
                    let begun = Instant::now();
                    self.store.apply(&ops)?;
                    tracing::debug!(changes = ops.len(), took = ?begun.elapsed(), "stored");
                }
                Action::Send {
                    router,
                    connection,
                    command,
                } => {
                    let reference = command.reference();
                    self.send(
                        &router,
                        connection,
                        Order::Command(command),
                        Some(reference),
                    )?;
                }
                Action::Disconnect {
                    router,
                    connection,
                    reason,
                } => self.drop_session(&router, connection, &reason),
                Action::Update(view) => {
                    tracing::debug!(migration = %view.id, phase = %view.phase, "update");
                    // An error means that nobody watches.
                    self.updates.send(Arc::from(view)).ok();
                }
                Action::Wake(at) => self.wake = Some(self.clock.instant(at)),
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        router: &RouterName,
        connection: ConnectionId,
        order: Order,
        reference: Option<CommandRef>,
    ) -> Result<(), StoreError> {
        if !self.store.may_act() {
            return Err(StoreError::NotLeading);
        }
        let Some(session) = self
            .sessions
            .get_mut(router)
            .filter(|session| session.connection.id == connection)
        else {
            return Ok(());
        };
        let sequence = session.next_sequence;
        let command = Command {
            term: self.term,
            sequence,
            order,
        };
        match session.connection.commands.try_send(Ok(command)) {
            Ok(()) => {
                session.next_sequence += 1;
                session.outstanding.push_back((sequence, reference));
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.drop_session(router, connection, "it does not take its commands");
            }
            // The reading task reports the end of the session.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
        Ok(())
    }
}

/// Has an audit record stored together with the change that it describes, if there is one.
fn store_with(actions: &mut Vec<Action>, record: StoreOp) {
    let change = actions.iter_mut().find_map(|action| match action {
        Action::Store(ops) => Some(ops),
        Action::Send { .. } | Action::Disconnect { .. } | Action::Update(_) | Action::Wake(_) => {
            None
        }
    });
    match change {
        Some(ops) => ops.push(record),
        None => actions.insert(0, Action::Store(vec![record])),
    }
}

/// Tells the agent why its session ends; it ends all the same if that cannot be told.
fn close(session: &Session, why: &str) {
    session
        .connection
        .commands
        .try_send(Err(Status::aborted(why)))
        .ok();
}
