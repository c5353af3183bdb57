//! The listening side of a TLS connection.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Credentials, explain::explain};
use crate::pki::Certificate;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Shakes hands; returns the connection and the certificate of the other side, which is valid and
/// of a known authority. An error says why there is no connection.
pub(crate) async fn accept(
    credentials: &Credentials,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Certificate), String> {
    let acceptor = TlsAcceptor::from(credentials.server());
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| "it did not finish the TLS handshake in time".to_owned())?
        .map_err(|error| explain(&error))?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[CertificateDer<'_>]>::first)
        .ok_or_else(|| "it presented no certificate".to_owned())?;
    let certificate = Certificate::parse(certificate)
        .map_err(|problem| format!("its certificate cannot be understood: {problem}"))?;
    Ok((stream, certificate))
}
