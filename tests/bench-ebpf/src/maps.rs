//! The maps of all programs.

use aya_ebpf::{
    macros::map,
    maps::{Array, DevMap, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use natmig_bench_ebpf::{BINDINGS, Generator, LANES};

/// What this CPU generates: a map by CPU, because each packet writes its state, and the next CPU's
/// would be in the same cache line.
#[map]
pub(crate) static GENERATORS: PerCpuArray<Generator> = PerCpuArray::with_max_entries(1, 0);

/// Packets that arrived, by lane.
#[map]
pub(crate) static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(LANES, 0);

/// Whether sinks hand their frames to userspace: one element, 0 or 1.
#[map]
pub(crate) static CAPTURE: Array<u32> = Array::with_max_entries(1, 0);

/// Frames for userspace.
#[map]
pub(crate) static CAPTURED: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

/// Devices by ifindex: all routers' interfaces differ.
#[map]
pub(crate) static DEVICES: DevMap = DevMap::with_max_entries(1024, 0);

/// Locators by identity, as numbers in network order.
#[map]
pub(crate) static HASH_IPV4: HashMap<u32, u32> = HashMap::with_max_entries(1 << 20, 0);

/// As `HASH_IPV4`.
#[map]
pub(crate) static HASH_IPV6: HashMap<[u32; 4], [u32; 4]> = HashMap::with_max_entries(1 << 20, 0);

/// Cache lines, one per binding.
#[map]
pub(crate) static LINES: Array<[u64; 8]> = Array::with_max_entries(BINDINGS, 0);

/// Traffic by binding, in a map of its own.
#[map]
pub(crate) static BINDING_COUNTERS: Array<[u64; 2]> = Array::with_max_entries(BINDINGS, 0);

/// Counters of a CPU.
#[map]
pub(crate) static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(64, 0);

/// Programs to call: natmig's, and an empty one.
#[map]
pub(crate) static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(2, 0);
