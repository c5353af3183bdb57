//! The controller's durable state, behind one trait.
//!
//! Invariant: [`Store::apply`] is atomic, and what it stored is on disk when it returns.

mod file;

use std::{io, path::PathBuf};

pub use file::FileStore;

use crate::coordinator::{StoreOp, Stored};

/// Where the controller's state lives.
pub trait Store: Send {
    /// Everything that is stored.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// Makes changes durable: all or none, in their order.
    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError>;

    /// Begins a leadership: a term that is higher than every one before, durably. Terms of a store
    /// that was begun later are higher too, as long as clocks are roughly right: `seconds` is the
    /// time since the Unix epoch.
    fn begin_term(&mut self, seconds: u64) -> Result<u64, StoreError>;
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
