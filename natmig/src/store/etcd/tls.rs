//! TLS to etcd's members, from files that may change: every new connection reads them again.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;

use crate::tls::{TlsError, authorities, certificates, private_key, provider, shake_hands};

/// The port where a URL names none.
const HTTPS: u16 = 443;

/// What connections are encrypted with, and where it comes from.
pub(super) struct Tls {
    files: Files,
    /// What was in the files when they could be used last.
    last: Mutex<Arc<ClientConfig>>,
}

/// PEM files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The authorities that etcd's members are checked against.
    pub(super) ca: PathBuf,
    /// What natmig shows, if anything.
    pub(super) own: Option<Own>,
}

/// A certificate and its private key.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Files {
    fn read(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let unfit = |problem: rustls::Error| {
            let own = self.own.as_ref().map(|own| &own.key);
            TlsError::Content {
                path: own.unwrap_or(&self.ca).clone(),
                problem: format!("cannot be used: {problem}"),
            }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_root_certificates(authorities(&self.ca)?);
        let mut config = match &self.own {
            Some(Own { certificate, key }) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(unfit)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Tls {
    /// Reads the files, all of which must be usable.
    pub(super) fn read(files: Files) -> Result<Self, TlsError> {
        let last = Mutex::new(files.read()?);
        Ok(Self { files, last })
    }

    /// What is in the files now, or was when they could be used last: a certificate and its key are
    /// two files, so for a moment they may not fit.
    fn current(&self) -> Arc<ClientConfig> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.read() {
            Ok(config) => *last = config,
            Err(error) => tracing::error!(
                "changed certificates for etcd cannot be used, the ones before stay in use: {error}"
            ),
        }
        Arc::clone(&last)
    }

    /// Connects to a member.
    pub(super) async fn connect(&self, member: &Uri) -> io::Result<TlsStream<TcpStream>> {
        shake_hands(member, HTTPS, self.current()).await
    }
}
