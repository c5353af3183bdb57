//! A router's rules for a state of the VMs.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::VmState;
use crate::{
    names::RouterName,
    rule::{Attachment, Rule},
    topology::Topology,
};

/// The rules of one VM on one router.
pub fn rules(topology: &Topology, state: &VmState, router: &RouterName) -> Vec<(Ipv4Addr, Rule)> {
    let VmState {
        vm,
        current,
        draining,
        returned,
    } = state;
    let here = |segment| topology.serves(router, segment);
    let attachment = |segment: &crate::names::SegmentName| Attachment {
        segment: segment.clone(),
        mac: vm.mac,
    };
    // Where the VM is, if that is behind this router and the router knows it.
    let local = match current {
        Some(binding) => here(&binding.segment).then_some(&binding.segment),
        None => (*returned && here(&vm.home)).then_some(&vm.home),
    };
    let mut rules = Vec::with_capacity(2 + draining.len());
    if let Some(at) = local {
        rules.push((
            vm.identity,
            Rule::Local {
                locator: current.as_ref().map(|binding| binding.locator),
                at: attachment(at),
                gateway: topology.segments.get(&vm.home).map(|home| home.gateway),
            },
        ));
    } else if let Some(binding) = current {
        rules.push((
            vm.identity,
            Rule::Away {
                locator: binding.locator,
                home: here(&vm.home).then(|| attachment(&vm.home)),
            },
        ));
    }
    let known = || Rule::Known {
        identity: vm.identity,
    };
    let deliver = |at| Rule::Deliver {
        identity: vm.identity,
        at: attachment(at),
    };
    if let Some(binding) = current {
        rules.push((binding.locator, local.map_or_else(known, deliver)));
    }
    let latest = current
        .as_ref()
        .map_or(vm.identity, |binding| binding.locator);
    for binding in draining {
        let rule = match local {
            _ if !here(&binding.segment) => known(),
            Some(at) => deliver(at),
            None => Rule::Forward {
                identity: vm.identity,
                to: latest,
            },
        };
        rules.push((binding.locator, rule));
    }
    rules
}

/// A router's whole table.
pub fn table<'a>(
    topology: &Topology,
    states: impl IntoIterator<Item = &'a VmState>,
    router: &RouterName,
) -> BTreeMap<Ipv4Addr, Rule> {
    states
        .into_iter()
        .filter(|state| !state.is_unbound())
        .flat_map(|state| rules(topology, state, router))
        .collect()
}
