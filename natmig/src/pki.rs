//! Certificates: a small authority of natmig's own, and what a certificate says about its holder.
//!
//! Invariant: a certificate names exactly one [`Role`], in a URI among its alternative names;
//! whoever signs with the authority's key decides who may do what.

mod authority;
mod certificate;
mod files;
mod role;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use authority::{Authority, Issued, Request};
pub(crate) use certificate::rfc3339;
pub use certificate::{Certificate, Validity};
pub use files::{Existing, write_private, write_public};
pub use role::{Role, RoleError};

/// Where certificates are looked for unless a command or a configuration says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/etc/natmig/pki";

/// A certificate that is valid for less than this is warned of.
pub const EXPIRY_WARNING: Duration = Duration::from_hours(30 * 24);

/// A certificate or a key cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The system refuses.
    #[error("{path}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It would be overwritten.
    #[error("{0}: exists already; choose another --output, or replace it with --force")]
    Exists(PathBuf),
    /// It holds no certificate.
    #[error("{path}: no certificate in PEM: {problem}")]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The authority's certificate and key do not make an authority.
    #[error(
        "{path}: cannot be used as an authority: {problem}; `natmig pki init` makes one, \
         --directory says where it is"
    )]
    Authority {
        /// The certificate or the key.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A role that cannot be in a certificate.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// A name that cannot be in a certificate.
    #[error("`{0}` is neither a DNS name nor an address; correct it")]
    Name(String),
    /// A controller without names cannot be recognised by those who dial it.
    #[error(
        "a controller's certificate must hold every name and address by which it is dialled; add \
         them with --address"
    )]
    NoName,
    /// It cannot be renewed.
    #[error("{path}: cannot be renewed: {problem}")]
    Renew {
        /// The certificate.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// The library refuses.
    #[error("the certificate cannot be made: {0}")]
    Library(#[from] rcgen::Error),
}

impl PkiError {
    fn system(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { path, source }
    }
}
