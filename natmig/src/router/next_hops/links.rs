//! What next hops need to know of interfaces and neighbours.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use natmig_common::{Interface, Mac, NextHop};

use super::{
    paths::{Path, Paths},
    prefix::Ip,
};

/// Largest number of elements of `NEXT_HOPS` for one route.
const MOST_ELEMENTS: u32 = 64;

/// An interface as the kernel tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkState {
    /// Switched on.
    pub(super) up: bool,
    /// Connected.
    pub(super) carrier: bool,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    /// MTU for IPv6, which may be smaller; 0 if there is no IPv6.
    pub(super) mtu_ipv6: u32,
}

/// What is known about the far ends of paths.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) links: HashMap<u32, LinkState>,
    /// MAC addresses of the neighbours that the kernel would send to.
    pub(super) neighbors: HashMap<(u32, IpAddr), Mac>,
    /// The interfaces of natmig, as the program knows them.
    pub(super) interfaces: BTreeMap<u32, Interface>,
    /// By family: whether routes are all that decides where packets go.
    pub(super) plain: [bool; 2],
    /// Whether the kernel applies an MTU of a route to packets that it forwards.
    pub(super) forwards_by_route_mtu: bool,
}

impl Surroundings {
    /// The elements of `NEXT_HOPS` for a route; none to ask the kernel.
    pub(super) fn resolve(&self, paths: &Paths) -> Vec<NextHop> {
        // Some of the paths are not for the program: which, only the kernel knows.
        let foreign = |path: &Path| !self.interfaces.contains_key(&path.ifindex);
        if !self.plain[paths.family.index()] || paths.paths.iter().any(foreign) {
            return Vec::new();
        }
        let found: Vec<(u16, NextHop)> = paths
            .paths
            .iter()
            .filter_map(|path| Some((path.weight, self.next_hop(paths, path)?)))
            .collect();
        let weights: Vec<u32> = found.iter().map(|(weight, _)| u32::from(*weight)).collect();
        found
            .iter()
            .zip(shares(&weights))
            .flat_map(|((_, hop), share)| std::iter::repeat_n(*hop, share))
            .collect()
    }

    /// Whether a packet could be sent on this interface.
    pub(super) fn works(&self, ifindex: u32) -> bool {
        self.interfaces.contains_key(&ifindex)
            && self
                .links
                .get(&ifindex)
                .is_some_and(|link| link.up && link.carrier)
    }

    fn next_hop(&self, paths: &Paths, path: &Path) -> Option<NextHop> {
        let interface = self.interfaces.get(&path.ifindex)?;
        let link = self.links.get(&path.ifindex)?;
        let neighbor = self.neighbors.get(&(path.ifindex, path.gateway))?;
        if !self.works(path.ifindex) {
            return None;
        }
        Some(NextHop {
            ifindex: path.ifindex,
            device: if interface.parent == 0 {
                path.ifindex
            } else {
                interface.parent
            },
            mtu: u16::try_from(self.mtu(paths, link)?).unwrap_or(u16::MAX),
            vlan: interface.vlan,
            role: interface.role,
            valid: 1,
            destination_mac: *neighbor,
            source_mac: link.mac,
            ..NextHop::default()
        })
    }

    fn mtu(&self, paths: &Paths, link: &LinkState) -> Option<u32> {
        let own = match paths.family {
            Ip::V4 => link.mtu,
            // The kernel sends no IPv6 over an interface whose MTU is too small for it.
            Ip::V6 => link.mtu_ipv6,
        };
        let route = paths
            .mtu
            .filter(|mtu| mtu.locked || (paths.family == Ip::V4 && self.forwards_by_route_mtu))
            .map_or(own, |mtu| mtu.bytes.min(own));
        (route != 0).then_some(route)
    }
}

/// How many elements each path gets, by its weight.
fn shares(weights: &[u32]) -> Vec<usize> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u32 = weights.iter().map(|weight| weight / divisor).sum();
    let most = MOST_ELEMENTS.max(u32::try_from(weights.len()).unwrap_or(u32::MAX));
    weights
        .iter()
        .map(|weight| {
            let weight = weight / divisor;
            let share = if sum <= most {
                weight
            } else {
                // Rounded to the nearest; nothing is left out.
                ((weight * MOST_ELEMENTS + sum / 2) / sum).max(1)
            };
            share as usize
        })
        .collect()
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights() {
        assert_eq!(shares(&[1]), [1]);
        assert_eq!(shares(&[256, 256]), [1, 1]);
        assert_eq!(shares(&[1, 3]), [1, 3]);
        assert_eq!(shares(&[1, 255]), [1, 64]);
        assert_eq!(shares(&[100, 155]), [20, 31]);
        assert_eq!(shares(&[]), [0; 0]);
        assert_eq!(shares(&[7; 100]), [1; 100]);
    }
}
