//! This side's certificate and key and the authority that it trusts, as files that may change.
//!
//! Every new connection looks whether the files are as they were and reads them again if not;
//! whoever keeps connections for long runs [`Credentials::watch`]. Files that
//! cannot be used are logged and counted, and what was read before stays in use: a certificate and
//! its key are two files, so for a moment they may not fit.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::TlsError;
use crate::pki::{Certificate, Role};

/// How often files are looked at when nobody connects.
const REFRESH: Duration = Duration::from_secs(10);

/// Where certificate, key and authority are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialFiles {
    /// The authority that signs everybody's certificates; several during a change of authority.
    pub ca: PathBuf,
    /// This side's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl CredentialFiles {
    /// `ca.pem`, `STEM.pem` and `STEM.key` of a directory.
    pub fn in_directory(directory: &Path, stem: &str) -> Self {
        Self {
            ca: directory.join("ca.pem"),
            certificate: directory.join(format!("{stem}.pem")),
            key: directory.join(format!("{stem}.key")),
        }
    }
}

/// Certificates in use.
#[derive(Debug)]
pub struct Credentials {
    files: CredentialFiles,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Loaded,
    /// The files as they were when they were last looked at.
    stamps: Stamps,
    /// How often files could not be used.
    failures: u64,
    /// Warning that was last logged.
    warned: Option<String>,
}

/// What files look like from outside, as far as it tells whether they changed.
type Stamps = [Option<(u64, i64, i64, u64)>; 3];

#[derive(Clone, Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    certificate: Arc<Certificate>,
}

impl Credentials {
    /// Reads the files, all of which must be usable.
    pub fn load(files: &CredentialFiles) -> Result<Self, TlsError> {
        let stamps = stamps(files);
        let loaded = read(files)?;
        let credentials = Self {
            files: files.clone(),
            state: Mutex::new(State {
                loaded,
                stamps,
                failures: 0,
                warned: None,
            }),
        };
        credentials.refresh();
        Ok(credentials)
    }

    /// Where the files are.
    pub fn files(&self) -> &CredentialFiles {
        &self.files
    }

    /// This side's certificate, as it is in use.
    pub fn certificate(&self) -> Arc<Certificate> {
        self.current().certificate
    }

    /// How often changed files could not be used.
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// An error unless the certificate is of a role that `expected` describes.
    pub fn require(&self, expected: &str, fits: impl Fn(&Role) -> bool) -> Result<(), TlsError> {
        let found = match &self.certificate().role {
            Ok(role) if fits(role) => return Ok(()),
            Ok(role) => role.to_string(),
            Err(error) => {
                return Err(TlsError::Content {
                    path: self.files.certificate.clone(),
                    problem: error.to_string(),
                });
            }
        };
        Err(TlsError::Role {
            path: self.files.certificate.clone(),
            found,
            expected: expected.to_owned(),
        })
    }

    /// Reads the files again if they changed, and warns of a certificate that expires.
    pub fn refresh(&self) {
        let mut state = self.lock();
        let stamps = stamps(&self.files);
        if stamps != state.stamps {
            state.stamps = stamps;
            match read(&self.files) {
                Ok(loaded) => {
                    tracing::info!(
                        certificate = %self.files.certificate.display(),
                        fingerprint = loaded.certificate.fingerprint,
                        "certificates read again"
                    );
                    state.loaded = loaded;
                    state.warned = None;
                }
                Err(error) => {
                    state.failures += 1;
                    tracing::error!(
                        failures = state.failures,
                        "changed certificates cannot be used, the ones before stay in use: {error}"
                    );
                }
            }
        }
        let warning = state.loaded.certificate.warning(SystemTime::now());
        if warning != state.warned {
            if let Some(warning) = &warning {
                tracing::warn!("{}: {warning}", self.files.certificate.display());
            }
            state.warned = warning;
        }
    }

    /// Looks now and then, and upon SIGHUP, whether the files changed or the certificate expires.
    /// Returns only if that cannot be done.
    pub async fn watch(&self) -> io::Error {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return error,
        };
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
            self.refresh();
        }
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.current().server
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.current().client
    }

    fn current(&self) -> Loaded {
        self.refresh();
        self.lock().loaded.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every instant at which a panic could poison the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(files: &CredentialFiles) -> Stamps {
    [&files.ca, &files.certificate, &files.key].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((
            metadata.ino(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            metadata.len(),
        ))
    })
}

fn read(files: &CredentialFiles) -> Result<Loaded, TlsError> {
    let content = |path: &Path, problem: String| TlsError::Content {
        path: path.to_owned(),
        problem,
    };
    let roots = Arc::new(authorities(&files.ca)?);
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let certificate = Certificate::read(&files.certificate)?;
    let unfit = |error: rustls::Error| {
        content(
            &files.key,
            format!(
                "cannot be used with {}: {error}; certificate and key must be of one pair",
                files.certificate.display()
            ),
        )
    };
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| content(&files.ca, format!("cannot be trusted: {error}")))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unfit)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Loaded {
        server: Arc::new(server),
        client: Arc::new(client),
        certificate: Arc::new(certificate),
    })
}

/// What computes.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The authorities of a PEM file, which holds one at least.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| TlsError::Content {
            path: path.to_owned(),
            problem: format!("cannot be trusted: {error}"),
        })?;
    }
    Ok(roots)
}

/// The certificates of a PEM file, which holds one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |problem: String| TlsError::Content {
        path: path.to_owned(),
        problem,
    };
    let pem = bytes(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(format!("is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(content("holds no certificate in PEM".to_owned()));
    }
    Ok(certificates)
}

/// The first private key of a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&bytes(path)?).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        problem: format!("holds no private key in PEM: {error}"),
    })
}
