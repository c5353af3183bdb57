//! The fabric as its operators describe it: routers, segments, locator pools.
//!
//! A [`Topology`] is always valid: it comes from [`Topology::parse`], and what is stored once came from
//! there.

mod check;
mod parse;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use self::parse::TopologyError;
use crate::names::{RouterName, SegmentName};

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

/// An IP subnet at the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its prefix.
    pub prefix: Ipv4Net,
    /// Its gateway address.
    pub gateway: Ipv4Addr,
    /// Where its locators come from; inside the prefix.
    pub pool: Ipv4Net,
    /// The one or two edge routers that serve it.
    pub routers: BTreeSet<RouterName>,
}

/// Routers and segments of a fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub fn pools(&self) -> Vec<Ipv4Net> {
        self.segments.values().map(|segment| segment.pool).collect()
    }

    /// The segment whose prefix contains an address.
    pub fn segment_of(&self, address: Ipv4Addr) -> Option<&SegmentName> {
        self.segments
            .iter()
            .find(|(_, segment)| segment.prefix.contains(&address))
            .map(|(name, _)| name)
    }
}
