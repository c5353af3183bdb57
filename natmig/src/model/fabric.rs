//! Small fabrics.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;

use super::{ModelRouter, Routers};
use crate::{
    names::{RouterName, SegmentName, VmName},
    planner::Vm,
    rule::MacAddress,
    topology::{Segment, Tier, Topology},
};

/// A topology with these edge routers for its segments `rack1`, `rack2` …, and two core routers.
/// Pools have room for seven locators.
pub(crate) fn topology(edges: &[&[&str]]) -> Topology {
    let mut topology = Topology {
        drain: Duration::from_secs(5),
        quarantine: Duration::from_secs(30),
        routers: [("core1", Tier::Core), ("core2", Tier::Core)]
            .map(|(name, tier)| (RouterName::new(name), tier))
            .into(),
        segments: [].into(),
    };
    for (index, routers) in edges.iter().enumerate() {
        let number = u8::try_from(index + 1).unwrap();
        let routers: BTreeSet<_> = routers.iter().map(|name| RouterName::new(*name)).collect();
        for router in &routers {
            topology.routers.insert(router.clone(), Tier::Edge);
        }
        let network = Ipv4Addr::new(10, 1, number, 0);
        let pool = Ipv4Addr::new(10, 1, number, 248);
        topology.segments.insert(
            SegmentName::new(format!("rack{number}")),
            Segment {
                prefix: Ipv4Net::new(network, 24).unwrap(),
                gateway: Ipv4Addr::new(10, 1, number, 1),
                pool: Ipv4Net::new(pool, 29).unwrap(),
                routers,
            },
        );
    }
    topology
}

/// VM number `number`, at home in segment number `home`.
pub(crate) fn vm(number: u8, home: u8) -> Vm {
    Vm {
        name: VmName::new(format!("vm{number}")),
        identity: Ipv4Addr::new(10, 1, home, 10 + number),
        mac: MacAddress([2, 0, 0, 0, home, number]),
        home: SegmentName::new(format!("rack{home}")),
    }
}

/// The routers of a topology, empty.
pub(crate) fn fabric(topology: &Topology) -> Routers {
    topology
        .routers
        .keys()
        .map(|name| {
            let segments = topology
                .segments
                .iter()
                .filter(|(_, segment)| segment.routers.contains(name))
                .map(|(segment, _)| segment.clone())
                .collect();
            (name.clone(), ModelRouter::new(segments))
        })
        .collect()
}
