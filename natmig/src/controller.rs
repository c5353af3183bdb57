//! The controller: a thin shell around the transaction machine.
//!
//! One thread (`core`) owns machine and store. Agents and operators reach it through gRPC, over TCP
//! and a Unix socket; both only put things into its queue. Every channel is bounded.
//!
//! Of several controllers on one store, one leads and has a core (`lead`); the others serve as well,
//! but send whoever asks to the leader (`role`).

mod agents;
mod authorise;
mod config;
mod control;
mod core;
mod denials;
mod figures;
mod group;
mod incoming;
mod lead;
mod listen;
mod metrics;
mod peer;
mod role;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::Stream;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinHandle,
};
use tonic::transport::Server;

pub use config::{ConfigError, ControllerConfig, DEFAULT_SOCKET, DEFAULT_STORE, StorePlace};
pub use core::StartError;
pub use group::SocketRole;
pub use listen::{ListenError, Listeners};

use self::{
    agents::Agents,
    authorise::Authorise,
    control::Control,
    core::{Handle, Running},
    denials::Denials,
    figures::Figures,
    incoming::Accepted,
    listen::SocketFile,
    metrics::ControllerMetrics,
    role::{Role, Roles},
};
use crate::{
    coordinator::Config,
    metrics::Endpoint,
    pki,
    proto::{
        KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_LIMIT, WINDOW,
        v1::{
            agent_service_server::AgentServiceServer, control_service_server::ControlServiceServer,
        },
    },
    store::{Candidate, EtcdConfig, FileStore, Store, StoreError},
    tls::{Credentials, TlsError},
};

/// How long connections may take to end when the controller does.
const GOODBYE: Duration = Duration::from_millis(500);

/// The controller cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// It cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address or a socket cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// A server failed.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The core is gone without a word.
    #[error("the controller's core panicked")]
    Core,
}

/// How a controller comes to lead.
#[derive(Debug)]
enum Leadership {
    /// It leads, and nobody else can.
    Sole(Handle, Running),
    /// It is one of several.
    Elected(Box<Candidate>, Config, Arc<Figures>),
}

/// A controller that serves.
#[must_use]
#[derive(Debug)]
pub struct Controller {
    leadership: Leadership,
    role: watch::Sender<Role>,
    servers: Vec<JoinHandle<Result<(), tonic::transport::Error>>>,
    stop: watch::Sender<bool>,
    socket: SocketFile,
    address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

/// Binds, opens the store, takes up where it ends, and serves. With etcd, it stands by until it is
/// elected.
pub async fn start(config: &ControllerConfig) -> Result<Controller, ControllerError> {
    let listeners = Listeners::bind(config)?;
    start_on(config, listeners).await
}

/// As [`start`], on sockets that are bound already.
#[expect(
    clippy::unused_async,
    reason = "so that it cannot be called outside a Tokio runtime, which it needs"
)]
pub async fn start_on(
    config: &ControllerConfig,
    listeners: Listeners,
) -> Result<Controller, ControllerError> {
    let times = Config::default();
    let leadership = |figures| match config.place() {
        StorePlace::File(path) => sole(Box::new(FileStore::open(&path)?), times, figures),
        StorePlace::Etcd(etcd) => {
            if let Some(warning) = warning(&etcd)? {
                tracing::warn!("{warning}");
            }
            let address = config.advertised().map_err(ControllerError::Config)?;
            let candidate =
                Candidate::new(&etcd, &config.name(), &address).map_err(StoreError::from)?;
            Ok(Leadership::Elected(Box::new(candidate), times, figures))
        }
    };
    serve_all(config, listeners, leadership)
}

/// As [`start`], with a store that nobody else can use, and other times.
#[expect(
    clippy::unused_async,
    reason = "so that it cannot be called outside a Tokio runtime, which it needs"
)]
pub async fn start_with(
    config: &ControllerConfig,
    store: Box<dyn Store>,
    times: Config,
) -> Result<Controller, ControllerError> {
    let listeners = Listeners::bind(config)?;
    serve_all(config, listeners, |figures| sole(store, times, figures))
}

fn sole(
    store: Box<dyn Store>,
    times: Config,
    figures: Arc<Figures>,
) -> Result<Leadership, ControllerError> {
    let (core, running) = core::start(store, times, figures)?;
    Ok(Leadership::Sole(core, running))
}

/// Has certificates and sockets first: where that fails, nothing has been begun.
fn serve_all(
    config: &ControllerConfig,
    listeners: Listeners,
    leadership: impl FnOnce(Arc<Figures>) -> Result<Leadership, ControllerError>,
) -> Result<Controller, ControllerError> {
    let credentials = credentials(config)?;
    let unix = UnixListener::from_std(listeners.unix)?;
    let tcp = listeners.tcp.map(TcpListener::from_std).transpose()?;
    let address = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
    let endpoint = listeners.metrics.map(Endpoint::on).transpose()?;
    let metrics_address = endpoint.as_ref().and_then(|it| it.address().ok());
    if let (Some(address), None) = (address, &credentials) {
        tracing::warn!(
            %address,
            "insecure = true: serving without TLS; whoever reaches this address commands the fabric"
        );
    }
    let figures = Arc::<Figures>::default();
    let leadership = leadership(Arc::clone(&figures))?;
    let (role, present) = watch::channel(match &leadership {
        Leadership::Sole(core, _) => Role::Leading(core.clone()),
        Leadership::Elected(..) => Role::StandingBy(None),
    });
    let roles = Roles::new(config.name(), present);
    let (stop, _) = watch::channel(false);
    if let Some(endpoint) = endpoint {
        let metrics = ControllerMetrics {
            roles: roles.clone(),
            figures,
        };
        let stopped = stopped(stop.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                () = stopped => {}
                () = endpoint.serve(Arc::new(metrics)) => {}
            }
        });
    }
    let mut servers = vec![tokio::spawn(serve(
        roles.clone(),
        incoming::unix(unix, listeners.group),
        stop.subscribe(),
    ))];
    if let Some(tcp) = tcp {
        let incoming = incoming::tcp(tcp, credentials.clone());
        servers.push(tokio::spawn(serve(roles, incoming, stop.subscribe())));
    }
    if let Some(credentials) = credentials {
        let stopped = stopped(stop.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                () = stopped => {}
                error = credentials.watch() => {
                    tracing::error!(%error, "cannot catch SIGHUP: certificates are read again upon connections alone");
                }
            }
        });
    }
    tracing::info!(
        socket = %config.socket.display(),
        address = address.map(tracing::field::display),
        metrics = metrics_address.map(tracing::field::display),
        "serving"
    );
    Ok(Controller {
        leadership,
        role,
        servers,
        stop,
        socket: listeners.socket,
        address,
        metrics_address,
    })
}

/// An error unless what the configuration names can be used, or warnings; nothing is started.
pub fn check(config: &ControllerConfig) -> Result<Vec<String>, ControllerError> {
    let mut warnings = Vec::new();
    if let Some(credentials) = credentials(config)?
        && let Some(warning) = credentials.certificate().warning(SystemTime::now())
    {
        let path = credentials.files().certificate.display();
        warnings.push(format!("{path}: {warning}"));
    }
    if let Some(etcd) = &config.etcd {
        warnings.extend(warning(etcd)?);
    }
    Ok(warnings)
}

/// What is to be said about the certificate that is shown to etcd.
fn warning(etcd: &EtcdConfig) -> Result<Option<String>, ControllerError> {
    let warning = etcd.warning(SystemTime::now());
    Ok(warning.map_err(|error| StoreError::Etcd(error.into()))?)
}

/// The controller's certificates, if it has any.
fn credentials(config: &ControllerConfig) -> Result<Option<Arc<Credentials>>, TlsError> {
    let Some(files) = &config.tls else {
        return Ok(None);
    };
    let credentials = Credentials::load(files)?;
    credentials.require("a controller", |role| {
        matches!(role, pki::Role::Controller(_))
    })?;
    Ok(Some(Arc::new(credentials)))
}

impl Controller {
    /// The TCP address that is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The TCP address at which metrics are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Serves until `shutdown` is ready or the store fails. What is under way is taken up by the
    /// next controller on the store.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ControllerError> {
        let Self {
            leadership,
            role,
            servers,
            stop,
            socket,
            address: _,
            metrics_address: _,
        } = self;
        let shutdown = async {
            shutdown.await;
            // The socket's name goes first: nobody new finds a controller that is ending.
            drop(socket);
        };
        let outcome = match leadership {
            Leadership::Sole(core, running) => lead::alone(core, running, shutdown).await,
            Leadership::Elected(candidate, times, figures) => {
                lead::in_turn(*candidate, role, times, figures, shutdown).await
            }
        };
        stop.send_replace(true);
        for mut server in servers {
            match tokio::time::timeout(GOODBYE, &mut server).await {
                Ok(Ok(served)) => served?,
                Ok(Err(_)) | Err(_) => server.abort(),
            }
        }
        outcome
    }
}

fn services(
    roles: Roles,
    denials: Denials,
) -> (AgentServiceServer<Agents>, ControlServiceServer<Control>) {
    (
        AgentServiceServer::new(Agents::new(roles.clone(), denials))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT),
        ControlServiceServer::new(Control::new(roles))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT),
    )
}

fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the controller is gone, which stops as well.
    stop.wait_for(|stop| *stop).await.ok();
}

async fn serve(
    roles: Roles,
    incoming: impl Stream<Item = io::Result<Accepted>> + Send + 'static,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let denials = Denials::new(roles.clone());
    let (agents, control) = services(roles, denials.clone());
    server()
        .layer(Authorise::new(denials))
        .add_service(agents)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming, stopped(stop))
        .await
}
