//! How agents' and operators' services reach the core.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use crate::{
    audit::{Asked, AuditOutcome, AuditRecord},
    coordinator::{
        Announced, Answer, ConnectionId, Coordinator, MigrationView, Refusal, Request, Timestamp,
    },
    names::RouterName,
    proto::{Command, Hello, Reply},
};

/// What the session's task is given to send.
pub(in crate::controller) type Outgoing = Result<Command, Status>;

/// An agent's connection, as the core holds it. When the core drops it, the session ends.
#[derive(Debug)]
pub(in crate::controller) struct Connection {
    pub(in crate::controller) id: ConnectionId,
    pub(in crate::controller) commands: mpsc::Sender<Outgoing>,
    /// Dropped with the connection: tells the reading task to end.
    pub(in crate::controller) _alive: oneshot::Sender<()>,
}

/// A look at the machine's state.
type Query = Box<dyn FnOnce(&Coordinator) + Send>;

/// What comes to the core.
pub(in crate::controller) enum Input {
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
pub(in crate::controller) struct Handle {
    pub(in crate::controller) inputs: mpsc::Sender<Input>,
    pub(in crate::controller) updates: broadcast::WeakSender<Arc<MigrationView>>,
    /// Term of this controller's leadership.
    pub(in crate::controller) term: u64,
}

/// The core has ended.
fn ended() -> Status {
    Status::unavailable("the controller is ending, or does not lead any longer")
}

impl Handle {
    pub(in crate::controller) async fn tell(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| ended())
    }

    /// Asks the machine to do something; what is answered is durable.
    pub(in crate::controller) async fn request(
        &self,
        asked: Asked,
        request: Request,
    ) -> Result<Answer, Status> {
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
    pub(in crate::controller) fn note(&self, asked: Asked, outcome: AuditOutcome) {
        if let Err(error) = self.inputs.try_send(Input::Turned { asked, outcome }) {
            tracing::warn!("not in the audit log: {error}");
        }
    }

    /// The newest audit records from a time on.
    pub(in crate::controller) async fn audit(
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
    pub(in crate::controller) async fn query<T: Send + 'static>(
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
    pub(in crate::controller) fn watch(
        &self,
    ) -> Result<broadcast::Receiver<Arc<MigrationView>>, Status> {
        Ok(self.updates.upgrade().ok_or_else(ended)?.subscribe())
    }
}
