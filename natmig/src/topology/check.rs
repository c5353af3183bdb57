//! What makes a topology valid. Used for files, where a problem has a place, and therefore reports
//! problems with the key that they are about.

use ipnet::Ipv4Net;

use super::{Segment, Tier, Topology};
use crate::names::SegmentName;

/// A key of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Prefix,
    Gateway,
    Pool,
    Routers,
}

/// A problem of a segment: where, what, and what to do.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) key: Key,
    pub(super) what: String,
    pub(super) remedy: String,
}

/// Checks a segment by itself and against the ones before it.
pub(super) fn segment(
    topology: &Topology,
    name: &SegmentName,
    segment: &Segment,
) -> Result<(), Problem> {
    let fail = |key, problem: String, remedy: &str| {
        Err(Problem {
            key,
            what: problem,
            remedy: remedy.to_owned(),
        })
    };
    let Segment {
        prefix,
        gateway,
        pool,
        routers,
    } = segment;
    let overlaps = topology
        .segments
        .iter()
        .filter(|(other, _)| *other != name)
        .find(|(_, other)| overlap(*prefix, other.prefix));
    if let Some((other, place)) = overlaps {
        return fail(
            Key::Prefix,
            format!(
                "prefix {prefix} of segment {name} overlaps {} of segment {other}",
                place.prefix
            ),
            "give each segment a prefix of its own",
        );
    }
    if prefix.prefix_len() > 30 {
        return fail(
            Key::Prefix,
            format!("prefix {prefix} of segment {name} has no room for hosts and locators"),
            "use a prefix of length 30 or less",
        );
    }
    if !prefix.contains(gateway) || *gateway == prefix.network() || *gateway == prefix.broadcast() {
        return fail(
            Key::Gateway,
            format!("gateway {gateway} of segment {name} is no host's address in {prefix}"),
            "write the address that its hosts use as gateway",
        );
    }
    if !prefix.contains(pool) || pool == prefix {
        return fail(
            Key::Pool,
            format!("pool {pool} of segment {name} is not a part of its prefix {prefix}"),
            "reserve a part of the prefix, which no host uses, for locators",
        );
    }
    if pool.contains(gateway) {
        return fail(
            Key::Pool,
            format!("pool {pool} of segment {name} contains its gateway {gateway}"),
            "choose another part of the prefix as pool",
        );
    }
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

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}
