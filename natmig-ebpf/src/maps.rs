//! The program's maps. Their names are [`natmig_common::names`]; the loader sets the sizes.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray},
};
use natmig_common::{
    Activity, BindingTraffic, Counter, Entry, Interface, Meta, SLOT_COUNT, Slot, Traffic,
};
use natmig_ebpf::Scratch;

/// Entries that the loader makes room for unless it is told otherwise.
const DEFAULT_ENTRIES: u32 = 1024;

#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static ENTRIES: Array<Entry> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

#[map]
pub(crate) static INDEX_IPV4: HashMap<[u8; 4], u32> = HashMap::with_max_entries(DEFAULT_ENTRIES, 0);

#[map]
pub(crate) static TRANSACTIONS: Array<Slot> = Array::with_max_entries(SLOT_COUNT, BPF_F_MMAPABLE);

#[map]
pub(crate) static ACTIVITY: Array<Activity> = Array::with_max_entries(64, BPF_F_MMAPABLE);

#[map]
pub(crate) static INTERFACES: Array<Interface> = Array::with_max_entries(1024, BPF_F_MMAPABLE);

#[map]
pub(crate) static POOLS_IPV4: LpmTrie<[u8; 4], u32> =
    LpmTrie::with_max_entries(1024, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static COUNTERS: PerCpuArray<Traffic> =
    PerCpuArray::with_max_entries(64 * Counter::COUNT, 0);

#[map]
pub(crate) static BINDING_COUNTERS: PerCpuArray<BindingTraffic> =
    PerCpuArray::with_max_entries(DEFAULT_ENTRIES, 0);

/// The state of the packet that a CPU is processing; nobody else's business, so not pinned.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
