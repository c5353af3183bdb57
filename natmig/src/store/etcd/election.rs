//! Election: whoever creates the leader's key, with its lease, leads. The transaction that creates it
//! raises the term.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    EtcdError, EtcdStore, FORMAT, Keys,
    client::{Client, pb},
    config::EtcdConfig,
    lease::Lease,
    request::{created_at, found, get, put, value_is},
};

/// How often a standby looks for the leader, in parts of the lease; see [`look_interval`].
const LOOKS: u32 = 20;

/// Longest pause between two attempts to reach etcd.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A controller that leads, as it made itself known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its name.
    pub name: String,
    /// URL at which agents and commands reach it.
    pub address: String,
    /// The term of its leadership.
    pub term: u64,
}

/// A controller that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    client: Client,
    keys: Keys,
    lease: Duration,
    name: String,
    address: String,
    /// The leader, as far as known.
    leader: watch::Sender<Option<Leader>>,
}

/// What a candidate finds.
struct Present {
    leader: Option<pb::KeyValue>,
    term: Option<u64>,
    /// The term's value, as it is compared.
    raw_term: Option<pb::KeyValue>,
}

/// What came of an attempt to become leader.
pub(super) enum Attempt {
    Won(Box<EtcdStore>),
    /// Another one leads, with this lease.
    Lost {
        leader: Leader,
        lease: i64,
    },
}

fn look_interval(lease: Duration) -> Duration {
    (lease / LOOKS).clamp(Duration::from_millis(50), Duration::from_millis(500))
}

impl Candidate {
    /// Connects when it is first used. `name` and `address` are what others are told of it.
    pub fn new(config: &EtcdConfig, name: &str, address: &str) -> Result<Self, EtcdError> {
        Ok(Self {
            client: Client::new(config)?,
            keys: Keys::new(&config.prefix),
            lease: config.lease,
            name: name.to_owned(),
            address: address.to_owned(),
            leader: watch::channel(None).0,
        })
    }

    /// The other controller that leads, as it changes; `None` while that is not known.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.subscribe()
    }

    /// Waits until this controller leads. Only what waiting does not mend is an error. The lease of a
    /// former leadership is given back first, if etcd still has it.
    pub async fn lead(&self, former: Option<&Lease>) -> Result<EtcdStore, EtcdError> {
        let interval = look_interval(self.lease);
        let mut pause = interval;
        let mut said = false;
        // Kept between attempts: should one succeed of which no answer came, it is recognised.
        let mut lease = None;
        loop {
            match self.attempt(&mut lease).await {
                Ok(Attempt::Won(store)) => {
                    self.leader.send_replace(None);
                    return Ok(*store);
                }
                Ok(Attempt::Lost { lease, .. })
                    if former.is_some_and(|former| former.id() == lease) =>
                {
                    if let Some(former) = former {
                        former.revoke().await;
                    }
                }
                Ok(Attempt::Lost { leader, .. }) => {
                    pause = interval;
                    said = false;
                    self.leader.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&leader);
                        if changed {
                            tracing::info!(
                                leader = leader.name,
                                address = leader.address,
                                term = leader.term,
                                "standing by"
                            );
                            *known = Some(leader);
                        }
                        changed
                    });
                }
                Err(error) if error.is_transient() => {
                    if !said {
                        tracing::warn!(%error, "cannot ask who leads; trying again");
                        said = true;
                    }
                    self.leader.send_replace(None);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Leads if nobody does, else says who does.
    pub async fn lead_unless_led(&self) -> Result<EtcdStore, EtcdError> {
        let mut lease = None;
        match self.attempt(&mut lease).await? {
            Attempt::Won(store) => Ok(*store),
            Attempt::Lost { leader, .. } => Err(EtcdError::Led {
                place: self.client.place().to_owned(),
                leader: leader.name,
                address: leader.address,
            }),
        }
    }

    /// One attempt. A lease that is kept from an earlier one tells whether that one succeeded.
    async fn attempt(&self, kept: &mut Option<Lease>) -> Result<Attempt, EtcdError> {
        let present = self.look().await?;
        if let Some(key) = &present.leader {
            let mine = kept
                .as_ref()
                .filter(|lease| lease.id() == key.lease && lease.lasts());
            return match (mine, present.term) {
                (Some(lease), Some(term)) => Ok(Attempt::Won(Box::new(self.won(
                    lease,
                    key.create_revision,
                    term,
                )?))),
                _ => self.lost_to(key),
            };
        }
        let lease = match kept.take().filter(Lease::lasts) {
            Some(lease) => lease,
            None => Lease::grant(&self.client, self.lease).await?,
        };
        *kept = Some(lease.clone());
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let term = seconds.max(present.term.unwrap_or_default() + 1);
        let keys = &self.keys;
        let unchanged = match &present.raw_term {
            Some(kv) => value_is(&keys.term, &String::from_utf8_lossy(&kv.value)),
            None => created_at(&keys.term, 0),
        };
        let leader = Leader {
            name: self.name.clone(),
            address: self.address.clone(),
            term,
        };
        let leader = serde_json::to_string(&leader).map_err(|error| EtcdError::Damaged {
            place: self.client.place().to_owned(),
            what: "this controller's name or address".to_owned(),
            problem: error.to_string(),
        })?;
        let request = pb::TxnRequest {
            compare: vec![created_at(&keys.leader, 0), unchanged],
            success: vec![
                put(&keys.leader, &leader, lease.id()),
                put(&keys.term, &term.to_string(), 0),
                put(&keys.applied, &super::applied(term, 0), 0),
                put(&keys.format, &FORMAT.to_string(), 0),
            ],
            failure: vec![get(&keys.leader)],
        };
        let answer = self.client.txn(request).await?;
        if answer.succeeded {
            let revision = answer.header.map_or(0, |header| header.revision);
            return Ok(Attempt::Won(Box::new(self.won(&lease, revision, term)?)));
        }
        match found(answer).into_iter().flatten().next() {
            Some(key) if key.lease != lease.id() => self.lost_to(&key),
            // Looked at again: an earlier attempt has succeeded, or the leader is gone already.
            _ => Err(EtcdError::Unavailable {
                place: self.client.place().to_owned(),
                problem: "the election is not over".to_owned(),
            }),
        }
    }

    /// The leader's key, and the term; refuses a store of another version.
    async fn look(&self) -> Result<Present, EtcdError> {
        let keys = &self.keys;
        let request = pb::TxnRequest {
            compare: Vec::new(),
            success: vec![get(&keys.leader), get(&keys.term), get(&keys.format)],
            failure: Vec::new(),
        };
        let mut found = found(self.client.txn(request).await?).into_iter();
        let leader = found.next().flatten();
        let raw_term = found.next().flatten();
        let format = found.next().flatten();
        if let Some(format) = &format {
            let text = String::from_utf8_lossy(&format.value);
            if text != FORMAT.to_string() {
                return Err(EtcdError::Version {
                    place: self.client.place().to_owned(),
                    found: text.into_owned(),
                    expected: FORMAT,
                });
            }
        }
        let term = raw_term.as_ref().map(|kv| {
            let text = String::from_utf8_lossy(&kv.value);
            text.parse().map_err(|_| EtcdError::Damaged {
                place: self.client.place().to_owned(),
                what: format!("the term `{text}`"),
                problem: "it is no number".to_owned(),
            })
        });
        Ok(Present {
            leader,
            term: term.transpose()?,
            raw_term,
        })
    }

    fn lost_to(&self, key: &pb::KeyValue) -> Result<Attempt, EtcdError> {
        let leader = serde_json::from_slice(&key.value).map_err(|error| EtcdError::Damaged {
            place: self.client.place().to_owned(),
            what: "the leader's key".to_owned(),
            problem: error.to_string(),
        })?;
        Ok(Attempt::Lost {
            leader,
            lease: key.lease,
        })
    }

    fn won(&self, lease: &Lease, revision: i64, term: u64) -> Result<EtcdStore, EtcdError> {
        tracing::info!(term, name = self.name, "leading");
        EtcdStore::new(
            self.client.clone(),
            self.keys.clone(),
            lease.clone(),
            revision,
            term,
        )
    }
}
