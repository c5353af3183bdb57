//! The controller: a thin shell around the transaction machine.
//!
//! One thread (`core`) owns machine and store. Agents and operators reach it through gRPC, over TCP
//! and a Unix socket; both only put things into its queue. Every channel is bounded.
//!
//! Of several controllers on one store, one leads and has a core (`lead`); the others serve as well,
//! but send whoever asks to the leader (`role`).

mod agents;
mod config;
mod control;
mod core;
mod lead;
mod listen;
mod role;

use std::{future::Future, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub use config::{ConfigError, ControllerConfig, DEFAULT_SOCKET, DEFAULT_STORE, StorePlace};
pub use core::StartError;
pub use listen::ListenError;

use self::{
    agents::Agents,
    control::Control,
    core::{Handle, Running},
    listen::SocketFile,
    role::{Role, Roles},
};
use crate::{
    coordinator::Config,
    proto::{
        KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_LIMIT, WINDOW,
        v1::{
            agent_service_server::AgentServiceServer, control_service_server::ControlServiceServer,
        },
    },
    store::{Candidate, FileStore, Store, StoreError},
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
    /// The Unix socket cannot be had.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The TCP address cannot be had.
    #[error("cannot listen on {address}: {source}; see `listen` in the configuration")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
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
    Elected(Box<Candidate>, Config),
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
}

/// Opens the store, takes up where it ends, and serves. With etcd, it stands by until it is elected.
pub async fn start(config: &ControllerConfig) -> Result<Controller, ControllerError> {
    match config.place() {
        StorePlace::File(path) => {
            let store = FileStore::open(&path)?;
            start_with(config, Box::new(store), Config::default()).await
        }
        StorePlace::Etcd(etcd) => {
            let address = config.advertised().map_err(ControllerError::Config)?;
            let candidate =
                Candidate::new(&etcd, &config.name(), &address).map_err(StoreError::from)?;
            let candidate = Box::new(candidate);
            let leadership = Leadership::Elected(candidate, Config::default());
            serve(config, || Ok(leadership)).await
        }
    }
}

/// As [`start`], with a store that nobody else can use, and other times.
pub async fn start_with(
    config: &ControllerConfig,
    store: Box<dyn Store>,
    times: Config,
) -> Result<Controller, ControllerError> {
    serve(config, || {
        let (core, running) = core::start(store, times)?;
        Ok(Leadership::Sole(core, running))
    })
    .await
}

/// Binds sockets first: where that fails, nothing has been begun.
async fn serve(
    config: &ControllerConfig,
    leadership: impl FnOnce() -> Result<Leadership, ControllerError>,
) -> Result<Controller, ControllerError> {
    let (unix, socket) = listen::bind(&config.socket)?;
    let tcp = match config.listen {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|source| ControllerError::Listen { address, source })?,
        ),
    };
    let address = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
    if let Some(address) = address
        && !address.ip().is_loopback()
    {
        tracing::warn!(
            %address,
            "serving without TLS: whoever reaches this address commands the fabric; keep it on a \
             management network"
        );
    }
    let leadership = leadership()?;
    let (role, present) = watch::channel(match &leadership {
        Leadership::Sole(core, _) => Role::Leading(core.clone()),
        Leadership::Elected(..) => Role::StandingBy(None),
    });
    let roles = Roles::new(config.name(), present);
    let (stop, _) = watch::channel(false);
    let mut servers = vec![tokio::spawn(serve_unix(
        roles.clone(),
        unix,
        stop.subscribe(),
    ))];
    if let Some(tcp) = tcp {
        servers.push(tokio::spawn(serve_tcp(roles, tcp, stop.subscribe())));
    }
    tracing::info!(
        socket = %config.socket.display(),
        address = address.map(tracing::field::display),
        "serving"
    );
    Ok(Controller {
        leadership,
        role,
        servers,
        stop,
        socket,
        address,
    })
}

impl Controller {
    /// The TCP address that is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
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
        } = self;
        let shutdown = async {
            shutdown.await;
            // The socket's name goes first: nobody new finds a controller that is ending.
            drop(socket);
        };
        let outcome = match leadership {
            Leadership::Sole(core, running) => lead::alone(core, running, shutdown).await,
            Leadership::Elected(candidate, times) => {
                lead::in_turn(*candidate, role, times, shutdown).await
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

fn services(roles: Roles) -> (AgentServiceServer<Agents>, ControlServiceServer<Control>) {
    (
        AgentServiceServer::new(Agents::new(roles.clone()))
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

async fn serve_unix(
    roles: Roles,
    listener: UnixListener,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (agents, control) = services(roles);
    server()
        .add_service(agents)
        .add_service(control)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped(stop))
        .await
}

async fn serve_tcp(
    roles: Roles,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (agents, control) = services(roles);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    server()
        .add_service(agents)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming, stopped(stop))
        .await
}
