//! Types that natmig's eBPF programs and its userspace share: the layout of every map, the numbers
//! of every counter, and the names under which maps and programs are pinned.
//!
//! Everything here is `#[repr(C)]` without padding and free of `bool`, enums and `Option`, so that
//! any bytes a map may hold are a valid value; enums are reached through `TryFrom` or `from_raw`.
//! Addresses are byte arrays in network order. **Any change of a layout bumps [`ABI_VERSION`].**

#![no_std]

mod activity;
mod counter;
mod entry;
mod interface;
pub mod names;
mod transaction;

pub use activity::Activity;
pub use counter::{Counter, CounterClass, Traffic};
pub use entry::{Action, BindingTraffic, Entry, FAMILY_IPV4, FLAG_HOME_EDGE, Mac, Version};
pub use interface::{
    FLAG_GATEWAY_OWNER, FLAG_KEEP_SOURCE, FLAG_PROMISCUOUS, Interface, PoolKey, Role, UNKNOWN_SLOT,
};
pub use transaction::{Reference, SLOT_COUNT, Slot, SlotState};

/// Version of every layout in this crate; it is stored in the pinned [`names::META`] map.
pub const ABI_VERSION: u32 = 1;

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
    /// Number of elements of the `ENTRIES` map.
    pub entry_capacity: u32,
    /// Number of interfaces for which the `COUNTERS` map has room.
    pub interface_capacity: u32,
    /// MAC address that answers for away VMs and for a visitor's old neighbours.
    pub gateway_mac: Mac,
    /// Unused, zero.
    pub _pad: [u8; 2],
    /// Unused, zero.
    pub _reserved: [u64; 4],
}

const _: () = assert!(size_of::<Meta>() == 64);
