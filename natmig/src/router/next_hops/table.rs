//! The maps of next hops, as their only writer sees them.
//!
//! Invariant: a packet finds either what a route said before an update or what it says after it.
//! Elements of `NEXT_HOPS` to which a route may lead are never written; those that an update leaves
//! behind are used again only after a grace period.

use std::{collections::BTreeSet, mem::offset_of};

use natmig_common::{
    Activity, CHUNK_COUNT, CHUNK_LENGTH, Heartbeat, NextHop, PrefixBucket, PrefixIpv4, Route,
    WIDE_PREFIXES, names,
};

use super::{
    super::{
        RouterError,
        bpf::{MapHandle, Shared},
        grace,
        instance::Instance,
    },
    elements::{Elements, Run},
    fib::RouteId,
    grains::{Grain, Grains},
};

/// The maps of next hops.
#[derive(Debug)]
pub(super) struct Table {
    routes: Shared<u64>,
    next_hops: Shared<NextHop>,
    heartbeat: Shared<Heartbeat>,
    /// Only read here: routes in them are set by the writer of the tables.
    prefixes_ipv4: Shared<PrefixIpv4>,
    prefixes_ipv6: Shared<PrefixBucket>,
    activity: Shared<Activity>,
    elements: Elements,
    /// What each route leads to.
    runs: Vec<Option<Run>>,
    /// What packets may still be reading.
    old_runs: Vec<Run>,
    old_routes: Vec<RouteId>,
}

impl Table {
    /// Opens the maps of an instance and makes them say nothing.
    pub(super) fn open(instance: &Instance) -> Result<Self, RouterError> {
        let directory = instance.maps();
        let mut table = Self {
            routes: open(&directory, names::ROUTES)?,
            next_hops: open(&directory, names::NEXT_HOPS)?,
            heartbeat: open(&directory, names::HEARTBEAT)?,
            prefixes_ipv4: open(&directory, names::PREFIXES_IPV4)?,
            prefixes_ipv6: open(&directory, names::PREFIXES_IPV6)?,
            activity: open(&directory, names::ACTIVITY)?,
            elements: Elements::new(),
            runs: Vec::new(),
            old_runs: Vec::new(),
            old_routes: Vec::new(),
        };
        table.withdraw();
        for route in 0..table.routes.len() {
            table.routes.store(route, 0, Route::NONE);
        }
        grace::fast(&table.activity)?;
        table.runs = vec![None; table.routes.len()];
        Ok(table)
    }

    /// Has the program ask the kernel for everything.
    pub(super) fn withdraw(&self) {
        self.set_patience(0);
    }

    /// Has the program believe the routes for so many jiffies after a beat.
    pub(super) fn set_patience(&self, jiffies: u64) {
        let offset = offset_of!(Heartbeat, patience);
        if self.heartbeat.load(0, offset) != jiffies {
            self.heartbeat.store(0, offset, jiffies);
        }
    }

    /// When the last beat was, in jiffies.
    pub(super) fn beat(&self) -> u64 {
        self.heartbeat.load(0, offset_of!(Heartbeat, beat))
    }

    /// Lets a route lead to these next hops, or to the kernel if there are none, or no room.
    pub(super) fn set_route(&mut self, id: RouteId, hops: &[NextHop]) -> Result<(), RouterError> {
        let mut run = None;
        if !hops.is_empty() {
            run = self.elements.take(hops.len());
            if run.is_none() && !self.old_runs.is_empty() {
                self.wait()?;
                run = self.elements.take(hops.len());
            }
        }
        let mut word = Route::NONE;
        if let Some(run) = run {
            for (element, hop) in (run.first as usize..).zip(hops) {
                self.next_hops.write(element, 0, bytemuck::bytes_of(hop));
            }
            word = Route {
                first: run.first,
                count: u16::try_from(hops.len()).unwrap_or(u16::MAX),
            }
            .word();
        } else if !hops.is_empty() {
            tracing::warn!("no room for more next hops: the kernel is asked instead");
        }
        self.routes.store(usize::from(id), 0, word);
        let old = std::mem::replace(&mut self.runs[usize::from(id)], run);
        self.old_runs.extend(old);
        Ok(())
    }

    /// Gives up a route to which no prefix leads any longer.
    pub(super) fn give_up(&mut self, id: RouteId) {
        self.routes.store(usize::from(id), 0, Route::NONE);
        self.old_runs.extend(self.runs[usize::from(id)].take());
        self.old_routes.push(id);
    }

    /// Waits until nothing is read any longer that updates left behind; the routes that are free
    /// to be used again.
    pub(super) fn reclaim(&mut self) -> Result<Vec<RouteId>, RouterError> {
        if !self.old_runs.is_empty() || !self.old_routes.is_empty() {
            self.wait()?;
        }
        Ok(std::mem::take(&mut self.old_routes))
    }

    fn wait(&mut self) -> Result<(), RouterError> {
        grace::fast(&self.activity)?;
        for run in self.old_runs.drain(..) {
            self.elements.give(run);
        }
        Ok(())
    }

    /// The /16s that have a chunk and the /64s that have a slot.
    pub(super) fn tracked(&self) -> (BTreeSet<u16>, BTreeSet<u64>) {
        let wide = 0..WIDE_PREFIXES;
        let chunks = wide.filter(|wide| self.chunk(*wide).is_some());
        let chunks = chunks.filter_map(|wide| u16::try_from(wide).ok()).collect();
        let slots = self.slots().map(|(number, _)| number).collect();
        (chunks, slots)
    }

    /// The prefixes whose route is not the one that it is to be, with that.
    pub(super) fn differences(&self, wanted: &Grains) -> Vec<(Grain, RouteId)> {
        let mut differences = Vec::new();
        let mut compare = |grain: Grain, is: RouteId| {
            let wanted = wanted.route(grain);
            if is != wanted {
                differences.push((grain, wanted));
            }
        };
        for wide in 0..WIDE_PREFIXES {
            let number = u16::try_from(wide).unwrap_or(u16::MAX);
            let Some(chunk) = self.chunk(wide) else {
                compare(Grain::Wide(number), self.prefix(wide).route);
                continue;
            };
            for third in 0..CHUNK_LENGTH {
                let element = WIDE_PREFIXES + chunk * CHUNK_LENGTH + third;
                compare(Grain::Narrow(wide << 8 | third), self.prefix(element).route);
            }
        }
        for (number, route) in self.slots() {
            compare(Grain::Slot(number), route);
        }
        differences
    }

    /// Drops the /16s that have a chunk, because of which nothing of theirs is looked at.
    pub(super) fn leave_out_unseen(&self, grains: &mut Vec<(Grain, RouteId)>) {
        grains.retain(|(grain, _)| match grain {
            Grain::Wide(wide) => self.chunk(u32::from(*wide)).is_none(),
            Grain::Narrow(_) | Grain::Slot(_) => true,
        });
    }

    fn prefix(&self, element: u32) -> PrefixIpv4 {
        self.prefixes_ipv4.get(element as usize)
    }

    fn chunk(&self, wide: u32) -> Option<u32> {
        self.prefix(wide)
            .block
            .checked_sub(PrefixIpv4::FIRST)
            .filter(|chunk| *chunk < CHUNK_COUNT)
    }

    fn slots(&self) -> impl Iterator<Item = (u64, RouteId)> {
        (0..self.prefixes_ipv6.len())
            .flat_map(|bucket| self.prefixes_ipv6.get(bucket).slots)
            .filter(|slot| slot.used != 0)
            .map(|slot| (u64::from_be_bytes(slot.prefix), slot.route))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn open<T: bytemuck::Pod>(
    directory: &std::path::Path,
    name: &str,
) -> Result<Shared<T>, RouterError> {
    let path = directory.join(name);
    MapHandle::open(&path, 4, size_of::<T>(), false)
        .and_then(|map| map.map_memory(true))
        .map_err(RouterError::system(format!("open {}", path.display())))
}
