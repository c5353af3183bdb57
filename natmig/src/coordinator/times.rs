//! Times: who is waited for and how long, when a migration goes on by itself, and when locators may
//! be given out again.

use std::{net::IpAddr, time::Duration};

use super::{
    Action, Config, Coordinator, Phase, Quarantined, StoreOp, Timestamp, Unreachable,
    state::{Actions, Connection, Migration},
};
use crate::{names::RouterName, rule::TransactionId};

impl Coordinator {
    pub(super) fn quarantine_new(
        &mut self,
        now: Timestamp,
        migration: &Migration,
        ops: &mut Vec<StoreOp>,
    ) {
        let moves = migration.record.moves.iter();
        let new = moves.flat_map(|step| step.new_locators().iter());
        self.quarantine(now, new, ops);
    }

    pub(super) fn quarantine(
        &mut self,
        now: Timestamp,
        locators: impl Iterator<Item = IpAddr>,
        ops: &mut Vec<StoreOp>,
    ) {
        let quarantine = self
            .topology
            .as_ref()
            .map_or_else(Default::default, |topology| topology.quarantine);
        let until = now.after(quarantine);
        for locator in locators {
            self.quarantined.insert((until, locator));
            ops.push(StoreOp::PutQuarantined(Quarantined { locator, until }));
        }
    }

    /// Locators whose quarantine is over may be given out again.
    pub(super) fn end_quarantines(&mut self, now: Timestamp, out: &mut Actions) {
        let mut ops = Vec::new();
        while let Some(over) = self.quarantined.first().copied() {
            let (until, locator) = over;
            if until > now {
                break;
            }
            self.quarantined.remove(&over);
            self.used.remove(&locator);
            ops.push(StoreOp::DeleteQuarantined(locator));
        }
        if !ops.is_empty() {
            out.push(Action::Store(ops));
        }
    }

    /// Whether a router that has not done its part for a migration does that of others before it:
    /// it carries out its commands in order, and was heard lately.
    pub(super) fn is_at_work(
        &self,
        now: Timestamp,
        migration: &Migration,
        router: &RouterName,
        patience: Duration,
    ) -> bool {
        let is_told = migration
            .participants
            .get(router)
            .is_some_and(|participant| participant.sent.is_some());
        let was_heard = |connection: &Connection| connection.heard.after(patience) > now;
        is_told && self.connection(router).is_some_and(was_heard)
    }

    /// Sets the deadline of the phase that a migration has entered.
    pub(super) fn set_deadline(&self, migration: &mut Migration, now: Timestamp) {
        let Config {
            prepare_deadline,
            commit_deadline,
            ..
        } = self.config;
        migration.deadline = match (migration.phase(), migration.record.unreachable) {
            (Phase::Preparing, Unreachable::Abort) => Some(now.after(prepare_deadline)),
            (Phase::Committing, _) => Some(now.after(commit_deadline)),
            _ => None,
        };
    }

    /// Notes when a migration goes on by itself.
    pub(super) fn set_alarm(&mut self, now: Timestamp, id: TransactionId) {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return;
        };
        let drain = migration
            .record
            .drain_until
            .filter(|_| migration.phase() == Phase::Draining);
        let retries = migration
            .participants
            .values()
            .filter_map(|participant| participant.retry_at);
        let times = migration.deadline.into_iter().chain(drain).chain(retries);
        let alarm = times
            .filter(|at| *at > now && self.active.contains(&id))
            .min();
        let before = std::mem::replace(&mut migration.alarm, alarm);
        if before != alarm {
            if let Some(before) = before {
                self.alarms.remove(&(before, id));
            }
            self.alarms.extend(alarm.map(|at| (at, id)));
        }
    }
}
