//! Where etcd is, and how natmig makes itself known to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::tls::{Files, Own, Tls};
use crate::{
    pki::{self, PkiError},
    tls::TlsError,
};

/// Shortest and longest lease, in seconds. etcd itself grants none below one and a half of its
/// election time-outs, which is 1.5 s unless configured otherwise.
const LEASE: std::ops::RangeInclusive<u64> = 2..=60;

/// The table `[etcd]` of the controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// Client URLs of etcd's members, tried in turn.
    pub endpoints: Vec<String>,
    /// Prefix of every key; controllers with the same prefix are controllers of one fabric.
    pub prefix: String,
    /// How long leadership lasts unless it is renewed: after so long a leader that died is replaced.
    #[serde(default = "default_lease", deserialize_with = "lease")]
    pub lease: Duration,
    /// Certificates of the authorities that etcd's members are checked against (PEM).
    pub ca: Option<PathBuf>,
    /// Certificate that natmig shows (PEM).
    pub certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    pub key: Option<PathBuf>,
    /// User, where etcd's authentication is enabled.
    pub user: Option<String>,
    /// File that holds the user's password.
    pub password_file: Option<PathBuf>,
}

/// The table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// Something is missing or contradicts itself.
    #[error("[etcd]: {0}")]
    Invalid(String),
    /// A file that it names cannot be read.
    #[error("[etcd]: {path}: {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold the certificates or the key that it should.
    #[error("[etcd]: {0}; correct the file or its path")]
    Pem(#[from] TlsError),
    /// The certificate cannot be understood.
    #[error("[etcd]: {0}")]
    Certificate(#[from] PkiError),
}

/// Who natmig is to etcd.
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

fn default_lease() -> Duration {
    Duration::from_secs(3)
}

fn lease<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.strip_suffix('s')
        .and_then(|seconds| seconds.trim().parse().ok())
        .filter(|seconds| LEASE.contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is no lease; write whole seconds from {} to {}, such as \"3s\"",
                LEASE.start(),
                LEASE.end()
            ))
        })
}

fn read(path: &Path) -> Result<String, EtcdConfigError> {
    fs::read_to_string(path).map_err(|source| EtcdConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

impl EtcdConfig {
    /// Says what is wrong with the table, short of asking etcd.
    pub fn check(&self) -> Result<(), EtcdConfigError> {
        let invalid = |problem: String| Err(EtcdConfigError::Invalid(problem));
        if self.endpoints.is_empty() {
            return invalid(
                "names no endpoint; add endpoints = [\"http://HOST:2379\", ...]".to_owned(),
            );
        }
        for endpoint in &self.endpoints {
            let secure = endpoint.starts_with("https://");
            if !secure && !endpoint.starts_with("http://") {
                return invalid(format!(
                    "`{endpoint}` is no endpoint; write http://HOST:2379 or https://HOST:2379"
                ));
            }
            if !secure && (self.ca.is_some() || self.certificate.is_some()) {
                return invalid(format!(
                    "`{endpoint}` is not encrypted, but ca or certificate is given; write https:// \
                     or remove them"
                ));
            }
            if secure && self.ca.is_none() {
                return invalid(format!(
                    "`{endpoint}` cannot be checked; name the authority's certificate with ca"
                ));
            }
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.len() < 2 {
            return invalid(format!(
                "`{}` is no prefix; write something like \"/natmig/fabric1\"",
                self.prefix
            ));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return invalid("certificate and key go together; give both or none".to_owned());
        }
        if self.user.is_some() != self.password_file.is_some() {
            return invalid("user and password_file go together; give both or none".to_owned());
        }
        self.tls()?;
        self.credentials()?;
        Ok(())
    }

    /// What is to be said about the validity of natmig's certificate at a time, if anything.
    pub fn warning(&self, at: SystemTime) -> Result<Option<String>, EtcdConfigError> {
        let Some(path) = &self.certificate else {
            return Ok(None);
        };
        let warning = pki::Certificate::read(path)?.warning(at);
        Ok(warning.map(|warning| format!("[etcd]: {}: {warning}", path.display())))
    }

    /// How connections are encrypted; `None` if they are not.
    pub(super) fn tls(&self) -> Result<Option<Tls>, EtcdConfigError> {
        let Some(ca) = self.ca.clone() else {
            return Ok(None);
        };
        let own = self.certificate.clone().zip(self.key.clone());
        let own = own.map(|(certificate, key)| Own { certificate, key });
        Ok(Some(Tls::read(Files { ca, own })?))
    }

    /// As whom natmig logs in, with the password that its file holds now.
    pub(super) fn credentials(&self) -> Result<Option<Credentials>, EtcdConfigError> {
        let (Some(user), Some(file)) = (&self.user, &self.password_file) else {
            return Ok(None);
        };
        Ok(Some(Credentials {
            user: user.clone(),
            password: read(file)?.trim_end_matches(['\r', '\n']).to_owned(),
        }))
    }
}
