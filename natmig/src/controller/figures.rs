//! What a controller did since it was started, in numbers that other threads may read while it works.
//! They go on from one leadership to the next.

use std::time::{Duration, Instant};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};

use crate::{
    coordinator::{Activation, MigrationRecord, Phase, StoreOp, Timestamp},
    proto::Outcome,
    store::StoreError,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByOutcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByActivation {
    activation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByOperation {
    operation: &'static str,
}

const COMMITTED: ByOutcome = ByOutcome {
    outcome: "committed",
};
const ABORTED: ByOutcome = ByOutcome { outcome: "aborted" };

const FENCED: ByReason = ByReason { reason: "fenced" };
const UNKNOWN_TRANSACTION: ByReason = ByReason {
    reason: "unknown_transaction",
};
const FAILED: ByReason = ByReason { reason: "failed" };

/// What the store is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    BeginTerm,
    Load,
    Apply,
    Confirm,
}

impl Operation {
    const ALL: [Self; 4] = [Self::BeginTerm, Self::Load, Self::Apply, Self::Confirm];

    fn label(self) -> ByOperation {
        ByOperation {
            operation: match self {
                Self::BeginTerm => "begin_term",
                Self::Load => "load",
                Self::Apply => "apply",
                Self::Confirm => "confirm",
            },
        }
    }
}

fn by_activation(activation: Activation) -> ByActivation {
    ByActivation {
        activation: match activation {
            Activation::Immediate => "immediate",
            Activation::Manual => "manual",
            Activation::OnAnnounce => "on_announce",
        },
    }
}

/// Figures of one controller.
#[derive(Debug)]
pub(super) struct Figures {
    /// Decisions that became durable.
    pub(super) decided: Family<ByOutcome, Counter>,
    /// Seconds from the announcement of each migration until the last router had committed.
    pub(super) migration: Family<ByActivation, Histogram>,
    /// Seconds from the decision until then.
    pub(super) commit: Histogram,
    /// Seconds from the first router's commit to the last one's.
    pub(super) spread: Histogram,
    /// Commands that agents did not carry out.
    pub(super) refused: Family<ByReason, Counter>,
    /// Seconds that the store took.
    pub(super) store: Family<ByOperation, Histogram>,
    /// Times that it could not do what was asked for.
    pub(super) store_errors: Counter,
}

impl Default for Figures {
    fn default() -> Self {
        let figures = Self {
            decided: Family::default(),
            // 1 ms to 131 s: those that are not immediate wait for their VMs.
            migration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(1e-3, 2.0, 18))
            }),
            // 0.5 ms to 16 s: routers that are passed over are waited for as well.
            commit: Histogram::new(exponential_buckets(5e-4, 2.0, 16)),
            spread: Histogram::new(exponential_buckets(1e-4, 2.0, 18)),
            refused: Family::default(),
            // 0.1 ms to 6.6 s: a disk's, or a majority's of etcd.
            store: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(1e-4, 2.0, 17))
            }),
            store_errors: Counter::default(),
        };
        // All of them are told, also while there is none.
        for outcome in [COMMITTED, ABORTED] {
            drop(figures.decided.get_or_create(&outcome));
        }
        for activation in [
            Activation::Immediate,
            Activation::Manual,
            Activation::OnAnnounce,
        ] {
            drop(figures.migration.get_or_create(&by_activation(activation)));
        }
        for reason in [FENCED, UNKNOWN_TRANSACTION, FAILED] {
            drop(figures.refused.get_or_create(&reason));
        }
        for operation in Operation::ALL {
            drop(figures.store.get_or_create(&operation.label()));
        }
        figures
    }
}

impl Figures {
    /// Asks the store for something, and notes how long it took.
    pub(super) fn ask<T>(
        &self,
        operation: Operation,
        store: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let outcome = store();
        self.store
            .get_or_create(&operation.label())
            .observe(begun.elapsed().as_secs_f64());
        if outcome.is_err() {
            self.store_errors.inc();
        }
        outcome
    }

    /// Takes note of what became durable. The machine stores a decision once, and once that every
    /// router has committed.
    pub(super) fn stored(&self, ops: &[StoreOp]) {
        for op in ops {
            let StoreOp::PutMigration(record) = op else {
                continue;
            };
            match record.phase {
                Phase::Committing => {
                    self.decided.get_or_create(&COMMITTED).inc();
                }
                Phase::Aborting => {
                    self.decided.get_or_create(&ABORTED).inc();
                }
                Phase::Folding => self.committed(record),
                Phase::Preparing
                | Phase::Prepared
                | Phase::Committed
                | Phase::Draining
                | Phase::Retiring
                | Phase::Done
                | Phase::Aborted => {}
            }
        }
    }

    /// The last router has committed: folding begins with it.
    fn committed(&self, record: &MigrationRecord) {
        let Some(end) = record.began(Phase::Folding) else {
            return;
        };
        let since = |start: Timestamp| seconds(end.since(start));
        if let Some(announced) = record.announced() {
            self.migration
                .get_or_create(&by_activation(record.activation))
                .observe(since(announced));
        }
        if let Some(decided) = record.began(Phase::Committing) {
            self.commit.observe(since(decided));
        }
        if let Some(spread) = record.commit_spread_ns() {
            self.spread.observe(seconds(spread));
        }
    }

    /// Takes note of an agent's answer to a command.
    pub(super) fn answered(&self, outcome: &Outcome) {
        let reason = match outcome {
            Outcome::Done | Outcome::Committed { .. } => return,
            Outcome::Fenced { .. } => FENCED,
            Outcome::UnknownTransaction => UNKNOWN_TRANSACTION,
            Outcome::Refused(_) => FAILED,
        };
        self.refused.get_or_create(&reason).inc();
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}
