//! Where VMs go: checks the destinations and takes locators.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Move, PlanError, VmState};
use crate::{names::SegmentName, topology::Topology};

/// The moves that take VMs to segments, each with a free locator: the lowest of the segment's pool
/// that is not in `used`. A VM whose destination is its home returns.
pub fn destinations(
    _topology: &Topology,
    _wanted: &[(VmState, SegmentName)],
    _used: &BTreeSet<Ipv4Addr>,
) -> Result<Vec<Move>, PlanError> {
    todo!()
}
