//! The controller: a thin shell around the transaction machine.
//!
//! One thread (`core`) owns machine and store. Agents and operators reach it through gRPC, over TCP
//! and a Unix socket; both only put things into its queue. Every channel is bounded.

mod agents;
mod config;
mod control;
mod core;
mod listen;

use std::{future::Future, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub use config::{ConfigError, ControllerConfig, DEFAULT_SOCKET, DEFAULT_STORE};
pub use core::StartError;
pub use listen::ListenError;

use self::{
    agents::Agents,
    control::Control,
    core::{Handle, Input, Running},
    listen::SocketFile,
};
use crate::{
    coordinator::Config,
    proto::{
        KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_LIMIT, WINDOW,
        v1::{
            agent_service_server::AgentServiceServer, control_service_server::ControlServiceServer,
        },
    },
    store::{FileStore, Store, StoreError},
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

/// A controller that serves.
#[must_use]
#[derive(Debug)]
pub struct Controller {
    core: Handle,
    running: Running,
    servers: Vec<JoinHandle<Result<(), tonic::transport::Error>>>,
    stop: watch::Sender<bool>,
    socket: SocketFile,
    address: Option<SocketAddr>,
}

/// Opens the store, takes up where it ends, and serves.
pub async fn start(config: &ControllerConfig) -> Result<Controller, ControllerError> {
    let store = FileStore::open(&config.store)?;
    start_with(config, Box::new(store), Config::default()).await
}

/// As [`start`], with another store and other times.
pub async fn start_with(
    config: &ControllerConfig,
    store: Box<dyn Store>,
    times: Config,
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
    let (core, running) = core::start(store, times)?;
    let (stop, _) = watch::channel(false);
    let mut servers = vec![tokio::spawn(serve_unix(
        core.clone(),
        unix,
        stop.subscribe(),
    ))];
    if let Some(tcp) = tcp {
        servers.push(tokio::spawn(serve_tcp(core.clone(), tcp, stop.subscribe())));
    }
    tracing::info!(
        socket = %config.socket.display(),
        address = address.map(tracing::field::display),
        "serving"
    );
    Ok(Controller {
        core,
        running,
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
            core,
            running: Running {
                thread,
                mut outcome,
            },
            servers,
            stop,
            socket,
            address: _,
        } = self;
        let early = tokio::select! {
            () = shutdown => None,
            outcome = &mut outcome => Some(outcome),
        };
        // The socket's name goes first: nobody new finds a controller that is ending.
        drop(socket);
        let outcome = if let Some(outcome) = early {
            outcome
        } else {
            if core.tell(Input::Shutdown).await.is_err() {
                tracing::debug!("the core has ended already");
            }
            outcome.await
        };
        stop.send_replace(true);
        for mut server in servers {
            match tokio::time::timeout(GOODBYE, &mut server).await {
                Ok(Ok(served)) => served?,
                Ok(Err(_)) | Err(_) => server.abort(),
            }
        }
        thread.join().map_err(|_| ControllerError::Core)?;
        outcome.map_err(|_| ControllerError::Core)??;
        Ok(())
    }
}

fn services(core: Handle) -> (AgentServiceServer<Agents>, ControlServiceServer<Control>) {
    (
        AgentServiceServer::new(Agents::new(core.clone()))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT),
        ControlServiceServer::new(Control::new(core))
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
    core: Handle,
    listener: UnixListener,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (agents, control) = services(core);
    server()
        .add_service(agents)
        .add_service(control)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped(stop))
        .await
}

async fn serve_tcp(
    core: Handle,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (agents, control) = services(core);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    server()
        .add_service(agents)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming, stopped(stop))
        .await
}
