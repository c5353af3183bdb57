//! A router's rules for a state of the VMs.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Binding, VmState};
use crate::{
    addresses::IpFamily,
    names::{RouterName, SegmentName},
    rule::{Attachment, Rule},
    topology::Topology,
};

/// The rules of one VM on one router: for each identity those of its family, by itself.
pub fn rules(topology: &Topology, state: &VmState, router: &RouterName) -> Vec<(IpAddr, Rule)> {
    let identities = state.vm.identities.iter();
    identities
        .flat_map(|identity| rules_of(topology, state, router, identity))
        .collect()
}

/// The rules of one identity.
fn rules_of(
    topology: &Topology,
    state: &VmState,
    router: &RouterName,
    identity: IpAddr,
) -> Vec<(IpAddr, Rule)> {
    let VmState {
        vm,
        current,
        draining,
        returned,
    } = state;
    let family = IpFamily::of(identity);
    // Each binding with its locator of the family.
    let located = |binding: &Binding| binding.locators.get(family);
    let current = current
        .as_ref()
        .and_then(|binding| Some((&binding.segment, located(binding)?)));
    let here = |segment| topology.serves(router, segment);
    let attachment = |segment: &SegmentName| Attachment {
        segment: segment.clone(),
        mac: vm.mac,
    };
    // Where the VM is, if that is behind this router and the router knows it.
    let local = match current {
        Some((segment, _)) => here(segment).then_some(segment),
        None => (*returned && here(&vm.home)).then_some(&vm.home),
    };
    let mut rules = Vec::with_capacity(2 + draining.len());
    if let Some(at) = local {
        let home = topology.segments.get(&vm.home);
        rules.push((
            identity,
            Rule::Local {
                locator: current.map(|(_, locator)| locator),
                at: attachment(at),
                gateway: home
                    .and_then(|home| home.subnet(family))
                    .map(|subnet| subnet.gateway),
            },
        ));
    } else if let Some((_, locator)) = current {
        rules.push((
            identity,
            Rule::Away {
                locator,
                home: here(&vm.home).then(|| attachment(&vm.home)),
            },
        ));
    }
    let known = || Rule::Known { identity };
    let deliver = |at| Rule::Deliver {
        identity,
        at: attachment(at),
    };
    if let Some((_, locator)) = current {
        rules.push((locator, local.map_or_else(known, deliver)));
    }
    let latest = current.map_or(identity, |(_, locator)| locator);
    for binding in draining {
        let Some(locator) = located(binding) else {
            continue;
        };
        let rule = match local {
            _ if !here(&binding.segment) => known(),
            Some(at) => deliver(at),
            None => Rule::Forward {
                identity,
                to: latest,
            },
        };
        rules.push((locator, rule));
    }
    rules
}

/// A router's whole table.
pub fn table<'a>(
    topology: &Topology,
    states: impl IntoIterator<Item = &'a VmState>,
    router: &RouterName,
) -> BTreeMap<IpAddr, Rule> {
    states
        .into_iter()
        .filter(|state| !state.is_unbound())
        .flat_map(|state| rules(topology, state, router))
        .collect()
}
