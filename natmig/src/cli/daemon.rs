//! What both daemons need of their surroundings: a log, an end by signal, and a word to systemd.

use std::{env, io::IsTerminal as _, os::unix::net::UnixDatagram};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Logs to standard error; `NATMIG_LOG` chooses how much, in the syntax of `tracing`.
pub(super) fn log() {
    let filter = EnvFilter::try_from_env("NATMIG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// SIGTERM and SIGINT, caught from the moment this is made.
pub(super) struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    pub(super) fn new() -> anyhow::Result<Self> {
        // From here on SIGHUP has certificates read again, where there are any, and ends nothing.
        drop(signal(SignalKind::hangup()).context("cannot catch SIGHUP")?);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
        })
    }

    /// Returns when the process is asked to end.
    pub(super) async fn requested(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("asked to end");
    }
}

/// Tells the service manager (`Type=notify`) that the daemon does its work.
pub(super) fn ready() {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|from| match socket.to_str() {
        Some(name) if name.starts_with('@') => {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..])?;
            from.send_to_addr(b"READY=1", &address)
        }
        _ => from.send_to(b"READY=1", &socket),
    });
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager that the daemon is ready");
    }
}
