//! Elements of `ROUTES`: which ways each stands for, and which of them have to be resolved again.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use natmig_common::{NextHop, ROUTE_COUNT};

use super::{
    fib::{Numbers, RouteId},
    links::Surroundings,
    paths::Paths,
};

/// A gateway on an interface.
pub(super) type Way = (u32, IpAddr);

#[derive(Clone, Debug)]
struct Set {
    paths: Arc<Paths>,
    /// Routes of the kernel that say this.
    uses: u32,
    /// The elements of `NEXT_HOPS` that it was last resolved to.
    hops: Vec<NextHop>,
}

/// The sets of ways in use, by number.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the sets are what it is about")]
pub(super) struct Sets {
    numbers: HashMap<Arc<Paths>, RouteId>,
    sets: Vec<Option<Set>>,
    free: Vec<RouteId>,
    by_way: HashMap<Way, BTreeSet<RouteId>>,
    by_link: HashMap<u32, BTreeSet<RouteId>>,
    /// To be resolved again.
    dirty: BTreeSet<RouteId>,
    /// No longer in use; something may still lead to them.
    unused: BTreeSet<RouteId>,
    /// Ways without a number wait for one to become free.
    starved: bool,
    /// Ways that came into use, and out of it.
    ways_changed: BTreeSet<Way>,
}

impl Sets {
    pub(super) fn new() -> Self {
        let count = RouteId::try_from(ROUTE_COUNT).unwrap_or(RouteId::MAX);
        Self {
            numbers: HashMap::new(),
            sets: vec![None; usize::from(count)],
            // 0 asks the kernel. The lowest numbers are taken first.
            free: (1..count).rev().collect(),
            by_way: HashMap::new(),
            by_link: HashMap::new(),
            dirty: BTreeSet::new(),
            unused: BTreeSet::new(),
            starved: false,
            ways_changed: BTreeSet::new(),
        }
    }

    /// Number of sets.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Notes that a neighbour changed.
    pub(super) fn touch_way(&mut self, way: &Way) {
        self.dirty
            .extend(self.by_way.get(way).into_iter().flatten());
    }

    /// Notes that an interface changed.
    pub(super) fn touch_link(&mut self, ifindex: u32) {
        self.dirty
            .extend(self.by_link.get(&ifindex).into_iter().flatten());
    }

    /// Notes that everything may have changed.
    pub(super) fn touch_all(&mut self) {
        self.dirty.extend(self.numbers.values());
    }

    /// Whether a set goes this way.
    pub(super) fn uses_way(&self, way: &Way) -> bool {
        self.by_way.contains_key(way)
    }

    /// All ways out of an interface.
    pub(super) fn ways_of(&self, ifindex: u32) -> impl Iterator<Item = Way> {
        self.by_way
            .keys()
            .filter(move |way| way.0 == ifindex)
            .copied()
    }

    /// The ways that came into use or out of it since the last call.
    pub(super) fn take_ways(&mut self) -> BTreeSet<Way> {
        std::mem::take(&mut self.ways_changed)
    }

    /// Resolves what has to be; what changed by that.
    pub(super) fn resolve(&mut self, surroundings: &Surroundings) -> Vec<(RouteId, Vec<NextHop>)> {
        let mut changed = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let Some(set) = &mut self.sets[usize::from(id)] else {
                continue;
            };
            let hops = if set.uses == 0 {
                continue;
            } else {
                surroundings.resolve(&set.paths)
            };
            if hops != set.hops {
                set.hops.clone_from(&hops);
                changed.push((id, hops));
            }
        }
        changed
    }

    /// Removes the sets that nothing uses; their numbers are free after [`Self::freed`].
    pub(super) fn take_unused(&mut self) -> Vec<RouteId> {
        let unused: Vec<RouteId> = std::mem::take(&mut self.unused).into_iter().collect();
        for id in &unused {
            let Some(set) = self.sets[usize::from(*id)].take() else {
                continue;
            };
            self.numbers.remove(&set.paths);
            for path in &set.paths.paths {
                forget(&mut self.by_link, &path.ifindex, *id);
                let way = (path.ifindex, path.gateway);
                if forget(&mut self.by_way, &way, *id) {
                    self.ways_changed.insert(way);
                }
            }
        }
        unused
    }

    /// Takes numbers back to which nothing leads any longer; whether ways wait for them.
    pub(super) fn freed(&mut self, ids: &[RouteId]) -> bool {
        self.free.extend(ids);
        !ids.is_empty() && std::mem::take(&mut self.starved)
    }
}

impl Numbers for Sets {
    fn acquire(&mut self, paths: &Paths) -> RouteId {
        if let Some(id) = self.numbers.get(paths) {
            if let Some(set) = &mut self.sets[usize::from(*id)] {
                set.uses += 1;
                if set.uses == 1 {
                    self.unused.remove(id);
                    self.dirty.insert(*id);
                }
            }
            return *id;
        }
        let Some(id) = self.free.pop() else {
            self.starved = true;
            return 0;
        };
        let paths = Arc::new(paths.clone());
        for path in &paths.paths {
            self.by_link.entry(path.ifindex).or_default().insert(id);
            let way = (path.ifindex, path.gateway);
            if self.by_way.entry(way).or_default().is_empty() {
                self.ways_changed.insert(way);
            }
            self.by_way.entry(way).or_default().insert(id);
        }
        self.numbers.insert(Arc::clone(&paths), id);
        self.sets[usize::from(id)] = Some(Set {
            paths,
            uses: 1,
            hops: Vec::new(),
        });
        self.dirty.insert(id);
        id
    }

    fn release(&mut self, id: RouteId) {
        if let Some(set) = &mut self.sets[usize::from(id)] {
            set.uses -= 1;
            if set.uses == 0 {
                self.unused.insert(id);
            }
        }
    }
}

/// Removes a number; whether it was the last one.
fn forget<K: std::hash::Hash + Eq>(
    numbers: &mut HashMap<K, BTreeSet<RouteId>>,
    key: &K,
    id: RouteId,
) -> bool {
    let Some(ids) = numbers.get_mut(key) else {
        return false;
    };
    ids.remove(&id);
    let last = ids.is_empty();
    if last {
        numbers.remove(key);
    }
    last
}
