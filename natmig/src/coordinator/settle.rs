//! Connections: brings a router to the table it should have, and takes its answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Action, Command, CommandRef, ConnectionId, Coordinator, Failure, HeldState, Phase, Progress,
    Reply, Report, Timestamp,
    state::{Actions, Connection, Migration, Sync},
};
use crate::{
    digest::{Parts, TableDigest},
    names::RouterName,
    planner,
    rule::{Change, Rule, TransactionId},
};

/// What a router should have when it connects.
#[derive(Default)]
pub(super) struct Expected {
    /// The table as it was before the transactions that it holds.
    pub(super) table: BTreeMap<IpAddr, Rule>,
    /// The same, with the locators that decided transactions introduce: sources carry them.
    pub(super) with_early: BTreeMap<IpAddr, Rule>,
    /// Decided transactions that it does not hold, and whose outcome is in its table.
    joined: BTreeSet<TransactionId>,
}

impl Coordinator {
    pub(super) fn connect(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        id: ConnectionId,
        report: Report,
        out: &mut Actions,
    ) {
        if !self.routers.contains_key(name) {
            out.push(Action::Disconnect {
                router: name.clone(),
                connection: id,
                reason: format!(
                    "router {name} is not in the topology; add it with `natmig topology apply`, or \
                     correct `router` in the agent's configuration"
                ),
            });
            return;
        }
        if let Some(old) = self.connection(name).map(|connection| connection.id) {
            self.disconnect(now, name);
            out.push(Action::Disconnect {
                router: name.clone(),
                connection: old,
                reason: "the router connected again".to_owned(),
            });
        }
        let mut connection = Connection {
            id,
            sync: Sync::Idle,
            heard: now,
            held: report
                .held
                .into_iter()
                .map(|held| (held.id, held.state))
                .collect(),
            digest: report.digest,
            segments: report.segments,
            joined: BTreeSet::new(),
        };
        let problem = self.missing_interfaces(name, &connection);
        let Some(router) = self.routers.get_mut(name) else {
            return;
        };
        router.since = Some(now);
        router.problem = problem;
        if router.drained {
            router.connection = Some(connection);
            return;
        }
        self.send_pools(name, id, out);
        let (over, replace) = self.transactions_over(name, &mut connection);
        self.note_held(name, &connection);
        let left = over.iter().map(Command::reference).collect();
        for command in over {
            out.push(Action::Send {
                router: name.clone(),
                connection: id,
                command,
            });
        }
        connection.sync = Sync::Resolving { left, replace };
        if let Some(router) = self.routers.get_mut(name) {
            router.connection = Some(connection);
        }
        self.continue_settling(name, out);
    }

    /// Takes the transactions that are over out of what a router holds: the commands that settle
    /// them, and whether these change the table that the digest is of.
    fn transactions_over(
        &self,
        name: &RouterName,
        connection: &mut Connection,
    ) -> (Vec<Command>, bool) {
        let mut commands = Vec::new();
        let mut replace = false;
        connection.held.retain(|id, state| {
            let migration = self.migrations.get(id);
            let goes_on = match migration.map(Migration::phase) {
                Some(Phase::Preparing | Phase::Prepared | Phase::Committing | Phase::Committed) => {
                    true
                }
                Some(Phase::Folding) => *state != HeldState::Prepared,
                // It is told when no edge sends with the locators any longer.
                Some(Phase::Aborting) => {
                    migration.is_some_and(|migration| self.keeps_aborting(migration, name))
                }
                Some(Phase::Draining | Phase::Retiring | Phase::Done | Phase::Aborted) | None => {
                    false
                }
            };
            if !goes_on {
                match state {
                    HeldState::Prepared => commands.push(Command::Abort { id: *id }),
                    HeldState::Committed { .. } => {
                        commands.push(Command::Fold { id: *id });
                        replace = true;
                    }
                }
            }
            goes_on
        });
        (commands, replace)
    }

    /// Takes over what a router holds of the migrations that go on.
    fn note_held(&mut self, name: &RouterName, connection: &Connection) {
        for id in &self.active {
            let Some(migration) = self.migrations.get_mut(id) else {
                continue;
            };
            let known = migration.progress(name);
            let progress = match (migration.phase(), connection.held.get(id)) {
                (
                    Phase::Preparing | Phase::Prepared | Phase::Committing | Phase::Committed,
                    Some(HeldState::Prepared),
                ) => Progress::Prepared,
                (
                    Phase::Committing | Phase::Committed | Phase::Folding,
                    Some(HeldState::Committed { at }),
                ) => match known {
                    Progress::Committed { .. } => known,
                    Progress::Waiting
                    | Progress::Prepared
                    | Progress::Folded { .. }
                    | Progress::Retired { .. }
                    | Progress::Aborted => Progress::Committed {
                        at: *at,
                        grace_ns: None,
                    },
                },
                (Phase::Preparing | Phase::Prepared, Some(HeldState::Committed { .. }) | None)
                | (Phase::Committing | Phase::Committed, None) => Progress::Waiting,
                (
                    Phase::Folding
                    | Phase::Draining
                    | Phase::Retiring
                    | Phase::Done
                    | Phase::Aborting
                    | Phase::Aborted,
                    _,
                ) => known,
            };
            migration.set_progress(name, progress);
            if connection.held.contains_key(id) {
                migration.participant(name).touched = true;
            }
        }
    }

    /// Goes on once nothing that is over is held: compares tables, and sends those parts in which they
    /// differ.
    fn continue_settling(&mut self, name: &RouterName, out: &mut Actions) {
        let Some(connection) = self.connection(name) else {
            return;
        };
        let Sync::Resolving { left, replace } = &connection.sync else {
            return;
        };
        if !left.is_empty() {
            return;
        }
        let expected = self.expected(name, &|id| connection.held.contains_key(&id));
        if *replace {
            self.replace_table(name, Parts::All, expected, out);
            return;
        }
        let digest_of = |rules: &BTreeMap<IpAddr, Rule>| {
            TableDigest::of(rules.iter().map(|(address, rule)| (*address, rule)))
        };
        let with_early = digest_of(&expected.with_early);
        let same = with_early == connection.digest
            || (expected.table.len() != expected.with_early.len()
                && digest_of(&expected.table) == connection.digest);
        if same {
            self.set_joined(name, expected.joined);
            self.set_settled(name, out);
        } else {
            let differing = Parts::Some(with_early.differing(&connection.digest));
            self.replace_table(name, differing, expected, out);
        }
    }

    /// Sends a router these parts of its table.
    fn replace_table(
        &mut self,
        name: &RouterName,
        parts: Parts,
        expected: Expected,
        out: &mut Actions,
    ) {
        let version = self.next_version;
        self.next_version += 1;
        let rules = expected
            .with_early
            .into_iter()
            .filter(|(address, _)| parts.contains(*address))
            .map(|(address, rule)| Change { address, rule })
            .collect();
        self.set_joined(name, expected.joined);
        let Some(connection) = self
            .routers
            .get_mut(name)
            .and_then(|router| router.connection.as_mut())
        else {
            return;
        };
        connection.sync = Sync::Replacing(version);
        out.push(Action::Send {
            router: name.clone(),
            connection: connection.id,
            command: Command::Replace {
                version,
                parts,
                rules,
            },
        });
    }

    fn set_joined(&mut self, name: &RouterName, joined: BTreeSet<TransactionId>) {
        if let Some(connection) = self
            .routers
            .get_mut(name)
            .and_then(|router| router.connection.as_mut())
        {
            connection.joined = joined;
        }
    }

    pub(super) fn send_pools(
        &self,
        name: &RouterName,
        connection: ConnectionId,
        out: &mut Actions,
    ) {
        if let Some(topology) = &self.topology {
            out.push(Action::Send {
                router: name.clone(),
                connection,
                command: Command::SetPools {
                    pools: topology.pools(),
                },
            });
        }
    }

    /// Sends every connected router the table that it should have under the present topology.
    pub(super) fn settle_all(&mut self, out: &mut Actions) {
        for name in self.needed() {
            let Some(connection) = self.connection(&name) else {
                continue;
            };
            let id = connection.id;
            let resolving = matches!(connection.sync, Sync::Resolving { .. });
            let problem = self.missing_interfaces(&name, connection);
            let expected = self.expected(&name, &|id| connection.held.contains_key(&id));
            if let Some(router) = self.routers.get_mut(&name) {
                router.problem = problem;
            }
            self.send_pools(&name, id, out);
            if !resolving {
                self.replace_table(&name, Parts::All, expected, out);
            }
        }
    }

    /// The table that a router should have, but for the transactions that it holds: of these VMs, as
    /// it was before.
    ///
    /// A router that holds nothing of a transaction that is decided gets its outcome, if the order of
    /// commits allows that; otherwise the state before, and commits in its turn.
    pub(super) fn expected(
        &self,
        name: &RouterName,
        holds: &dyn Fn(TransactionId) -> bool,
    ) -> Expected {
        let mut expected = Expected::default();
        let Some(topology) = &self.topology else {
            return expected;
        };
        let mut early = Vec::new();
        let mut apart = BTreeSet::new();
        for id in &self.active {
            let Some(migration) = self.migrations.get(id).filter(|it| it.is_busy()) else {
                continue;
            };
            let moves = &migration.record.moves;
            let decided = matches!(migration.phase(), Phase::Committing | Phase::Committed);
            let held = holds(*id);
            if decided && !held && self.may_join(migration, name) {
                expected.joined.insert(*id);
                let after = moves.iter().map(|step| &step.after);
                expected.table.extend(planner::table(topology, after, name));
            } else if held || decided {
                let before = moves.iter().map(|step| &step.before);
                expected
                    .table
                    .extend(planner::table(topology, before, name));
            } else {
                continue;
            }
            if decided && !expected.joined.contains(id) {
                early.extend(planner::Plan::new(topology, moves).changes(name).early);
            }
            apart.extend(moves.iter().map(|step| &step.after.vm.name));
        }
        let others = self
            .vms
            .values()
            .filter(|state| !apart.contains(&state.vm.name));
        expected
            .table
            .extend(planner::table(topology, others, name));
        expected.with_early.clone_from(&expected.table);
        for change in early {
            expected.with_early.insert(change.address, change.rule);
        }
        expected
    }

    /// Whether a router may take the outcome of a decided transaction at once.
    fn may_join(&self, migration: &Migration, name: &RouterName) -> bool {
        matches!(migration.progress(name), Progress::Folded { .. })
            || self.may_commit(migration, name)
    }

    /// Whether those have committed without which packets would loop if this router did.
    pub(super) fn may_commit(&self, migration: &Migration, name: &RouterName) -> bool {
        migration.stages.strict.get(name).is_none_or(|before| {
            before
                .iter()
                .all(|other| !self.is_needed(other) || migration.has_committed(other))
        })
    }

    fn missing_interfaces(&self, name: &RouterName, connection: &Connection) -> Option<String> {
        let missing: Vec<_> = self
            .topology
            .as_ref()?
            .segments
            .iter()
            .filter(|(segment, place)| {
                place.routers.contains(name) && !connection.segments.contains(*segment)
            })
            .map(|(segment, _)| segment.as_str())
            .collect();
        (!missing.is_empty()).then(|| {
            format!(
                "no access interface for segment {}; add it to the agent's configuration, or correct \
                 the topology",
                missing.join(", ")
            )
        })
    }

    /// The router has the table that it should have.
    fn set_settled(&mut self, name: &RouterName, out: &mut Actions) {
        let Some(router) = self.routers.get_mut(name) else {
            return;
        };
        let Some(connection) = &mut router.connection else {
            return;
        };
        connection.sync = Sync::Settled;
        out.push(Action::Send {
            router: name.clone(),
            connection: connection.id,
            command: Command::Attach,
        });
        for id in &self.active {
            let Some(migration) = self.migrations.get_mut(id) else {
                continue;
            };
            if connection.held.contains_key(id) {
                continue;
            }
            let known = migration.progress(name);
            let joined = connection.joined.contains(id);
            match (migration.phase(), known) {
                (_, Progress::Folded { .. } | Progress::Retired { .. }) => {}
                (Phase::Folding | Phase::Draining | Phase::Retiring, _) => {
                    let folded = Progress::Folded {
                        at: known.committed_at(),
                        grace_ns: known.grace_ns(),
                    };
                    migration.set_progress(name, folded);
                }
                (Phase::Aborting | Phase::Aborted, _) => {
                    migration.set_progress(name, Progress::Aborted);
                }
                (Phase::Committing | Phase::Committed, _) if joined => {
                    let folded = Progress::Folded {
                        at: known.committed_at(),
                        grace_ns: known.grace_ns(),
                    };
                    migration.set_progress(name, folded);
                }
                (
                    Phase::Preparing
                    | Phase::Prepared
                    | Phase::Committing
                    | Phase::Committed
                    | Phase::Done,
                    _,
                ) => {}
            }
        }
    }

    pub(super) fn disconnect(&mut self, now: Timestamp, name: &RouterName) {
        if let Some(router) = self.routers.get_mut(name)
            && router.connection.take().is_some()
        {
            router.since = Some(now);
        }
        for id in &self.active {
            let Some(migration) = self.migrations.get_mut(id) else {
                continue;
            };
            let participant = migration.participant(name);
            participant.sent = None;
            participant.retry_at = None;
            let undecided = matches!(migration.phase(), Phase::Preparing | Phase::Prepared);
            if undecided {
                migration.set_progress(name, Progress::Waiting);
            }
        }
    }

    /// Ends a connection from this side.
    fn drop_connection(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        reason: String,
        out: &mut Actions,
    ) {
        if let Some(id) = self.connection(name).map(|connection| connection.id) {
            self.disconnect(now, name);
            out.push(Action::Disconnect {
                router: name.clone(),
                connection: id,
                reason,
            });
        }
    }

    /// A router is needed again: it reports anew.
    pub(super) fn reconnect(&mut self, now: Timestamp, name: &RouterName, out: &mut Actions) {
        self.drop_connection(now, name, "the router is needed again".to_owned(), out);
    }

    /// An answer on the present connection.
    pub(super) fn reply(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        reply: &Reply,
        out: &mut Actions,
    ) {
        let (command, failure) = match reply {
            Reply::Prepared(id) => (CommandRef::Prepare(*id), None),
            Reply::Committed { id, .. } => (CommandRef::Commit(*id), None),
            Reply::Aborted(id) => (CommandRef::Abort(*id), None),
            Reply::Folded(id) => (CommandRef::Fold(*id), None),
            Reply::Retired(id) => (CommandRef::Retire(*id), None),
            Reply::Replaced(version) => (CommandRef::Replace(*version), None),
            Reply::PoolsSet => (CommandRef::SetPools, None),
            Reply::Attached => (CommandRef::Attach, None),
            Reply::Failed { command, failure } => (*command, Some(failure.clone())),
        };
        let Some(connection) = self
            .routers
            .get_mut(name)
            .and_then(|router| router.connection.as_mut())
        else {
            return;
        };
        connection.heard = now;
        let settling = match &mut connection.sync {
            Sync::Idle => return,
            Sync::Settled => false,
            Sync::Resolving { left, .. } => left.remove(&command),
            Sync::Replacing(version) => command == CommandRef::Replace(*version),
        };
        if settling {
            // Whatever waits for this router may go on.
            self.all_are_due();
            if let Some(failure) = failure {
                let reason = match failure {
                    Failure::UnknownTransaction => "the transaction is unknown".to_owned(),
                    Failure::Other(reason) => reason,
                };
                let problem = format!("cannot bring its table up to date: {reason}");
                self.drop_connection(now, name, problem.clone(), out);
                if let Some(router) = self.routers.get_mut(name) {
                    router.problem = Some(problem);
                }
            } else if matches!(command, CommandRef::Replace(_)) {
                self.set_settled(name, out);
            } else {
                self.continue_settling(name, out);
            }
            return;
        }
        match command {
            CommandRef::Prepare(id)
            | CommandRef::Commit(id)
            | CommandRef::Abort(id)
            | CommandRef::Fold(id)
            | CommandRef::Retire(id) => {
                self.due.insert(id);
                self.migration_reply(now, name, id, command, reply, failure, out);
            }
            CommandRef::SetPools | CommandRef::Attach => {
                if let Some(Failure::Other(reason)) = failure
                    && let Some(router) = self.routers.get_mut(name)
                {
                    let what = if command == CommandRef::Attach {
                        "attach its interfaces"
                    } else {
                        "set the locator pools"
                    };
                    router.problem = Some(format!("cannot {what}: {reason}"));
                }
            }
            CommandRef::Replace(_) => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one reply")]
    fn migration_reply(
        &mut self,
        now: Timestamp,
        name: &RouterName,
        id: TransactionId,
        command: CommandRef,
        reply: &Reply,
        failure: Option<Failure>,
        out: &mut Actions,
    ) {
        let retry = now.after(self.config.retry);
        let Some(migration) = self.migrations.get_mut(&id) else {
            return;
        };
        let participant = migration.participant(name);
        if participant.sent != Some(command) {
            return;
        }
        participant.sent = None;
        if let Some(failure) = failure {
            migration.changed = true;
            let participant = migration.participant(name);
            match failure {
                Failure::UnknownTransaction => {
                    participant.error = Some("the router lost the transaction".to_owned());
                    if matches!(command, CommandRef::Commit(_)) {
                        migration.set_progress(name, Progress::Waiting);
                    } else {
                        participant.retry_at = Some(retry);
                    }
                }
                Failure::Other(reason) => {
                    participant.error = Some(reason.clone());
                    participant.retry_at = Some(retry);
                    if matches!(command, CommandRef::Prepare(_))
                        && migration.phase() == Phase::Preparing
                    {
                        self.abort(
                            now,
                            id,
                            format!("router {name} cannot prepare: {reason}"),
                            out,
                        );
                    }
                }
            }
            return;
        }
        participant.error = None;
        let known = migration.progress(name);
        let progress = match *reply {
            Reply::Prepared(_) => Progress::Prepared,
            Reply::Committed { at, grace, .. } => Progress::Committed {
                at,
                grace_ns: Some(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX)),
            },
            Reply::Folded(_) => Progress::Folded {
                at: known.committed_at(),
                grace_ns: known.grace_ns(),
            },
            Reply::Retired(_) => Progress::Retired {
                at: known.committed_at(),
                grace_ns: known.grace_ns(),
            },
            Reply::Aborted(_) => Progress::Aborted,
            Reply::Replaced(_) | Reply::PoolsSet | Reply::Attached | Reply::Failed { .. } => known,
        };
        migration.set_progress(name, progress);
    }

    /// Segments for which a connected router has an interface, or which it should serve.
    pub(super) fn segments_of(&self, name: &RouterName) -> BTreeSet<crate::names::SegmentName> {
        self.topology
            .iter()
            .flat_map(|topology| &topology.segments)
            .filter(|(_, segment)| segment.routers.contains(name))
            .map(|(segment, _)| segment.clone())
            .collect()
    }
}
