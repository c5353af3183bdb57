//! Names of maps and programs, as the ELF object, bpffs and `bpftool` show them.

/// Entries of IPv4 addresses by index: see [`crate::Entry`]. Memory-mapped array.
pub const ENTRIES_IPV4: &str = "ENTRIES_IPV4";
/// Entries of IPv6 addresses by index. Memory-mapped array.
pub const ENTRIES_IPV6: &str = "ENTRIES_IPV6";
/// [`crate::Settled`] by index of the entry, IPv4. Memory-mapped array.
pub const SETTLED_IPV4: &str = "SETTLED_IPV4";
/// [`crate::Settled`] by index of the entry, IPv6. Memory-mapped array.
pub const SETTLED_IPV6: &str = "SETTLED_IPV6";
/// [`crate::Aligned`] of as many entries as a block has, IPv4. Memory-mapped array.
pub const ALIGNED_IPV4: &str = "ALIGNED_IPV4";
/// As [`ALIGNED_IPV4`], of IPv6.
pub const ALIGNED_IPV6: &str = "ALIGNED_IPV6";
/// Index of the entry of an IPv4 address that is in no block. Hash, key `[u8; 4]`, value `u32`.
pub const INDEX_IPV4: &str = "INDEX_IPV4";
/// Index of the entry of an IPv6 address that is in no block. Hash, key `[u8; 16]`, value `u32`.
pub const INDEX_IPV6: &str = "INDEX_IPV6";
/// [`crate::PrefixIpv4`]: /16s, then chunks of /24s. Memory-mapped array.
pub const PREFIXES_IPV4: &str = "PREFIXES_IPV4";
/// [`crate::PrefixBucket`] of /64s. Memory-mapped array.
pub const PREFIXES_IPV6: &str = "PREFIXES_IPV6";
/// [`crate::BlockBucket`] of /120s. Memory-mapped array.
pub const BLOCKS_IPV6: &str = "BLOCKS_IPV6";
/// [`crate::PoolMask`] of /24s. Memory-mapped array.
pub const POOL_MASKS: &str = "POOL_MASKS";
/// Transaction slots: see [`crate::Slot`]. Memory-mapped array.
pub const TRANSACTIONS: &str = "TRANSACTIONS";
/// Per-CPU activity: see [`crate::Activity`]. Memory-mapped array, one element per possible CPU.
pub const ACTIVITY: &str = "ACTIVITY";
/// Interfaces by ifindex: see [`crate::Interface`]. Array.
pub const INTERFACES: &str = "INTERFACES";
/// Devices of interfaces, by ifindex: a device map, through which frames leave without the device being
/// looked up.
pub const DEVICES: &str = "DEVICES";
/// VLANs: hash, key [`crate::VlanKey`], value `u32`.
pub const VLANS: &str = "VLANS";
/// Words of [`crate::Route`]. Memory-mapped array of `u64`.
pub const ROUTES: &str = "ROUTES";
/// [`crate::NextHop`]. Memory-mapped array.
pub const NEXT_HOPS: &str = "NEXT_HOPS";
/// The single [`crate::Heartbeat`]. Memory-mapped array.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// [`crate::Traffic`] by interface slot and counter. Per-CPU array.
pub const COUNTERS: &str = "COUNTERS";
/// [`crate::PackedTraffic`] by bank, direction and entry. Memory-mapped array.
pub const BINDING_COUNTERS_IPV4: &str = "BINDING_COUNTERS_IPV4";
/// As [`BINDING_COUNTERS_IPV4`], for IPv6.
pub const BINDING_COUNTERS_IPV6: &str = "BINDING_COUNTERS_IPV6";
/// [`crate::BindingTotal`] by [`crate::BindingKey`]. Hash.
pub const BINDING_TOTALS: &str = "BINDING_TOTALS";
/// [`crate::Unbanked`] by CPU and family. Memory-mapped array.
pub const UNBANKED: &str = "UNBANKED";
/// The single [`crate::TraceFilter`]. Memory-mapped array.
pub const TRACE: &str = "TRACE";
/// Records of [`crate::TraceEvent`]. Ring buffer.
pub const EVENTS: &str = "EVENTS";
/// [`crate::Awaited`] by [`crate::AwaitedKey`]. Hash.
pub const AWAITED: &str = "AWAITED";
/// Records of [`crate::Announced`]. Ring buffer.
pub const ANNOUNCED: &str = "ANNOUNCED";
/// The single [`crate::Meta`]. Memory-mapped array; the program reads the gateway's MAC from it.
pub const META: &str = "META";

/// The translating XDP program, attached to every interface.
pub const PROGRAM: &str = "natmig";
/// The XDP program that stamps `HEARTBEAT`; attached nowhere, the agent runs it.
pub const HEARTBEAT_PROGRAM: &str = "natmig_heartbeat";
/// The program that adds to the banks what the CPU that it is run on has not added yet; attached nowhere.
/// It returns 0, or 1 if the CPU was about something that it must not interrupt, and is to be asked again.
pub const BANK_PROGRAM: &str = "natmig_bank";

/// All maps, in the order in which they are created and pinned.
pub const MAPS: [&str; 30] = [
    META,
    ENTRIES_IPV4,
    ENTRIES_IPV6,
    SETTLED_IPV4,
    SETTLED_IPV6,
    ALIGNED_IPV4,
    ALIGNED_IPV6,
    INDEX_IPV4,
    INDEX_IPV6,
    PREFIXES_IPV4,
    PREFIXES_IPV6,
    BLOCKS_IPV6,
    POOL_MASKS,
    TRANSACTIONS,
    ACTIVITY,
    INTERFACES,
    DEVICES,
    VLANS,
    ROUTES,
    NEXT_HOPS,
    HEARTBEAT,
    COUNTERS,
    BINDING_COUNTERS_IPV4,
    BINDING_COUNTERS_IPV6,
    BINDING_TOTALS,
    UNBANKED,
    TRACE,
    EVENTS,
    AWAITED,
    ANNOUNCED,
];
