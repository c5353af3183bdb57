//! Mutual TLS between controllers, agents and commands: TLS 1.3 only, certificates from natmig's
//! own authority on both sides, read again when their files change.
//!
//! Sessions are never resumed: every connection shows its certificate anew.

mod accept;
mod credentials;
mod dial;
mod explain;

use std::{io, path::PathBuf};

pub(crate) use accept::accept;
pub use credentials::{CredentialFiles, Credentials};
pub(crate) use credentials::{authorities, certificates, private_key, provider};
pub(crate) use dial::shake_hands;
pub use dial::{DEFAULT_PORT, DialError, dial};

use crate::pki::PkiError;

/// Certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The certificate cannot be understood.
    #[error(transparent)]
    Certificate(#[from] PkiError),
    /// The certificate is of another role than this program needs.
    #[error(
        "{path}: is the certificate of {found}, but {expected} is needed; issue one with `natmig pki issue`"
    )]
    Role {
        /// The certificate.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
}
