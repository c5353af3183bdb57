//! How much there is, in numbers: for monitoring, which asks often and needs no details.

use std::collections::BTreeMap;

use super::{Coordinator, Phase, state::Migration};
use crate::{names::RouterName, topology::Tier};

/// What the machine has to do, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Migrations with which something remains to be done, by phase. Aborted ones are among them
    /// while a router may hold a trace of them.
    pub migrations: BTreeMap<Phase, u64>,
    /// Those of them that are not folded: they hold a slot on routers, or wait for one.
    pub under_way: u64,
    /// How many of these there may be.
    pub capacity: u64,
    /// The routers of the topology.
    pub routers: Vec<RouterTally>,
}

/// How a router is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterTally {
    /// Its name.
    pub name: RouterName,
    /// Its layer.
    pub tier: Tier,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Whether its table is known to be as it should be.
    pub in_sync: bool,
    /// Whether it is attested not forwarding.
    pub drained: bool,
}

impl Coordinator {
    /// How much there is.
    pub fn tally(&self) -> Tally {
        let mut migrations = BTreeMap::new();
        let active = self.active.iter().filter_map(|id| self.migrations.get(id));
        for phase in active.map(Migration::phase) {
            *migrations.entry(phase).or_default() += 1;
        }
        let decided = self.decided();
        let routers = self.routers.iter().map(|(name, router)| RouterTally {
            name: name.clone(),
            tier: self.tier(name),
            connected: router.connection.is_some(),
            in_sync: self.is_in_sync(name, &decided),
            drained: router.drained,
        });
        Tally {
            migrations,
            under_way: count(self.under_way()),
            capacity: count(self.config.under_way),
            routers: routers.collect(),
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
