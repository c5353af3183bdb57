//! Bugs to plant. Each corrupts what passes between the real machine and its surroundings (a change of
//! the store, a command, a reply, a report) or what a router makes of it, as the bug would: the
//! machine, the planner and the packet logic that are checked are the product's, without any hook.

use std::collections::BTreeSet;

use natmig::{
    coordinator::{Action, Command, Phase, Reply, StoreOp},
    planner::{self, Stages},
    rule::{Attachment, Change, Rule, TransactionId},
};

use crate::{check::record, fabric::Number, model::FabricModel, state::State};

/// A bug in the control plane or in what routers make of its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plant {
    /// The first router that prepares stands for all.
    CommitBeforePrepared,
    /// Commits are sent before the decision is stored.
    DecisionAfterCommit,
    /// Routers of the second stage commit before those of the first.
    EdgeOrderSwapped,
    /// Routers execute commands of a lower term.
    StaleTermAccepted,
    /// A core router is not told to retire, and counted as if it were.
    LocatorReusedEarly,
    /// Core routers are not told to whom a locator belongs.
    InverseRuleMissing,
    /// An agent that reconnects does not report what it holds.
    PendingForgotten,
    /// The first router that commits stands for all.
    FoldBeforeCommitted,
    /// Core routers translate packets that come from the fabric.
    TransitAnchors,
    /// Aborts are not stored.
    AbortNotDurable,
    /// A late reply counts as one on the present connection.
    StaleReplyAccepted,
    /// The first router that retires stands for all.
    RetiredAfterOne,
    /// A router that lost a decided migration gets the table from before.
    OutcomeNotTaken,
    /// A whole table lacks the locators of migrations under way.
    EarlyLeftOut,
    /// An agent that connects does not say again whom it heard.
    AnnouncedOnce,
    /// Changes of the store are not guarded by the leader's term.
    StoreUnguarded,
    /// An agent listens for VMs only after it has prepared their transaction.
    AwaitedLate,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::CommitBeforePrepared,
        Self::DecisionAfterCommit,
        Self::EdgeOrderSwapped,
        Self::StaleTermAccepted,
        Self::LocatorReusedEarly,
        Self::InverseRuleMissing,
        Self::PendingForgotten,
        Self::FoldBeforeCommitted,
        Self::TransitAnchors,
        Self::AbortNotDurable,
        Self::StaleReplyAccepted,
        Self::RetiredAfterOne,
        Self::OutcomeNotTaken,
        Self::EarlyLeftOut,
        Self::AnnouncedOnce,
        Self::AwaitedLate,
        Self::StoreUnguarded,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CommitBeforePrepared => "commit before all routers prepared",
            Self::DecisionAfterCommit => "decision after the first commit",
            Self::EdgeOrderSwapped => "edge order swapped",
            Self::StaleTermAccepted => "stale term accepted",
            Self::LocatorReusedEarly => "locator reused before every router retired",
            Self::InverseRuleMissing => "missing inverse rule",
            Self::PendingForgotten => "reconciliation forgets a pending transaction",
            Self::FoldBeforeCommitted => "fold before all routers committed",
            Self::TransitAnchors => "a transit router anchors while a VM returns home",
            Self::AbortNotDurable => "an abort that is not durable",
            Self::StaleReplyAccepted => "stale replies accepted",
            Self::RetiredAfterOne => "retired after any one router",
            Self::OutcomeNotTaken => "outcome not taken on reconnect",
            Self::EarlyLeftOut => "early locators left out of a whole table",
            Self::AnnouncedOnce => "announcements told once",
            Self::StoreUnguarded => "a store that any controller changes",
            Self::AwaitedLate => "VMs awaited after the transaction is prepared",
        }
    }
}

impl FabricModel {
    /// What the bug makes of a call's actions.
    pub(crate) fn corrupt_actions(&self, actions: &mut Vec<Action>) {
        match self.plant {
            Some(Plant::DecisionAfterCommit) => {
                let (late, mut rest): (Vec<_>, Vec<_>) = std::mem::take(actions)
                    .into_iter()
                    .partition(|action| stores(action, |phase| phase == Phase::Committing));
                rest.extend(late);
                *actions = rest;
            }
            Some(Plant::AbortNotDurable) => {
                actions.retain(|action| {
                    !stores(action, |phase| {
                        matches!(phase, Phase::Aborting | Phase::Aborted)
                    })
                });
            }
            Some(_) | None => {}
        }
    }

    /// What the bug makes of a command: whether it is sent, and a reply that is taken for the router's.
    pub(crate) fn corrupt_command(
        &self,
        state: &State,
        router: Number,
        command: &mut Command,
    ) -> (bool, Option<Reply>) {
        let is_core = !self.fabric.is_edge(router);
        match (self.plant, command) {
            (Some(Plant::EdgeOrderSwapped), Command::Commit { id }) => {
                if self.stage(state, *id, 0).contains(&router) {
                    let now = state.now;
                    let reply = Reply::Committed {
                        id: *id,
                        at: now,
                        grace: std::time::Duration::ZERO,
                    };
                    return (true, Some(reply));
                }
            }
            (Some(Plant::LocatorReusedEarly), Command::Retire { id, .. }) if is_core => {
                return (false, Some(Reply::Retired(*id)));
            }
            (Some(Plant::InverseRuleMissing), command) if is_core => {
                retain(command, |change| !matches!(change.rule, Rule::Known { .. }));
            }
            (Some(Plant::TransitAnchors), command) if is_core => self.let_anchor(command),
            (Some(Plant::OutcomeNotTaken), Command::Replace { parts, rules, .. }) => {
                let name = &self.fabric.places[router].name;
                *rules = planner::table(&self.fabric.topology, &state.store.vms, name)
                    .into_iter()
                    .filter(|(address, _)| parts.contains(*address))
                    .map(|(address, rule)| Change { address, rule })
                    .collect();
            }
            (Some(Plant::EarlyLeftOut), Command::Replace { rules, .. }) => {
                let under_way = state
                    .store
                    .migrations
                    .iter()
                    .filter(|it| it.phase <= Phase::Committed);
                let early: BTreeSet<_> = under_way
                    .flat_map(|record| &record.moves)
                    .flat_map(|step| step.new_locators().iter().collect::<Vec<_>>())
                    .collect();
                rules.retain(|change| !early.contains(&change.address));
            }
            (_, _) => {}
        }
        (true, None)
    }

    /// Whether a router may take a command that is under way.
    pub(crate) fn may_take(
        &self,
        state: &State,
        router: Number,
        command: Option<&Command>,
    ) -> bool {
        match (self.plant, command) {
            (_, None) => false,
            // The first stage commits after the second.
            (Some(Plant::EdgeOrderSwapped), Some(Command::Commit { id })) => {
                !self.stage(state, *id, 0).contains(&router)
                    || self.stage(state, *id, 1).iter().all(|other| {
                        let mut held = state.routers[*other].tables.held();
                        !held.any(|it| it == (*id, false))
                    })
            }
            (_, Some(_)) => true,
        }
    }

    /// The routers of one stage of a transaction.
    fn stage(&self, state: &State, id: TransactionId, number: usize) -> BTreeSet<Number> {
        let stages = record(state, id)
            .and_then(|record| Stages::new(&self.fabric.topology, &record.moves).ok())
            .unwrap_or_default();
        let stage = stages.stages.into_iter().nth(number).unwrap_or_default();
        stage
            .iter()
            .filter_map(|name| self.fabric.number(name))
            .collect()
    }

    /// Makes a core router a home edge of every VM that is away.
    fn let_anchor(&self, command: &mut Command) {
        let changes: Vec<&mut Change> = match command {
            Command::Prepare { changes, .. } => changes.pending.iter_mut().collect(),
            Command::Replace { rules, .. } => rules.iter_mut().collect(),
            Command::SetPools { .. }
            | Command::Attach
            | Command::Commit { .. }
            | Command::Abort { .. }
            | Command::Fold { .. }
            | Command::Retire { .. } => Vec::new(),
        };
        for change in changes {
            if let Rule::Away { home, .. } = &mut change.rule
                && let Some(vm) = self
                    .fabric
                    .vms
                    .iter()
                    .find(|vm| vm.identities.contains(change.address))
            {
                *home = Some(Attachment {
                    segment: vm.home.clone(),
                    mac: vm.mac,
                });
            }
        }
    }

    /// Whether the bug takes a router's reply for the same reply of all others.
    pub(crate) fn stands_for_all(&self, reply: &Reply) -> bool {
        match self.plant {
            Some(Plant::CommitBeforePrepared) => matches!(reply, Reply::Prepared(_)),
            Some(Plant::FoldBeforeCommitted) => matches!(reply, Reply::Committed { .. }),
            Some(Plant::RetiredAfterOne) => matches!(reply, Reply::Retired(_)),
            Some(_) | None => false,
        }
    }
}

/// Whether an action stores a migration in such a phase.
fn stores(action: &Action, phase: impl Fn(Phase) -> bool) -> bool {
    let Action::Store(ops) = action else {
        return false;
    };
    ops.iter()
        .any(|op| matches!(op, StoreOp::PutMigration(record) if phase(record.phase)))
}

fn retain(command: &mut Command, keep: impl Fn(&Change) -> bool) {
    match command {
        Command::Prepare { changes, .. } => {
            changes.early.retain(&keep);
            changes.pending.retain(&keep);
        }
        Command::Replace { rules, .. } => rules.retain(keep),
        Command::SetPools { .. }
        | Command::Attach
        | Command::Commit { .. }
        | Command::Abort { .. }
        | Command::Fold { .. }
        | Command::Retire { .. } => {}
    }
}
