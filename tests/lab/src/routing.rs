//! The lab's interior gateway protocol: shortest paths over live links, as static ECMP routes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::IpAddr,
};

use ipnet::IpNet;

use crate::topology::{RoutedLink, Topology};

/// A way to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// The neighbour's address.
    pub via: IpAddr,
    /// The interface towards it.
    pub interface: String,
}

/// Next hops of one node by prefix.
pub type Routes = BTreeMap<IpNet, Vec<NextHop>>;

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
                    let family =
                        |address: &IpNet| address.addr().is_ipv4() == prefix.addr().is_ipv4();
                    let via = far.prefixes().find(family);
                    if near.node == *node
                        && closer
                        && let Some(via) = via
                    {
                        hops.push(NextHop {
                            via: via.addr(),
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
fn destinations(topology: &Topology, links: &[RoutedLink]) -> BTreeMap<IpNet, Vec<String>> {
    let mut destinations = BTreeMap::new();
    for segment in &topology.segments {
        for prefix in segment.prefixes() {
            destinations.insert(prefix.trunc(), segment.routers.clone());
        }
    }
    for link in links {
        for prefix in link.ends[0].prefixes() {
            let owners = link.ends.iter().map(|end| end.node.clone()).collect();
            destinations.insert(prefix.trunc(), owners);
        }
    }
    if let Some(outside) = &topology.outside {
        let ipv6 = outside.address_ipv6.map(IpAddr::V6);
        for address in std::iter::once(IpAddr::V4(outside.address)).chain(ipv6) {
            destinations.insert(IpNet::from(address), vec![outside.name.clone()]);
        }
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
///
/// Packets of the node itself have the source of `sources` that is of the prefix' family.
pub fn batch(old: &Routes, new: &Routes, sources: &[IpAddr]) -> String {
    let mut lines = String::new();
    for (prefix, hops) in new {
        if old.get(prefix) == Some(hops) {
            continue;
        }
        let hops: Vec<_> = hops
            .iter()
            .map(|hop| format!("nexthop via {} dev {}", hop.via, hop.interface))
            .collect();
        let source = sources
            .iter()
            .find(|source| source.is_ipv4() == prefix.addr().is_ipv4())
            .map(|address| format!(" src {address}"))
            .unwrap_or_default();
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
        assert_eq!(hops(&tables, "edge1", "2001:db8:3::/64"), ["agg1", "agg2"]);
        assert_eq!(
            hops(&tables, "agg1", "2001:db8:100::10/128"),
            ["core1", "core2"]
        );
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
