//! The lab's interior gateway protocol: shortest paths over live links, as static ECMP routes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::topology::{RoutedLink, Topology};

/// A way to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// The neighbour's address.
    pub via: Ipv4Addr,
    /// The interface towards it.
    pub interface: String,
}

/// Next hops of one node by prefix.
pub type Routes = BTreeMap<Ipv4Net, Vec<NextHop>>;

/// Routes of every node that routes, from the live links (by index in `links`).
pub fn routes(
    topology: &Topology,
    links: &[RoutedLink],
    live: &[bool],
) -> BTreeMap<String, Routes> {
    let mut tables: BTreeMap<String, Routes> = topology
        .routers
        .iter()
        .map(|router| (router.name.clone(), Routes::new()))
        .chain(
            topology
                .outside
                .iter()
                .map(|outside| (outside.name.clone(), Routes::new())),
        )
        .collect();
    for (prefix, owners) in destinations(topology, links) {
        let distance = distances(topology, links, live, &owners);
        for (node, table) in &mut tables {
            if owners.contains(node) {
                continue;
            }
            let Some(mine) = distance.get(node) else {
                continue;
            };
            let mut hops = Vec::new();
            for (link, _) in links.iter().zip(live).filter(|(_, live)| **live) {
                for (near, far) in [(0, 1), (1, 0)] {
                    let (near, far) = (&link.ends[near], &link.ends[far]);
                    let closer = distance
                        .get(&far.node)
                        .is_some_and(|theirs| theirs + 1 == *mine);
                    if near.node == *node && closer {
                        hops.push(NextHop {
                            via: far.address,
                            interface: near.interface.clone(),
                        });
                    }
                }
            }
            if !hops.is_empty() {
                hops.sort();
                table.insert(prefix, hops);
            }
        }
    }
    tables
}

/// What can be reached, and the nodes that have it connected.
fn destinations(topology: &Topology, links: &[RoutedLink]) -> BTreeMap<Ipv4Net, Vec<String>> {
    let mut destinations = BTreeMap::new();
    for segment in &topology.segments {
        destinations.insert(segment.prefix.trunc(), segment.routers.clone());
    }
    for link in links {
        if let Ok(prefix) = Ipv4Net::new(link.ends[0].address, 31) {
            let owners = link.ends.iter().map(|end| end.node.clone()).collect();
            destinations.insert(prefix.trunc(), owners);
        }
    }
    if let Some(outside) = &topology.outside {
        destinations.insert(Ipv4Net::from(outside.address), vec![outside.name.clone()]);
    }
    destinations
}

/// Hops to the nearest owner; the outside host never carries transit traffic.
fn distances(
    topology: &Topology,
    links: &[RoutedLink],
    live: &[bool],
    owners: &[String],
) -> BTreeMap<String, u32> {
    let outside = topology
        .outside
        .as_ref()
        .map(|outside| outside.name.as_str());
    let mut distance: BTreeMap<String, u32> =
        owners.iter().map(|owner| (owner.clone(), 0)).collect();
    let mut queue: VecDeque<String> = owners.iter().cloned().collect();
    while let Some(node) = queue.pop_front() {
        let here = distance[&node];
        if here > 0 && outside == Some(node.as_str()) {
            continue;
        }
        for (link, _) in links.iter().zip(live).filter(|(_, live)| **live) {
            for (near, far) in [(0, 1), (1, 0)] {
                let far = &link.ends[far].node;
                if link.ends[near].node == node && !distance.contains_key(far) {
                    distance.insert(far.clone(), here + 1);
                    queue.push_back(far.clone());
                }
            }
        }
    }
    distance
}

/// Lines for `ip -batch` that turn `old` into `new` without a moment in which a kept prefix has no route.
pub fn batch(old: &Routes, new: &Routes, source: Option<Ipv4Addr>) -> String {
    let mut lines = String::new();
    let source = source
        .map(|address| format!(" src {address}"))
        .unwrap_or_default();
    for (prefix, hops) in new {
        if old.get(prefix) == Some(hops) {
            continue;
        }
        let hops: Vec<_> = hops
            .iter()
            .map(|hop| format!("nexthop via {} dev {}", hop.via, hop.interface))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines,
            "route replace {prefix} proto static{source} {}",
            hops.join(" ")
        );
    }
    for prefix in old.keys().filter(|prefix| !new.contains_key(prefix)) {
        let _ = writeln!(lines, "route delete {prefix} proto static");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::THREE_TIER;

    fn hops(tables: &BTreeMap<String, Routes>, node: &str, prefix: &str) -> Vec<String> {
        tables[node]
            .get(&prefix.parse().unwrap())
            .map(|hops| hops.iter().map(|hop| hop.interface.clone()).collect())
            .unwrap_or_default()
    }

    #[test]
    fn equal_paths_are_all_used() {
        let topology = Topology::parse(THREE_TIER).unwrap();
        let links = topology.routed_links();
        let tables = routes(&topology, &links, &vec![true; links.len()]);
        assert_eq!(hops(&tables, "edge1", "10.1.3.0/24"), ["agg1", "agg2"]);
        assert_eq!(hops(&tables, "agg1", "10.1.4.0/24"), ["core1", "core2"]);
        assert_eq!(hops(&tables, "agg1", "10.1.2.0/24"), ["edge2"]);
        assert_eq!(hops(&tables, "outside", "10.1.1.0/24"), ["core1", "core2"]);
        assert!(hops(&tables, "edge1", "10.1.1.0/24").is_empty());
    }

    #[test]
    fn cut_link_is_avoided() {
        let topology = Topology::parse(THREE_TIER).unwrap();
        let links = topology.routed_links();
        let live: Vec<_> = links
            .iter()
            .map(|link| !(link.ends[0].node == "agg1" && link.ends[1].node == "edge1"))
            .collect();
        let tables = routes(&topology, &links, &live);
        assert_eq!(hops(&tables, "edge1", "10.1.3.0/24"), ["agg2"]);
        assert_eq!(hops(&tables, "core1", "10.1.1.0/24"), ["agg2"]);
        assert_eq!(
            hops(&tables, "agg1", "10.1.1.0/24"),
            ["core1", "core2", "edge2"]
        );
    }

    #[test]
    fn outside_is_no_transit() {
        let topology = Topology::parse(THREE_TIER).unwrap();
        let links = topology.routed_links();
        let live: Vec<_> = links
            .iter()
            .map(|link| link.external || link.ends[0].node != "core1")
            .collect();
        let tables = routes(&topology, &links, &live);
        assert!(hops(&tables, "core1", "10.1.1.0/24").is_empty());
        assert_eq!(hops(&tables, "outside", "10.1.1.0/24"), ["core2"]);
    }
}
