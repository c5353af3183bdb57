//! The mirror of the kernel's tables: events in, changes of `ROUTES`, `NEXT_HOPS` and prefixes out.
//!
//! Pure: no socket, no map, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use natmig_common::{Interface, Mac, NextHop};

use super::{
    fib::{Fib, RouteId},
    grains::{Grain, Grains},
    links::{LinkState, Surroundings},
    paths::{Route, RouteChange},
    prefix::{Ip, Prefix},
    sets::{Sets, Way},
};

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Update {
    /// What routes lead to, none to ask the kernel.
    pub(super) routes: Vec<(RouteId, Vec<NextHop>)>,
    /// The routes of prefixes.
    pub(super) grains: Vec<(Grain, RouteId)>,
    /// Routes to which nothing leads any longer after that. After a grace period they are given
    /// back with [`Mirror::freed`].
    pub(super) unused: Vec<RouteId>,
    /// Neighbours that the kernel is to keep resolved.
    pub(super) keep: Vec<Way>,
    /// Neighbours that it need not keep any longer.
    pub(super) let_go: Vec<Way>,
}

/// What the kernel's tables hold, and what follows from it.
#[derive(Debug)]
pub(super) struct Mirror {
    fibs: [Fib; 2],
    sets: Sets,
    grains: Grains,
    surroundings: Surroundings,
    dirty: [Vec<Prefix>; 2],
    /// Neighbours that are permanent, which being kept would end.
    permanent: HashSet<Way>,
    /// Ways that the kernel keeps resolved because it was told to.
    kept: HashSet<Way>,
    /// Ways to look at again.
    ways: BTreeSet<Way>,
    /// Something was told that does not fit: the routes are to be read again.
    doubtful: bool,
}

impl Mirror {
    pub(super) fn new() -> Self {
        Self {
            fibs: Ip::BOTH.map(Fib::new),
            sets: Sets::new(),
            grains: Grains::new(),
            surroundings: Surroundings::default(),
            dirty: [const { Vec::new() }; 2],
            permanent: HashSet::new(),
            kept: HashSet::new(),
            ways: BTreeSet::new(),
            doubtful: false,
        }
    }

    /// Number of prefixes and of sets of ways.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.fibs.iter().map(Fib::len).sum(), self.sets.len())
    }

    /// The routes of all prefixes.
    pub(super) const fn grains(&self) -> &Grains {
        &self.grains
    }

    /// Takes over a change of the kernel's routes.
    pub(super) fn change_route(&mut self, change: RouteChange) {
        let (family, prefix) = (change.route.family.index(), change.route.prefix);
        let applied = self.fibs[family].apply(change, &mut self.sets);
        self.doubtful |= applied.doubtful;
        if applied.dirty {
            self.dirty[family].push(prefix);
        }
    }

    /// Makes these all routes of a family; the number of prefixes for which that changed something.
    pub(super) fn replace_routes(&mut self, family: Ip, routes: Vec<Route>) -> usize {
        let dirty = self.fibs[family.index()].replace_all(routes, &mut self.sets);
        let changed = dirty.len();
        self.dirty[family.index()].extend(dirty);
        changed
    }

    /// Notes that a nexthop object changed or is gone; the kernel may have changed routes with it.
    pub(super) fn touch_nexthop(&mut self, nexthop: u32) {
        self.doubtful |= self.fibs.iter().any(|fib| fib.uses_nexthop(nexthop));
    }

    /// Whether the routes are to be read again, because of what was told since the last call.
    pub(super) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubtful)
    }

    /// Sets what is known of an interface; `None` if it is gone. Whether routes may have gone
    /// with it, of which the kernel does not tell.
    pub(super) fn set_link(&mut self, ifindex: u32, link: Option<LinkState>) -> bool {
        let links = &mut self.surroundings.links;
        let before = match link {
            Some(link) => links.insert(ifindex, link),
            None => links.remove(&ifindex),
        };
        if before == link {
            return false;
        }
        self.touch_link(ifindex);
        let up = |link: Option<LinkState>| link.is_some_and(|link| link.up);
        up(before) != up(link)
    }

    /// Makes these all interfaces that there are.
    pub(super) fn replace_links(&mut self, links: HashMap<u32, LinkState>) {
        let gone: Vec<u32> = self
            .surroundings
            .links
            .keys()
            .filter(|ifindex| !links.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in gone {
            self.set_link(ifindex, None);
        }
        for (ifindex, link) in links {
            self.set_link(ifindex, Some(link));
        }
    }

    /// Sets the MAC address of a neighbour to which the kernel would send; `None` if it would not.
    pub(super) fn set_neighbor(&mut self, way: Way, mac: Option<Mac>) {
        let neighbors = &mut self.surroundings.neighbors;
        let before = match mac {
            Some(mac) => neighbors.insert(way, mac),
            None => neighbors.remove(&way),
        };
        if before != mac {
            self.sets.touch_way(&way);
        }
    }

    /// Sets whether a neighbour is permanent.
    pub(super) fn set_permanent(&mut self, way: Way, permanent: bool) {
        if permanent {
            self.permanent.insert(way);
            self.kept.remove(&way);
        } else if self.permanent.remove(&way) {
            self.ways.insert(way);
        }
    }

    /// Notes that the kernel forgot a neighbour, and that it was to keep it.
    pub(super) fn forget_neighbor(&mut self, way: Way) {
        self.set_neighbor(way, None);
        self.permanent.remove(&way);
        self.kept.remove(&way);
        self.ways.insert(way);
    }

    /// Makes these all neighbours that there are.
    pub(super) fn replace_neighbors(
        &mut self,
        neighbors: HashMap<Way, Mac>,
        permanent: HashSet<Way>,
    ) {
        self.ways.extend(self.permanent.difference(&permanent));
        self.permanent = permanent;
        let gone: Vec<Way> = self
            .surroundings
            .neighbors
            .keys()
            .filter(|way| !neighbors.contains_key(way))
            .copied()
            .collect();
        for way in gone {
            self.forget_neighbor(way);
        }
        for (way, mac) in neighbors {
            self.set_neighbor(way, Some(mac));
        }
    }

    /// Sets the interfaces as the program knows them.
    pub(super) fn set_interfaces(&mut self, interfaces: BTreeMap<u32, Interface>) {
        let before = std::mem::replace(&mut self.surroundings.interfaces, interfaces);
        let after = &self.surroundings.interfaces;
        let changed: Vec<u32> = before
            .keys()
            .chain(after.keys())
            .filter(|ifindex| before.get(ifindex) != after.get(ifindex))
            .copied()
            .collect();
        for ifindex in changed {
            self.touch_link(ifindex);
        }
    }

    /// Sets, by family, whether routes are all that decides where packets go, and whether the
    /// kernel applies an MTU of a route to packets that it forwards.
    pub(super) fn set_rules(&mut self, plain: [bool; 2], forwards_by_route_mtu: bool) {
        let surroundings = &mut self.surroundings;
        if (surroundings.plain, surroundings.forwards_by_route_mtu)
            != (plain, forwards_by_route_mtu)
        {
            surroundings.plain = plain;
            surroundings.forwards_by_route_mtu = forwards_by_route_mtu;
            self.sets.touch_all();
        }
    }

    /// Sets which /16s have a chunk and which /64s have a slot.
    pub(super) fn track(&mut self, chunks: &BTreeSet<u16>, slots: &BTreeSet<u64>) {
        self.grains.track(chunks, slots, &self.fibs);
    }

    /// Gives back numbers of routes to which nothing leads any longer.
    pub(super) fn freed(&mut self, ids: &[RouteId]) {
        if !self.sets.freed(ids) {
            return;
        }
        for family in Ip::BOTH.map(Ip::index) {
            let dirty = self.fibs[family].renumber(&mut self.sets);
            self.dirty[family].extend(dirty);
        }
    }

    /// What follows from everything since the last call.
    pub(super) fn update(&mut self) -> Update {
        let routes = self.sets.resolve(&self.surroundings);
        let [ipv4, ipv6] = std::mem::take(&mut self.dirty);
        let mut grains = self.grains.follow_ipv4(&ipv4, &self.fibs[0]);
        grains.extend(self.grains.follow_ipv6(&ipv6, &self.fibs[1]));
        let unused = self.sets.take_unused();
        let mut update = Update {
            routes,
            grains,
            unused,
            ..Update::default()
        };
        let mut ways = self.sets.take_ways();
        ways.append(&mut self.ways);
        for way in ways {
            if !self.sets.uses_way(&way) {
                if self.kept.remove(&way) {
                    update.let_go.push(way);
                }
            } else if self.surroundings.works(way.0)
                && !self.permanent.contains(&way)
                && self.kept.insert(way)
            {
                update.keep.push(way);
            }
        }
        update
    }

    fn touch_link(&mut self, ifindex: u32) {
        self.sets.touch_link(ifindex);
        self.ways.extend(self.sets.ways_of(ifindex));
    }
}

#[cfg(test)]
#[path = "tests/mirror.rs"]
mod tests;
