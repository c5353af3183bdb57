//! The order of commits.

use std::collections::{BTreeMap, BTreeSet};

use super::{Move, PlanError};
use crate::{names::RouterName, topology::Topology};

/// The order in which routers commit a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Routers of one stage commit in parallel, once those of all stages before it have committed
    /// or were passed over. Every router of the topology is in exactly one.
    pub stages: Vec<BTreeSet<RouterName>>,
    /// Routers that must have committed before a router does, even if they are silent: otherwise
    /// packets would loop. Only returns home have such: home edges before previous edges.
    pub strict: BTreeMap<RouterName, BTreeSet<RouterName>>,
}

impl Stages {
    /// Orders the routers of a topology for a transaction.
    pub fn new(_topology: &Topology, _moves: &[Move]) -> Result<Self, PlanError> {
        todo!()
    }

    /// The stage of a router.
    pub fn stage_of(&self, router: &RouterName) -> Option<usize> {
        self.stages.iter().position(|stage| stage.contains(router))
    }
}
