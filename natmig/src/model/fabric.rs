//! Small fabrics.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{ModelRouter, Routers};
use crate::{
    addresses::Addresses,
    names::{RouterName, SegmentName, VmName},
    planner::Vm,
    rule::MacAddress,
    topology::{Segment, Subnet, Tier, Topology},
};

/// A topology with these edge routers for its segments `rack1`, `rack2` …, and two core routers.
/// Segments have both families, pools room for seven locators of IPv4 and eight of IPv6.
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
        let ipv4 = |last| Ipv4Addr::new(10, 1, number, last);
        let ipv6 = |last| address_ipv6(number, last);
        let subnets = vec![
            Subnet {
                prefix: Ipv4Net::new(ipv4(0), 24).unwrap().into(),
                gateway: ipv4(1).into(),
                pool: Ipv4Net::new(ipv4(248), 29).unwrap().into(),
            },
            Subnet {
                prefix: Ipv6Net::new(ipv6(0), 64).unwrap().into(),
                gateway: ipv6(1).into(),
                pool: Ipv6Net::new(ipv6(0xf8), 125).unwrap().into(),
            },
        ];
        topology.segments.insert(
            SegmentName::new(format!("rack{number}")),
            Segment { subnets, routers },
        );
    }
    topology
}

/// An address of segment number `segment`.
fn address_ipv6(segment: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, segment.into(), 0, 0, 0, 0, last.into())
}

/// VM number `number`, at home in segment number `home`: every third one has IPv6 alone, every
/// fourth IPv4 alone, all others both.
pub(crate) fn vm(number: u8, home: u8) -> Vm {
    let ipv4 = Ipv4Addr::new(10, 1, home, 10 + number).into();
    let ipv6 = address_ipv6(home, 10 + number).into();
    let identities = match number {
        _ if number.is_multiple_of(3) => vec![ipv6],
        _ if number.is_multiple_of(4) => vec![ipv4],
        _ => vec![ipv4, ipv6],
    };
    Vm {
        name: VmName::new(format!("vm{number}")),
        identities: Addresses::collect(identities).unwrap(),
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
