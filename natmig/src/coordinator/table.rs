//! What a router's table should be, for comparison.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Coordinator, Phase, Refusal};
use crate::{
    names::RouterName,
    rule::{Rule, TransactionId},
};

/// What a router's tables should hold, given the transactions that it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterTable {
    /// The table as it should be before the transactions that the router holds.
    pub rules: BTreeMap<IpAddr, Rule>,
    /// What may be there already, besides: locators that decided migrations introduce.
    pub early: BTreeMap<IpAddr, Rule>,
    /// Where the migrations stand whose transactions the router holds; those that are not remembered
    /// are not in it.
    pub phases: BTreeMap<TransactionId, Phase>,
    /// The fabric's locator pools.
    pub pools: Vec<IpNet>,
}

impl Coordinator {
    /// What the tables of a router should be that holds these transactions.
    pub fn router_table(
        &self,
        name: &RouterName,
        held: &BTreeSet<TransactionId>,
    ) -> Result<RouterTable, Refusal> {
        let topology = self.topology.as_ref().ok_or(Refusal::NoTopology)?;
        if !self.routers.contains_key(name) {
            return Err(Refusal::UnknownRouter(name.clone()));
        }
        let expected = self.expected(name, &|id| held.contains(&id));
        let early = expected
            .with_early
            .into_iter()
            .filter(|(address, rule)| expected.table.get(address) != Some(rule))
            .collect();
        let phase = |id: &TransactionId| Some((*id, self.migrations.get(id)?.phase()));
        Ok(RouterTable {
            rules: expected.table,
            early,
            phases: held.iter().filter_map(phase).collect(),
            pools: topology.pools(),
        })
    }
}
