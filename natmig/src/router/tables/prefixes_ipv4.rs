//! `PREFIXES_IPV4` and `POOL_MASKS`: what is known of each /16 and, in chunks, of its /24s.
//!
//! A /16 gets a chunk when something is to be said of one of its /24s alone. The chunk's 256
//! elements say what the /16 said before the one store that puts it in place; it is given back when
//! all of them say the same again and chunks are short. Elements are written as one word each.

use std::collections::{HashMap, HashSet};

use ipnet::{IpNet, Ipv4Net};
use natmig_common::{
    CHUNK_COUNT, CHUNK_LENGTH, Ipv4, POOL_MASK_COUNT, PoolMask, PrefixIpv4, WIDE_PREFIXES,
};

use super::{
    super::{RouterError, grace, maps::Maps},
    prefixes::Prefixes,
};

/// The writer's side of the IPv4 tables of prefixes.
#[derive(Debug)]
pub(in crate::router) struct PrefixesIpv4 {
    /// Chunks that no /16 has.
    free_chunks: Vec<u32>,
    /// No chunk could be given back when it was last tried, and nothing went away since.
    exhausted: bool,
    free_masks: Vec<u16>,
    /// /24s of which addresses are in the index.
    hashed: HashSet<u32>,
    /// How many of them each /16 has.
    hashed_wide: HashMap<u32, u32>,
}

/// Element of a /16.
const fn wide_of(address: u32) -> u32 {
    address >> 16
}

/// The /24 as a number in its chunk.
const fn octet_of(address: u32) -> u32 {
    (address >> 8) & 0xff
}

const fn at(chunk: u32, octet: u32) -> u32 {
    WIDE_PREFIXES + chunk * CHUNK_LENGTH + octet
}

fn get(maps: &Maps, element: u32) -> PrefixIpv4 {
    maps.prefixes_ipv4.get(element as usize)
}

fn set(maps: &Maps, element: u32, prefix: PrefixIpv4) {
    maps.prefixes_ipv4
        .write(element as usize, 0, bytemuck::bytes_of(&prefix));
}

/// The chunk of a /16.
fn chunk_of(maps: &Maps, wide: u32) -> Option<u32> {
    get(maps, wide)
        .block
        .checked_sub(PrefixIpv4::FIRST)
        .filter(|chunk| *chunk < CHUNK_COUNT)
}

/// What is known of an address's prefix: the element of its /24 or, without a chunk, of its /16.
fn element_of(maps: &Maps, address: u32) -> u32 {
    let wide = wide_of(address);
    chunk_of(maps, wide).map_or(wide, |chunk| at(chunk, octet_of(address)))
}

/// What leads to an address, as a packet finds it: whether the index does, or the first entry of
/// its block.
fn lead(maps: &Maps, address: u32) -> (bool, Option<u32>) {
    let block = get(maps, element_of(maps, address)).block;
    (
        block == PrefixIpv4::HASH,
        block.checked_sub(PrefixIpv4::FIRST),
    )
}

impl PrefixesIpv4 {
    /// The /16's chunk, made if it has none; `None` if none is left.
    fn ensure_chunk(&mut self, maps: &Maps, wide: u32) -> Result<Option<u32>, RouterError> {
        if let Some(chunk) = chunk_of(maps, wide) {
            return Ok(Some(chunk));
        }
        if self.free_chunks.is_empty() {
            self.reclaim(maps)?;
        }
        let Some(chunk) = self.free_chunks.pop() else {
            return Ok(None);
        };
        let before = get(maps, wide);
        for octet in 0..CHUNK_LENGTH {
            let hashed = self.hashed.contains(&(wide << 16 | octet << 8));
            let block = if hashed {
                PrefixIpv4::HASH
            } else {
                PrefixIpv4::NONE
            };
            set(maps, at(chunk, octet), PrefixIpv4 { block, ..before });
        }
        step!("chunk:filled");
        let block = PrefixIpv4::FIRST + chunk;
        set(maps, wide, PrefixIpv4 { block, ..before });
        step!("chunk:placed");
        Ok(Some(chunk))
    }

    /// Gives back chunks whose elements all say the same.
    fn reclaim(&mut self, maps: &Maps) -> Result<(), RouterError> {
        if self.exhausted {
            return Ok(());
        }
        let mut found = Vec::new();
        for wide in 0..WIDE_PREFIXES {
            let Some(chunk) = chunk_of(maps, wide) else {
                continue;
            };
            let first = get(maps, at(chunk, 0));
            let plain = first.block == PrefixIpv4::NONE && first.pool <= PrefixIpv4::WHOLE;
            if plain && (1..CHUNK_LENGTH).all(|octet| get(maps, at(chunk, octet)) == first) {
                // Nobody looks at the rest of the /16's element while it has a chunk.
                let block = PrefixIpv4::FIRST + chunk;
                set(maps, wide, PrefixIpv4 { block, ..first });
                found.push((wide, chunk, first));
            }
        }
        self.exhausted = found.is_empty();
        if found.is_empty() {
            return Ok(());
        }
        grace::fast(&maps.activity)?;
        for (wide, _, first) in &found {
            set(maps, *wide, *first);
        }
        step!("chunk:taken");
        grace::fast(&maps.activity)?;
        self.free_chunks
            .extend(found.into_iter().map(|(_, chunk, _)| chunk));
        Ok(())
    }

    /// Changes what is known of all of a prefix, a /16 or a /24. Fails if a /24 needs a chunk and
    /// none is left.
    fn change(
        &mut self,
        maps: &Maps,
        prefix: Ipv4Net,
        change: impl Fn(&mut PrefixIpv4),
    ) -> Result<(), RouterError> {
        let address = u32::from(prefix.network());
        let wide = wide_of(address);
        self.exhausted = false;
        let apply = |element: u32| {
            let before = get(maps, element);
            let mut after = before;
            change(&mut after);
            if after != before {
                set(maps, element, after);
            }
        };
        if prefix.prefix_len() <= 16 {
            if let Some(chunk) = chunk_of(maps, wide) {
                for octet in 0..CHUNK_LENGTH {
                    apply(at(chunk, octet));
                }
            }
            apply(wide);
            return Ok(());
        }
        let before = get(maps, element_of(maps, address));
        let mut after = before;
        change(&mut after);
        if after == before {
            return Ok(());
        }
        let Some(chunk) = self.ensure_chunk(maps, wide)? else {
            return Err(RouterError::NoPrefixRoom {
                prefix: prefix.into(),
            });
        };
        apply(at(chunk, octet_of(address)));
        Ok(())
    }

    /// Sets the route that all of a prefix takes: a /16 with all that is in it, or a /24. Fails
    /// without a change if there is no room to say it of a /24 alone.
    pub(super) fn set_route(
        &mut self,
        maps: &Maps,
        prefix: Ipv4Net,
        route: u16,
    ) -> Result<(), RouterError> {
        self.change(maps, prefix, |element| element.route = route)
    }

    /// Stores what leads to the entries of a /24.
    fn set_block(maps: &Maps, narrow: u32, block: u32) {
        if let Some(chunk) = chunk_of(maps, wide_of(narrow)) {
            let element = at(chunk, octet_of(narrow));
            let before = get(maps, element);
            if before.block != block {
                set(maps, element, PrefixIpv4 { block, ..before });
            }
        }
    }

    fn claim_mask(&mut self) -> Option<u16> {
        self.free_masks.pop()
    }
}

impl Prefixes<Ipv4> for PrefixesIpv4 {
    fn adopt(maps: &Maps) -> Self {
        let mut chunks: HashSet<u32> = (0..CHUNK_COUNT).collect();
        let mut masks: HashSet<u16> = (0..POOL_MASK_COUNT)
            .filter_map(|mask| u16::try_from(mask).ok())
            .collect();
        for wide in 0..WIDE_PREFIXES {
            let Some(chunk) = chunk_of(maps, wide) else {
                continue;
            };
            chunks.remove(&chunk);
            for octet in 0..CHUNK_LENGTH {
                let pool = get(maps, at(chunk, octet)).pool;
                masks.remove(&pool.wrapping_sub(2));
            }
        }
        let mut free_chunks: Vec<u32> = chunks.into_iter().collect();
        free_chunks.sort_unstable_by(|one, other| other.cmp(one));
        let mut free_masks: Vec<u16> = masks.into_iter().collect();
        free_masks.sort_unstable_by(|one, other| other.cmp(one));
        Self {
            free_chunks,
            exhausted: false,
            free_masks,
            hashed: HashSet::new(),
            hashed_wide: HashMap::new(),
        }
    }

    fn lead(maps: &Maps, address: u32) -> (bool, Option<u32>) {
        lead(maps, address)
    }

    fn in_pool(maps: &Maps, address: u32) -> bool {
        match get(maps, element_of(maps, address)).pool {
            0 => false,
            PrefixIpv4::WHOLE => true,
            mask => {
                let PoolMask { bits } = maps.pool_masks.get(usize::from(mask) - 2);
                let octet = address & 0xff;
                bits[(octet / 64) as usize] >> (octet % 64) & 1 != 0
            }
        }
    }

    fn blocks(&self, maps: &Maps) -> Vec<(u32, u32)> {
        let mut blocks = Vec::new();
        for wide in 0..WIDE_PREFIXES {
            let Some(chunk) = chunk_of(maps, wide) else {
                continue;
            };
            for octet in 0..CHUNK_LENGTH {
                let block = get(maps, at(chunk, octet)).block;
                if let Some(first) = block.checked_sub(PrefixIpv4::FIRST) {
                    blocks.push((wide << 16 | octet << 8, first));
                }
            }
        }
        blocks
    }

    fn lead_to_index(&mut self, maps: &Maps, narrow: u32) -> Result<(), RouterError> {
        let wide = wide_of(narrow);
        if self.hashed.insert(narrow) {
            *self.hashed_wide.entry(wide).or_default() += 1;
        }
        if let Some(chunk) = self.ensure_chunk(maps, wide)? {
            let element = at(chunk, octet_of(narrow));
            let before = get(maps, element);
            if before.block == PrefixIpv4::NONE {
                let block = PrefixIpv4::HASH;
                set(maps, element, PrefixIpv4 { block, ..before });
            }
        } else {
            let block = PrefixIpv4::HASH;
            set(
                maps,
                wide,
                PrefixIpv4 {
                    block,
                    ..get(maps, wide)
                },
            );
        }
        Ok(())
    }

    fn leave_index(&mut self, maps: &Maps, narrow: u32) {
        if !self.hashed.remove(&narrow) {
            return;
        }
        self.exhausted = false;
        let wide = wide_of(narrow);
        let left = self.hashed_wide.get_mut(&wide).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.hashed_wide.remove(&wide);
        }
        if let Some(chunk) = chunk_of(maps, wide) {
            if get(maps, at(chunk, octet_of(narrow))).block == PrefixIpv4::HASH {
                Self::set_block(maps, narrow, PrefixIpv4::NONE);
            }
        } else if left == 0 {
            let block = PrefixIpv4::NONE;
            set(
                maps,
                wide,
                PrefixIpv4 {
                    block,
                    ..get(maps, wide)
                },
            );
        }
    }

    fn make_room(&mut self, maps: &Maps, narrow: u32) -> Result<bool, RouterError> {
        Ok(self.ensure_chunk(maps, wide_of(narrow))?.is_some())
    }

    fn put_block(&mut self, maps: &Maps, narrow: u32, first: u32) -> Result<(), RouterError> {
        Self::set_block(maps, narrow, PrefixIpv4::FIRST + first);
        Ok(())
    }

    fn take_block(&mut self, maps: &Maps, narrow: u32) {
        self.exhausted = false;
        let block = if self.hashed.contains(&narrow) {
            PrefixIpv4::HASH
        } else {
            PrefixIpv4::NONE
        };
        Self::set_block(maps, narrow, block);
    }

    fn mend(&mut self, maps: &Maps) {
        for wide in 0..WIDE_PREFIXES {
            if let Some(chunk) = chunk_of(maps, wide) {
                for octet in 0..CHUNK_LENGTH {
                    let narrow = wide << 16 | octet << 8;
                    if get(maps, at(chunk, octet)).block == PrefixIpv4::HASH
                        && !self.hashed.contains(&narrow)
                    {
                        Self::set_block(maps, narrow, PrefixIpv4::NONE);
                    }
                }
                continue;
            }
            let element = get(maps, wide);
            if element.block != PrefixIpv4::NONE && !self.hashed_wide.contains_key(&wide) {
                let block = PrefixIpv4::NONE;
                set(maps, wide, PrefixIpv4 { block, ..element });
            }
        }
    }

    fn set_pools(&mut self, maps: &Maps, pools: &[IpNet]) -> Result<(), RouterError> {
        let wanted = Wanted::of(pools);
        let mut freed = Vec::new();
        // Pools grow before they shrink: room that is missing is found out first.
        for narrow in wanted.narrow.keys() {
            if self.ensure_chunk(maps, wide_of(*narrow))?.is_none() {
                return Err(RouterError::NoPrefixRoom {
                    prefix: IpNet::V4(Ipv4Net::new_assert((*narrow).into(), 24)),
                });
            }
        }
        let missing = wanted
            .narrow
            .iter()
            .filter(|(narrow, bits)| {
                **bits != FULL && get(maps, element_of(maps, **narrow)).pool <= PrefixIpv4::WHOLE
            })
            .count();
        if missing > self.free_masks.len() {
            let prefix = IpNet::V4(Ipv4Net::default());
            return Err(RouterError::NoPrefixRoom { prefix });
        }
        for wide in 0..WIDE_PREFIXES {
            let whole = wanted.wide.contains(&wide);
            let Some(chunk) = chunk_of(maps, wide) else {
                let before = get(maps, wide);
                let pool = u16::from(whole);
                if before.pool != pool {
                    set(maps, wide, PrefixIpv4 { pool, ..before });
                }
                continue;
            };
            for octet in 0..CHUNK_LENGTH {
                let element = at(chunk, octet);
                let before = get(maps, element);
                let bits = wanted.narrow.get(&(wide << 16 | octet << 8)).copied();
                let known = before.pool.checked_sub(2);
                let pool = match bits {
                    _ if whole => PrefixIpv4::WHOLE,
                    None => 0,
                    Some(FULL) => PrefixIpv4::WHOLE,
                    Some(bits) => {
                        let Some(mask) = known.or_else(|| self.claim_mask()) else {
                            continue;
                        };
                        // Each address has its bit in one word.
                        let bits = PoolMask { bits };
                        maps.pool_masks
                            .write(usize::from(mask), 0, bytemuck::bytes_of(&bits));
                        mask + 2
                    }
                };
                if before.pool != pool {
                    set(maps, element, PrefixIpv4 { pool, ..before });
                    freed.extend(known);
                }
            }
        }
        self.exhausted = false;
        grace::fast(&maps.activity)?;
        self.free_masks.append(&mut freed);
        Ok(())
    }
}

/// All addresses of a /24.
const FULL: [u64; 4] = [u64::MAX; 4];

/// Pools as elements say them.
struct Wanted {
    /// /16s that are pools as a whole.
    wide: HashSet<u32>,
    /// Bits by /24 of the others.
    narrow: HashMap<u32, [u64; 4]>,
}

impl Wanted {
    fn of(pools: &[IpNet]) -> Self {
        let mut wanted = Self {
            wide: HashSet::new(),
            narrow: HashMap::new(),
        };
        for pool in pools {
            let IpNet::V4(pool) = pool else { continue };
            let (first, last) = (u32::from(pool.network()), u32::from(pool.broadcast()));
            if pool.prefix_len() <= 16 {
                wanted.wide.extend(first >> 16..=last >> 16);
                continue;
            }
            for narrow in first >> 8..=last >> 8 {
                let bits = wanted.narrow.entry(narrow << 8).or_default();
                for octet in first.max(narrow << 8)..=last.min(narrow << 8 | 0xff) {
                    bits[(octet & 0xff) as usize / 64] |= 1 << (octet % 64);
                }
            }
        }
        wanted
    }
}

/// The pools that the maps hold, as few prefixes as say the same.
pub(super) fn pools(maps: &Maps) -> Vec<IpNet> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    let mut add = |first: u32, last: u32| match ranges.last_mut() {
        Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
        Some(_) | None => ranges.push((first, last)),
    };
    for wide in 0..WIDE_PREFIXES {
        let base = wide << 16;
        let Some(chunk) = chunk_of(maps, wide) else {
            if get(maps, wide).pool == PrefixIpv4::WHOLE {
                add(base, base | 0xffff);
            }
            continue;
        };
        for octet in 0..CHUNK_LENGTH {
            let narrow = base | octet << 8;
            match get(maps, at(chunk, octet)).pool {
                0 => {}
                PrefixIpv4::WHOLE => add(narrow, narrow | 0xff),
                mask => {
                    let mask = maps.pool_masks.get(usize::from(mask) - 2);
                    for last in 0..256 {
                        if mask.bits[last as usize / 64] >> (last % 64) & 1 != 0 {
                            add(narrow | last, narrow | last);
                        }
                    }
                }
            }
        }
    }
    ranges
        .into_iter()
        .flat_map(|(first, last)| ipnet::Ipv4Subnets::new(first.into(), last.into(), 0))
        .map(IpNet::V4)
        .collect()
}
