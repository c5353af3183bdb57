//! One router's tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    coordinator::{Announced, Command, Failure, Held, HeldState, Reply, Report, Timestamp},
    digest::TableDigest,
    names::SegmentName,
    rule::{Changes, MacAddress, Rule, TransactionId},
};

#[derive(Clone, Debug)]
struct Entry {
    current: Rule,
    pending: Option<(TransactionId, Rule)>,
    /// The transaction that put `current` in at prepare.
    early: Option<TransactionId>,
}

/// A VM that a router listens for.
#[derive(Clone, Debug)]
struct Awaited {
    segment: SegmentName,
    heard: Option<Timestamp>,
}

/// A router that does what it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelRouter {
    entries: BTreeMap<IpAddr, Entry>,
    held: BTreeMap<TransactionId, HeldState>,
    awaited: BTreeMap<(TransactionId, MacAddress), Awaited>,
    /// It booted and has no table yet, so it is not attached and attracts no traffic.
    pub(crate) booting: bool,
    /// It is taken out of the fabric.
    pub(crate) detached: bool,
    pub(crate) segments: BTreeSet<SegmentName>,
    /// The next prepare fails.
    pub(crate) fail_prepare: bool,
}

impl ModelRouter {
    /// An empty router that serves these segments.
    pub(crate) fn new(segments: BTreeSet<SegmentName>) -> Self {
        Self {
            segments,
            ..Self::default()
        }
    }

    /// Whether packets may come this way.
    pub(crate) fn forwards(&self) -> bool {
        !self.booting && !self.detached
    }

    /// The rule that counts.
    pub(crate) fn rule(&self, address: IpAddr) -> &Rule {
        let Some(entry) = self.entries.get(&address) else {
            return &Rule::Absent;
        };
        match &entry.pending {
            Some((id, rule)) if matches!(self.held.get(id), Some(HeldState::Committed { .. })) => {
                rule
            }
            Some(_) | None => &entry.current,
        }
    }

    /// Every rule for an address, whether it counts or not.
    pub(crate) fn all_rules(&self, address: IpAddr) -> Vec<&Rule> {
        self.entries
            .get(&address)
            .into_iter()
            .flat_map(|entry| {
                std::iter::once(&entry.current).chain(entry.pending.as_ref().map(|(_, rule)| rule))
            })
            .collect()
    }

    /// Addresses that have an entry.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.entries.keys().copied().collect()
    }

    pub(crate) fn holds(&self, id: TransactionId) -> bool {
        self.held.contains_key(&id)
    }

    pub(crate) fn held_count(&self) -> usize {
        self.held.len()
    }

    /// The table as it was before the transactions held.
    pub(crate) fn table(&self) -> BTreeMap<IpAddr, Rule> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.early.is_none() && entry.current != Rule::Absent)
            .map(|(address, entry)| (*address, entry.current.clone()))
            .collect()
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            held: self
                .held
                .iter()
                .map(|(id, state)| Held {
                    id: *id,
                    state: *state,
                })
                .collect(),
            digest: TableDigest::of(self.table().iter().map(|(address, rule)| (*address, rule))),
            segments: self.segments.clone(),
        }
    }

    /// It loses everything and starts again.
    pub(crate) fn reboot(&mut self) {
        *self = Self {
            booting: true,
            detached: self.detached,
            segments: self.segments.clone(),
            ..Self::default()
        };
    }

    pub(crate) fn execute(&mut self, now: Timestamp, command: Command) -> Reply {
        match command {
            Command::SetPools { .. } => Reply::PoolsSet,
            Command::Attach => {
                self.booting = false;
                Reply::Attached
            }
            Command::Prepare {
                id,
                changes,
                await_announcements,
            } => self.prepare(id, changes, await_announcements),
            Command::Commit { id } => {
                self.stop_awaiting(id);
                self.commit(now, id)
            }
            Command::Abort { id } => {
                self.stop_awaiting(id);
                assert!(
                    !matches!(self.held.remove(&id), Some(HeldState::Committed { .. })),
                    "transaction {id} is aborted after its commit"
                );
                self.entries.retain(|_, entry| {
                    if entry
                        .pending
                        .as_ref()
                        .is_some_and(|(other, _)| *other == id)
                    {
                        entry.pending = None;
                        return entry.current != Rule::Absent;
                    }
                    entry.early != Some(id)
                });
                Reply::Aborted(id)
            }
            Command::Fold { id } => {
                if let Some(state) = self.held.remove(&id) {
                    assert_ne!(
                        state,
                        HeldState::Prepared,
                        "transaction {id} is folded before its commit"
                    );
                    self.entries.retain(|_, entry| {
                        if entry.early == Some(id) {
                            entry.early = None;
                        }
                        match entry.pending.take_if(|(other, _)| *other == id) {
                            // What is not known any more has no entry from now on.
                            Some((_, rule)) => {
                                entry.current = rule;
                                entry.current != Rule::Absent
                            }
                            None => true,
                        }
                    });
                }
                Reply::Folded(id)
            }
            Command::Retire { id, addresses } => {
                for address in addresses {
                    if let Some(entry) = self.entries.remove(&address) {
                        assert!(
                            entry.pending.is_none() && entry.early.is_none(),
                            "{address} is retired while a transaction holds it"
                        );
                    }
                }
                Reply::Retired(id)
            }
            Command::Replace {
                version,
                parts,
                rules,
            } => {
                self.entries.retain(|address, entry| {
                    !parts.contains(*address) || entry.pending.is_some() || entry.early.is_some()
                });
                for change in rules {
                    self.entries.entry(change.address).or_insert(Entry {
                        current: change.rule,
                        pending: None,
                        early: None,
                    });
                }
                Reply::Replaced(version)
            }
        }
    }

    /// A VM speaks in a segment, at `now`.
    pub(crate) fn hear(&mut self, mac: MacAddress, segment: &SegmentName, now: Timestamp) {
        for ((_, awaited_mac), awaited) in &mut self.awaited {
            if *awaited_mac == mac && awaited.segment == *segment {
                awaited.heard.get_or_insert(now);
            }
        }
    }

    /// The VMs that were heard, as it tells them whenever it connects.
    pub(crate) fn heard(&self) -> Vec<Announced> {
        let heard = |((id, mac), awaited): (&(TransactionId, MacAddress), &Awaited)| {
            let (id, mac) = (*id, *mac);
            awaited.heard.map(|at| Announced { id, mac, at })
        };
        self.awaited.iter().filter_map(heard).collect()
    }

    fn stop_awaiting(&mut self, id: TransactionId) {
        self.awaited.retain(|(other, _), _| *other != id);
    }

    fn prepare(&mut self, id: TransactionId, changes: Changes, awaits: bool) -> Reply {
        if self.held.contains_key(&id) {
            return Reply::Prepared(id);
        }
        if std::mem::take(&mut self.fail_prepare) {
            return Reply::Failed {
                command: crate::coordinator::CommandRef::Prepare(id),
                failure: Failure::Other("no room".to_owned()),
            };
        }
        for change in changes.early {
            let old = self.entries.insert(
                change.address,
                Entry {
                    current: change.rule.clone(),
                    pending: None,
                    early: Some(id),
                },
            );
            assert!(
                old.is_none_or(|old| old.current == change.rule && old.pending.is_none()),
                "locator {} is used twice",
                change.address
            );
        }
        for change in changes.pending {
            if let Rule::Local { at, .. } = &change.rule
                && awaits
            {
                let awaited = Awaited {
                    segment: at.segment.clone(),
                    heard: None,
                };
                self.awaited.insert((id, at.mac), awaited);
            }
            let entry = self.entries.entry(change.address).or_insert(Entry {
                current: Rule::Absent,
                pending: None,
                early: None,
            });
            assert!(
                entry.pending.is_none() && entry.early.is_none(),
                "{} is in two transactions",
                change.address
            );
            entry.pending = Some((id, change.rule));
        }
        self.held.insert(id, HeldState::Prepared);
        Reply::Prepared(id)
    }

    fn commit(&mut self, now: Timestamp, id: TransactionId) -> Reply {
        match self.held.get_mut(&id) {
            None => Reply::Failed {
                command: crate::coordinator::CommandRef::Commit(id),
                failure: Failure::UnknownTransaction,
            },
            Some(state) => {
                if *state == HeldState::Prepared {
                    *state = HeldState::Committed { at: now };
                }
                let at = match state {
                    HeldState::Committed { at } => *at,
                    HeldState::Prepared => now,
                };
                Reply::Committed {
                    id,
                    at,
                    grace: std::time::Duration::from_micros(3),
                }
            }
        }
    }
}
