//! The agents' side of the controller: one stream per router.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    core::{COMMANDS, Connection, Handle, Input},
    denials::Denials,
    peer,
    role::Roles,
};
use crate::{
    coordinator::{Announced, ConnectionId},
    names::RouterName,
    proto::{
        Hello, Reply, Rpc,
        v1::{self, agent_service_server::AgentService, from_agent::Message},
    },
};

/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is asked whether a certificate has expired.
const EXPIRY_CHECK: Duration = Duration::from_mins(1);

/// Serves agents.
#[derive(Clone, Debug)]
pub(super) struct Agents {
    roles: Roles,
    connections: Arc<AtomicU64>,
    denials: Denials,
}

impl Agents {
    pub(super) fn new(roles: Roles, denials: Denials) -> Self {
        Self {
            roles,
            denials,
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
        let peer = peer::of(request.extensions())?.clone();
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
        if !peer.speaks_for(&hello.router) {
            let refusal = format!(
                "{peer} may not speak for router {}; the certificate and `router` in the \
                 configuration must name the same router",
                hello.router
            );
            let what = format!("router {}", hello.router);
            self.denials.note(&peer, Rpc::Session, what, &refusal);
            return Err(Status::permission_denied(refusal));
        }
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
        let session = Session {
            router,
            connection: id,
            expires: peer.expires(),
        };
        tokio::spawn(read(core, session, messages, ended));
        // Encoded where it is sent, so that a large table does not hold up the core.
        let outgoing = ReceiverStream::new(outgoing)
            .map(|command| command.map(|command| v1::Command::from(&command)));
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// Whose a session is, and how long it may last.
#[derive(Debug)]
struct Session {
    router: RouterName,
    connection: ConnectionId,
    /// When the agent's certificate does.
    expires: Option<SystemTime>,
}

/// Ready when the agent's certificate has expired.
async fn expired(at: Option<SystemTime>) {
    let Some(at) = at else {
        return std::future::pending().await;
    };
    // Asked again now and then: the clock by which certificates expire may be set.
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.clamp(Duration::from_millis(1), EXPIRY_CHECK)).await;
    }
}

/// Brings a router's replies and announcements to the core, until the session ends on either side.
async fn read(
    core: Handle,
    session: Session,
    mut messages: Streaming<v1::FromAgent>,
    mut ended: oneshot::Receiver<()>,
) {
    let Session {
        router,
        connection,
        expires,
    } = session;
    let mut expired = std::pin::pin!(expired(expires));
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            _ = &mut ended => return,
            () = &mut expired => {
                tracing::warn!(
                    %router,
                    "the agent's certificate has expired: the session ends, and begins anew when \
                     the agent shows a valid one"
                );
                break;
            }
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
