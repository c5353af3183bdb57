//! The session with the controller: dialled again, with growing pauses, whenever it ends. Of several
//! controllers, each is dialled in turn, and one that stands by names the one that leads. The router
//! forwards with or without a session.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::{AgentError, Identity, worker::Work};
use crate::{
    proto::{
        Command, Hello, MESSAGE_LIMIT, Malformed, StandingBy, v1,
        v1::agent_service_client::AgentServiceClient,
    },
    tls::{DialError, dial},
};

/// Pause after the first failure; it doubles up to the configured one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause while controllers answer, but none leads: an election takes little longer than the
/// leader's lease.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);

/// How long a controller may take to accept a connection, and to answer the hello.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Replies that may wait for the network.
const REPLIES: usize = 256;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot be reached: {0}")]
    Dial(#[from] DialError),
    #[error("ended the session: {}", .0.message())]
    Status(#[from] tonic::Status),
    #[error("does not answer in time")]
    Timeout,
    #[error("sent nonsense: {0}; is it another version of natmig?")]
    Malformed(#[from] Malformed),
    #[error("ended the session without a reason")]
    Ended,
    #[error("the tables' thread has ended")]
    NoWorker,
}

/// Keeps a session up, for ever; only the loss of the tables ends it.
pub(super) async fn run(identity: Arc<Identity>, work: mpsc::Sender<Work>) -> AgentError {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    let mut endpoints = identity.endpoints.iter().cycle();
    // Where a controller that stands by has sent this agent.
    let mut leader: Option<String> = None;
    loop {
        let sent = leader.take();
        let Some(endpoint) = sent.as_ref().or_else(|| endpoints.next()) else {
            return AgentError::NoEndpoint;
        };
        let mut established = false;
        let error = session(endpoint, &identity, &work, &mut established).await;
        if matches!(error, SessionError::NoWorker) {
            return AgentError::Tables;
        }
        let standing_by = if let SessionError::Status(status) = &error {
            StandingBy::of(status)
        } else {
            None
        };
        let error = format!("controller {endpoint}: {error}");
        if established {
            pause = FIRST_PAUSE;
            said.clear();
        }
        if said != error {
            tracing::warn!("{error}; forwarding goes on, dialling again");
            said = error;
        }
        if let Some(standing_by) = standing_by {
            pause = pause.min(ELECTION_PAUSE);
            leader = standing_by.leader;
            // One that was named as leader and is none: the election is not over.
            if leader.is_some() && sent.is_none() {
                continue;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(identity.retry.max(FIRST_PAUSE));
    }
}

async fn session(
    endpoint: &str,
    identity: &Identity,
    work: &mpsc::Sender<Work>,
    established: &mut bool,
) -> SessionError {
    match converse(endpoint, identity, work, established).await {
        Ok(()) => SessionError::Ended,
        Err(error) => error,
    }
}

async fn converse(
    endpoint: &str,
    identity: &Identity,
    work: &mpsc::Sender<Work>,
    established: &mut bool,
) -> Result<(), SessionError> {
    let channel = dial(endpoint, ANSWER_TIMEOUT, identity.credentials.as_deref()).await?;
    let mut client = AgentServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);

    let hello = hello(identity, work).await?;
    let (replies, outgoing) = mpsc::channel(REPLIES);
    let first = v1::FromAgent {
        message: Some(v1::from_agent::Message::Hello((&hello).into())),
    };
    replies.send(first).await.map_err(|_| SessionError::Ended)?;
    let mut commands = tokio::time::timeout(
        ANSWER_TIMEOUT,
        client.session(ReceiverStream::new(outgoing)),
    )
    .await
    .map_err(|_| SessionError::Timeout)??
    .into_inner();
    tracing::info!(
        endpoint,
        term = hello.term,
        held = hello.held.len(),
        "connected"
    );
    *established = true;

    while let Some(command) = commands.message().await? {
        let command: Command = command.try_into()?;
        work.send(Work::Command {
            command,
            replies: replies.clone(),
        })
        .await
        .map_err(|_| SessionError::NoWorker)?;
    }
    Ok(())
}

async fn hello(identity: &Identity, work: &mpsc::Sender<Work>) -> Result<Hello, SessionError> {
    let (sender, report) = oneshot::channel();
    work.send(Work::Report(sender))
        .await
        .map_err(|_| SessionError::NoWorker)?;
    let report = report.await.map_err(|_| SessionError::NoWorker)?;
    Ok(Hello {
        router: identity.router.clone(),
        term: report.term,
        digest: report.digest,
        held: report.held,
        interfaces: identity.interfaces.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
