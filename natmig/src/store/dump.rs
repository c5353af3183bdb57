//! All that a store holds, as a text: to move it to another store, or to keep it.
//!
//! The text is JSON, with a version and a checksum of what was stored.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Store, StoreError, digest};
use crate::coordinator::{StoreOp, Stored};

/// Version of the text.
const FORMAT: u32 = 1;

/// What a store held.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// A term that is higher than every one before.
    pub term: u64,
    /// The records.
    pub stored: Stored,
}

/// The text.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    format: u32,
    /// Version of natmig that wrote it, for people.
    natmig: String,
    term: u64,
    /// Of the text of `stored`, in hexadecimal digits.
    sha256: String,
    stored: Box<RawValue>,
}

/// Enough of the text to tell its version.
#[derive(Debug, Deserialize)]
struct Version {
    format: u32,
}

/// What was exported cannot be read, or not imported.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It is no export.
    #[error("is no export of natmig's store: {0}; name a file that `natmig store export` wrote")]
    Malformed(serde_json::Error),
    /// It was written by another version.
    #[error(
        "has format version {0}, this natmig reads version {FORMAT}; import it with the natmig that \
         wrote it"
    )]
    Version(u32),
    /// It has been changed or cut.
    #[error("does not fit its checksum: it was changed or damaged; export again")]
    Checksum,
    /// What it says makes no sense.
    #[error("contradicts itself: {0}; export again")]
    Inconsistent(String),
    /// The store to import to holds something.
    #[error(
        "the store holds {vms} VMs and {migrations} migrations already; --force replaces them all"
    )]
    NotEmpty {
        /// VMs in it.
        vms: usize,
        /// Migrations in it.
        migrations: usize,
    },
    /// There is nothing to put in the place of a topology.
    #[error("has no topology, and the store has one; import to an empty store")]
    NoTopology,
    /// A store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Dump {
    /// Takes everything out of a store, which stays as it is.
    pub fn of(store: &mut dyn Store) -> Result<Self, StoreError> {
        let term = store.begin_term(0)?;
        let stored = store.load()?;
        Ok(Self { term, stored })
    }

    /// As a text.
    pub fn to_text(&self) -> Result<String, DumpError> {
        let stored = serde_json::value::to_raw_value(&self.stored).map_err(DumpError::Malformed)?;
        let text = Text {
            format: FORMAT,
            natmig: env!("CARGO_PKG_VERSION").to_owned(),
            term: self.term,
            sha256: digest(stored.get()),
            stored,
        };
        let mut text = serde_json::to_string_pretty(&text).map_err(DumpError::Malformed)?;
        text.push('\n');
        Ok(text)
    }

    /// From a text, checked.
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        let Version { format } = serde_json::from_str(text).map_err(DumpError::Malformed)?;
        if format != FORMAT {
            return Err(DumpError::Version(format));
        }
        let text: Text = serde_json::from_str(text).map_err(DumpError::Malformed)?;
        if digest(text.stored.get()) != text.sha256 {
            return Err(DumpError::Checksum);
        }
        let stored = serde_json::from_str(text.stored.get()).map_err(DumpError::Malformed)?;
        check(&stored)?;
        Ok(Self {
            term: text.term,
            stored,
        })
    }

    /// Puts everything into a store, in one change, and makes all terms from here on higher than those
    /// of the store that it came from. With `force`, whatever the store holds is removed.
    pub fn import(&self, store: &mut dyn Store, force: bool) -> Result<(), DumpError> {
        let present = store.load()?;
        if present != Stored::default() && !force {
            return Err(DumpError::NotEmpty {
                vms: present.vms.len(),
                migrations: present.migrations.len(),
            });
        }
        if present.topology.is_some() && self.stored.topology.is_none() {
            return Err(DumpError::NoTopology);
        }
        let mut ops = deletions(present);
        ops.extend(additions(self.stored.clone()));
        store.begin_term(self.term.saturating_add(1))?;
        store.apply(&ops)?;
        Ok(())
    }
}

/// Whether records fit together.
fn check(stored: &Stored) -> Result<(), DumpError> {
    let wrong = |problem: String| Err(DumpError::Inconsistent(problem));
    let mut names = BTreeSet::new();
    for state in &stored.vms {
        if !names.insert(&state.vm.name) {
            return wrong(format!("VM {} is there twice", state.vm.name));
        }
    }
    let mut numbers = BTreeSet::new();
    for record in &stored.migrations {
        if !numbers.insert(record.id) {
            return wrong(format!("migration {} is there twice", record.id));
        }
        if record.id.0 >= stored.next_id {
            return wrong(format!(
                "migration {} is there, but the next one would have number {}",
                record.id, stored.next_id
            ));
        }
    }
    if stored.topology.is_none() && !stored.vms.is_empty() {
        return wrong("there are VMs, but no topology".to_owned());
    }
    Ok(())
}

fn deletions(stored: Stored) -> Vec<StoreOp> {
    let Stored {
        // Replaced.
        topology: _,
        vms,
        migrations,
        quarantined,
        drained,
        // Replaced.
        next_id: _,
        audit,
    } = stored;
    let vms = vms
        .into_iter()
        .map(|state| StoreOp::DeleteVm(state.vm.name));
    let migrations = migrations
        .into_iter()
        .map(|record| StoreOp::DeleteMigration(record.id));
    let quarantined = quarantined
        .into_iter()
        .map(|record| StoreOp::DeleteQuarantined(record.locator));
    let drained = drained.into_iter().map(StoreOp::DeleteDrained);
    let audit = audit
        .into_iter()
        .map(|record| StoreOp::DeleteAudit(record.id));
    vms.chain(migrations)
        .chain(quarantined)
        .chain(drained)
        .chain(audit)
        .collect()
}

fn additions(stored: Stored) -> Vec<StoreOp> {
    let Stored {
        topology,
        vms,
        migrations,
        quarantined,
        drained,
        next_id,
        audit,
    } = stored;
    let vms = vms.into_iter().map(StoreOp::PutVm);
    let migrations = migrations
        .into_iter()
        .map(|record| StoreOp::PutMigration(Box::new(record)));
    let quarantined = quarantined.into_iter().map(StoreOp::PutQuarantined);
    let drained = drained.into_iter().map(StoreOp::PutDrained);
    let audit = audit
        .into_iter()
        .map(|record| StoreOp::PutAudit(Box::new(record)));
    topology
        .into_iter()
        .map(StoreOp::PutTopology)
        .chain([StoreOp::PutNextId(next_id)])
        .chain(vms)
        .chain(migrations)
        .chain(quarantined)
        .chain(drained)
        .chain(audit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_no_export_are_refused() {
        let text = Dump {
            term: 7,
            stored: Stored {
                next_id: 3,
                ..Stored::default()
            },
        }
        .to_text()
        .unwrap();
        assert_eq!(Dump::parse(&text).unwrap().term, 7);
        for (from, to, problem) in [
            ("\"format\": 1", "\"format\": 2", "format version 2"),
            ("\"next_id\":3", "\"next_id\":4", "checksum"),
            ("\"sha256\": \"", "\"sha256\": \"0", "checksum"),
            ("\"term\": 7", "\"term\": \"x\"", "no export"),
            ("{", "", "no export"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            let error = Dump::parse(&changed).unwrap_err().to_string();
            assert!(error.contains(problem), "{changed}: {error}");
        }
    }
}
