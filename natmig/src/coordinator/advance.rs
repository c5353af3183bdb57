//! Migrations: takes each as far as what is known of the routers allows.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Action, Activation, Command, CommandRef, Coordinator, Phase, Progress, StoreOp, Timestamp,
    state::{Actions, Migration},
};
use crate::{
    names::RouterName,
    planner::{Plan, VmState},
    rule::TransactionId,
};

/// VMs from which on a group is large.
const LARGE_GROUP: usize = 100;

impl Coordinator {
    /// Something has happened that any migration may have waited for.
    pub(super) fn all_are_due(&mut self) {
        self.due.extend(&self.active);
    }

    /// Takes every migration to which something has happened as far as it goes, tells watchers, and
    /// asks to be woken for the next deadline. Others are not looked at: with a thousand under way,
    /// most events are one router's word on one of them.
    pub(super) fn advance_due(&mut self, now: Timestamp, out: &mut Actions) {
        self.end_quarantines(now, out);
        while let Some((at, id)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, id));
            self.due.insert(id);
        }
        let mut seen = BTreeSet::new();
        while let Some(id) = self.due.pop_first() {
            while self.advance(now, id, out) {}
            seen.insert(id);
        }
        for id in seen {
            self.tell_watchers(id, out);
            self.set_alarm(now, id);
        }
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let quarantine = self.quarantined.first().map(|(until, _)| *until);
        if let Some(at) = alarm.into_iter().chain(quarantine).min() {
            out.push(Action::Wake(at));
        }
    }

    /// Takes a migration one step further; false if it has to wait.
    fn advance(&mut self, now: Timestamp, id: TransactionId, out: &mut Actions) -> bool {
        // It is out of the map meanwhile, so that the rest of the machine can be asked.
        let Some(mut migration) = self.migrations.remove(&id) else {
            return false;
        };
        let moved = match migration.phase() {
            Phase::Preparing => self.advance_preparing(now, &mut migration, out),
            Phase::Prepared => self.advance_prepared(now, &mut migration, out),
            Phase::Committing => self.advance_committing(now, &mut migration, out),
            Phase::Committed => self.advance_committed(now, &mut migration, out),
            Phase::Folding => self.advance_folding(now, &mut migration, out),
            Phase::Draining => self.advance_draining(now, &mut migration, out),
            Phase::Retiring => self.advance_retiring(now, &mut migration, out),
            Phase::Aborting => self.advance_aborting(now, &mut migration, out),
            Phase::Done => false,
            Phase::Aborted => self.advance_aborted(now, &mut migration, out),
        };
        let active = migration.is_active();
        self.migrations.insert(id, migration);
        if !active && self.active.contains(&id) {
            self.tell_watchers(id, out);
            self.active.remove(&id);
            self.forget_old(out);
        }
        moved
    }

    fn advance_preparing(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let needed = self.needed();
        for router in &needed {
            if migration.progress(router) == Progress::Waiting {
                self.send_prepare(now, migration, router, out);
            }
        }
        if self.all_prepared(migration, &needed) {
            migration.enter(Phase::Prepared, now);
            if !migration.record.activated {
                out.push(Action::Store(vec![migration.stored()]));
            }
            return true;
        }
        if migration.deadline.is_some_and(|deadline| deadline <= now) {
            let patience = self.config.prepare_deadline;
            let silent: Vec<_> = needed
                .iter()
                .filter(|router| {
                    migration.progress(router) != Progress::Prepared
                        && !self.is_at_work(now, migration, router, patience)
                })
                .map(RouterName::as_str)
                .collect();
            if silent.is_empty() {
                self.set_deadline(migration, now);
                return false;
            }
            let error = format!(
                "not prepared in time: {}; mend the router or its agent, or drain it, and migrate again",
                silent.join(", ")
            );
            Self::enter_aborting(now, migration, error, out);
            return true;
        }
        false
    }

    /// Whether every needed router holds the transaction, and can be told to commit it.
    fn all_prepared(&self, migration: &Migration, needed: &[RouterName]) -> bool {
        needed.iter().all(|router| {
            migration.progress(router) == Progress::Prepared && self.settled(router).is_some()
        })
    }

    fn advance_prepared(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        if !self.all_prepared(migration, &self.needed()) {
            migration.enter(Phase::Preparing, now);
            self.set_deadline(migration, now);
            return true;
        }
        if migration.record.activated {
            migration.enter(Phase::Committing, now);
            migration.stage = 0;
            self.set_deadline(migration, now);
            out.push(Action::Store(vec![migration.stored()]));
            return true;
        }
        false
    }

    fn advance_committing(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let needed: BTreeSet<_> = self.needed().into_iter().collect();
        self.drive_commits(now, migration, &needed, out);
        let Some(stage) = migration.stages.stages.get(migration.stage) else {
            migration.enter(Phase::Committed, now);
            if !needed.iter().all(|router| migration.has_committed(router)) {
                // It may stay so for long: what is known of the commits survives a restart.
                out.push(Action::Store(vec![migration.stored()]));
            }
            return true;
        };
        let silent: Vec<_> = stage
            .intersection(&needed)
            .filter(|router| {
                !migration.has_committed(router)
                    && !migration
                        .participants
                        .get(*router)
                        .is_some_and(|participant| participant.passed_over)
            })
            .cloned()
            .collect();
        if !silent.is_empty() {
            if migration.deadline.is_none_or(|deadline| deadline > now) {
                return false;
            }
            let patience = self.config.commit_deadline;
            let (at_work, silent): (Vec<_>, Vec<_>) = silent
                .into_iter()
                .partition(|router| self.is_at_work(now, migration, router, patience));
            for router in silent {
                migration.participant(&router).passed_over = true;
                migration.changed = true;
            }
            if !at_work.is_empty() {
                self.set_deadline(migration, now);
                return false;
            }
        }
        migration.stage += 1;
        self.set_deadline(migration, now);
        true
    }

    fn advance_committed(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let needed: BTreeSet<_> = self.needed().into_iter().collect();
        self.drive_commits(now, migration, &needed, out);
        if !needed.iter().all(|router| migration.has_committed(router)) {
            return false;
        }
        // Success is told before the disk is asked again: the decision is durable.
        migration.changed = false;
        out.push(Action::Update(Box::new(self.view_of(migration))));
        migration.enter(Phase::Folding, now);
        let mut ops = vec![migration.stored()];
        for step in &migration.record.moves {
            self.vms
                .insert(step.after.vm.name.clone(), step.after.clone());
            ops.push(StoreOp::PutVm(step.after.clone()));
        }
        out.push(Action::Store(ops));
        true
    }

    /// Commits on the routers of all open stages, and catches up those that lost the transaction.
    fn drive_commits(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        needed: &BTreeSet<RouterName>,
        out: &mut Actions,
    ) {
        let open: Vec<_> = migration
            .stages
            .stages
            .iter()
            .take(migration.stage.saturating_add(1))
            .flatten()
            .filter(|router| needed.contains(*router))
            .cloned()
            .collect();
        for router in open {
            match migration.progress(&router) {
                Progress::Waiting => self.send_prepare(now, migration, &router, out),
                Progress::Prepared => {
                    let id = migration.record.id;
                    if self.may_commit(migration, &router) {
                        self.send(now, migration, &router, CommandRef::Commit(id), out, |_| {
                            Command::Commit { id }
                        });
                    }
                }
                Progress::Committed { .. }
                | Progress::Folded { .. }
                | Progress::Retired { .. }
                | Progress::Aborted => migration.participant(&router).passed_over = false,
            }
        }
    }

    fn advance_folding(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let id = migration.record.id;
        let needed = self.needed();
        for router in &needed {
            if matches!(migration.progress(router), Progress::Committed { .. }) {
                self.send(now, migration, router, CommandRef::Fold(id), out, |_| {
                    Command::Fold { id }
                });
            }
        }
        if !needed.iter().all(|router| {
            matches!(
                migration.progress(router),
                Progress::Folded { .. } | Progress::Retired { .. }
            )
        }) {
            return false;
        }
        self.free_vms(now, migration);
        let drains = migration
            .record
            .moves
            .iter()
            .any(|step| !step.old_locators().is_empty());
        if drains {
            let drain = self
                .topology
                .as_ref()
                .map_or_else(Default::default, |topology| topology.drain);
            migration.enter(Phase::Draining, now);
            migration.record.drain_until = Some(now.after(drain));
        } else {
            migration.enter(Phase::Done, now);
        }
        out.push(Action::Store(vec![migration.stored()]));
        true
    }

    fn free_vms(&mut self, now: Timestamp, migration: &Migration) {
        for step in &migration.record.moves {
            self.busy.remove(&step.after.vm.name);
        }
        // Their older locators may have waited for this one.
        let drained = |id: &&TransactionId| {
            self.migrations.get(id).is_some_and(|other| {
                other.phase() == Phase::Draining
                    && other.record.drain_until.is_none_or(|until| until <= now)
            })
        };
        self.due.extend(self.active.iter().filter(drained));
    }

    /// Whether a VM of the migration is in another one, which repoints the old locators.
    fn is_repointed(&self, migration: &Migration) -> bool {
        migration
            .record
            .moves
            .iter()
            .any(|step| self.busy.contains_key(&step.after.vm.name))
    }

    fn advance_draining(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        if migration
            .record
            .drain_until
            .is_some_and(|until| until > now)
            || self.is_repointed(migration)
        {
            return false;
        }
        migration.enter(Phase::Retiring, now);
        let mut ops = vec![migration.stored()];
        for step in &migration.record.moves {
            let old = step.old_locators();
            if !old.is_empty()
                && let Some(state) = self.vms.get_mut(&step.after.vm.name)
            {
                *state = state.retired(old);
                ops.push(StoreOp::PutVm(state.clone()));
            }
        }
        out.push(Action::Store(ops));
        true
    }

    fn advance_retiring(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let id = migration.record.id;
        let needed = self.needed();
        for router in &needed {
            if matches!(migration.progress(router), Progress::Folded { .. }) {
                self.send(
                    now,
                    migration,
                    router,
                    CommandRef::Retire(id),
                    out,
                    |migration| Command::Retire {
                        id,
                        addresses: self.retired_addresses(migration, router),
                    },
                );
            }
        }
        if !needed
            .iter()
            .all(|router| matches!(migration.progress(router), Progress::Retired { .. }))
        {
            return false;
        }
        migration.enter(Phase::Done, now);
        let moves = migration.record.moves.iter();
        let old = moves.flat_map(|step| step.old_locators().iter());
        let mut ops = vec![migration.stored()];
        self.quarantine(now, old, &mut ops);
        out.push(Action::Store(ops));
        true
    }

    /// What a router removes. A VM that another migration has got hold of keeps its identity's entry.
    fn retired_addresses(&self, migration: &Migration, router: &RouterName) -> Vec<IpAddr> {
        let Some(topology) = &self.topology else {
            return Vec::new();
        };
        let moves = &migration.record.moves;
        let states: Vec<VmState> = moves
            .iter()
            .map(|step| {
                self.vms
                    .get(&step.after.vm.name)
                    .cloned()
                    .unwrap_or_else(|| VmState::at_home(step.after.vm.clone()))
            })
            .collect();
        let mut addresses = Plan::new(topology, moves).retired(router, &states);
        addresses.retain(|address| {
            self.identities
                .get(address)
                .is_none_or(|vm| !self.busy.contains_key(vm))
        });
        addresses
    }

    /// Edges on which the migration's VMs would arrive: from prepare on, what a VM sends there leaves
    /// with its new locator, whether anything is decided or not, and as long as such an edge holds
    /// the transaction, dead agent or not.
    fn arrivals(&self, migration: &Migration) -> BTreeSet<RouterName> {
        let bindings = migration
            .record
            .moves
            .iter()
            .filter_map(|step| step.after.current.as_ref());
        let segments = self.topology.iter().flat_map(|topology| &topology.segments);
        let segments: Vec<_> = segments.collect();
        bindings
            .flat_map(|binding| {
                segments
                    .iter()
                    .filter(|(name, _)| **name == binding.segment)
                    .flat_map(|(_, segment)| segment.routers.iter().cloned())
            })
            .collect()
    }

    /// Whether some edge may still send with a locator of a migration that aborts: until none does,
    /// every other router must go on knowing the locator, or a peer would see it.
    pub(super) fn may_arrive(&self, migration: &Migration) -> bool {
        self.arrivals(migration)
            .iter()
            .any(|edge| self.is_needed(edge) && migration.progress(edge) != Progress::Aborted)
    }

    /// Whether the router must keep its part of a migration that aborts for now.
    pub(super) fn keeps_aborting(&self, migration: &Migration, router: &RouterName) -> bool {
        self.may_arrive(migration) && !self.arrivals(migration).contains(router)
    }

    /// First the edges on which the VMs would arrive, then, when all of them have answered, the others.
    fn advance_aborting(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let needed = self.needed();
        let arrivals = self.arrivals(migration);
        let (first, others): (Vec<_>, Vec<_>) = needed
            .into_iter()
            .partition(|router| arrivals.contains(router));
        self.drive_aborts(now, migration, &first, out);
        if self.may_arrive(migration) {
            return false;
        }
        self.drive_aborts(now, migration, &others, out);
        let (connected, silent): (Vec<_>, Vec<_>) = others
            .into_iter()
            .filter(|router| migration.progress(router) != Progress::Aborted)
            .partition(|router| self.connection(router).is_some());
        if !connected.is_empty() {
            return false;
        }
        self.free_vms(now, migration);
        migration.record.uncleared = silent.into_iter().collect();
        migration.enter(Phase::Aborted, now);
        let mut ops = vec![migration.stored()];
        if migration.record.uncleared.is_empty() {
            self.quarantine_new(now, migration, &mut ops);
        }
        out.push(Action::Store(ops));
        true
    }

    fn drive_aborts(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        routers: &[RouterName],
        out: &mut Actions,
    ) {
        let id = migration.record.id;
        for router in routers {
            if migration.progress(router) == Progress::Aborted {
                continue;
            }
            if migration.participant(router).touched {
                self.send(now, migration, router, CommandRef::Abort(id), out, |_| {
                    Command::Abort { id }
                });
            } else {
                migration.set_progress(router, Progress::Aborted);
            }
        }
    }

    fn advance_aborted(
        &mut self,
        now: Timestamp,
        migration: &mut Migration,
        out: &mut Actions,
    ) -> bool {
        let left: BTreeSet<_> = migration
            .record
            .uncleared
            .iter()
            .filter(|router| {
                self.is_needed(router) && migration.progress(router) != Progress::Aborted
            })
            .cloned()
            .collect();
        if left == migration.record.uncleared {
            return false;
        }
        migration.record.uncleared = left;
        migration.changed = true;
        let mut ops = vec![migration.stored()];
        if migration.record.uncleared.is_empty() {
            self.quarantine_new(now, migration, &mut ops);
        }
        out.push(Action::Store(ops));
        true
    }

    /// Decides to abort a migration that is not decided.
    pub(super) fn abort(
        &mut self,
        now: Timestamp,
        id: TransactionId,
        error: String,
        out: &mut Actions,
    ) {
        if let Some(migration) = self.migrations.get_mut(&id) {
            Self::enter_aborting(now, migration, error, out);
        }
    }

    fn enter_aborting(now: Timestamp, migration: &mut Migration, error: String, out: &mut Actions) {
        migration.record.error = Some(error);
        migration.enter(Phase::Aborting, now);
        out.push(Action::Store(vec![migration.stored()]));
    }

    /// Forgets the oldest of the migrations that are over, if there are too many.
    fn forget_old(&mut self, out: &mut Actions) {
        let over = self.migrations.len().saturating_sub(self.active.len());
        let old: Vec<_> = self
            .migrations
            .keys()
            .filter(|id| !self.active.contains(id))
            .take(over.saturating_sub(self.config.history))
            .copied()
            .collect();
        if old.is_empty() {
            return;
        }
        for id in &old {
            self.migrations.remove(id);
        }
        out.push(Action::Store(
            old.into_iter().map(StoreOp::DeleteMigration).collect(),
        ));
    }

    fn send_prepare(
        &self,
        now: Timestamp,
        migration: &mut Migration,
        router: &RouterName,
        out: &mut Actions,
    ) {
        let id = migration.record.id;
        let sent = self.send(
            now,
            migration,
            router,
            CommandRef::Prepare(id),
            out,
            |migration| Command::Prepare {
                id,
                await_announcements: migration.record.activation == Activation::OnAnnounce,
                changes: self
                    .topology
                    .as_ref()
                    .map(|topology| Plan::new(topology, &migration.record.moves).changes(router))
                    .unwrap_or_default(),
            },
        );
        if sent {
            migration.participant(router).touched = true;
        }
    }

    /// Sends a command, unless the router cannot take it yet or has been sent it already.
    fn send(
        &self,
        now: Timestamp,
        migration: &mut Migration,
        router: &RouterName,
        reference: CommandRef,
        out: &mut Actions,
        command: impl FnOnce(&Migration) -> Command,
    ) -> bool {
        let Some(connection) = self.settled(router) else {
            return false;
        };
        let participant = migration.participant(router);
        if participant.sent == Some(reference)
            || participant.retry_at.is_some_and(|retry| retry > now)
        {
            return false;
        }
        participant.sent = Some(reference);
        participant.retry_at = None;
        out.push(Action::Send {
            router: router.clone(),
            connection,
            command: command(migration),
        });
        true
    }

    /// Tells watchers of a migration if it looks different. Of a large group, whose view takes long to
    /// copy, they are told the phases only: between two stages of the commit every moment counts.
    fn tell_watchers(&mut self, id: TransactionId, out: &mut Actions) {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return;
        };
        let large = migration.record.moves.len() > LARGE_GROUP;
        if !migration.changed || (large && migration.told == Some(migration.phase())) {
            return;
        }
        migration.changed = false;
        migration.told = Some(migration.phase());
        if let Some(view) = self.migration(id) {
            out.push(Action::Update(Box::new(view)));
        }
    }
}
