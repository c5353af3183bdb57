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

/// Locators that a group may take, by segment and family.
type Pools<'a> = BTreeMap<(&'a SegmentName, IpFamily), Pool<'a>>;

/// The moves that take VMs to segments, each with a locator per identity, of the segment's pool and family, that
/// is not in `used`: the lowest that ends in the same octet as the identity, or else the lowest. So the
/// locators of a rack that is evacuated lie in the order of its identities, of which routers need to
/// remember little. A VM whose destination is its home returns.
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
    let mut pools = Pools::new();
    for ((segment, family), needed) in needed {
        let place = topology.segments.get(segment);
        let Some(subnet) = place.and_then(|place| place.subnet(family)) else {
            continue;
        };
        let pool = Pool::new(subnet, used);
        let free = pool.free().take(needed).count();
        if free < needed {
            return Err(PlanError::PoolExhausted {
                segment: segment.clone(),
                family,
                needed,
                free,
            });
        }
        pools.insert((segment, family), pool);
    }
    Ok(wanted
        .iter()
        .map(|(state, segment)| {
            let to = (*segment != state.vm.home).then(|| Binding {
                segment: segment.clone(),
                locators: take(&mut pools, segment, state.vm.identities),
            });
            Move {
                before: state.clone(),
                after: state.moved(to),
            }
        })
        .collect())
}

/// A locator for each identity.
fn take<'a>(pools: &mut Pools<'a>, segment: &'a SegmentName, identities: Addresses) -> Addresses {
    let locators = identities.iter().filter_map(|identity| {
        let family = IpFamily::of(identity);
        pools.get_mut(&(segment, family))?.take(identity)
    });
    // Of each family one, as of the identities.
    Addresses::collect(locators).unwrap_or_default()
}

/// A segment's locator pool of a family, and what a group has taken of it.
struct Pool<'a> {
    subnet: &'a Subnet,
    used: &'a BTreeSet<IpAddr>,
    taken: BTreeSet<IpAddr>,
    /// From where on no address with this last octet, or with any, was looked at.
    next: BTreeMap<Option<u8>, u128>,
}

impl<'a> Pool<'a> {
    fn new(subnet: &'a Subnet, used: &'a BTreeSet<IpAddr>) -> Self {
        Self {
            subnet,
            used,
            taken: BTreeSet::new(),
            next: BTreeMap::new(),
        }
    }

    fn range(&self) -> (u128, u128) {
        let pool = self.subnet.pool;
        (number(pool.network()), number(pool.broadcast()))
    }

    /// Whether the address may be given away.
    fn is_free(&self, address: IpAddr) -> bool {
        self.subnet.has_host(address)
            && address != self.subnet.gateway
            && !self.used.contains(&address)
            && !self.taken.contains(&address)
    }

    /// All that may be given away, in ascending order.
    fn free(&self) -> impl Iterator<Item = IpAddr> {
        let (first, last) = self.range();
        (first..=last)
            .map(|number| self.address(number))
            .filter(|address| self.is_free(*address))
    }

    fn address(&self, number: u128) -> IpAddr {
        match (self.subnet.pool.network(), u32::try_from(number)) {
            (IpAddr::V4(_), Ok(number)) => Ipv4Addr::from(number).into(),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Ipv6Addr::from(number).into(),
        }
    }

    /// Takes a locator for an identity.
    fn take(&mut self, identity: IpAddr) -> Option<IpAddr> {
        let [octet, ..] = number(identity).to_le_bytes();
        self.take_lowest(Some(octet))
            .or_else(|| self.take_lowest(None))
    }

    /// Takes the lowest that is free, of those with this last octet or of all.
    fn take_lowest(&mut self, octet: Option<u8>) -> Option<IpAddr> {
        let (first, last) = self.range();
        let start = octet.map_or(first, |octet| {
            first + u128::from(octet.wrapping_sub(first.to_le_bytes()[0]))
        });
        let step = if octet.is_some() { 256 } else { 1 };
        let mut at = self.next.get(&octet).copied().unwrap_or(start);
        while at <= last {
            let address = self.address(at);
            at += step;
            if self.is_free(address) {
                self.next.insert(octet, at);
                self.taken.insert(address);
                return Some(address);
            }
        }
        self.next.insert(octet, at);
        None
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
