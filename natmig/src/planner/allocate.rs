//! Where VMs go: checks the destinations and takes locators.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Binding, Move, PlanError, VmState};
use crate::{
    addresses::{Addresses, IpFamily},
    names::SegmentName,
    topology::{Subnet, Topology},
};

/// Locators that a group takes, by segment and family.
type Free<'a> = BTreeMap<(&'a SegmentName, IpFamily), std::vec::IntoIter<IpAddr>>;

/// The moves that take VMs to segments, each with a free locator per identity: the lowest of the segment's pool
/// and family that is not in `used`. A VM whose destination is its home returns.
pub fn destinations(
    topology: &Topology,
    wanted: &[(VmState, SegmentName)],
    used: &BTreeSet<IpAddr>,
) -> Result<Vec<Move>, PlanError> {
    if wanted.is_empty() {
        return Err(PlanError::Empty);
    }
    let mut names = BTreeSet::new();
    let mut needed: BTreeMap<(&SegmentName, IpFamily), usize> = BTreeMap::new();
    for (state, segment) in wanted {
        if !names.insert(&state.vm.name) {
            return Err(PlanError::Twice(state.vm.name.clone()));
        }
        let Some(place) = topology.segments.get(segment) else {
            return Err(PlanError::UnknownSegment(segment.clone()));
        };
        if state.segment() == segment {
            return Err(PlanError::AlreadyThere {
                vm: state.vm.name.clone(),
                segment: segment.clone(),
            });
        }
        for identity in state.vm.identities.iter() {
            let family = IpFamily::of(identity);
            if place.subnet(family).is_none() {
                return Err(PlanError::NoSuchFamily {
                    vm: state.vm.name.clone(),
                    identity,
                    segment: segment.clone(),
                });
            }
            if *segment != state.vm.home {
                *needed.entry((segment, family)).or_default() += 1;
            }
        }
    }
    let mut free = Free::new();
    for ((segment, family), needed) in needed {
        let subnet = topology
            .segments
            .get(segment)
            .and_then(|place| place.subnet(family));
        let locators: Vec<_> = subnet
            .into_iter()
            .flat_map(|subnet| free_locators(subnet, used))
            .take(needed)
            .collect();
        if locators.len() < needed {
            return Err(PlanError::PoolExhausted {
                segment: segment.clone(),
                family,
                needed,
                free: locators.len(),
            });
        }
        free.insert((segment, family), locators.into_iter());
    }
    Ok(wanted
        .iter()
        .map(|(state, segment)| {
            let to = (*segment != state.vm.home).then(|| Binding {
                segment: segment.clone(),
                locators: take(&mut free, segment, state.vm.identities),
            });
            Move {
                before: state.clone(),
                after: state.moved(to),
            }
        })
        .collect())
}

/// A locator for each identity.
fn take<'a>(free: &mut Free<'a>, segment: &'a SegmentName, identities: Addresses) -> Addresses {
    let locators = identities.iter().filter_map(|identity| {
        let family = IpFamily::of(identity);
        free.get_mut(&(segment, family)).and_then(Iterator::next)
    });
    // Of each family one, as of the identities.
    Addresses::collect(locators).unwrap_or_default()
}

/// Locators of a segment and family that are free, in ascending order: addresses that hosts may have.
fn free_locators<'a>(
    subnet: &'a Subnet,
    used: &'a BTreeSet<IpAddr>,
) -> impl Iterator<Item = IpAddr> + 'a {
    let (first, last) = (subnet.pool.network(), subnet.pool.broadcast());
    let mut taken = used.range(first..=last).copied().peekable();
    addresses(first, last)
        .filter(move |address| {
            while taken.next_if(|taken| taken < address).is_some() {}
            taken.peek() != Some(address)
        })
        .filter(|address| subnet.has_host(*address) && *address != subnet.gateway)
}

/// All addresses between two of a family.
fn addresses(first: IpAddr, last: IpAddr) -> Box<dyn Iterator<Item = IpAddr>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Box::new(
            (u32::from(first)..=u32::from(last)).map(|number| Ipv4Addr::from(number).into()),
        ),
        (IpAddr::V6(first), IpAddr::V6(last)) => Box::new(
            (u128::from(first)..=u128::from(last)).map(|number| Ipv6Addr::from(number).into()),
        ),
        _ => Box::new(std::iter::empty()),
    }
}
