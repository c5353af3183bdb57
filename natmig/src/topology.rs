//! The fabric as its operators describe it: routers, segments, locator pools.
//!
//! A [`Topology`] is always valid: it comes from [`Topology::parse`], and what is stored once came from
//! there.

mod check;
mod parse;
mod subnet;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::subnet::SegmentRecord;
pub use self::{parse::TopologyError, subnet::Subnet};
use crate::{
    addresses::IpFamily,
    names::{RouterName, SegmentName},
};

/// How long old locators are forwarded after a migration, unless the topology says otherwise.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// How long a retired locator is not given out again, unless the topology says otherwise.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(30);

/// A router's layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Serves segments.
    Edge,
    /// Connects edges.
    Aggregation,
    /// Connects aggregations and the outside.
    Core,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Edge => "edge",
            Self::Aggregation => "aggregation",
            Self::Core => "core",
        })
    }
}

/// A subnet at the edge, of one family or of both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "SegmentRecord", try_from = "SegmentRecord")]
pub struct Segment {
    /// Its addresses: of one family or of each, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// The one or two edge routers that serve it.
    pub routers: BTreeSet<RouterName>,
}

impl Segment {
    /// Its addresses of a family.
    pub fn subnet(&self, family: IpFamily) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.family() == family)
    }
}

/// Routers and segments of a fabric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Topology {
    /// How long old locators are forwarded after a migration.
    pub drain: Duration,
    /// How long a retired locator is not given out again.
    pub quarantine: Duration,
    /// All routers; each takes part in every migration.
    pub routers: BTreeMap<RouterName, Tier>,
    /// All segments.
    pub segments: BTreeMap<SegmentName, Segment>,
}

impl Topology {
    /// Reads and checks a topology; `file` is only named in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, TopologyError> {
        parse::parse(file, text)
    }

    /// Whether `router` serves `segment`.
    pub fn serves(&self, router: &RouterName, segment: &SegmentName) -> bool {
        self.segments
            .get(segment)
            .is_some_and(|segment| segment.routers.contains(router))
    }

    /// The edge routers of a segment.
    pub fn edges(&self, segment: &SegmentName) -> BTreeSet<RouterName> {
        self.segments
            .get(segment)
            .map(|segment| segment.routers.clone())
            .unwrap_or_default()
    }

    /// The locator pools of all segments, as every router needs them.
    pub fn pools(&self) -> Vec<IpNet> {
        self.segments
            .values()
            .flat_map(|segment| &segment.subnets)
            .map(|subnet| subnet.pool)
            .collect()
    }

    /// The segment one of whose prefixes contains an address.
    pub fn segment_of(&self, address: IpAddr) -> Option<&SegmentName> {
        self.segments
            .iter()
            .find(|(_, segment)| {
                segment
                    .subnet(IpFamily::of(address))
                    .is_some_and(|subnet| subnet.prefix.contains(&address))
            })
            .map(|(name, _)| name)
    }
}
