//! The routes of one family, and which of them all addresses of a prefix take.

use std::collections::BTreeMap;

use super::{
    paths::{ChangeKind, Path, Paths, Route, RouteChange},
    prefix::{Ip, Prefix, at_front},
};

/// Element of `ROUTES` that a prefix takes; 0 to ask the kernel.
pub(super) type RouteId = u16;

/// Gives equal ways the same number.
pub(super) trait Numbers {
    /// The number of these ways, held until it is released; 0 if there is none left.
    fn acquire(&mut self, paths: &Paths) -> RouteId;
    /// Lets a number go that was acquired.
    fn release(&mut self, id: RouteId);
}

/// All routes of one prefix.
#[derive(Clone, Debug, Default)]
struct Node {
    routes: Vec<Route>,
    id: RouteId,
    /// The kernel knows better for everything inside the prefix.
    blocks: bool,
}

impl Node {
    /// The ways that packets to the prefix take, if they are plain.
    fn paths(&self) -> Option<&Paths> {
        if self.routes.iter().any(Route::overrides) {
            return None;
        }
        let priority = self.routes.iter().map(|route| route.priority).min()?;
        let mut best = self
            .routes
            .iter()
            .filter(|route| route.priority == priority);
        let first = best.next()?;
        // Which of two equal ones the kernel takes depends on their history.
        best.next().is_none().then_some(first.paths.as_ref())?
    }
}

/// What a change of routes meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// What addresses of the prefix take may have changed.
    pub(super) dirty: bool,
    /// The change does not fit what is known: the kernel's routes are to be read again.
    pub(super) doubtful: bool,
}

/// The routes of one family.
#[derive(Debug)]
pub(super) struct Fib {
    family: Ip,
    nodes: BTreeMap<Prefix, Node>,
    /// Prefixes by length.
    lengths: [u32; 129],
}

impl Fib {
    pub(super) const fn new(family: Ip) -> Self {
        Self {
            family,
            nodes: BTreeMap::new(),
            lengths: [0; 129],
        }
    }

    /// Number of prefixes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Takes a change over.
    pub(super) fn apply(&mut self, change: RouteChange, numbers: &mut impl Numbers) -> Applied {
        let RouteChange { route, kind } = change;
        let prefix = route.prefix;
        let mut node = self.nodes.remove(&prefix).unwrap_or_default();
        let existed = !node.routes.is_empty();
        let doubtful = match kind {
            ChangeKind::Added => add(&mut node.routes, route, self.family),
            ChangeKind::Replaced => replace(&mut node.routes, route),
            ChangeKind::Removed => remove(&mut node.routes, &route, self.family),
        };
        let dirty = self.put(prefix, node, existed, numbers);
        Applied { dirty, doubtful }
    }

    /// Puts a node whose routes changed into its place; whether what it says changed.
    fn put(
        &mut self,
        prefix: Prefix,
        mut node: Node,
        existed: bool,
        numbers: &mut impl Numbers,
    ) -> bool {
        let (before, blocked) = (node.id, node.blocks);
        node.id = node.paths().map_or(0, |paths| numbers.acquire(paths));
        if before != 0 {
            numbers.release(before);
        }
        node.blocks = node.routes.iter().any(|route| route.mark.local);
        let exists = !node.routes.is_empty();
        let length = &mut self.lengths[usize::from(prefix.length)];
        *length = *length + u32::from(exists) - u32::from(existed);
        let dirty = existed != exists || (before, blocked) != (node.id, node.blocks);
        if exists {
            self.nodes.insert(prefix, node);
        }
        dirty
    }

    /// Makes these all the routes there are; the prefixes for which that changed something.
    pub(super) fn replace_all(
        &mut self,
        routes: Vec<Route>,
        numbers: &mut impl Numbers,
    ) -> Vec<Prefix> {
        let mut wanted: BTreeMap<Prefix, Vec<Route>> = BTreeMap::new();
        for route in routes {
            let routes = wanted.entry(route.prefix).or_default();
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        let mut dirty = Vec::new();
        let gone: Vec<Prefix> = self
            .nodes
            .keys()
            .filter(|prefix| !wanted.contains_key(prefix))
            .copied()
            .collect();
        for prefix in gone {
            let mut node = self.nodes.remove(&prefix).unwrap_or_default();
            node.routes.clear();
            self.put(prefix, node, true, numbers);
            dirty.push(prefix);
        }
        for (prefix, routes) in wanted {
            let mut node = match self.nodes.get(&prefix) {
                Some(node) if node.routes == routes => continue,
                _ => self.nodes.remove(&prefix).unwrap_or_default(),
            };
            let existed = !node.routes.is_empty();
            node.routes = routes;
            if self.put(prefix, node, existed, numbers) {
                dirty.push(prefix);
            }
        }
        dirty
    }

    /// Numbers all routes anew, after numbers became free.
    pub(super) fn renumber(&mut self, numbers: &mut impl Numbers) -> Vec<Prefix> {
        let mut dirty = Vec::new();
        for (prefix, node) in &mut self.nodes {
            if node.id == 0
                && let Some(paths) = node.paths()
            {
                node.id = numbers.acquire(paths);
                if node.id != 0 {
                    dirty.push(*prefix);
                }
            }
        }
        dirty
    }

    /// Whether some route goes by this nexthop object.
    pub(super) fn uses_nexthop(&self, nexthop: u32) -> bool {
        self.nodes
            .values()
            .flat_map(|node| &node.routes)
            .any(|route| route.nexthop == nexthop)
    }

    /// Calls `each` with every prefix of `length` bits from number `first` to `last`, in order, and
    /// with the route that all of its addresses take.
    pub(super) fn answers(
        &self,
        length: u8,
        first: u64,
        last: u64,
        mut each: impl FnMut(u64, RouteId),
    ) {
        let start = at_front(first, length);
        let end = Prefix::new(at_front(last, length), length).last();
        let mut covering = self.covering(start, length);
        let mut inside = self
            .nodes
            .range(
                Prefix {
                    bits: start,
                    length: 0,
                }..=Prefix {
                    bits: end,
                    length: 128,
                },
            )
            .peekable();
        for number in first..=last {
            let bits = at_front(number, length);
            let last = Prefix::new(bits, length).last();
            while covering
                .last()
                .is_some_and(|(prefix, _)| prefix.last() < bits)
            {
                covering.pop();
            }
            let mut specific = false;
            while let Some((prefix, node)) = inside.next_if(|(prefix, _)| prefix.bits <= last) {
                if prefix.length <= length {
                    covering.push((*prefix, node));
                } else {
                    specific = true;
                }
            }
            let blocked = covering.iter().any(|(_, node)| node.blocks);
            let id = match covering.last() {
                Some((_, node)) if !specific && !blocked => node.id,
                _ => 0,
            };
            each(number, id);
        }
    }

    /// The prefixes that begin before `start`, hold it, and have at most `length` bits.
    fn covering(&self, start: u128, length: u8) -> Vec<(Prefix, &Node)> {
        (0..=length)
            .filter(|length| self.lengths[usize::from(*length)] != 0)
            .map(|length| Prefix::new(start, length))
            .filter(|prefix| prefix.bits < start)
            .filter_map(|prefix| Some((prefix, self.nodes.get(&prefix)?)))
            .collect()
    }
}

fn add(routes: &mut Vec<Route>, route: Route, family: Ip) -> bool {
    if routes.contains(&route) {
        return false;
    }
    let mut doubtful = false;
    for other in routes.iter_mut().filter(|other| other.shares_place(&route)) {
        let (Some(paths), Some(others)) = (&route.paths, &other.paths) else {
            continue;
        };
        // A way that is added to an IPv6 route is told of together with those that it had.
        if family == Ip::V6 && others.paths.iter().all(|path| holds(paths, path)) {
            *other = route;
            return false;
        }
        doubtful = true;
    }
    routes.push(route);
    doubtful
}

fn replace(routes: &mut Vec<Route>, route: Route) -> bool {
    let mut places = (0..routes.len()).filter(|place| routes[*place].shares_place(&route));
    let (first, second) = (places.next(), places.next());
    match first {
        Some(place) => routes[place] = route,
        None => routes.push(route),
    }
    second.is_some()
}

fn remove(routes: &mut Vec<Route>, route: &Route, family: Ip) -> bool {
    if let Some(place) = routes.iter().position(|other| other == route) {
        routes.remove(place);
        return false;
    }
    if family == Ip::V6
        && let Some(gone) = &route.paths
    {
        for (place, other) in routes.iter_mut().enumerate() {
            if !other.shares_place(route) {
                continue;
            }
            if let Some(paths) = &mut other.paths
                && gone.paths.iter().all(|path| holds(paths, path))
            {
                paths.paths.retain(|path| !holds(gone, path));
                if paths.paths.is_empty() {
                    routes.remove(place);
                }
                return false;
            }
        }
    }
    routes.iter().any(|other| other.shares_place(route))
}

/// Whether these ways have one to the same gateway. Its weight is left out: the kernel tells of the
/// way alone, when it removes one, as if it had none.
fn holds(paths: &Paths, path: &Path) -> bool {
    paths
        .paths
        .iter()
        .any(|other| (other.ifindex, other.gateway) == (path.ifindex, path.gateway))
}
