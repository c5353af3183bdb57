//! What changes of the store that are not durable yet are about.

use std::collections::BTreeSet;

use crate::{coordinator::StoreOp, rule::TransactionId};

/// Changes of the store, as far as a commit may have to wait for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    migrations: BTreeSet<TransactionId>,
    /// Whether the fabric is among it: its topology, or which of its routers are needed.
    fabric: bool,
}

impl Pending {
    /// These are not durable either.
    pub(super) fn add(&mut self, ops: &[StoreOp]) {
        for op in ops {
            match op {
                StoreOp::PutMigration(record) => {
                    self.migrations.insert(record.id);
                }
                StoreOp::DeleteMigration(id) => {
                    self.migrations.insert(*id);
                }
                StoreOp::PutTopology(_) | StoreOp::PutDrained(_) | StoreOp::DeleteDrained(_) => {
                    self.fabric = true;
                }
                // A VM of a migration that is not done is changed by that migration alone.
                StoreOp::PutVm(_)
                | StoreOp::DeleteVm(_)
                | StoreOp::PutQuarantined(_)
                | StoreOp::DeleteQuarantined(_)
                | StoreOp::PutNextId(_)
                | StoreOp::PutAudit(_)
                | StoreOp::DeleteAudit(_) => {}
            }
        }
    }

    /// Whether a commit of the migration has to wait for them.
    pub(super) fn concerns_commit(&self, id: TransactionId) -> bool {
        self.fabric || self.migrations.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::RouterName;

    #[test]
    fn a_commit_waits_for_its_own_migration_and_for_the_fabric() {
        let mut pending = Pending::default();
        assert!(!pending.concerns_commit(TransactionId(1)));
        pending.add(&[
            StoreOp::DeleteMigration(TransactionId(2)),
            StoreOp::PutNextId(7),
        ]);
        assert!(!pending.concerns_commit(TransactionId(1)));
        assert!(pending.concerns_commit(TransactionId(2)));
        pending.add(&[StoreOp::PutDrained(RouterName::new("core1"))]);
        assert!(pending.concerns_commit(TransactionId(1)));
    }
}
