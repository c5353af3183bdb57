//! The order of commits.
//!
//! For a VM that moves, new and previous edges commit before the home edges: once these anchor to the
//! new locator, whatever still leads to the old one is forwarded. For a VM that returns, the home
//! edges commit before the previous edges: a previous edge that sends packets to the identity while
//! a home edge still anchors them to the old locator would make them loop. All other routers come last.

use std::collections::{BTreeMap, BTreeSet};

use super::{Move, PlanError};
use crate::{names::RouterName, topology::Topology};

/// The order in which routers commit a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stages {
    /// Routers of one stage commit in parallel, once those of all stages before it have committed
    /// or were passed over. Every router of the topology is in exactly one.
    pub stages: Vec<BTreeSet<RouterName>>,
    /// Routers that must have committed before a router does, even if they are silent: otherwise
    /// packets would loop. Only returns home have such: home edges before previous edges.
    pub strict: BTreeMap<RouterName, BTreeSet<RouterName>>,
}

/// Pairs of routers, the first of which commits before the second.
type Order = BTreeSet<(RouterName, RouterName)>;

impl Stages {
    /// Orders the routers of a topology for a transaction.
    ///
    /// An order that moves ask for and that contradicts another VM's is dropped: it only makes the
    /// time shorter in which packets may still reach the old place. One that returns ask for cannot
    /// be dropped.
    pub fn new(topology: &Topology, moves: &[Move]) -> Result<Self, PlanError> {
        let mut strict = Order::new();
        let mut wished = Order::new();
        let mut edges = BTreeSet::new();
        let routes: BTreeSet<_> = moves
            .iter()
            .map(|step| {
                (
                    &step.after.vm.home,
                    step.before.current.as_ref().map(|binding| &binding.segment),
                    step.after.current.as_ref().map(|binding| &binding.segment),
                )
            })
            .collect();
        for (home, previous, next) in routes {
            let home = topology.edges(home);
            let previous = previous.map(|it| topology.edges(it)).unwrap_or_default();
            if let Some(next) = next {
                let mut first = topology.edges(next);
                first.extend(previous);
                wished.extend(pairs(&(&first - &home), &home));
                edges.extend(first);
            } else {
                strict.extend(pairs(&home, &(&previous - &home)));
                edges.extend(previous);
            }
            edges.extend(home);
        }
        let Some(mut layers) = layers(&edges, &strict) else {
            let (first, second) = strict
                .iter()
                .find(|(first, second)| reaches(&strict, second, first))
                .cloned()
                .unwrap_or_else(|| (RouterName::new(""), RouterName::new("")));
            return Err(PlanError::Cycle { first, second });
        };
        let mut order = &strict | &wished;
        if let Some(all) = self::layers(&edges, &order) {
            layers = all;
        } else {
            order.clone_from(&strict);
            for (first, second) in wished {
                if !reaches(&order, &second, &first) {
                    order.insert((first, second));
                }
            }
            if let Some(most) = self::layers(&edges, &order) {
                layers = most;
            }
        }
        let others: BTreeSet<_> = topology
            .routers
            .keys()
            .filter(|router| !edges.contains(*router))
            .cloned()
            .collect();
        if !others.is_empty() {
            layers.push(others);
        }
        let mut before: BTreeMap<RouterName, BTreeSet<RouterName>> = BTreeMap::new();
        for (first, second) in strict {
            before.entry(second).or_default().insert(first);
        }
        Ok(Self {
            stages: layers,
            strict: before,
        })
    }

    /// The stage of a router.
    pub fn stage_of(&self, router: &RouterName) -> Option<usize> {
        self.stages.iter().position(|stage| stage.contains(router))
    }

    /// Forgets a router that left the topology.
    pub fn remove(&mut self, router: &RouterName) {
        for stage in &mut self.stages {
            stage.remove(router);
        }
        self.strict.remove(router);
        for before in self.strict.values_mut() {
            before.remove(router);
        }
    }
}

/// Every router of `first` before every one of `second`.
fn pairs<'a>(
    first: &'a BTreeSet<RouterName>,
    second: &'a BTreeSet<RouterName>,
) -> impl Iterator<Item = (RouterName, RouterName)> + 'a {
    first.iter().flat_map(move |first| {
        second
            .iter()
            .map(move |second| (first.clone(), second.clone()))
    })
}

/// Routers by the length of the longest chain of routers before them; `None` if the order is a cycle.
fn layers(routers: &BTreeSet<RouterName>, order: &Order) -> Option<Vec<BTreeSet<RouterName>>> {
    let mut left = routers.clone();
    let mut layers = Vec::new();
    while !left.is_empty() {
        let layer: BTreeSet<_> = left
            .iter()
            .filter(|router| {
                !order
                    .iter()
                    .any(|(first, second)| second == *router && left.contains(first))
            })
            .cloned()
            .collect();
        if layer.is_empty() {
            return None;
        }
        left.retain(|router| !layer.contains(router));
        layers.push(layer);
    }
    Some(layers)
}

/// Whether the order leads from one router to another.
fn reaches(order: &Order, from: &RouterName, to: &RouterName) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(router) = open.pop() {
        if router == to {
            return true;
        }
        for (first, second) in order {
            if first == router && seen.insert(second) {
                open.push(second);
            }
        }
    }
    false
}
