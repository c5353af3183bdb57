//! Where VMs go: checks the destinations and takes locators.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{Binding, Move, PlanError, VmState};
use crate::{
    names::SegmentName,
    topology::{Segment, Topology},
};

/// The moves that take VMs to segments, each with a free locator: the lowest of the segment's pool
/// that is not in `used`. A VM whose destination is its home returns.
pub fn destinations(
    topology: &Topology,
    wanted: &[(VmState, SegmentName)],
    used: &BTreeSet<Ipv4Addr>,
) -> Result<Vec<Move>, PlanError> {
    if wanted.is_empty() {
        return Err(PlanError::Empty);
    }
    let mut names = BTreeSet::new();
    let mut needed: BTreeMap<&SegmentName, usize> = BTreeMap::new();
    for (state, segment) in wanted {
        if !names.insert(&state.vm.name) {
            return Err(PlanError::Twice(state.vm.name.clone()));
        }
        if !topology.segments.contains_key(segment) {
            return Err(PlanError::UnknownSegment(segment.clone()));
        }
        if state.segment() == segment {
            return Err(PlanError::AlreadyThere {
                vm: state.vm.name.clone(),
                segment: segment.clone(),
            });
        }
        if *segment != state.vm.home {
            *needed.entry(segment).or_default() += 1;
        }
    }
    let mut free: BTreeMap<&SegmentName, std::vec::IntoIter<Ipv4Addr>> = BTreeMap::new();
    for (segment, needed) in needed {
        let Some(place) = topology.segments.get(segment) else {
            return Err(PlanError::UnknownSegment(segment.clone()));
        };
        let locators: Vec<_> = free_locators(place, used).take(needed).collect();
        if locators.len() < needed {
            return Err(PlanError::PoolExhausted {
                segment: segment.clone(),
                needed,
                free: locators.len(),
            });
        }
        free.insert(segment, locators.into_iter());
    }
    Ok(wanted
        .iter()
        .map(|(state, segment)| {
            let to = if *segment == state.vm.home {
                None
            } else {
                free.get_mut(segment)
                    .and_then(Iterator::next)
                    .map(|locator| Binding {
                        segment: segment.clone(),
                        locator,
                    })
            };
            Move {
                before: state.clone(),
                after: state.moved(to),
            }
        })
        .collect())
}

/// Locators of a segment that are free, in ascending order. The prefix's own and its broadcast
/// address are none.
fn free_locators<'a>(
    segment: &'a Segment,
    used: &'a BTreeSet<Ipv4Addr>,
) -> impl Iterator<Item = Ipv4Addr> + 'a {
    let (first, last) = (segment.pool.network(), segment.pool.broadcast());
    let mut taken = used.range(first..=last).copied().peekable();
    (u32::from(first)..=u32::from(last))
        .map(Ipv4Addr::from)
        .filter(move |address| {
            while taken.next_if(|taken| taken < address).is_some() {}
            taken.peek() != Some(address)
        })
        .filter(|address| {
            *address != segment.prefix.network()
                && *address != segment.prefix.broadcast()
                && *address != segment.gateway
        })
}
