//! How agents and commands reach a controller: through TLS, through a Unix socket of this machine,
//! or in the clear where the controller is told to allow that.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

use super::{Credentials, explain::explain};
use crate::{
    pki::{Certificate, Role},
    proto::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, WINDOW},
};

/// The controller's port where a URL names none.
pub const DEFAULT_PORT: u16 = 7400;

/// A controller cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL makes no sense.
    #[error(
        "{0}: not a controller; write https://HOST:PORT, unix:///PATH, or http://HOST:PORT where the controller has no TLS"
    )]
    Url(String),
    /// There is no certificate to show.
    #[error("{0}: a certificate is needed to speak TLS; name ca, certificate and key")]
    NoCredentials(String),
    /// It is not there, or refuses.
    #[error("{0}")]
    Connect(String),
}

/// Connects to a controller, within `patience`.
pub async fn dial(
    url: &str,
    patience: Duration,
    credentials: Option<&Credentials>,
) -> Result<Channel, DialError> {
    let unknown = || DialError::Url(url.to_owned());
    // To tonic the connector's TLS is a transport like any other.
    let (plain, encrypted) = match url.strip_prefix("https://") {
        Some(rest) => (format!("http://{rest}"), true),
        None if url.starts_with("http://") || url.starts_with("unix://") => (url.to_owned(), false),
        None => return Err(unknown()),
    };
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|_| unknown())?
        .connect_timeout(patience)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let channel = if encrypted {
        let credentials = credentials.ok_or_else(|| DialError::NoCredentials(url.to_owned()))?;
        let config = credentials.client();
        let connect = tower::service_fn(move |uri: Uri| {
            let config = Arc::clone(&config);
            async move { connect(&uri, config).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connect).await
    } else {
        endpoint.connect().await
    };
    channel.map_err(|error| {
        let mut deepest: &(dyn std::error::Error + 'static) = &error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        let denied = deepest
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        DialError::Connect(if denied {
            format!(
                "{deepest}: root, the controller's own user and members of its `socket_group` may \
                 use the socket"
            )
        } else {
            deepest.to_string()
        })
    })
}

/// Connects, shakes hands, and makes sure that the other side is a controller and takes this side's
/// certificate.
async fn connect(
    uri: &Uri,
    config: Arc<ClientConfig>,
) -> io::Result<BufReader<TlsStream<TcpStream>>> {
    let stream = shake_hands(uri, DEFAULT_PORT, config).await?;
    check_role(&stream).map_err(io::Error::other)?;
    let mut stream = BufReader::new(stream);
    // In TLS 1.3 this side is done before the other one has judged its certificate. A server of
    // HTTP/2 speaks at once, so its first byte says that it took the certificate.
    let first = stream
        .fill_buf()
        .await
        .map_err(|error| io::Error::other(explain(&error)))?;
    if first.is_empty() {
        return Err(io::Error::other("it closed the connection at once"));
    }
    Ok(stream)
}

/// Connects, and makes sure that the other side is what it is called; on this port if the URL names
/// none.
pub(crate) async fn shake_hands(
    uri: &Uri,
    port: u16,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::other(format!("`{host}` is neither a name nor an address")))?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(port))).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| io::Error::other(explain(&error)))
}

/// An error unless the other side is a controller.
fn check_role(stream: &TlsStream<TcpStream>) -> Result<(), String> {
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[CertificateDer<'_>]>::first)
        .ok_or("it presented no certificate")?;
    let certificate = Certificate::parse(certificate)?;
    match certificate.role {
        Ok(Role::Controller(_)) => Ok(()),
        Ok(role) => Err(format!("it is no controller but {role}")),
        Err(error) => Err(error.to_string()),
    }
}
