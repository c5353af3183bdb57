//! The store on etcd, for several controllers: one of them leads.
//!
//! ```text
//! PREFIX/format      version of all below
//! PREFIX/leader      who leads; vanishes with the leader's lease
//! PREFIX/term        the last leadership's term
//! PREFIX/applied     TERM/NUMBER of the last change in effect
//! PREFIX/pending     a large change that is in effect, and staged
//! PREFIX/staged/...  the parts of large changes
//! PREFIX/state/...   records: see `layout`
//! ```
//!
//! Every write is a transaction that etcd refuses unless the leader's key is the one that this
//! leadership created, the term is its term, and the last change in effect is the one that it knows.
//! So a leader that lost its lease changes nothing, not even with a request that is still on its way,
//! and a request without answer can be made again until its outcome is known.
//!
//! A change that is too large for one transaction is staged in parts, and then put into effect by one:
//! it writes `pending`. Readers see what is pending as if it were written, whoever leads next writes
//! it, and parts that belong to nothing pending are removed.

mod client;
mod config;
mod election;
mod layout;
mod lease;
mod request;
mod tls;

use std::{
    collections::BTreeMap,
    fmt,
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{
    client::{Client, pb},
    layout::{Layout, Writes},
    request::{created_at, delete, delete_all, found, get, put, range_end, value_is},
};
pub use self::{
    config::{EtcdConfig, EtcdConfigError},
    election::{Candidate, Leader},
    lease::Lease,
};
use super::{Leadership, Store, StoreError, digest};
use crate::coordinator::{StoreOp, Stored};

/// Version of what is below the prefix.
const FORMAT: u32 = 1;

/// Most writes in one transaction: etcd takes 128 operations, some of which are the store's own.
const MOST_WRITES: usize = 100;

/// Most bytes of keys and values in one transaction: etcd takes 1.5 MiB.
const MOST_BYTES: usize = 1 << 20;

/// Longest part of a staged change, in bytes.
const STAGED_PART: usize = 512 << 10;

/// Records that are read at once; the largest have a few hundred kilobytes.
const PAGE: i64 = 500;

/// First and longest pause before a request is made again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));

/// The store on etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] EtcdConfigError),
    /// An endpoint is none.
    #[error("[etcd]: endpoint {endpoint}: {problem}; correct `endpoints` or the certificates")]
    Endpoint {
        /// Its URL.
        endpoint: String,
        /// What is wrong.
        problem: String,
    },
    /// No member answers, or too few are left.
    #[error(
        "{place}: does not answer ({problem}); see that most of its members run and can be reached, \
         and with https:// that `ca`, `certificate` and `key` in [etcd] are right"
    )]
    Unavailable {
        /// Which etcd.
        place: String,
        /// Why.
        problem: String,
    },
    /// etcd refuses a request.
    #[error(
        "{place}: refuses ({problem}); check user, roles and limits there, and [etcd] in the \
         controller's configuration"
    )]
    Refused {
        /// Which etcd.
        place: String,
        /// Why.
        problem: String,
    },
    /// This controller does not lead any longer.
    #[error("{place}: this controller does not lead any longer; another one goes on")]
    Lost {
        /// Which etcd.
        place: String,
    },
    /// Another controller leads.
    #[error("{place}: controller {leader} ({address}) leads; stop the controllers first")]
    Led {
        /// Which etcd.
        place: String,
        /// The leader's name.
        leader: String,
        /// Where it is.
        address: String,
    },
    /// It was written by another version.
    #[error(
        "{place}: has format version {found}, this natmig reads version {expected}; run the natmig \
         that wrote it, or choose another prefix"
    )]
    Version {
        /// Which etcd.
        place: String,
        /// Its version.
        found: String,
        /// The one that this program reads and writes.
        expected: u32,
    },
    /// Something in it cannot be read.
    #[error("{place}: {what} is damaged: {problem}; restore etcd from a snapshot")]
    Damaged {
        /// Which etcd.
        place: String,
        /// What.
        what: String,
        /// How.
        problem: String,
    },
}

impl EtcdError {
    /// Whether waiting may mend it.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Names of the keys.
#[derive(Clone, Debug)]
struct Keys {
    format: String,
    leader: String,
    term: String,
    applied: String,
    pending: String,
    staged: String,
    state: String,
}

impl Keys {
    fn new(prefix: &str) -> Self {
        Self {
            format: format!("{prefix}/format"),
            leader: format!("{prefix}/leader"),
            term: format!("{prefix}/term"),
            applied: format!("{prefix}/applied"),
            pending: format!("{prefix}/pending"),
            staged: format!("{prefix}/staged/"),
            state: format!("{prefix}/state/"),
        }
    }
}

/// Value of `applied`.
fn applied(term: u64, number: u64) -> String {
    format!("{term}/{number}")
}

/// Value of `pending`.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    /// Name of the change below `staged/`.
    change: String,
    parts: usize,
    /// SHA-256 of the parts together, in hexadecimal digits.
    sha256: String,
}

/// A store that this process leads. Its methods block, for no longer than the lease lasts.
#[derive(Debug)]
pub struct EtcdStore {
    session: Session,
    lease: Lease,
    runtime: tokio::runtime::Handle,
    layout: Layout,
    /// A large change that is in effect and not yet written.
    unwritten: Option<Writes>,
    /// Whether the election's term was asked for.
    term_begun: bool,
}

/// What the store's requests need.
#[derive(Clone, Debug)]
struct Session {
    client: Client,
    keys: Keys,
    lease: Lease,
    /// Revision at which this leadership's key came to be.
    revision: i64,
    term: u64,
    /// Number of the last change in effect.
    applied: u64,
}

impl EtcdStore {
    fn new(
        client: Client,
        keys: Keys,
        lease: Lease,
        revision: i64,
        term: u64,
    ) -> Result<Self, EtcdError> {
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|error| EtcdError::Unavailable {
                place: client.place().to_owned(),
                problem: error.to_string(),
            })?;
        Ok(Self {
            session: Session {
                client,
                keys,
                lease: lease.clone(),
                revision,
                term,
                applied: 0,
            },
            lease,
            runtime,
            layout: Layout::default(),
            unwritten: None,
            term_begun: false,
        })
    }

    /// The lease of this leadership.
    pub fn lease(&self) -> Lease {
        self.lease.clone()
    }

    /// Runs a request to its end on the runtime, while this thread waits. The request must have a
    /// time-out of its own.
    fn wait<T, F, Fut>(&self, request: F) -> Result<T, EtcdError>
    where
        T: Send + 'static,
        F: FnOnce(Session) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>> + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        let request = request(self.session.clone());
        self.runtime.spawn(async move {
            if sender.send(request.await).is_err() {
                tracing::debug!("nobody waits for etcd's answer any longer");
            }
        });
        receiver.recv().unwrap_or_else(|_| {
            Err(EtcdError::Unavailable {
                place: self.session.client.place().to_owned(),
                problem: "the program is ending".to_owned(),
            })
        })
    }

    /// Writes a large change that is in effect, if there is one.
    fn finish_writing(&mut self) -> Result<(), EtcdError> {
        let Some(writes) = self.unwritten.take() else {
            return Ok(());
        };
        let outcome = self.wait({
            let writes = writes.clone();
            |session| async move { session.write_pending(&writes).await }
        });
        if outcome.is_err() {
            self.unwritten = Some(writes);
        }
        outcome
    }

    fn read(&mut self) -> Result<Stored, EtcdError> {
        let place = self.session.client.place().to_owned();
        let (mut values, pending) = self.wait(|session| async move { session.read_all().await })?;
        if let Some(writes) = pending {
            overlay(&mut values, &writes);
            self.unwritten = Some(writes);
        }
        let stored = layout::stored(&values).map_err(|damaged| EtcdError::Damaged {
            place,
            what: damaged.what,
            problem: damaged.problem,
        })?;
        self.layout = Layout::of(&values);
        if self.unwritten.is_some() {
            tracing::info!("finishing a change that the leader before has begun to write");
            self.finish_writing()?;
        } else {
            self.wait(|session| async move { session.remove_staged().await })?;
        }
        Ok(stored)
    }

    fn change(&mut self, ops: &[StoreOp]) -> Result<(), EtcdError> {
        self.finish_writing()?;
        let change = self
            .layout
            .change(ops)
            .map_err(|error| EtcdError::Damaged {
                place: self.session.client.place().to_owned(),
                what: "a change".to_owned(),
                problem: error.to_string(),
            })?;
        let writes = change.writes.clone();
        if batches(&writes).len() > 1 {
            self.wait({
                let writes = writes.clone();
                |session| async move { session.stage(&writes).await }
            })?;
            self.unwritten = Some(writes);
        } else {
            self.wait(|session| async move { session.apply(&writes).await })?;
        }
        self.session.applied += 1;
        self.layout.changed(&change);
        Ok(())
    }

    fn raise_term(&mut self, at_least: u64) -> Result<u64, EtcdError> {
        if !self.term_begun && self.session.term >= at_least {
            self.term_begun = true;
            return Ok(self.session.term);
        }
        let term = at_least.max(self.session.term + 1);
        self.finish_writing()?;
        self.wait(|session| async move { session.raise_term(term).await })?;
        self.session.term = term;
        self.session.applied = 0;
        self.term_begun = true;
        Ok(term)
    }
}

impl Store for EtcdStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        Ok(self.read()?)
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        Ok(self.change(ops)?)
    }

    fn begin_term(&mut self, at_least: u64) -> Result<u64, StoreError> {
        Ok(self.raise_term(at_least)?)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        Ok(self.wait(|session| async move { session.confirm().await })?)
    }

    fn leadership(&self) -> Leadership {
        Leadership::of(self.lease.clone())
    }
}

/// Puts writes over values.
fn overlay(values: &mut BTreeMap<String, String>, writes: &Writes) {
    for (key, value) in writes {
        match value {
            Some(value) => values.insert(key.clone(), value.clone()),
            None => values.remove(key),
        };
    }
}

/// Cuts writes so that each part fits in one transaction; one part at least.
fn batches(writes: &Writes) -> Vec<Vec<(&String, &Option<String>)>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for (key, value) in writes {
        let size = key.len() + value.as_ref().map_or(0, String::len);
        if let Some(batch) = batches.last_mut()
            && batch.len() < MOST_WRITES
            && (bytes + size <= MOST_BYTES || batch.is_empty())
        {
            batch.push((key, value));
            bytes += size;
        } else {
            batches.push(vec![(key, value)]);
            bytes = size;
        }
    }
    batches
}

impl Session {
    fn place(&self) -> String {
        self.client.place().to_owned()
    }

    fn lost(&self) -> EtcdError {
        EtcdError::Lost {
            place: self.place(),
        }
    }

    fn damaged(&self, what: &str, problem: &dyn fmt::Display) -> EtcdError {
        EtcdError::Damaged {
            place: self.place(),
            what: what.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// What must hold for anything to be written.
    fn guard(&self) -> Vec<pb::Compare> {
        vec![
            created_at(&self.keys.leader, self.revision),
            value_is(&self.keys.term, &self.term.to_string()),
            value_is(&self.keys.applied, &applied(self.term, self.applied)),
        ]
    }

    /// A transaction under the guard, made again until its outcome is known or the lease is over.
    /// `result` is the value of `applied` by which it is known that an attempt without answer
    /// succeeded.
    async fn guarded(
        &self,
        success: Vec<pb::RequestOp>,
        result: &str,
    ) -> Result<pb::TxnResponse, EtcdError> {
        let request = pb::TxnRequest {
            compare: self.guard(),
            success,
            failure: vec![
                get(&self.keys.leader),
                get(&self.keys.term),
                get(&self.keys.applied),
            ],
        };
        let (mut pause, longest) = PAUSES;
        let begun = Instant::now();
        let mut attempts = 0_u32;
        while self.lease.lasts() {
            attempts += 1;
            match self.client.txn(request.clone()).await {
                Ok(answer) if answer.succeeded => {
                    if attempts > 1 {
                        tracing::info!(attempts, took = ?begun.elapsed(), "etcd took a change");
                    }
                    return Ok(answer);
                }
                Ok(answer) => {
                    let values: Vec<_> = found(answer);
                    let is = |at: usize, value: &str| {
                        values
                            .get(at)
                            .and_then(Option::as_ref)
                            .is_some_and(|kv| kv.value == value.as_bytes())
                    };
                    let leads = values
                        .first()
                        .and_then(Option::as_ref)
                        .is_some_and(|kv| kv.create_revision == self.revision);
                    if !leads {
                        return Err(self.lost());
                    }
                    if is(2, result) {
                        // An attempt without answer has succeeded.
                        return Ok(pb::TxnResponse {
                            succeeded: true,
                            ..pb::TxnResponse::default()
                        });
                    }
                    return Err(self.damaged(
                        "the record of the last change",
                        &"something but the leader has written below the prefix",
                    ));
                }
                Err(error) if error.is_transient() => {
                    if attempts == 1 {
                        tracing::warn!(%error, "a change has no outcome yet; trying again");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
                Err(error) => return Err(error),
            }
        }
        Err(self.lost())
    }

    /// Puts a small change into effect.
    async fn apply(&self, writes: &Writes) -> Result<(), EtcdError> {
        let result = applied(self.term, self.applied + 1);
        let mut ops = self.ops(writes);
        ops.push(put(&self.keys.applied, &result, 0));
        self.guarded(ops, &result).await?;
        Ok(())
    }

    fn ops<'a>(
        &self,
        writes: impl IntoIterator<Item = (&'a String, &'a Option<String>)>,
    ) -> Vec<pb::RequestOp> {
        let writes = writes.into_iter().map(|(key, value)| {
            let key = format!("{}{key}", self.keys.state);
            match value {
                Some(value) => put(&key, value, 0),
                None => delete(&key),
            }
        });
        writes.collect()
    }

    /// Puts a large change into effect, which is then pending.
    async fn stage(&self, writes: &Writes) -> Result<(), EtcdError> {
        let present = applied(self.term, self.applied);
        let result = applied(self.term, self.applied + 1);
        let text =
            serde_json::to_string(writes).map_err(|error| self.damaged("a change", &error))?;
        let change = format!("{}-{}", self.term, self.applied + 1);
        let mut count = 0;
        for part in layout::parts(&text, STAGED_PART) {
            let key = self.staged_part(&change, count);
            self.guarded(vec![put(&key, part, 0)], &present).await?;
            count += 1;
        }
        let pending = Pending {
            change,
            parts: count,
            sha256: digest(&text),
        };
        let pending =
            serde_json::to_string(&pending).map_err(|error| self.damaged("a change", &error))?;
        let decision = vec![
            put(&self.keys.pending, &pending, 0),
            put(&self.keys.applied, &result, 0),
        ];
        self.guarded(decision, &result).await?;
        Ok(())
    }

    fn staged_part(&self, change: &str, number: usize) -> String {
        format!("{}{change}/{number:06}", self.keys.staged)
    }

    /// Writes what is pending: in any order and as often as it takes, since it is in effect.
    async fn write_pending(&self, writes: &Writes) -> Result<(), EtcdError> {
        let present = applied(self.term, self.applied);
        for batch in batches(writes) {
            self.guarded(self.ops(batch), &present).await?;
        }
        let finish = vec![delete(&self.keys.pending), delete_all(&self.keys.staged)];
        self.guarded(finish, &present).await?;
        Ok(())
    }

    /// Removes the parts of changes that never came into effect.
    async fn remove_staged(&self) -> Result<(), EtcdError> {
        let present = applied(self.term, self.applied);
        self.guarded(vec![delete_all(&self.keys.staged)], &present)
            .await?;
        Ok(())
    }

    async fn raise_term(&self, term: u64) -> Result<(), EtcdError> {
        let result = applied(term, 0);
        let raise = vec![
            put(&self.keys.term, &term.to_string(), 0),
            put(&self.keys.applied, &result, 0),
        ];
        self.guarded(raise, &result).await?;
        Ok(())
    }

    /// Reads, from a majority of etcd, that this leadership lasts.
    async fn confirm(&self) -> Result<(), EtcdError> {
        let present = applied(self.term, self.applied);
        self.guarded(vec![get(&self.keys.term)], &present).await?;
        Ok(())
    }

    /// All records as of one moment, and the change that is pending.
    async fn read_all(&self) -> Result<(BTreeMap<String, String>, Option<Writes>), EtcdError> {
        let present = applied(self.term, self.applied);
        let answer = self
            .guarded(vec![get(&self.keys.pending)], &present)
            .await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let pending = match found(answer).into_iter().flatten().next() {
            None => None,
            Some(kv) => Some(self.read_pending(&kv.value, revision).await?),
        };
        let values = self.read_below(&self.keys.state, revision).await?;
        Ok((values, pending))
    }

    async fn read_pending(&self, value: &[u8], revision: i64) -> Result<Writes, EtcdError> {
        const WHAT: &str = "a pending change";
        let pending: Pending =
            serde_json::from_slice(value).map_err(|error| self.damaged(WHAT, &error))?;
        let base = format!("{}{}/", self.keys.staged, pending.change);
        let parts = self.read_below(&base, revision).await?;
        let text: String = parts.into_values().collect();
        if digest(&text) != pending.sha256 {
            return Err(self.damaged(
                WHAT,
                &format!("its {} parts do not make a whole", pending.parts),
            ));
        }
        serde_json::from_str(&text).map_err(|error| self.damaged(WHAT, &error))
    }

    /// Everything below a prefix, by what follows it, as of a revision.
    async fn read_below(
        &self,
        prefix: &str,
        revision: i64,
    ) -> Result<BTreeMap<String, String>, EtcdError> {
        let mut values = BTreeMap::new();
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let request = pb::RangeRequest {
                key: from.clone(),
                range_end: range_end(prefix),
                limit: PAGE,
                revision,
                keys_only: false,
            };
            let page = self.again(request).await?;
            for kv in page.kvs {
                from.clone_from(&kv.key);
                from.push(0);
                let key =
                    String::from_utf8(kv.key).map_err(|error| self.damaged("a key", &error))?;
                let value =
                    String::from_utf8(kv.value).map_err(|error| self.damaged(&key, &error))?;
                let key = key.strip_prefix(prefix).unwrap_or(&key).to_owned();
                values.insert(key, value);
            }
            if !page.more {
                return Ok(values);
            }
        }
    }

    /// Reads, again after a failure, until the lease is over.
    async fn again(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        let (mut pause, longest) = PAUSES;
        while self.lease.lasts() {
            match self.client.range(request.clone()).await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "reading again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
                outcome => return outcome,
            }
        }
        Err(self.lost())
    }
}
