//! From an address to its entry, its pool and its route, without a hash wherever the agent could
//! spare one: see `natmig_common`'s tables of prefixes.
//!
//! A table that leads astray for a moment, because it is being written, does no harm: whoever uses
//! an entry compares its address first.

use natmig_common::{
    Aligned, BLOCK_BUCKETS, BUCKET_OVERFLOWED, CHUNK_LENGTH, PREFIX_BLOCKS, PREFIX_BUCKETS,
    PREFIX_HASH, PrefixBucket, PrefixIpv4, WIDE_PREFIXES, buckets,
};

use crate::{
    address::{Address as _, AddressIpv4, AddressIpv6},
    environment::Environment,
    family::Ip,
    shared,
};

/// What is known of an address before its entry is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Found {
    /// Where its entry would be; [`Found::NO_ENTRY`] if it has none.
    pub index: u32,
    /// Whether a direct block led there: no other address's entry is at `index` then.
    pub direct: bool,
    /// What is known of its prefix.
    pub prefix: Prefix,
}

/// What is known of an address's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix {
    /// Whether the address is in a locator pool of the fabric.
    pub in_pool: bool,
    /// Element of `ROUTES`; 0 to ask the kernel.
    pub route: u16,
}

impl Prefix {
    /// Nothing is known.
    pub const NONE: Self = Self {
        in_pool: false,
        route: 0,
    };
}

impl Found {
    /// `index` where there is no entry.
    pub const NO_ENTRY: u32 = u32::MAX;

    /// Nothing is known.
    pub const NOTHING: Self = Self {
        index: Self::NO_ENTRY,
        direct: false,
        prefix: Prefix::NONE,
    };
}

/// The element of the address's /16 or, where that says so, of its /24.
#[inline(always)]
pub(crate) fn element_ipv4<E: Environment>(
    environment: &E,
    address: AddressIpv4,
) -> Option<PrefixIpv4> {
    let number = address.number();
    let wide = shared::prefix_ipv4(environment.prefix_ipv4(number >> 16)?);
    if wide.block < PrefixIpv4::FIRST {
        return Some(wide);
    }
    let chunk = wide.block.wrapping_sub(PrefixIpv4::FIRST);
    let at = WIDE_PREFIXES
        .wrapping_add(chunk.wrapping_mul(CHUNK_LENGTH))
        .wrapping_add((number >> 8) & 0xff);
    environment.prefix_ipv4(at).map(shared::prefix_ipv4)
}

/// Whether the address, whose /24 has this element, is in a pool.
#[inline(always)]
fn in_pool_ipv4<E: Environment>(
    environment: &E,
    address: AddressIpv4,
    element: PrefixIpv4,
) -> bool {
    match element.pool {
        0 => false,
        PrefixIpv4::WHOLE => true,
        number => {
            let mask = u32::from(number).wrapping_sub(PrefixIpv4::FIRST);
            let octet = address.number() & 0xff;
            environment
                .pool_mask(mask)
                .is_some_and(|mask| shared::pool_mask_has(mask, octet))
        }
    }
}

#[inline(always)]
fn prefix_of_element<E: Environment>(
    environment: &E,
    address: AddressIpv4,
    element: PrefixIpv4,
) -> Prefix {
    Prefix {
        in_pool: in_pool_ipv4(environment, address, element),
        route: element.route,
    }
}

/// What is known of an IPv4 address's prefix.
#[inline(always)]
pub(crate) fn prefix_ipv4<E: Environment>(environment: &E, address: AddressIpv4) -> Prefix {
    let element = element_ipv4(environment, address).unwrap_or_default();
    prefix_of_element(environment, address, element)
}

/// The route of an IPv4 address's prefix.
#[inline(always)]
pub(crate) fn route_ipv4<E: Environment>(environment: &E, address: AddressIpv4) -> u16 {
    element_ipv4(environment, address).map_or(0, |element| element.route)
}

/// Finds an IPv4 address.
#[inline(always)]
pub(crate) fn find_ipv4<E: Environment, I: Ip<Address = AddressIpv4>>(
    environment: &E,
    address: AddressIpv4,
) -> Found {
    let element = element_ipv4(environment, address).unwrap_or_default();
    let index = match element.block {
        PrefixIpv4::NONE => Found::NO_ENTRY,
        PrefixIpv4::HASH => environment.index::<I>(address).unwrap_or(Found::NO_ENTRY),
        block => block
            .wrapping_sub(PrefixIpv4::FIRST)
            .wrapping_add(address.number() & 0xff),
    };
    Found {
        index,
        direct: element.block >= PrefixIpv4::FIRST,
        prefix: prefix_of_element(environment, address, element),
    }
}

/// As [`find_ipv4`], of an address for which the index need not be asked.
#[inline(always)]
pub(crate) fn find_directly_ipv4<E: Environment>(
    environment: &E,
    address: AddressIpv4,
) -> Option<Found> {
    let element = element_ipv4(environment, address)?;
    let index = match element.block {
        PrefixIpv4::NONE => Found::NO_ENTRY,
        PrefixIpv4::HASH => return None,
        block => block
            .wrapping_sub(PrefixIpv4::FIRST)
            .wrapping_add(address.number() & 0xff),
    };
    Some(Found {
        index,
        direct: index != Found::NO_ENTRY,
        prefix: prefix_of_element(environment, address, element),
    })
}

/// What is known of an IPv6 address's /64, and the `PREFIX_*` bits.
#[inline(always)]
fn element_ipv6<E: Environment>(environment: &E, address: AddressIpv6) -> (Prefix, u8) {
    let [high, _] = address.raw();
    let [first, second] = buckets(address.high(), 0, PREFIX_BUCKETS);
    let mut overflowed = 0;
    for bucket in [first, second] {
        let Some(PrefixBucket { slots }) = environment.prefixes_ipv6(bucket) else {
            continue;
        };
        for slot in slots {
            if let Some(found) = shared::prefix_ipv6(slot, high) {
                let length = found.pool_length;
                let pool = AddressIpv6::from_raw(high, found.pool);
                let prefix = Prefix {
                    in_pool: length != 0 && address.shares_prefix(pool, length),
                    route: found.route,
                };
                return (prefix, found.flags);
            }
        }
        let [slot, _] = slots;
        overflowed |= shared::flags(&slot.flags) & BUCKET_OVERFLOWED;
    }
    let flags = if overflowed == 0 { 0 } else { PREFIX_HASH };
    (Prefix::NONE, flags)
}

/// What is known of an IPv6 address's prefix.
#[inline(always)]
pub(crate) fn prefix_ipv6<E: Environment>(environment: &E, address: AddressIpv6) -> Prefix {
    element_ipv6(environment, address).0
}

/// The route of an IPv6 address's prefix.
#[inline(always)]
pub(crate) fn route_ipv6<E: Environment>(environment: &E, address: AddressIpv6) -> u16 {
    element_ipv6(environment, address).0.route
}

/// The entry to which a direct block leads.
#[inline(always)]
fn block_ipv6<E: Environment>(environment: &E, address: AddressIpv6) -> Option<u32> {
    let low = address.low();
    let [first, second] = buckets(address.high(), low & !0xff, BLOCK_BUCKETS);
    let octet = u32::try_from(low & 0xff).unwrap_or(0);
    let prefix = AddressIpv6::from_raw(address.raw()[0], (low & !0xff).to_be());
    for bucket in [first, second] {
        let Some(bucket) = environment.blocks_ipv6(bucket) else {
            continue;
        };
        for slot in &bucket.slots {
            if let Some(entries) = shared::block_ipv6(slot, prefix) {
                return Some(entries.wrapping_add(octet));
            }
        }
    }
    None
}

/// Finds an IPv6 address.
#[inline(always)]
pub(crate) fn find_ipv6<E: Environment, I: Ip<Address = AddressIpv6>>(
    environment: &E,
    address: AddressIpv6,
) -> Found {
    let (prefix, flags) = element_ipv6(environment, address);
    let mut index = None;
    if flags & PREFIX_BLOCKS != 0 {
        index = block_ipv6(environment, address);
    }
    let direct = index.is_some();
    if index.is_none() && flags & PREFIX_HASH != 0 {
        index = environment.index::<I>(address);
    }
    Found {
        index: index.unwrap_or(Found::NO_ENTRY),
        direct,
        prefix,
    }
}

/// As [`find_ipv6`], of an address for which the index need not be asked.
#[inline(always)]
pub(crate) fn find_directly_ipv6<E: Environment>(
    environment: &E,
    address: AddressIpv6,
) -> Option<Found> {
    let (prefix, flags) = element_ipv6(environment, address);
    let mut index = None;
    if flags & PREFIX_BLOCKS != 0 {
        index = block_ipv6(environment, address);
    }
    if index.is_none() && flags & PREFIX_HASH != 0 {
        return None;
    }
    Some(Found {
        index: index.unwrap_or(Found::NO_ENTRY),
        direct: index.is_some(),
        prefix,
    })
}

/// The other address of the binding whose entry is at `index`, to which a direct block led; none if the
/// entry is to be looked at. Whether the address is in a pool says what the entry is:
/// [`natmig_common::Action::Known`], or [`natmig_common::Action::Away`] without flags.
#[inline(always)]
pub(crate) fn settled<E: Environment, I: Ip>(environment: &E, index: u32) -> I::Address {
    let (number, place) = Aligned::place(index);
    if let Some(aligned) = environment.aligned::<I>(number)
        && let Some(counterpart) = I::aligned(aligned, place)
    {
        return counterpart;
    }
    environment
        .settled::<I>(index)
        .map_or(I::Address::NONE, I::settled)
}

/// What is known of the address. What will be needed of its binding is touched, so that it comes from
/// memory while other things are done; nothing is concluded from it.
#[inline(always)]
pub(crate) fn find<E: Environment, I: Ip>(environment: &E, address: I::Address) -> Found {
    let found = I::find(environment, address);
    if found.index != Found::NO_ENTRY {
        if found.direct {
            // Its volatile reads are not left out.
            settled::<E, I>(environment, found.index);
        } else if let Some(entry) = environment.entry::<I>(found.index) {
            shared::entry_reference(entry);
        }
    }
    found
}
