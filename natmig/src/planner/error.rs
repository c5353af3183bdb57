//! Why a migration cannot be planned.

use std::net::IpAddr;

use crate::{
    addresses::IpFamily,
    coordinator::RefusalKind,
    names::{RouterName, SegmentName, VmName},
};

/// Why a migration cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to move.
    #[error("no VM to move; name at least one")]
    Empty,
    /// A VM is named twice.
    #[error("VM {0} is named twice; name each VM once")]
    Twice(VmName),
    /// A segment is not in the topology.
    #[error("there is no segment {0} in the topology; see `natmig topology show`")]
    UnknownSegment(SegmentName),
    /// A VM is there already.
    #[error("VM {vm} is in segment {segment} already")]
    AlreadyThere {
        /// The VM.
        vm: VmName,
        /// Where it is.
        segment: SegmentName,
    },
    /// The segment has no addresses of a family in which the VM has one.
    #[error(
        "VM {vm} has the {family} address {identity}, but segment {segment} has no {family} prefix; \
         add its {family} prefix, gateway and pool to the topology, or choose another segment",
        family = IpFamily::of(*identity)
    )]
    NoSuchFamily {
        /// The VM.
        vm: VmName,
        /// Its address.
        identity: IpAddr,
        /// The segment.
        segment: SegmentName,
    },
    /// The segment has too few free locators.
    #[error(
        "the {family} locator pool of segment {segment} is exhausted: {needed} needed, {free} free; \
         widen the pool, or wait until old locators are retired and their quarantine is over"
    )]
    PoolExhausted {
        /// The segment.
        segment: SegmentName,
        /// The family.
        family: IpFamily,
        /// Locators that the group needs.
        needed: usize,
        /// Locators that are free.
        free: usize,
    },
    /// Returns in the group contradict each other in the order of commits.
    #[error(
        "VMs of the group return home in opposite directions between routers {first} and {second}, \
         which cannot be one transaction without a loop; split the group"
    )]
    Cycle {
        /// One router.
        first: RouterName,
        /// The other.
        second: RouterName,
    },
}

impl PlanError {
    /// What kind of refusal it is.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Empty | Self::Twice(_) => RefusalKind::Invalid,
            Self::UnknownSegment(_) => RefusalKind::NotFound,
            Self::AlreadyThere { .. }
            | Self::NoSuchFamily { .. }
            | Self::PoolExhausted { .. }
            | Self::Cycle { .. } => RefusalKind::Refused,
        }
    }
}
