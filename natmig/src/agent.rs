//! The agent: one per router. It owns the router's tables and does to them what the controller
//! says; between sessions, and without any controller, the data plane goes on as it is.
//!
//! Invariants: commands are carried out in order, on one thread; a command of a lower term than
//! the router has seen changes nothing; a transaction in doubt is never resolved here.

mod announcer;
pub mod execute;
mod links;
mod session;
mod tables;
mod term;
mod worker;

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

pub use tables::{SetRoutes, Tables};
pub use term::TermError;

use crate::{
    config::RouterConfig,
    names::RouterName,
    pki::Role,
    proto::RouterInterface,
    tls::{CredentialFiles, Credentials, TlsError},
};
use links::Links;
use term::TermFile;
use tokio::sync::mpsc;
use worker::Work;

/// Who this agent is and whom it dials.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The router's name in the topology.
    pub router: RouterName,
    /// The interfaces that natmig runs on.
    pub interfaces: Vec<RouterInterface>,
    /// Controllers, tried in turn.
    pub endpoints: Vec<String>,
    /// Longest pause between two attempts.
    pub retry: Duration,
    /// File that keeps the highest term.
    pub term_file: PathBuf,
    /// Called when a router that waited for its table is attached: it may attract traffic.
    pub ready: fn(),
    /// What is shown to controllers that are dialled over TLS.
    pub credentials: Option<Arc<Credentials>>,
}

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration names no controller.
    #[error(
        "the configuration names no controller; add [controller] with endpoints = [\"https://HOST:PORT\"]"
    )]
    NoEndpoint,
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The term cannot be kept.
    #[error(transparent)]
    Term(#[from] TermError),
    /// The thread of the tables is gone.
    #[error("the thread that owns the tables has ended")]
    Tables,
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Identity {
    /// From the router's configuration.
    pub fn new(config: &RouterConfig, term_file: PathBuf, ready: fn()) -> Result<Self, AgentError> {
        let controller = config.controller.as_ref().ok_or(AgentError::NoEndpoint)?;
        Ok(Self {
            router: config.router.clone(),
            interfaces: config
                .interfaces
                .iter()
                .map(|interface| RouterInterface {
                    name: interface.name.clone(),
                    role: interface.role,
                    segment: interface.segment.clone(),
                })
                .collect(),
            endpoints: controller.endpoints.clone(),
            retry: controller.retry,
            term_file,
            ready,
            credentials: match &controller.tls {
                None => None,
                Some(files) => Some(Arc::new(credentials(files, &config.router)?)),
            },
        })
    }
}

/// The certificates of a router's agent.
fn credentials(files: &CredentialFiles, router: &RouterName) -> Result<Credentials, TlsError> {
    let credentials = Credentials::load(files)?;
    credentials.require(
        &format!("agent {router}"),
        |role| matches!(role, Role::Agent(own) if own == router),
    )?;
    Ok(credentials)
}

/// Looks now and then, and upon SIGHUP, whether certificates changed or expire.
async fn watch(credentials: Option<Arc<Credentials>>) -> io::Error {
    let Some(credentials) = credentials else {
        return std::future::pending().await;
    };
    credentials.watch().await
}

/// Runs until `shutdown` is ready, then gives the tables back after the command in progress. The
/// data plane stays as it is.
pub async fn run<T: Tables>(
    tables: T,
    identity: Identity,
    shutdown: impl Future<Output = ()>,
) -> Result<T, AgentError> {
    let term = TermFile::open(&identity.term_file)?;
    let (work, worker) = worker::start(tables, term, identity.ready)?;
    let links = Links::subscribe()?;
    let refresh = refresh(links, work.clone());
    let watch = watch(identity.credentials.clone());
    let session = session::run(Arc::new(identity), work);
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        error = session => Err(error),
        error = refresh => Err(error),
        error = watch => Err(error.into()),
    };
    let tables = tokio::task::spawn_blocking(move || worker.join())
        .await
        .map_err(|_| AgentError::Tables)?
        .map_err(|_| AgentError::Tables)?;
    outcome.map(|()| tables)
}

/// Has the tables' thread read the interfaces again whenever they change.
async fn refresh(links: Links, work: mpsc::Sender<Work>) -> AgentError {
    loop {
        let changed = match links.changed().await {
            Ok(changed) => changed,
            Err(error) => return AgentError::System(error),
        };
        if work.send(Work::Refresh(changed)).await.is_err() {
            return AgentError::Tables;
        }
    }
}
