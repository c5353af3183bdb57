//! Announcements: VMs that are heard at their new places.
//!
//! What a router says of them is a state, not an event: it repeats it whenever it connects, until the
//! transaction is decided. So what was heard needs no storing of its own; that the last VM was heard,
//! which activates the migration, is stored like an operator's word, with the decision or before it.
//!
//! A group is activated by its last VM: its VMs move as one, and each that has not spoken may still
//! run at its old place. Whoever will not wait for a straggler activates the migration himself.

use std::collections::BTreeMap;

use super::{
    Action, Activation, Announced, Coordinator, Heard, MigrationRecord, Phase,
    state::{Actions, Unheard},
};
use crate::{names::RouterName, rule::MacAddress};

/// The VMs whose announcements a migration's decision waits for.
pub(super) fn unheard(record: &MigrationRecord) -> BTreeMap<MacAddress, Unheard> {
    if record.activation != Activation::OnAnnounce {
        return BTreeMap::new();
    }
    record
        .moves
        .iter()
        .filter(|step| !record.heard.contains_key(&step.after.vm.name))
        .map(|step| {
            let unheard = Unheard {
                vm: step.after.vm.name.clone(),
                segment: step.after.segment().clone(),
            };
            (step.after.vm.mac, unheard)
        })
        .collect()
}

impl Coordinator {
    /// A router heard a VM. Only an edge router of the segment that the VM moves to is believed.
    pub(super) fn announced(
        &mut self,
        router: &RouterName,
        announced: Announced,
        out: &mut Actions,
    ) {
        let Announced { id, mac, at } = announced;
        let Some(migration) = self.migrations.get_mut(&id) else {
            return;
        };
        let phase = migration.phase();
        if !matches!(phase, Phase::Preparing | Phase::Prepared) {
            return;
        }
        let serves = |unheard: &Unheard| {
            self.topology
                .as_ref()
                .is_some_and(|topology| topology.serves(router, &unheard.segment))
        };
        if !migration.unheard.get(&mac).is_some_and(serves) {
            return;
        }
        let Some(unheard) = migration.unheard.remove(&mac) else {
            return;
        };
        let heard = Heard {
            router: router.clone(),
            at,
        };
        migration.record.heard.insert(unheard.vm, heard);
        migration.changed = true;
        if migration.unheard.is_empty() && !migration.record.activated {
            migration.record.activated = true;
            if phase == Phase::Preparing {
                // Otherwise the decision that follows holds it.
                out.push(Action::Store(vec![migration.stored()]));
            }
        }
    }
}
