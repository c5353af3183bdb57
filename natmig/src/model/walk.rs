//! The walk of a packet: the translation table of the data plane on rules.
//!
//! Routing is ideal: a packet reaches an edge router of its destination's segment, any of the pair,
//! and anything on its way only passes it on. Every choice is tried.

use std::{collections::BTreeSet, net::IpAddr};

use super::Routers;
use crate::{
    names::{RouterName, SegmentName},
    planner::Vm,
    rule::Rule,
    topology::Topology,
};

/// Where a packet comes from, as a router sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Start {
    /// An access or external interface.
    Boundary,
    /// A host of the VM's home segment.
    HomeSegment,
    /// The router's own kernel.
    Kernel,
    /// Another router.
    Fabric,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// It reaches the VM's MAC address in this segment.
    Segment(SegmentName),
    /// It is lost here, under this address.
    Lost(RouterName, IpAddr),
    /// It comes back to where it was.
    Loop(RouterName, IpAddr),
    /// It reaches no router that forwards.
    NoRouter,
}

/// Follows packets to one VM.
pub(crate) struct Walk<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) routers: &'a Routers,
    pub(crate) vm: &'a Vm,
}

/// Every way in which a packet to one of a VM's identities enters the fabric.
pub(crate) fn starts(
    topology: &Topology,
    routers: &Routers,
    vm: &Vm,
) -> Vec<(RouterName, Start, IpAddr)> {
    routers
        .iter()
        .filter(|(_, router)| router.forwards())
        .flat_map(|(name, _)| {
            let home = topology
                .serves(name, &vm.home)
                .then_some(Start::HomeSegment);
            [Start::Boundary, Start::Kernel]
                .into_iter()
                .chain(home)
                .flat_map(move |start| {
                    let identities = vm.identities.iter();
                    identities.map(move |identity| (name.clone(), start, identity))
                })
        })
        .collect()
}

impl Walk<'_> {
    /// All places that a packet may reach, whichever way it takes.
    pub(crate) fn places(
        &self,
        router: &RouterName,
        start: Start,
        address: IpAddr,
    ) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        self.step(router, start, address, &mut Vec::new(), &mut places);
        places
    }

    fn step(
        &self,
        router: &RouterName,
        start: Start,
        address: IpAddr,
        path: &mut Vec<(RouterName, Start, IpAddr)>,
        places: &mut BTreeSet<Place>,
    ) {
        let here = (router.clone(), start, address);
        if path.contains(&here) {
            places.insert(Place::Loop(router.clone(), address));
            return;
        }
        path.push(here);
        let tables = &self.routers[router];
        let rule = tables.rule(address);
        let from_fabric = matches!(start, Start::Fabric | Start::Kernel);
        let destination = match rule {
            Rule::Local { at, .. } => {
                self.deliver(at, places);
                None
            }
            Rule::Away { locator, home } => {
                let translated = start != Start::Fabric || home.is_some();
                Some(if translated { *locator } else { address })
            }
            Rule::Deliver { at, identity } if from_fabric => {
                assert!(self.vm.identities.contains(*identity));
                self.deliver(at, places);
                None
            }
            Rule::Forward { to, identity } if from_fabric => {
                assert!(self.vm.identities.contains(*identity));
                match tables.rule(*to) {
                    Rule::Local { at, .. } => {
                        self.deliver(at, places);
                        None
                    }
                    Rule::Absent
                    | Rule::Away { .. }
                    | Rule::Deliver { .. }
                    | Rule::Forward { .. }
                    | Rule::Known { .. } => Some(*to),
                }
            }
            Rule::Deliver { .. } | Rule::Forward { .. } => {
                // Dropped: nobody outside the fabric uses a locator.
                places.insert(Place::Lost(router.clone(), address));
                None
            }
            Rule::Absent if start == Start::HomeSegment => {
                // The neighbour answers for itself.
                places.insert(Place::Segment(self.vm.home.clone()));
                None
            }
            Rule::Absent | Rule::Known { .. } => Some(address),
        };
        if let Some(destination) = destination {
            self.route(router, destination, path, places);
        }
        path.pop();
    }

    fn deliver(&self, at: &crate::rule::Attachment, places: &mut BTreeSet<Place>) {
        assert_eq!(at.mac, self.vm.mac);
        places.insert(Place::Segment(at.segment.clone()));
    }

    fn route(
        &self,
        router: &RouterName,
        destination: IpAddr,
        path: &mut Vec<(RouterName, Start, IpAddr)>,
        places: &mut BTreeSet<Place>,
    ) {
        let Some(segment) = self.topology.segment_of(destination) else {
            places.insert(Place::Lost(router.clone(), destination));
            return;
        };
        if self.topology.serves(router, segment) {
            // Connected: whoever has that address answers.
            places.insert(if self.vm.identities.contains(destination) {
                Place::Segment(segment.clone())
            } else {
                Place::Lost(router.clone(), destination)
            });
            return;
        }
        // Whatever lies on the way must let it pass.
        for (name, other) in self.routers {
            if !other.forwards() || self.topology.serves(name, segment) {
                continue;
            }
            match other.rule(destination) {
                Rule::Absent
                | Rule::Known { .. }
                | Rule::Local { .. }
                | Rule::Away { home: None, .. } => {}
                Rule::Away { .. } | Rule::Deliver { .. } | Rule::Forward { .. } => {
                    places.insert(Place::Lost(name.clone(), destination));
                }
            }
        }
        let edges: Vec<_> = self
            .topology
            .edges(segment)
            .into_iter()
            .filter(|edge| self.routers[edge].forwards())
            .collect();
        if edges.is_empty() {
            places.insert(Place::NoRouter);
        }
        for edge in edges {
            self.step(&edge, Start::Fabric, destination, path, places);
        }
    }
}
