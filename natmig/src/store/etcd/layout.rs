//! Where each record is, as keys and JSON values below the store's prefix: pure.
//!
//! ```text
//! next_id                          number of the next migration
//! topology/PART                    the topology
//! vms/NAME                         a VM
//! migrations/NUMBER/moves/PART     what a migration moves
//! migrations/NUMBER/record/PART    all else of it
//! quarantined/ADDRESS              a locator in quarantine
//! drained/NAME                     a drained router
//! audit/NUMBER                     what an operator did
//! ```
//!
//! What may be large is cut into parts, since etcd limits the size of a request. What a migration
//! moves is written once, so that a decision is one small key however large the group is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    audit::KEPT,
    coordinator::{MigrationRecord, StoreOp, Stored},
    planner::Move,
    rule::TransactionId,
};

/// Longest part, in bytes.
const PART: usize = 256 << 10;

const NEXT_ID: &str = "next_id";
const TOPOLOGY: &str = "topology";
const VMS: &str = "vms/";
const MIGRATIONS: &str = "migrations/";
const MOVES: &str = "moves";
const RECORD: &str = "record";
const QUARANTINED: &str = "quarantined/";
const DRAINED: &str = "drained/";
const AUDIT: &str = "audit/";

type Hash = [u8; 32];

/// Values to set, and keys to delete; each key once, so that the order does not matter.
pub(super) type Writes = BTreeMap<String, Option<String>>;

/// A change as keys and values.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) writes: Writes,
    /// Migrations whose moves it writes; `None` for those that it forgets.
    moves: HashMap<TransactionId, Option<Hash>>,
}

/// A value cannot be read.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) what: String,
    pub(super) problem: String,
}

/// What is known of the keys that exist.
#[derive(Debug, Default)]
pub(super) struct Layout {
    keys: BTreeSet<String>,
    /// What is written of each migration's moves.
    moves: HashMap<TransactionId, Hash>,
}

fn migration(id: TransactionId) -> String {
    format!("{MIGRATIONS}{:020}/", id.0)
}

fn audit(id: u64) -> String {
    format!("{AUDIT}{id:020}")
}

impl Layout {
    /// Of the keys and values that there are.
    pub(super) fn of(values: &BTreeMap<String, String>) -> Self {
        Self {
            keys: values.keys().cloned().collect(),
            // Unknown hashes have the moves written again, which does no harm.
            moves: HashMap::new(),
        }
    }

    /// Changes as keys and values: the last one counts for each key.
    pub(super) fn change(&self, ops: &[StoreOp]) -> Result<Change, serde_json::Error> {
        let mut change = Change::default();
        for op in ops {
            match op {
                StoreOp::PutTopology(topology) => {
                    self.put_parts(&mut change, TOPOLOGY, topology)?;
                }
                StoreOp::PutNextId(next_id) => change.put(NEXT_ID.to_owned(), next_id)?,
                StoreOp::PutVm(state) => change.put(format!("{VMS}{}", state.vm.name), state)?,
                StoreOp::DeleteVm(name) => change.delete(format!("{VMS}{name}")),
                StoreOp::PutMigration(record) => self.put_migration(&mut change, record)?,
                StoreOp::DeleteMigration(id) => {
                    self.delete_all(&mut change, &migration(*id));
                    change.moves.insert(*id, None);
                }
                StoreOp::PutQuarantined(record) => {
                    change.put(format!("{QUARANTINED}{}", record.locator), record)?;
                }
                StoreOp::DeleteQuarantined(locator) => {
                    change.delete(format!("{QUARANTINED}{locator}"));
                }
                StoreOp::PutDrained(router) => change.put(format!("{DRAINED}{router}"), router)?,
                StoreOp::DeleteDrained(router) => change.delete(format!("{DRAINED}{router}")),
                StoreOp::PutAudit(record) => {
                    change.put(audit(record.id), record)?;
                    let forgotten = record.id.checked_sub(KEPT).map(audit);
                    let there =
                        |key: &String| self.keys.contains(key) || change.writes.contains_key(key);
                    if let Some(key) = forgotten.filter(there) {
                        change.delete(key);
                    }
                }
                StoreOp::DeleteAudit(id) => change.delete(audit(*id)),
            }
        }
        Ok(change)
    }

    /// A change has been made.
    pub(super) fn changed(&mut self, change: &Change) {
        for (key, value) in &change.writes {
            if value.is_some() {
                self.keys.insert(key.clone());
            } else {
                self.keys.remove(key);
            }
        }
        for (id, hash) in &change.moves {
            match hash {
                Some(hash) => self.moves.insert(*id, *hash),
                None => self.moves.remove(id),
            };
        }
    }

    fn put_migration(
        &self,
        change: &mut Change,
        record: &MigrationRecord,
    ) -> Result<(), serde_json::Error> {
        let base = migration(record.id);
        let moves = serde_json::to_string(&record.moves)?;
        let hash: Hash = Sha256::digest(moves.as_bytes()).into();
        let known = match change.moves.get(&record.id) {
            Some(changed) => changed.as_ref(),
            None => self.moves.get(&record.id),
        };
        if known != Some(&hash) {
            self.put_text(change, &format!("{base}{MOVES}"), &moves);
            change.moves.insert(record.id, Some(hash));
        }
        let rest = MigrationRecord {
            moves: Vec::new(),
            ..record.clone()
        };
        self.put_parts(change, &format!("{base}{RECORD}"), &rest)
    }

    fn put_parts<T: Serialize>(
        &self,
        change: &mut Change,
        base: &str,
        value: &T,
    ) -> Result<(), serde_json::Error> {
        self.put_text(change, base, &serde_json::to_string(value)?);
        Ok(())
    }

    fn put_text(&self, change: &mut Change, base: &str, text: &str) {
        self.delete_all(change, &format!("{base}/"));
        for (number, part) in parts(text, PART).enumerate() {
            let key = format!("{base}/{number:04}");
            change.writes.insert(key, Some(part.to_owned()));
        }
    }

    /// Deletes all keys below a prefix, those that the change itself has set included.
    fn delete_all(&self, change: &mut Change, prefix: &str) {
        let stored = self
            .keys
            .range(prefix.to_owned()..)
            .take_while(|key| key.starts_with(prefix));
        let set = change
            .writes
            .range(prefix.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix));
        let all: Vec<_> = stored.chain(set).cloned().collect();
        for key in all {
            change.delete(key);
        }
    }
}

impl Change {
    fn put<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), serde_json::Error> {
        let value = serde_json::to_string(value)?;
        self.writes.insert(key, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: String) {
        self.writes.insert(key, None);
    }
}

/// Cuts a text into parts of at most so many bytes; one part at least.
pub(super) fn parts(text: &str, longest: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (part, left) = text.split_at(text.floor_char_boundary(longest));
        rest = (!left.is_empty()).then_some(left);
        Some(part)
    })
}

/// What keys and values say.
pub(super) fn stored(values: &BTreeMap<String, String>) -> Result<Stored, Damaged> {
    let mut stored = Stored::default();
    if let Some(next_id) = values.get(NEXT_ID) {
        stored.next_id = decode(next_id, "the next migration's number")?;
    }
    let topology = joined(values, TOPOLOGY);
    if !topology.is_empty() {
        stored.topology = Some(decode(&topology, "the topology")?);
    }
    for (_, value) in below(values, VMS) {
        stored.vms.push(decode(value, "a VM")?);
    }
    for (_, value) in below(values, QUARANTINED) {
        stored.quarantined.push(decode(value, "a quarantine")?);
    }
    for (_, value) in below(values, DRAINED) {
        stored.drained.insert(decode(value, "a drained router")?);
    }
    for (_, value) in below(values, AUDIT) {
        stored.audit.push(decode(value, "an audit record")?);
    }
    let migrations: BTreeSet<&str> = below(values, MIGRATIONS)
        .filter_map(|(key, _)| key.split('/').nth(1))
        .collect();
    for number in migrations {
        let base = format!("{MIGRATIONS}{number}/");
        let what = format!("migration {}", number.trim_start_matches('0'));
        let mut record: MigrationRecord =
            decode(&joined(values, &format!("{base}{RECORD}")), &what)?;
        let moves: Vec<Move> = decode(&joined(values, &format!("{base}{MOVES}")), &what)?;
        record.moves = moves;
        stored.migrations.push(record);
    }
    Ok(stored)
}

fn below<'a>(
    values: &'a BTreeMap<String, String>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    values
        .range(prefix.to_owned()..)
        .take_while(move |(key, _)| key.starts_with(prefix))
}

fn joined(values: &BTreeMap<String, String>, base: &str) -> String {
    below(values, &format!("{base}/"))
        .map(|(_, part)| part.as_str())
        .collect()
}

fn decode<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, Damaged> {
    serde_json::from_str(text).map_err(|error| Damaged {
        what: what.to_owned(),
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_short_enough_and_make_the_whole() {
        for text in ["", "a", "abcdef", "äöüß€𝄞", "a𝄞b𝄞"] {
            for longest in 4..8 {
                let parts: Vec<_> = parts(text, longest).collect();
                assert_eq!(parts.concat(), text);
                assert!(parts.iter().all(|part| part.len() <= longest));
            }
        }
    }

    #[test]
    fn fewer_parts_leave_none_of_the_former_ones() {
        let mut layout = Layout::default();
        let mut change = Change::default();
        layout.put_text(&mut change, "topology", &"x".repeat(3 * PART));
        layout.changed(&change);
        assert_eq!(layout.keys.len(), 3);
        let mut change = Change::default();
        layout.put_text(&mut change, "topology", "y");
        layout.changed(&change);
        assert_eq!(
            layout.keys.iter().collect::<Vec<_>>(),
            [&"topology/0000".to_owned()]
        );
    }
}
