//! The thread that owns the transaction machine: everything that happens comes to it through one bounded
//! queue, and it does what the machine says, in order. The store has [a thread of its own](writer).
//!
//! Invariants:
//! - an action is carried out only when every store before it is durable, with one exception. When the
//!   store fails the core ends, because the machine is ahead of what is stored. Of inputs that wait
//!   together, the machine hears one after the other, and what it wants stored is made durable at once:
//!   a disk is asked as often for a thousand migrations at once as for a few one after the other;
//! - the exception: a router is told to commit as soon as the decision is durable, whatever is being
//!   stored of other migrations, so that a disk that takes its time does not keep a fabric half
//!   committed. Should that be lost, it is as if it had not happened before the commit. What is stored
//!   of the fabric itself (which routers are needed, what they serve) is waited for: the machine may
//!   have opened the next stage because of it;
//! - nobody is shown a state that is not durable;
//! - nothing is sent while the leadership is not sure to last;
//! - the machine hears of a router only when that router keeps this leadership's term, and after the
//!   store was asked, later than the router connected, whether this leadership lasts. So whatever the
//!   machine decides, no controller before it can reach its participants, and a router gets its whole
//!   table from no one but the leader.

mod handle;
mod pending;
mod writer;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::sleep_until,
};
use tonic::Status;

pub(super) use self::handle::{Connection, Handle, Input};
use self::{pending::Pending, writer::Writer};
use super::figures::{Figures, Operation};
use crate::{
    audit::{Asked, AuditLog, AuditOutcome, AuditRecord},
    coordinator::{
        Action, Answer, CommandRef, Config, ConnectionId, Coordinator, Event, MigrationView,
        Refusal, Report, StoreOp, Timestamp,
    },
    names::RouterName,
    proto::{Command, Hello, Order, Outcome, Reply},
    rule::TransactionId,
    store::{Store, StoreError},
};

/// Inputs that may wait for the machine; more than that hold up those who bring them.
const QUEUE: usize = 4096;

/// Updates of migrations that a slow watcher may be behind before it is given whole states instead.
const UPDATES: usize = 1024;

/// Commands that may wait for a router's connection; a router that is further behind is
/// disconnected, and brought up to date when it connects again. Of each migration it is told one
/// thing at a time, so that this is room for all that may be under way and for as many to retire.
pub(super) const COMMANDS: usize = 4096;

/// Inputs that are taken together at most, and changes of the store after which no more are: etcd
/// takes about a hundred at once.
const TOGETHER: (usize, usize) = (256, 64);

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
    figures: Arc<Figures>,
) -> Result<(Handle, Running), StartError> {
    let clock = Clock::new();
    let at_least = clock.now().0 / 1_000_000_000;
    let term = figures.ask(Operation::BeginTerm, || store.begin_term(at_least))?;
    let mut stored = figures.ask(Operation::Load, || store.load())?;
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
    let writer = Writer::start(store, Arc::clone(&figures))?;
    let (report, outcome) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("core".to_owned())
        .spawn(move || {
            let (coordinator, actions) = Coordinator::restore(config, stored, clock.now());
            let mut core = Core {
                coordinator,
                writer,
                pending: Pending::default(),
                figures,
                audit,
                clock,
                term,
                sessions: HashMap::new(),
                updates,
                wake: None,
                todo: VecDeque::new(),
                changes: 0,
                taken: 0,
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

/// What remains to be done about the inputs that were taken.
enum Todo {
    Act(Action),
    /// What was asked for is durable when this is carried out.
    Answer(
        oneshot::Sender<Result<Answer, Refusal>>,
        Result<Answer, Refusal>,
    ),
}

struct Core {
    coordinator: Coordinator,
    writer: Writer,
    /// What is being made durable.
    pending: Pending,
    figures: Arc<Figures>,
    audit: AuditLog,
    clock: Clock,
    term: u64,
    sessions: HashMap<RouterName, Session>,
    updates: broadcast::Sender<Arc<MigrationView>>,
    wake: Option<Instant>,
    /// In order.
    todo: VecDeque<Todo>,
    /// Changes of the store among it.
    changes: usize,
    /// Inputs that were taken since the last change of the store was begun, while that lasts.
    taken: usize,
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
        self.execute(actions);
        self.carry_out()?;
        loop {
            let wake = self.wake;
            tokio::select! {
                durable = self.writer.done(), if self.writer.is_busy() => self.is_durable(durable)?,
                input = queue.recv(), if self.has_room() => {
                    if !self.take_together(input, &mut queue).await? {
                        return self.settle().await;
                    }
                }
                () = until(wake) => {
                    self.wake = None;
                    self.happened(Event::Tick);
                }
            }
            self.carry_out()?;
        }
    }

    /// Whether more inputs are taken: what they lead to may have to wait for the store.
    fn has_room(&self) -> bool {
        self.taken < TOGETHER.0 && self.changes < TOGETHER.1
    }

    /// Takes an input, and those that wait behind it. False if the core is to end.
    async fn take_together(
        &mut self,
        input: Option<Input>,
        queue: &mut mpsc::Receiver<Input>,
    ) -> Result<bool, StoreError> {
        let mut next = input;
        loop {
            match next {
                None | Some(Input::Shutdown) => return Ok(false),
                Some(input) => self.take(input).await?,
            }
            self.taken += 1;
            if !self.has_room() {
                return Ok(true);
            }
            match queue.try_recv() {
                Ok(input) => next = Some(input),
                Err(_) => return Ok(true),
            }
        }
    }

    async fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Connected { hello, connection } => self.connected(&hello, connection)?,
            Input::Reply {
                router,
                connection,
                reply,
            } => self.replied(router, connection, reply).await?,
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
                });
            }
            Input::Disconnected { router, connection } => {
                if self.is_current(&router, connection) {
                    tracing::warn!(%router, "disconnected");
                    self.sessions.remove(&router);
                    self.happened(Event::RouterDisconnected { router, connection });
                }
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
                self.execute(actions);
                self.todo.push_back(Todo::Answer(answer, outcome));
            }
            Input::Turned { asked, outcome } => {
                let record = self.record(asked, outcome);
                self.execute(vec![Action::Store(vec![record])]);
            }
            Input::Audit {
                since,
                limit,
                answer,
            } => {
                // What is shown is durable.
                self.settle().await?;
                if answer.send(self.audit.since(since, limit)).is_err() {
                    tracing::debug!("nobody waits for the answer any longer");
                }
            }
            Input::Query(look) => {
                self.settle().await?;
                look(&self.coordinator);
            }
            Input::Shutdown => {}
        }
        Ok(())
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
            });
        }
        self.send(&router, id, Order::Welcome, None)?;
        self.tell_lost();
        Ok(())
    }

    /// A router keeps this leadership's term: no controller before can reach it any longer.
    async fn welcomed(
        &mut self,
        router: RouterName,
        connection: ConnectionId,
    ) -> Result<(), StoreError> {
        let Some(session) = self.sessions.get_mut(&router) else {
            return Ok(());
        };
        let Some(report) = session.report.take() else {
            return Ok(());
        };
        if self.confirmed <= session.begun {
            self.settle().await?;
            let asked = Instant::now();
            self.writer.confirm().await?;
            self.confirmed = asked;
        }
        self.happened(Event::RouterConnected {
            router,
            connection,
            report,
        });
        Ok(())
    }

    async fn replied(
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
        self.figures.answered(&reply.outcome);
        let reply = match (session.outstanding.pop_front(), reply.outcome) {
            (_, Outcome::Fenced { term }) => {
                tracing::error!(
                    %router,
                    term,
                    own = self.term,
                    "another controller leads: this one's commands are refused"
                );
                self.give_up(&router, connection, "another controller leads");
                return Ok(());
            }
            (Some((sequence, _)), _) if sequence != reply.sequence => None,
            (Some((_, None)), Outcome::Done) => return self.welcomed(router, connection).await,
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
        Ok(())
    }

    /// Ends a session from this side.
    fn give_up(&mut self, router: &RouterName, connection: ConnectionId, why: &str) {
        self.drop_session(router, connection, why);
        self.tell_lost();
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

    /// Tells the machine of sessions that the core ended.
    fn tell_lost(&mut self) {
        while let Some((router, connection)) = self.lost.pop_front() {
            self.happened(Event::RouterDisconnected { router, connection });
        }
    }

    fn happened(&mut self, event: Event) {
        let actions = self.coordinator.handle(self.clock.now(), event);
        self.execute(actions);
    }

    /// Has actions carried out with those of the other inputs that are taken together.
    fn execute(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Action::Store(ops) = &action {
                self.changes += ops.len();
            }
            self.todo.push_back(Todo::Act(action));
        }
    }

    /// Does what remains to be done as far as the store has come.
    fn carry_out(&mut self) -> Result<(), StoreError> {
        loop {
            while !self.writer.is_busy()
                && let Some(next) = self.todo.pop_front()
            {
                match next {
                    // It was made durable with one before it.
                    Todo::Act(Action::Store(ops)) if ops.is_empty() => {}
                    Todo::Act(action) => self.act(action)?,
                    Todo::Answer(answer, outcome) => {
                        if answer.send(outcome).is_err() {
                            tracing::debug!("nobody waits for the answer any longer");
                        }
                    }
                }
            }
            self.send_commits()?;
            if self.lost.is_empty() {
                break;
            }
            self.tell_lost();
        }
        if !self.writer.is_busy() {
            self.taken = 0;
        }
        Ok(())
    }

    /// Does all that remains to be done.
    async fn settle(&mut self) -> Result<(), StoreError> {
        self.carry_out()?;
        while self.writer.is_busy() {
            let durable = self.writer.done().await;
            self.is_durable(durable)?;
            self.carry_out()?;
        }
        Ok(())
    }

    /// Sends the commits, among what waits for the store, that need not wait.
    fn send_commits(&mut self) -> Result<(), StoreError> {
        let is_commit =
            |next: &Todo| matches!(next, Todo::Act(action) if commit_of(action).is_some());
        if !self.todo.iter().any(is_commit) {
            return Ok(());
        }
        let mut pending = self.pending.clone();
        for next in std::mem::take(&mut self.todo) {
            if let Todo::Act(Action::Store(ops)) = &next {
                pending.add(ops);
            }
            if let Todo::Act(action) = next {
                if commit_of(&action).is_some_and(|id| !pending.concerns_commit(id)) {
                    self.act(action)?;
                } else {
                    self.todo.push_back(Todo::Act(action));
                }
            } else {
                self.todo.push_back(next);
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), StoreError> {
        match action {
            Action::Store(ops) => {
                self.make_durable(ops);
                Ok(())
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
                )
            }
            Action::Disconnect {
                router,
                connection,
                reason,
            } => {
                self.drop_session(&router, connection, &reason);
                Ok(())
            }
            Action::Update(view) => {
                tracing::debug!(migration = %view.id, phase = %view.phase, "update");
                // An error means that nobody watches.
                self.updates.send(Arc::from(view)).ok();
                Ok(())
            }
            Action::Wake(at) => {
                self.wake = Some(self.clock.instant(at));
                Ok(())
            }
        }
    }

    /// Begins to make changes durable, and with them all that follow: they stem from inputs that came
    /// before anything of this was done.
    fn make_durable(&mut self, mut ops: Vec<StoreOp>) {
        for later in &mut self.todo {
            if let Todo::Act(Action::Store(later)) = later {
                ops.append(later);
            }
        }
        self.changes = 0;
        self.taken = 0;
        self.pending.add(&ops);
        self.writer.begin(ops);
    }

    fn is_durable(&mut self, durable: Result<Vec<StoreOp>, StoreError>) -> Result<(), StoreError> {
        self.figures.stored(&durable?);
        self.pending = Pending::default();
        Ok(())
    }

    fn send(
        &mut self,
        router: &RouterName,
        connection: ConnectionId,
        order: Order,
        reference: Option<CommandRef>,
    ) -> Result<(), StoreError> {
        if !self.writer.may_act() {
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

/// The migration that an action tells a router to commit.
fn commit_of(action: &Action) -> Option<TransactionId> {
    if let Action::Send { command, .. } = action
        && let CommandRef::Commit(id) = command.reference()
    {
        Some(id)
    } else {
        None
    }
}

/// Ready at a time; never, if there is none.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
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
