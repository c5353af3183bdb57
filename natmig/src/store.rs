//! The controller's durable state, behind one trait.
//!
//! Two stores: a file, for one controller, and etcd, for several of which one leads.
//!
//! Invariants: [`Store::apply`] is atomic, and what it stored is durable when it returns; a store
//! whose leadership is over changes nothing.

mod dump;
mod etcd;
mod file;

use std::{io, path::PathBuf};

use sha2::{Digest as _, Sha256};

pub use dump::{Dump, DumpError};
pub use etcd::{Candidate, EtcdConfig, EtcdConfigError, EtcdError, EtcdStore, Leader, Lease};
pub use file::FileStore;

use crate::coordinator::{StoreOp, Stored};

/// Where the controller's state lives, as the controller that leads has it.
///
/// Its methods block; none blocks for ever.
pub trait Store: Send {
    /// Everything that is stored.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// Makes changes durable: all or none, in their order. After an error it is not known whether
    /// they were made, until the store is loaded again.
    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError>;

    /// Begins a leadership: a term that is higher than every one before, durably, and not below
    /// `at_least`. The controller gives the seconds since the Unix epoch, so that terms of a store
    /// that was begun later are higher too, as long as clocks are roughly right.
    fn begin_term(&mut self, at_least: u64) -> Result<u64, StoreError>;

    /// Makes sure, by reading the store, that this leadership lasts.
    fn confirm(&mut self) -> Result<(), StoreError>;

    /// Whether this leadership lasts, for whoever does not have the store at hand.
    fn leadership(&self) -> Leadership;
}

/// Whether a leadership lasts. A controller of which that is not sure tells routers nothing.
#[derive(Clone, Debug)]
pub struct Leadership(Option<Lease>);

impl Leadership {
    /// Of a store that nobody else can open.
    pub const ALONE: Self = Self(None);

    /// For as long as a lease lasts.
    pub const fn of(lease: Lease) -> Self {
        Self(Some(lease))
    }

    /// Whether it is sure to last at this moment, as far as clocks can tell.
    pub fn lasts(&self) -> bool {
        self.0.as_ref().is_none_or(Lease::lasts)
    }
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store on etcd cannot be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// This controller's leadership is over, or may be.
    #[error("this controller's leadership has ended; another one goes on")]
    NotLeading,
    /// Another process has it.
    #[error(
        "{0}: in use by another controller; only one can run on a store: stop the other one first"
    )]
    InUse(PathBuf),
    /// It is not natmig's.
    #[error("{0}: not a store of natmig; move the file away, or name another store")]
    Foreign(PathBuf),
    /// It was written by another version.
    #[error(
        "{path}: has format version {found}, this natmig reads version {expected}; run the natmig \
         that wrote it, or move the file away and begin anew"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The one that this program reads and writes.
        expected: u64,
    },
    /// Something in it cannot be read.
    #[error("{path}: {what} is damaged: {problem}; restore the file from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
        /// How.
        problem: String,
    },
    /// The database failed.
    #[error("{path}: {problem}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The system refuses.
    #[error("{path}: {source}")]
    System {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the store is sound, but somebody else may lead: this controller can stand by and lead
    /// again later.
    pub fn is_lost_leadership(&self) -> bool {
        matches!(
            self,
            Self::NotLeading | Self::Etcd(EtcdError::Lost { .. } | EtcdError::Unavailable { .. })
        )
    }
}

/// SHA-256 of a text, in hexadecimal digits.
fn digest(text: &str) -> String {
    let bytes = Sha256::digest(text.as_bytes());
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
