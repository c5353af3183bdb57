//! What a transaction changes, router by router.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{VmState, rules};
use crate::{
    addresses::Addresses,
    names::RouterName,
    rule::{Change, Changes, Rule},
    topology::Topology,
};

/// What a transaction does to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    /// Before the transaction.
    pub before: VmState,
    /// After its fold, while the old locator drains.
    pub after: VmState,
}

impl Move {
    /// The locators that the transaction introduces: none if the VM returns home.
    pub fn new_locators(&self) -> Addresses {
        locators(&self.after)
    }

    /// The locators that drain because of the transaction: none if the VM was at home.
    pub fn old_locators(&self) -> Addresses {
        locators(&self.before)
    }

    /// Whether the VM returns home.
    pub fn is_return(&self) -> bool {
        self.after.current.is_none()
    }
}

fn locators(state: &VmState) -> Addresses {
    state
        .current
        .as_ref()
        .map(|binding| binding.locators)
        .unwrap_or_default()
}

/// A transaction.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    topology: &'a Topology,
    moves: &'a [Move],
}

impl<'a> Plan<'a> {
    /// The transaction that does `moves`.
    pub fn new(topology: &'a Topology, moves: &'a [Move]) -> Self {
        Self { topology, moves }
    }

    /// What it changes on a router: entries of the new locators early, everything else with the
    /// commit.
    pub fn changes(&self, router: &RouterName) -> Changes {
        let mut changes = Changes::default();
        for step in self.moves {
            let mut before: BTreeMap<_, _> = rules(self.topology, &step.before, router)
                .into_iter()
                .collect();
            for (address, rule) in rules(self.topology, &step.after, router) {
                match before.remove(&address) {
                    Some(old) if old == rule => {}
                    None if step.new_locators().contains(address) => {
                        changes.early.push(Change { address, rule });
                    }
                    Some(_) | None => changes.pending.push(Change { address, rule }),
                }
            }
            changes
                .pending
                .extend(before.into_keys().map(|address| Change {
                    address,
                    rule: Rule::Absent,
                }));
        }
        changes
    }

    /// What is left to be removed on a router once the old locators need no longer be forwarded:
    /// their entries, and those of identities that are at home for good. `now` are the VMs' states
    /// without the old locators; an address that they bind is kept.
    pub fn retired(&self, router: &RouterName, now: &[VmState]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (step, now) in self.moves.iter().zip(now) {
            let kept: Vec<IpAddr> = rules(self.topology, now, router)
                .into_iter()
                .map(|(address, _)| address)
                .collect();
            addresses.extend(
                step.old_locators()
                    .iter()
                    .chain(step.after.vm.identities.iter())
                    .filter(|address| !kept.contains(address)),
            );
        }
        addresses
    }
}
