//! The route of each element of `PREFIXES_IPV4` and of each slot of `PREFIXES_IPV6`, as it is to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use natmig_common::{CHUNK_LENGTH, WIDE_PREFIXES};

use super::{
    fib::{Fib, RouteId},
    prefix::Prefix,
};

/// Bits of a wide IPv4 element, of one in a chunk, and of an IPv6 slot.
const WIDE: u8 = 16;
const NARROW: u8 = 24;
const SLOT: u8 = 64;

/// An element that has a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Grain {
    /// An IPv4 /16, by its first 16 bits.
    Wide(u16),
    /// An IPv4 /24 in a chunk, by its first 24 bits.
    Narrow(u32),
    /// An IPv6 /64.
    Slot(u64),
}

impl Grain {
    /// The prefix.
    pub(super) fn prefix(self) -> IpNet {
        let ipv4 =
            |bits: u32, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length));
        match self {
            Self::Wide(number) => ipv4(u32::from(number) << 16, WIDE),
            Self::Narrow(number) => ipv4(number << 8, NARROW),
            Self::Slot(number) => IpNet::V6(Ipv6Net::new_assert(
                Ipv6Addr::from_bits(u128::from(number) << 64),
                SLOT,
            )),
        }
    }
}

/// The routes of all elements that there are.
#[derive(Debug)]
pub(super) struct Grains {
    wide: Vec<RouteId>,
    /// By /16.
    chunks: BTreeMap<u16, Vec<RouteId>>,
    slots: BTreeMap<u64, RouteId>,
}

impl Grains {
    /// All /16s, which ask the kernel.
    pub(super) fn new() -> Self {
        Self {
            wide: vec![0; WIDE_PREFIXES as usize],
            chunks: BTreeMap::new(),
            slots: BTreeMap::new(),
        }
    }

    /// The route of an element; 0 for one that is not there.
    pub(super) fn route(&self, grain: Grain) -> RouteId {
        match grain {
            Grain::Wide(number) => self.wide[usize::from(number)],
            Grain::Narrow(number) => self
                .chunks
                .get(&wide_of(number))
                .map_or(0, |chunk| chunk[third_octet(number)]),
            Grain::Slot(number) => self.slots.get(&number).copied().unwrap_or(0),
        }
    }

    /// Makes these the /16s that have a chunk, and these the /64s that have a slot.
    pub(super) fn track(&mut self, chunks: &BTreeSet<u16>, slots: &BTreeSet<u64>, fibs: &[Fib; 2]) {
        self.chunks.retain(|wide, _| chunks.contains(wide));
        self.slots.retain(|number, _| slots.contains(number));
        for wide in chunks {
            if self.chunks.contains_key(wide) {
                continue;
            }
            let first = u64::from(*wide) << 8;
            let mut chunk = Vec::with_capacity(CHUNK_LENGTH as usize);
            fibs[0].answers(NARROW, first, first + 0xff, |_, id| chunk.push(id));
            self.chunks.insert(*wide, chunk);
        }
        for number in slots {
            if !self.slots.contains_key(number) {
                let mut route = 0;
                fibs[1].answers(SLOT, *number, *number, |_, id| route = id);
                self.slots.insert(*number, route);
            }
        }
    }

    /// Follows a change inside these IPv4 prefixes; returns what changed.
    pub(super) fn follow_ipv4(&mut self, dirty: &[Prefix], fib: &Fib) -> Vec<(Grain, RouteId)> {
        let mut changed = Vec::new();
        for (first, last) in spans(dirty, WIDE) {
            fib.answers(WIDE, first, last, |number, id| {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                let route = &mut self.wide[usize::from(number)];
                if *route != id {
                    *route = id;
                    changed.push((Grain::Wide(number), id));
                }
            });
        }
        for (first, last) in spans(dirty, NARROW) {
            let wide = |number: u64| u16::try_from(number >> 8).unwrap_or(u16::MAX);
            for (wide, chunk) in self.chunks.range_mut(wide(first)..=wide(last)) {
                let begin = u64::from(*wide) << 8;
                let (first, last) = (first.max(begin), last.min(begin + 0xff));
                fib.answers(NARROW, first, last, |number, id| {
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    let route = &mut chunk[third_octet(number)];
                    if *route != id {
                        *route = id;
                        changed.push((Grain::Narrow(number), id));
                    }
                });
            }
        }
        changed
    }

    /// Follows a change inside these IPv6 prefixes; returns what changed.
    pub(super) fn follow_ipv6(&mut self, dirty: &[Prefix], fib: &Fib) -> Vec<(Grain, RouteId)> {
        let mut changed = Vec::new();
        for (first, last) in spans(dirty, SLOT) {
            for (number, route) in self.slots.range_mut(first..=last) {
                fib.answers(SLOT, *number, *number, |_, id| {
                    if *route != id {
                        *route = id;
                        changed.push((Grain::Slot(*number), id));
                    }
                });
            }
        }
        changed
    }
}

/// The /16 in which a /24 is.
fn wide_of(number: u32) -> u16 {
    u16::try_from(number >> 8).unwrap_or(u16::MAX)
}

fn third_octet(number: u32) -> usize {
    (number & 0xff) as usize
}

/// Where elements of this length may have changed, without overlaps, in order.
fn spans(dirty: &[Prefix], length: u8) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = dirty.iter().map(|prefix| prefix.span(length)).collect();
    spans.sort_unstable();
    spans.dedup_by(|next, span| {
        let touches = next.0 <= span.1.saturating_add(1);
        if touches {
            span.1 = span.1.max(next.1);
        }
        touches
    });
    spans
}
