//! What makes a topology valid. Used for files, where a problem has a place, and therefore reports
//! problems with the key that they are about.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Segment, Subnet, Tier, Topology};
use crate::{addresses::IpFamily, config::check_pool, names::SegmentName};

/// A key of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Prefix(IpFamily),
    Gateway(IpFamily),
    Pool(IpFamily),
    Routers,
}

/// A problem of a segment: where, what, and what to do.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) key: Key,
    pub(super) what: String,
    pub(super) remedy: String,
}

fn fail(key: Key, what: String, remedy: &str) -> Result<(), Problem> {
    Err(Problem {
        key,
        what,
        remedy: remedy.to_owned(),
    })
}

/// Checks a segment by itself and against the ones before it.
pub(super) fn segment(
    topology: &Topology,
    name: &SegmentName,
    segment: &Segment,
) -> Result<(), Problem> {
    for subnet in &segment.subnets {
        check_prefix(topology, name, subnet)?;
        check_gateway(name, subnet)?;
        check_locators(topology, name, subnet)?;
    }
    check_routers(topology, name, segment)
}

fn check_prefix(topology: &Topology, name: &SegmentName, subnet: &Subnet) -> Result<(), Problem> {
    let Subnet { prefix, .. } = subnet;
    let key = Key::Prefix(subnet.family());
    let overlaps = topology
        .segments
        .iter()
        .filter(|(other, _)| *other != name)
        .flat_map(|(other, place)| place.subnets.iter().map(move |subnet| (other, subnet)))
        .find(|(_, other)| overlap(*prefix, other.prefix));
    if let Some((other, place)) = overlaps {
        return fail(
            key,
            format!(
                "prefix {prefix} of segment {name} overlaps {} of segment {other}",
                place.prefix
            ),
            "give each segment a prefix of its own",
        );
    }
    let longest = prefix.max_prefix_len() - 2;
    if prefix.prefix_len() > longest {
        return fail(
            key,
            format!("prefix {prefix} of segment {name} has no room for hosts and locators"),
            &format!("use a prefix of length {longest} or less"),
        );
    }
    if let IpAddr::V6(address) = prefix.addr()
        && (address.is_unicast_link_local() || address.is_multicast() || address.is_unspecified())
    {
        return fail(
            key,
            format!("prefix {prefix} of segment {name} is not routed"),
            "use a global prefix, or a unique local one (fd00::/8)",
        );
    }
    Ok(())
}

fn check_gateway(name: &SegmentName, subnet: &Subnet) -> Result<(), Problem> {
    let Subnet {
        prefix, gateway, ..
    } = subnet;
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    if link_local || subnet.has_host(*gateway) {
        return Ok(());
    }
    fail(
        Key::Gateway(subnet.family()),
        format!("gateway {gateway} of segment {name} is no host's address in {prefix}"),
        match subnet.family() {
            IpFamily::Ipv4 => "write the address that its hosts use as gateway",
            IpFamily::Ipv6 => {
                "write the address that its hosts use as gateway, which may be link-local"
            }
        },
    )
}

fn check_locators(topology: &Topology, name: &SegmentName, subnet: &Subnet) -> Result<(), Problem> {
    let Subnet {
        prefix,
        gateway,
        pool,
    } = subnet;
    let key = Key::Pool(subnet.family());
    if !prefix.contains(pool) || pool == prefix {
        return fail(
            key,
            format!("pool {pool} of segment {name} is not a part of its prefix {prefix}"),
            "reserve a part of the prefix, which no host uses, for locators",
        );
    }
    if pool.contains(gateway) {
        return fail(
            key,
            format!("pool {pool} of segment {name} contains its gateway {gateway}"),
            "choose another part of the prefix as pool",
        );
    }
    let others: Vec<IpNet> = topology
        .segments
        .iter()
        .filter(|(other, _)| *other != name)
        .flat_map(|(_, segment)| segment.subnets.iter().map(|subnet| subnet.pool))
        .collect();
    check_pool(*pool, &others)
        .or_else(|(problem, remedy)| fail(key, format!("{problem} (segment {name})"), remedy))
}

fn check_routers(
    topology: &Topology,
    name: &SegmentName,
    segment: &Segment,
) -> Result<(), Problem> {
    let routers = &segment.routers;
    if routers.is_empty() || routers.len() > 2 {
        return fail(
            Key::Routers,
            format!("segment {name} is served by {} routers", routers.len()),
            "name its one or two edge routers",
        );
    }
    for router in routers {
        match topology.routers.get(router) {
            Some(Tier::Edge) => {}
            Some(tier @ (Tier::Aggregation | Tier::Core)) => {
                return fail(
                    Key::Routers,
                    format!("router {router} serves segment {name}, but its tier is {tier}"),
                    "name an edge router, or correct the router's tier",
                );
            }
            None => {
                return fail(
                    Key::Routers,
                    format!("there is no router {router}, which is said to serve segment {name}"),
                    "correct the name, or add a [[router]] for it",
                );
            }
        }
    }
    Ok(())
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}
