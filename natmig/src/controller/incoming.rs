//! Connections as they come in, each with who is at its other end.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    group::SocketGroup,
    peer::{Peer, Standing},
};
use crate::tls::{self, Credentials};

/// Connections that may shake hands at a time.
const HANDSHAKES: usize = 256;

/// Connections that may wait for the server.
const WAITING: usize = 16;

/// Pause after a connection could not be accepted, as when there are too many.
const PAUSE: Duration = Duration::from_millis(100);

/// A byte stream of any kind.
trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// A connection, and who is at its other end.
pub(super) struct Accepted {
    stream: Pin<Box<dyn Stream>>,
    peer: Peer,
}

type Connections = ReceiverStream<io::Result<Accepted>>;

impl Accepted {
    fn new(stream: impl Stream + 'static, peer: Peer) -> Self {
        Self {
            stream: Box::pin(stream),
            peer,
        }
    }
}

/// Connections of a TCP address; with TLS if there are credentials.
pub(super) fn tcp(listener: TcpListener, credentials: Option<Arc<Credentials>>) -> Connections {
    let (sender, connections) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a connection");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let (sender, credentials) = (sender.clone(), credentials.clone());
            tokio::spawn(async move {
                match welcome(stream, address, credentials.as_deref()).await {
                    // An error means that the server is gone.
                    Ok(accepted) => drop(sender.send(Ok(accepted)).await),
                    Err(problem) => {
                        tracing::warn!(%address, "refused a connection: {problem}");
                    }
                }
                drop(permit);
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn welcome(
    stream: TcpStream,
    address: SocketAddr,
    credentials: Option<&Credentials>,
) -> Result<Accepted, String> {
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let Some(credentials) = credentials else {
        return Ok(Accepted::new(stream, Peer::Anonymous { address }));
    };
    let (stream, certificate) = tls::accept(credentials, stream).await?;
    let role = certificate.role.map_err(|error| error.to_string())?;
    let peer = Peer::Certified {
        role,
        fingerprint: certificate.fingerprint,
        address,
        expires: certificate.not_after,
    };
    Ok(Accepted::new(stream, peer))
}

/// Connections of the Unix socket.
pub(super) fn unix(listener: UnixListener, group: Option<SocketGroup>) -> Connections {
    let (sender, connections) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a connection");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let accepted = match local_peer(&stream, group.as_ref()) {
                Ok(peer) => Accepted::new(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "refused a local process: the kernel does not say whose it is");
                    continue;
                }
            };
            if sender.send(Ok(accepted)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(connections)
}

/// Whose process is at the other end, by the kernel's word as of its `connect`.
fn local_peer(stream: &UnixStream, group: Option<&SocketGroup>) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    let standing = if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        Standing::Owner
    } else {
        match group {
            Some(group) if group.has(stream.as_fd(), credentials.gid())? => group.standing(),
            Some(_) | None => Standing::Stranger,
        }
    };
    Ok(Peer::Local {
        uid,
        pid: credentials.pid(),
        standing,
    })
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}
