//! Types that natmig's eBPF programs and its userspace share: the layout of every map, the numbers
//! of every counter, and the names under which maps and programs are pinned.
//!
//! Everything here is `#[repr(C)]` without padding and free of `bool`, enums and `Option`, so that
//! any bytes a map may hold are a valid value; enums are reached through `TryFrom` or `from_raw`.
//! Addresses are byte arrays in network order. **Any change of a layout bumps [`ABI_VERSION`].**

#![no_std]

mod activity;
mod awaited;
mod counter;
mod entry;
mod family;
mod hop;
mod interface;
pub mod names;
mod prefix;
mod settled;
mod trace;
mod transaction;
mod unbanked;

pub use activity::Activity;
pub use awaited::{ANNOUNCED_RING_BYTES, AWAITED_COUNT, Announced, Awaited, AwaitedKey};
pub use counter::{Counter, CounterClass, InterfaceTraffic, Traffic};
pub use entry::{
    Action, BindingKey, BindingTotal, Entry, FLAG_HOME_EDGE, Mac, PackedTraffic, Version,
    binding_counter,
};
pub use family::{Family, Ipv4, Ipv6};
pub use hop::{Heartbeat, NEXT_HOP_COUNT, NextHop, ROUTE_COUNT, Route};
pub use interface::{
    FLAG_GATEWAY_OWNER, FLAG_KEEP_SOURCE, FLAG_PROMISCUOUS, FLAG_TRUNK, Interface, Role,
    UNKNOWN_SLOT, VlanKey,
};
pub use prefix::{
    BLOCK_BUCKETS, BLOCK_LENGTH, BUCKET_OVERFLOWED, BlockBucket, BlockIpv6, CHUNK_COUNT,
    CHUNK_LENGTH, POOL_MASK_COUNT, PREFIX_BLOCKS, PREFIX_BUCKETS, PREFIX_COUNT, PREFIX_HASH,
    PoolMask, PrefixBucket, PrefixIpv4, PrefixIpv6, WIDE_PREFIXES, buckets,
};
pub use settled::{Aligned, Settled};
pub use trace::{
    TRACE_PREFIX_COUNT, TRACE_RING_BYTES, TRACE_SNAP, TraceAddress, TraceAddresses, TraceEvent,
    TraceFilter, TracePrefix,
};
pub use transaction::{Reference, SLOT_COUNT, Slot, SlotState};
pub use unbanked::{Note, UNBANKED_COUNT, Unbanked};

/// Version of every layout in this crate; it is stored in the pinned [`names::META`] map.
pub const ABI_VERSION: u32 = 4;

/// First word of the pinned [`names::META`] map, so that a foreign map is never taken for ours.
pub const META_MAGIC: u32 = 0x6e61_746d;

/// The single element of the [`names::META`] map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Meta {
    /// [`META_MAGIC`].
    pub magic: u32,
    /// [`ABI_VERSION`] of the natmig that created the maps.
    pub abi_version: u32,
    /// Highest leadership term of a controller that this router has seen.
    pub term: u64,
    /// Number of elements of the `ENTRIES_IPV4` map.
    pub entry_capacity: u32,
    /// Number of interfaces for which the `COUNTERS` map has room.
    pub interface_capacity: u32,
    /// MAC address that answers for away VMs and for a visitor's old neighbours.
    pub gateway_mac: Mac,
    /// Unused, zero.
    pub _pad: [u8; 2],
    /// Number of elements of the `ENTRIES_IPV6` map.
    pub entry_capacity_ipv6: u32,
    /// Banks of `BINDING_COUNTERS_*`, a power of two; 0 if traffic is not counted by binding.
    pub binding_banks: u32,
    /// Unused, zero.
    pub _reserved: [u64; 3],
}

const _: () = assert!(size_of::<Meta>() == 64);
