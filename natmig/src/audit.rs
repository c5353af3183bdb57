//! What operators did: who asked for what, when, and what came of it.
//!
//! A record is stored in the same transaction as the change that it describes, so that neither is
//! there without the other. The newest [`KEPT`] records are kept.

use std::{collections::VecDeque, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::coordinator::Timestamp;

/// Records that are kept; older ones are forgotten.
pub const KEPT: u64 = 10_000;

/// One thing that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its number; later ones are higher.
    pub id: u64,
    /// When, by the controller's clock.
    pub at: Timestamp,
    /// Who asked for what.
    #[serde(flatten)]
    pub asked: Asked,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: AuditOutcome,
}

/// What is asked for, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Asked {
    /// Who asks.
    pub who: Caller,
    /// The call, by its name in the protocol; `ImportStore` for an import, which is none.
    pub call: String,
    /// What it is about, for people.
    pub what: String,
}

/// Who asked for something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caller {
    /// The role in the certificate, or the local user.
    pub name: String,
    /// Where it connected from, over TCP.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// SHA-256 of its certificate, in hexadecimal.
    #[serde(default)]
    pub certificate: Option<String>,
    /// The local process's user.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The local process.
    #[serde(default)]
    pub pid: Option<i32>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "detail")]
pub enum AuditOutcome {
    /// It was done; a migration that was started has this number.
    Done(Option<u64>),
    /// It made no sense, or could not be done as things were.
    Refused(String),
    /// The caller may not do that.
    Denied(String),
}

impl AuditOutcome {
    /// Its name, as in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Refused(_) => "refused",
            Self::Denied(_) => "denied",
        }
    }
}

/// The records that are kept, oldest first.
#[derive(Clone, Debug, Default)]
pub struct AuditLog {
    records: VecDeque<AuditRecord>,
    next_id: u64,
}

impl AuditLog {
    /// From what is stored.
    pub fn new(mut stored: Vec<AuditRecord>) -> Self {
        stored.sort_by_key(|record| record.id);
        let next_id = stored.last().map_or(1, |record| record.id + 1);
        Self {
            records: stored.into(),
            next_id,
        }
    }

    /// The number of the next record.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Adds a record and forgets what is too old.
    pub fn push(&mut self, record: AuditRecord) {
        self.next_id = record.id + 1;
        self.records.push_back(record);
        while self.records.len() as u64 > KEPT {
            self.records.pop_front();
        }
    }

    /// Records from a time on, the newest `limit` of them, oldest first.
    pub fn since(&self, at: Timestamp, limit: usize) -> Vec<AuditRecord> {
        let mut found: Vec<_> = self
            .records
            .iter()
            .rev()
            .filter(|record| record.at >= at)
            .take(limit)
            .cloned()
            .collect();
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u64, at: u64) -> AuditRecord {
        AuditRecord {
            id,
            at: Timestamp(at),
            asked: Asked {
                who: Caller {
                    name: "operator a".to_owned(),
                    address: None,
                    certificate: None,
                    uid: None,
                    pid: None,
                },
                call: "AddVms".to_owned(),
                what: "vm1".to_owned(),
            },
            outcome: AuditOutcome::Done(None),
        }
    }

    #[test]
    fn newest_records_are_kept_and_numbers_go_on() {
        let mut log = AuditLog::new(vec![record(8, 80), record(7, 70)]);
        assert_eq!(log.next_id(), 9);
        for id in 9..=KEPT + 8 {
            log.push(record(id, id * 10));
        }
        let all = log.since(Timestamp(0), usize::MAX);
        assert_eq!(all.len() as u64, KEPT);
        assert_eq!(all[0].id, 9);
        let ids = |records: Vec<AuditRecord>| -> Vec<u64> {
            records.into_iter().map(|record| record.id).collect()
        };
        let last = KEPT + 8;
        assert_eq!(
            ids(log.since(Timestamp((last - 1) * 10), 5)),
            [last - 1, last]
        );
        assert_eq!(ids(log.since(Timestamp(0), 2)), [last - 1, last]);
    }
}
