//! The agents' side of the controller: one stream per router.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    core::{COMMANDS, Connection, Handle, Input},
    role::Roles,
};
use crate::{
    coordinator::{Announced, ConnectionId},
    names::RouterName,
    proto::{
        Hello, Reply,
        v1::{self, agent_service_server::AgentService, from_agent::Message},
    },
};

/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves agents.
#[derive(Clone, Debug)]
pub(super) struct Agents {
    roles: Roles,
    connections: Arc<AtomicU64>,
}

impl Agents {
    pub(super) fn new(roles: Roles) -> Self {
        Self {
            roles,
            connections: Arc::new(AtomicU64::new(1)),
        }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::Command, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let core = self.roles.leading()?;
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument(
                "malformed message: the first of a session must be a hello",
            ));
        };
        let hello: Hello = hello.try_into()?;
        if hello.term > core.term {
            tracing::error!(
                router = %hello.router,
                term = hello.term,
                own = core.term,
                "refused a router that obeys another controller"
            );
            return Err(Status::failed_precondition(format!(
                "the router has seen term {}, this controller's is {}: another controller leads; \
                 stop one of them, then start the other again",
                hello.term, core.term
            )));
        }
        let router = hello.router.clone();
        let id = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed));
        let (commands, outgoing) = mpsc::channel(COMMANDS);
        let (alive, ended) = oneshot::channel();
        core.tell(Input::Connected {
            hello: Box::new(hello),
            connection: Connection {
                id,
                commands,
                _alive: alive,
            },
        })
        .await?;
        tokio::spawn(read(core, router, id, messages, ended));
        // Encoded where it is sent, so that a large table does not hold up the core.
        let outgoing = ReceiverStream::new(outgoing)
            .map(|command| command.map(|command| v1::Command::from(&command)));
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// Brings a router's replies and announcements to the core, until the session ends on either side.
async fn read(
    core: Handle,
    router: RouterName,
    connection: ConnectionId,
    mut messages: Streaming<v1::FromAgent>,
    mut ended: oneshot::Receiver<()>,
) {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            _ = &mut ended => return,
        };
        let input = match message {
            Ok(Some(message)) => match message.message {
                Some(Message::Reply(reply)) => Reply::try_from(reply).map(|reply| Input::Reply {
                    router: router.clone(),
                    connection,
                    reply,
                }),
                Some(Message::Announced(announced)) => {
                    Announced::try_from(announced).map(|announced| Input::Announced {
                        router: router.clone(),
                        connection,
                        announced,
                    })
                }
                Some(Message::Hello(_)) | None => {
                    tracing::warn!(%router, "sent something that is neither reply nor announcement");
                    break;
                }
            },
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(%router, "connection lost: {}", status.message());
                break;
            }
        };
        let input = match input {
            Ok(input) => input,
            Err(error) => {
                tracing::warn!(%router, "{error}");
                break;
            }
        };
        if core.tell(input).await.is_err() {
            return;
        }
    }
    if core
        .tell(Input::Disconnected { router, connection })
        .await
        .is_err()
    {
        tracing::debug!("the controller ended before the session");
    }
}
