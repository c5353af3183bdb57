//! The program's maps. Their names are [`natmig_common::names`]; the loader sets the sizes.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, DevMap, HashMap, PerCpuArray, RingBuf},
};
use natmig_common::{
    ANNOUNCED_RING_BYTES, AWAITED_COUNT, Activity, Aligned, Awaited, AwaitedKey, BLOCK_BUCKETS,
    BindingKey, BindingTotal, BlockBucket, Entry, Heartbeat, Interface, InterfaceTraffic, Ipv4,
    Ipv6, Meta, NEXT_HOP_COUNT, NextHop, POOL_MASK_COUNT, PREFIX_BUCKETS, PREFIX_COUNT,
    PackedTraffic, PoolMask, PrefixBucket, PrefixIpv4, ROUTE_COUNT, SLOT_COUNT, Settled, Slot,
    TRACE_RING_BYTES, TraceFilter, Unbanked, VlanKey,
};
use natmig_ebpf::Scratch;

use crate::tracer::Record;

/// Entries that the loader makes room for unless it is told otherwise.
const DEFAULT_ENTRIES: u32 = 1024;
/// Interfaces, as above.
const DEFAULT_INTERFACES: u32 = 1024;
/// VLANs that there can be.
const VLAN_COUNT: u32 = 4096;

#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static ENTRIES_IPV4: Array<Entry<Ipv4>> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static ENTRIES_IPV6: Array<Entry<Ipv6>> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static SETTLED_IPV4: Array<Settled<Ipv4>> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static SETTLED_IPV6: Array<Settled<Ipv6>> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static ALIGNED_IPV4: Array<Aligned> =
    Array::with_max_entries(Aligned::count(DEFAULT_ENTRIES), BPF_F_MMAPABLE);

#[map]
pub(crate) static ALIGNED_IPV6: Array<Aligned> =
    Array::with_max_entries(Aligned::count(DEFAULT_ENTRIES), BPF_F_MMAPABLE);

#[map]
pub(crate) static INDEX_IPV4: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(DEFAULT_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static INDEX_IPV6: HashMap<[u8; 16], u32> =
    HashMap::with_max_entries(DEFAULT_ENTRIES, BPF_F_NO_PREALLOC);

/// A table whose length is known: one element with all of it, so that the program looks it up once and
/// then reads at a place that it has checked, where an element each would be a look-up each.
pub(crate) type Table<T, const N: usize> = Array<[T; N]>;

#[map]
pub(crate) static PREFIXES_IPV4: Table<PrefixIpv4, { PREFIX_COUNT as usize }> =
    Table::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static PREFIXES_IPV6: Table<PrefixBucket, { PREFIX_BUCKETS as usize }> =
    Table::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static BLOCKS_IPV6: Table<BlockBucket, { BLOCK_BUCKETS as usize }> =
    Table::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static POOL_MASKS: Array<PoolMask> =
    Array::with_max_entries(POOL_MASK_COUNT, BPF_F_MMAPABLE);

#[map]
pub(crate) static TRANSACTIONS: Array<Slot> = Array::with_max_entries(SLOT_COUNT, BPF_F_MMAPABLE);

#[map]
pub(crate) static ACTIVITY: Array<Activity> = Array::with_max_entries(64, BPF_F_MMAPABLE);

#[map]
pub(crate) static INTERFACES: Array<Interface> =
    Array::with_max_entries(DEFAULT_INTERFACES, BPF_F_MMAPABLE);

#[map]
pub(crate) static DEVICES: DevMap = DevMap::with_max_entries(DEFAULT_INTERFACES, 0);

#[map]
pub(crate) static VLANS: HashMap<VlanKey, u32> = HashMap::with_max_entries(VLAN_COUNT, 0);

#[map]
pub(crate) static ROUTES: Table<u64, { ROUTE_COUNT as usize }> =
    Table::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static NEXT_HOPS: Table<NextHop, { NEXT_HOP_COUNT as usize }> =
    Table::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static HEARTBEAT: Array<Heartbeat> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static COUNTERS: PerCpuArray<InterfaceTraffic> = PerCpuArray::with_max_entries(64, 0);

#[map]
pub(crate) static BINDING_COUNTERS_IPV4: Array<PackedTraffic> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static BINDING_COUNTERS_IPV6: Array<PackedTraffic> =
    Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static BINDING_TOTALS: HashMap<BindingKey, BindingTotal> =
    HashMap::with_max_entries(2 * DEFAULT_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static UNBANKED: Array<Unbanked> = Array::with_max_entries(2 * 64, BPF_F_MMAPABLE);

/// The state of the packet that a CPU is processing; nobody else's business, so not pinned.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static TRACE: Array<TraceFilter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(TRACE_RING_BYTES, 0);

/// Looked at for announcements, and for packets of VMs whose migration is not decided.
#[map]
pub(crate) static AWAITED: HashMap<AwaitedKey, Awaited> =
    HashMap::with_max_entries(AWAITED_COUNT, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static ANNOUNCED: RingBuf = RingBuf::with_byte_size(ANNOUNCED_RING_BYTES, 0);

/// What is kept of the packet that a CPU is processing, while it is traced; not pinned either.
#[map]
pub(crate) static RECORD: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);
