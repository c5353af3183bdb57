//! What leads from an address to its entry, to its pool and to its route without a hash: tables of
//! prefixes, in front of the index.
//!
//! IPv4: [`PrefixIpv4`] by the address's first 16 bits and, where those say so, by its first 24.
//! IPv6: [`PrefixIpv6`] by the first 64 bits, [`BlockIpv6`] by the first 120, each in one of the two
//! buckets that [`buckets`] names. All of them only lead to `ENTRIES_*`.

/// Number of /16 elements, with which `PREFIXES_IPV4` begins.
pub const WIDE_PREFIXES: u32 = 1 << 16;
/// Elements of `PREFIXES_IPV4` in a chunk: the /24s of a /16.
pub const CHUNK_LENGTH: u32 = 256;
/// Chunks for which `PREFIXES_IPV4` has room. A /16 for which none is left is [`PrefixIpv4::HASH`].
pub const CHUNK_COUNT: u32 = 1024;
/// Elements of `PREFIXES_IPV4`.
pub const PREFIX_COUNT: u32 = WIDE_PREFIXES + CHUNK_COUNT * CHUNK_LENGTH;
/// Entries of a direct block, one per value of an address's last octet.
pub const BLOCK_LENGTH: u32 = 256;
/// Elements of the `POOL_MASKS` map.
pub const POOL_MASK_COUNT: u32 = 4096;
/// Elements (buckets) of `PREFIXES_IPV6`, a power of two.
pub const PREFIX_BUCKETS: u32 = 4096;
/// Elements (buckets) of `BLOCKS_IPV6`, a power of two.
pub const BLOCK_BUCKETS: u32 = 16384;

/// What is known of a /16 (the first [`WIDE_PREFIXES`] elements of `PREFIXES_IPV4`) or of a /24.
/// Each field is read and written as one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(8))]
pub struct PrefixIpv4 {
    /// [`PrefixIpv4::NONE`]: no address of the prefix has an entry. [`PrefixIpv4::HASH`]: the index
    /// knows. Otherwise `n + PrefixIpv4::FIRST`: for a /16, its /24s are chunk `n`, and say all that
    /// there is to say; for a /24, its entries are [`BLOCK_LENGTH`] in a row from entry `n` on.
    pub block: u32,
    /// [`PrefixIpv4::NONE`]: no locator pool. [`PrefixIpv4::WHOLE`]: all of the prefix is in a pool.
    /// Otherwise `n + PrefixIpv4::FIRST`: element `n` of `POOL_MASKS` says which addresses of the
    /// /24 are; never in a /16.
    pub pool: u16,
    /// Element of `ROUTES` that all of the prefix takes; 0 to ask the kernel.
    pub route: u16,
}

impl PrefixIpv4 {
    /// Nothing.
    pub const NONE: u32 = 0;
    /// `block`: the index knows.
    pub const HASH: u32 = 1;
    /// `pool`: all of it.
    pub const WHOLE: u16 = 1;
    /// What is added to a number in `block` and `pool`.
    pub const FIRST: u32 = 2;
}

/// Addresses of a /24 that are in a locator pool, by their last octet: bit `octet % 64` of word
/// `octet / 64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub struct PoolMask {
    /// The bits, in host order.
    pub bits: [u64; 4],
}

/// The slot's /64 has addresses in the index.
pub const PREFIX_HASH: u8 = 1;
/// The slot's /64 has addresses in blocks.
pub const PREFIX_BLOCKS: u8 = 2;
/// In any slot of a bucket, free or not: some prefix found no place in the bucket, so what is not
/// found is in the index.
pub const BUCKET_OVERFLOWED: u8 = 4;

/// What is known of a /64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub struct PrefixIpv6 {
    /// The first 64 bits, network order.
    pub prefix: [u8; 8],
    /// 1 if the slot is in use; it is the last to be written, and cleared before the rest changes.
    pub used: u8,
    /// `PREFIX_*` bits, and [`BUCKET_OVERFLOWED`].
    pub flags: u8,
    /// Length of the locator pool in the /64: 64 to 128, or 0 if there is none.
    pub pool_length: u8,
    /// Unused, zero.
    pub _pad: u8,
    /// Element of `ROUTES` that all of the /64 takes; 0 to ask the kernel.
    pub route: u16,
    /// Unused, zero.
    pub _pad2: [u8; 2],
    /// Last 64 bits of the pool's first address, network order.
    pub pool: [u8; 8],
    /// Unused, zero.
    pub _reserved: [u8; 8],
}

/// An element of `PREFIXES_IPV6`: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct PrefixBucket {
    /// Two places.
    pub slots: [PrefixIpv6; 2],
}

/// A direct block of a /120.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub struct BlockIpv6 {
    /// The /120's first address, network order.
    pub prefix: [u8; 16],
    /// Its entries are [`BLOCK_LENGTH`] in a row from this one on.
    pub first: u32,
    /// 1 if the slot is in use; it is the last to be written, and cleared before the rest changes.
    pub used: u8,
    /// [`BUCKET_OVERFLOWED`], for which nothing needs to be done: a prefix without a block is in
    /// the index.
    pub flags: u8,
    /// Unused, zero.
    pub _pad: [u8; 2],
    /// Unused, zero.
    pub _reserved: [u8; 8],
}

/// An element of `BLOCKS_IPV6`: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct BlockBucket {
    /// Two places.
    pub slots: [BlockIpv6; 2],
}

/// The two buckets, of `count` (a power of two), in which the prefix may be whose first and second 8
/// bytes are `high` and `low` as numbers in network order (`low` without the bits that the prefix
/// leaves out).
#[inline]
pub const fn buckets(high: u64, low: u64, count: u32) -> [u32; 2] {
    let mixed =
        (high ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    [
        ((mixed >> 32) & 0xffff_ffff) as u32 & (count - 1),
        (mixed & 0xffff_ffff) as u32 & (count - 1),
    ]
}

const _: () = {
    assert!(size_of::<PrefixIpv4>() == 8);
    assert!(size_of::<PoolMask>() == 32);
    assert!(size_of::<PrefixIpv6>() == 32 && size_of::<PrefixBucket>() == 64);
    assert!(size_of::<BlockIpv6>() == 32 && size_of::<BlockBucket>() == 64);
    assert!(PREFIX_BUCKETS.is_power_of_two() && BLOCK_BUCKETS.is_power_of_two());
};
