//! `PREFIXES_IPV6` and `BLOCKS_IPV6`: what is known of a /64, and where the blocks of /120s are.
//!
//! A prefix lives in a slot of one of two buckets. A slot is written while it is not in use, in
//! three steps with a grace period after each but the last: it is free, its prefix and the rest are
//! complete, it is in use. So a packet never takes one prefix's slot for another's, whatever the
//! order in which its CPU reads the words.

use std::collections::HashMap;

use ipnet::{IpNet, Ipv6Net};
use natmig_common::{
    BLOCK_BUCKETS, BUCKET_OVERFLOWED, BlockBucket, BlockIpv6, Ipv6, PREFIX_BLOCKS, PREFIX_BUCKETS,
    PREFIX_HASH, PrefixBucket, PrefixIpv6, buckets,
};

use super::{
    super::{RouterError, bpf::Shared, grace, maps::Maps},
    prefixes::Prefixes,
};

/// A slot: number of its bucket, number in it.
type Place = (usize, usize);

/// The writer's side of the IPv6 tables of prefixes.
#[derive(Debug)]
pub(in crate::router) struct PrefixesIpv6 {
    wides: HashMap<u64, Wide>,
    /// Places of blocks, by /120.
    blocks: HashMap<u128, Place>,
    /// How many prefixes found no place in a bucket.
    overflows: HashMap<usize, u32>,
}

/// What is held of a /64.
#[derive(Clone, Copy, Debug, Default)]
struct Wide {
    /// /120s of which addresses are in the index.
    hashed: u32,
    /// /120s that have a block.
    blocks: u32,
    /// Where it is, if there was room.
    place: Option<Place>,
}

const SLOT: usize = size_of::<PrefixIpv6>();
const _: () = assert!(SLOT == size_of::<BlockIpv6>());
/// The word of a [`PrefixIpv6`] that has all but its prefix and its pool's address.
const WORD: usize = 8;
/// The word of a [`PrefixIpv6`] that has its pool's address.
const POOL: usize = 16;
/// The word of a [`BlockIpv6`] that has all but its prefix.
const BLOCK_WORD: usize = 16;

fn high_of(address: u128) -> u64 {
    halves(address)[0]
}

fn low_of(address: u128) -> u64 {
    halves(address)[1]
}

/// The address of these halves, all in network order.
fn join(high: [u8; 8], low: [u8; 8]) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&high);
    octets[8..].copy_from_slice(&low);
    octets
}

fn halves(address: u128) -> [u64; 2] {
    let bytes = address.to_be_bytes();
    let (mut high, mut low) = ([0; 8], [0; 8]);
    high.copy_from_slice(&bytes[..8]);
    low.copy_from_slice(&bytes[8..]);
    [high, low].map(u64::from_be_bytes)
}

fn prefix_places(high: u64) -> [usize; 2] {
    buckets(high, 0, PREFIX_BUCKETS).map(|bucket| bucket as usize)
}

fn block_places(narrow: u128) -> [usize; 2] {
    buckets(high_of(narrow), low_of(narrow), BLOCK_BUCKETS).map(|bucket| bucket as usize)
}

fn prefix_at(maps: &Maps, (bucket, slot): Place) -> PrefixIpv6 {
    maps.prefixes_ipv6.get(bucket).slots[slot]
}

fn block_at(maps: &Maps, (bucket, slot): Place) -> BlockIpv6 {
    maps.blocks_ipv6.get(bucket).slots[slot]
}

/// Writes the word of a slot that has its flags; the bucket's own flag stays as it is.
fn set_word(maps: &Maps, (bucket, slot): Place, prefix: &PrefixIpv6) {
    let before = prefix_at(maps, (bucket, slot));
    let mut prefix = *prefix;
    prefix.flags = prefix.flags & !BUCKET_OVERFLOWED | before.flags & BUCKET_OVERFLOWED;
    let word = &bytemuck::bytes_of(&prefix)[WORD..WORD + 8];
    maps.prefixes_ipv6.write(bucket, slot * SLOT + WORD, word);
}

/// Writes a prefix into a slot that is not in use, and puts it in use.
fn place_prefix(maps: &Maps, place: Place, prefix: &PrefixIpv6) -> Result<(), RouterError> {
    let (bucket, slot) = place;
    let bytes = bytemuck::bytes_of(prefix);
    grace::fast(&maps.activity)?;
    let from = slot * SLOT;
    maps.prefixes_ipv6.write(bucket, from, &bytes[..WORD]);
    maps.prefixes_ipv6
        .write(bucket, from + POOL, &bytes[POOL..]);
    step!("prefix:filled");
    grace::fast(&maps.activity)?;
    set_word(maps, place, &PrefixIpv6 { used: 1, ..*prefix });
    step!("prefix:placed");
    Ok(())
}

/// Takes a slot out of use.
fn clear_prefix(maps: &Maps, place: Place) {
    set_word(maps, place, &PrefixIpv6::default());
}

/// A free one of the slots of two buckets, in the emptier bucket.
fn free_slot<T: bytemuck::Pod>(
    table: &Shared<T>,
    places: [usize; 2],
    is_used: impl Fn(&T, usize) -> bool,
) -> Option<Place> {
    let free = |bucket: usize| {
        let value = table.get(bucket);
        let mut slots = (0..2).filter(|slot| !is_used(&value, *slot));
        slots.next().map(|slot| (slots.count(), (bucket, slot)))
    };
    let [one, other] = places.map(free);
    match (one, other) {
        (Some((more, _)), Some((most, place))) if most > more => Some(place),
        (Some((_, place)), _) | (None, Some((_, place))) => Some(place),
        (None, None) => None,
    }
}

fn free_prefix(maps: &Maps, places: [usize; 2]) -> Option<Place> {
    let is_used = |bucket: &PrefixBucket, slot: usize| bucket.slots[slot].used != 0;
    free_slot(&maps.prefixes_ipv6, places, is_used)
}

fn free_block(maps: &Maps, narrow: u128) -> Option<Place> {
    let is_used = |bucket: &BlockBucket, slot: usize| bucket.slots[slot].used != 0;
    free_slot(&maps.blocks_ipv6, block_places(narrow), is_used)
}

/// The slot of a /64.
fn find(maps: &Maps, address: u128) -> Option<PrefixIpv6> {
    let high = high_of(address);
    let slots = prefix_places(high).map(|bucket| maps.prefixes_ipv6.get(bucket).slots);
    slots
        .into_iter()
        .flatten()
        .find(|slot| slot.used != 0 && slot.prefix == high.to_be_bytes())
}

/// What leads to an address, as a packet finds it: whether the index does, and the first entry of
/// its block, which goes before.
fn lead(maps: &Maps, address: u128) -> (bool, Option<u32>) {
    let flags = find(maps, address).map(|slot| slot.flags);
    let overflowed = prefix_places(high_of(address))
        .into_iter()
        .any(|bucket| prefix_at(maps, (bucket, 0)).flags & BUCKET_OVERFLOWED != 0);
    let flags = flags.unwrap_or(if overflowed { PREFIX_HASH } else { 0 });
    let narrow = address & !0xff;
    let block = block_places(narrow)
        .map(|bucket| maps.blocks_ipv6.get(bucket).slots)
        .into_iter()
        .flatten()
        .find(|slot| slot.used != 0 && slot.prefix == narrow.to_be_bytes())
        .map(|slot| slot.first);
    let block = block.filter(|_| flags & PREFIX_BLOCKS != 0);
    (flags & PREFIX_HASH != 0, block)
}

impl PrefixesIpv6 {
    /// The /64's slot, made if it has none; `None` if there is no room for one.
    fn ensure(&mut self, maps: &Maps, high: u64) -> Result<Option<Place>, RouterError> {
        if let Some(wide) = self.wides.get(&high)
            && (wide.place.is_some() || wide.hashed != 0)
        {
            return Ok(wide.place);
        }
        let place = match free_prefix(maps, prefix_places(high)) {
            Some(place) => Some(place),
            None => self.move_aside(maps, high)?,
        };
        if let Some(place) = place {
            let prefix = PrefixIpv6 {
                prefix: high.to_be_bytes(),
                ..PrefixIpv6::default()
            };
            place_prefix(maps, place, &prefix)?;
            self.wides.entry(high).or_default().place = Some(place);
        }
        Ok(place)
    }

    /// Moves one of the prefixes that are in the way to its other bucket; the slot that it left.
    fn move_aside(&mut self, maps: &Maps, high: u64) -> Result<Option<Place>, RouterError> {
        for bucket in prefix_places(high) {
            for slot in 0..2 {
                let prefix = prefix_at(maps, (bucket, slot));
                let other = u64::from_be_bytes(prefix.prefix);
                let Some(to) = free_prefix(maps, prefix_places(other)) else {
                    continue;
                };
                place_prefix(maps, to, &prefix)?;
                // Who read the other bucket before has ended when this slot is cleared.
                grace::fast(&maps.activity)?;
                clear_prefix(maps, (bucket, slot));
                step!("prefix:moved");
                self.wides.entry(other).or_default().place = Some(to);
                return Ok(Some((bucket, slot)));
            }
        }
        Ok(None)
    }

    /// Counts a /64 without a slot, of which addresses are in the index, in both buckets where it
    /// would be looked for; or no longer.
    fn overflow(&mut self, maps: &Maps, high: u64, add: bool) {
        for bucket in prefix_places(high) {
            let count = self.overflows.entry(bucket).or_default();
            *count = if add {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            let mut prefix = prefix_at(maps, (bucket, 0));
            prefix.flags &= !BUCKET_OVERFLOWED;
            if *count != 0 {
                prefix.flags |= BUCKET_OVERFLOWED;
            }
            let word = &bytemuck::bytes_of(&prefix)[WORD..WORD + 8];
            maps.prefixes_ipv6.write(bucket, WORD, word);
        }
    }

    /// Lets the slot say what is held of the /64, and frees it if that is nothing.
    fn settle(&mut self, maps: &Maps, high: u64) {
        let Some(wide) = self.wides.get(&high).copied() else {
            return;
        };
        let Some(place) = wide.place else {
            if wide.hashed == 0 {
                self.wides.remove(&high);
            }
            return;
        };
        let before = prefix_at(maps, place);
        let mut after = before;
        after.flags &= BUCKET_OVERFLOWED;
        if wide.hashed != 0 {
            after.flags |= PREFIX_HASH;
        }
        if wide.blocks != 0 {
            after.flags |= PREFIX_BLOCKS;
        }
        if after.flags & !BUCKET_OVERFLOWED == 0 && after.pool_length == 0 && after.route == 0 {
            clear_prefix(maps, place);
            self.wides.remove(&high);
        } else if after != before {
            set_word(maps, place, &after);
        }
    }

    /// Sets the route that all of a /64 takes. Fails without a change if there is no room for it.
    pub(super) fn set_route(
        &mut self,
        maps: &Maps,
        prefix: Ipv6Net,
        route: u16,
    ) -> Result<(), RouterError> {
        let high = high_of(prefix.network().into());
        if route == 0 && find(maps, prefix.network().into()).is_none() {
            return Ok(());
        }
        let Some(place) = self.ensure(maps, high)? else {
            let prefix = prefix.into();
            return Err(RouterError::NoPrefixRoom { prefix });
        };
        let slot = prefix_at(maps, place);
        set_word(maps, place, &PrefixIpv6 { route, ..slot });
        self.settle(maps, high);
        Ok(())
    }

    /// Sets the pool in a /64, or none.
    fn set_pool(
        &mut self,
        maps: &Maps,
        high: u64,
        pool: Option<Ipv6Net>,
    ) -> Result<(), RouterError> {
        let Some(place) = self.ensure(maps, high)? else {
            let prefix = pool.unwrap_or_default().into();
            return Err(RouterError::NoPrefixRoom { prefix });
        };
        let slot = prefix_at(maps, place);
        let store_length = |pool_length: u8| {
            let slot = prefix_at(maps, place);
            set_word(
                maps,
                place,
                &PrefixIpv6 {
                    pool_length,
                    ..slot
                },
            );
        };
        let Some(pool) = pool else {
            store_length(0);
            self.settle(maps, high);
            return Ok(());
        };
        let first = low_of(pool.network().into());
        if slot.pool == first.to_be_bytes() {
            store_length(pool.prefix_len());
            return Ok(());
        }
        if slot.pool_length != 0 {
            // For a moment, all that the old and the new pool have in common is in the pool.
            let differing = u64::from_be_bytes(slot.pool) ^ first;
            let common = 64 + u8::try_from(differing.leading_zeros()).unwrap_or(0);
            store_length(common.min(slot.pool_length).min(pool.prefix_len()));
            grace::fast(&maps.activity)?;
        }
        let (bucket, number) = place;
        maps.prefixes_ipv6
            .write(bucket, number * SLOT + POOL, &first.to_be_bytes());
        step!("pool:moved");
        grace::fast(&maps.activity)?;
        store_length(pool.prefix_len());
        Ok(())
    }
}

impl Prefixes<Ipv6> for PrefixesIpv6 {
    fn adopt(maps: &Maps) -> Self {
        let mut prefixes = Self {
            wides: HashMap::new(),
            blocks: HashMap::new(),
            overflows: HashMap::new(),
        };
        for bucket in 0..maps.prefixes_ipv6.len() {
            for slot in 0..2 {
                let place = (bucket, slot);
                let prefix = prefix_at(maps, place);
                if prefix.used == 0 {
                    continue;
                }
                let high = u64::from_be_bytes(prefix.prefix);
                let wide = prefixes.wides.entry(high).or_default();
                if wide.place.is_some() {
                    // The one that was being moved.
                    clear_prefix(maps, place);
                } else {
                    wide.place = Some(place);
                }
            }
        }
        for bucket in 0..maps.blocks_ipv6.len() {
            for slot in 0..2 {
                let block = block_at(maps, (bucket, slot));
                if block.used != 0 {
                    let narrow = u128::from_be_bytes(block.prefix);
                    prefixes.blocks.insert(narrow, (bucket, slot));
                    let wide = prefixes.wides.entry(high_of(narrow)).or_default();
                    wide.blocks += 1;
                }
            }
        }
        prefixes
    }

    fn lead(maps: &Maps, address: u128) -> (bool, Option<u32>) {
        lead(maps, address)
    }

    fn in_pool(maps: &Maps, address: u128) -> bool {
        find(maps, address).is_some_and(|slot| {
            let first = u128::from_be_bytes(join(slot.prefix, slot.pool));
            let differing = 128 - u32::from(slot.pool_length);
            slot.pool_length != 0 && (address ^ first).unbounded_shr(differing) == 0
        })
    }

    fn blocks(&self, maps: &Maps) -> Vec<(u128, u32)> {
        self.blocks
            .iter()
            .map(|(narrow, place)| (*narrow, block_at(maps, *place).first))
            .collect()
    }

    fn lead_to_index(&mut self, maps: &Maps, narrow: u128) -> Result<(), RouterError> {
        let high = high_of(narrow);
        let place = self.ensure(maps, high)?;
        let wide = self.wides.entry(high).or_default();
        wide.hashed += 1;
        if place.is_none() && wide.hashed == 1 {
            self.overflow(maps, high, true);
        }
        self.settle(maps, high);
        Ok(())
    }

    fn leave_index(&mut self, maps: &Maps, narrow: u128) {
        let high = high_of(narrow);
        let Some(wide) = self.wides.get_mut(&high) else {
            return;
        };
        wide.hashed = wide.hashed.saturating_sub(1);
        if wide.hashed == 0 && wide.place.is_none() {
            self.overflow(maps, high, false);
        }
        self.settle(maps, high);
    }

    fn make_room(&mut self, maps: &Maps, narrow: u128) -> Result<bool, RouterError> {
        Ok(free_block(maps, narrow).is_some() && self.ensure(maps, high_of(narrow))?.is_some())
    }

    fn put_block(&mut self, maps: &Maps, narrow: u128, first: u32) -> Result<(), RouterError> {
        let Some((bucket, slot)) = free_block(maps, narrow) else {
            let prefix = IpNet::V6(Ipv6Net::new_assert(narrow.into(), 120));
            return Err(RouterError::NoPrefixRoom { prefix });
        };
        let block = BlockIpv6 {
            prefix: narrow.to_be_bytes(),
            first,
            used: 1,
            ..BlockIpv6::default()
        };
        let bytes = bytemuck::bytes_of(&block);
        grace::fast(&maps.activity)?;
        let from = slot * SLOT;
        maps.blocks_ipv6.write(bucket, from, &bytes[..BLOCK_WORD]);
        grace::fast(&maps.activity)?;
        let word = &bytes[BLOCK_WORD..BLOCK_WORD + 8];
        maps.blocks_ipv6.write(bucket, from + BLOCK_WORD, word);
        self.blocks.insert(narrow, (bucket, slot));
        let high = high_of(narrow);
        self.wides.entry(high).or_default().blocks += 1;
        self.settle(maps, high);
        Ok(())
    }

    fn take_block(&mut self, maps: &Maps, narrow: u128) {
        let Some((bucket, slot)) = self.blocks.remove(&narrow) else {
            return;
        };
        maps.blocks_ipv6
            .write(bucket, slot * SLOT + BLOCK_WORD, &[0; 8]);
        let high = high_of(narrow);
        if let Some(wide) = self.wides.get_mut(&high) {
            wide.blocks = wide.blocks.saturating_sub(1);
        }
        self.settle(maps, high);
    }

    fn mend(&mut self, maps: &Maps) {
        for bucket in 0..maps.prefixes_ipv6.len() {
            let prefix = prefix_at(maps, (bucket, 0));
            if prefix.flags & BUCKET_OVERFLOWED != 0 && !self.overflows.contains_key(&bucket) {
                let mut prefix = prefix;
                prefix.flags &= !BUCKET_OVERFLOWED;
                let word = &bytemuck::bytes_of(&prefix)[WORD..WORD + 8];
                maps.prefixes_ipv6.write(bucket, WORD, word);
            }
        }
        let highs: Vec<u64> = self.wides.keys().copied().collect();
        for high in highs {
            self.settle(maps, high);
        }
    }

    fn set_pools(&mut self, maps: &Maps, pools: &[IpNet]) -> Result<(), RouterError> {
        let mut wanted: HashMap<u64, Ipv6Net> = HashMap::new();
        for pool in pools {
            let IpNet::V6(pool) = pool else { continue };
            let high = high_of(pool.network().into());
            if pool.prefix_len() < 64 || wanted.insert(high, pool.trunc()).is_some() {
                return Err(RouterError::UnsuitablePool { pool: *pool });
            }
        }
        for (high, pool) in &wanted {
            self.set_pool(maps, *high, Some(*pool))?;
        }
        let known: Vec<u64> = self.wides.keys().copied().collect();
        for high in known {
            let has_pool =
                find(maps, u128::from(high) << 64).is_some_and(|slot| slot.pool_length != 0);
            if has_pool && !wanted.contains_key(&high) {
                self.set_pool(maps, high, None)?;
            }
        }
        Ok(())
    }
}

/// The pools that the maps hold.
pub(super) fn pools(maps: &Maps) -> Vec<IpNet> {
    let mut pools = Vec::new();
    for bucket in 0..maps.prefixes_ipv6.len() {
        for slot in maps.prefixes_ipv6.get(bucket).slots {
            if slot.used != 0 && slot.pool_length != 0 {
                let first = u128::from(u64::from_be_bytes(slot.prefix)) << 64
                    | u128::from(u64::from_be_bytes(slot.pool));
                pools.extend(Ipv6Net::new(first.into(), slot.pool_length).map(IpNet::V6));
            }
        }
    }
    pools.sort();
    pools.dedup();
    pools
}
