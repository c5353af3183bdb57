//! Names of maps and programs, as the ELF object, bpffs and `bpftool` show them.

/// Entries by index: see [`crate::Entry`]. Memory-mapped array.
pub const ENTRIES: &str = "ENTRIES";
/// Index of the entry of an IPv4 address. Hash, key `[u8; 4]`, value `u32`.
pub const INDEX_IPV4: &str = "INDEX_IPV4";
/// Transaction slots: see [`crate::Slot`]. Memory-mapped array.
pub const TRANSACTIONS: &str = "TRANSACTIONS";
/// Per-CPU activity: see [`crate::Activity`]. Memory-mapped array, one element per possible CPU.
pub const ACTIVITY: &str = "ACTIVITY";
/// Interfaces by ifindex: see [`crate::Interface`]. Array.
pub const INTERFACES: &str = "INTERFACES";
/// All locator pools of the fabric. LPM trie, key [`crate::PoolKey`], value `u32` (1).
pub const POOLS_IPV4: &str = "POOLS_IPV4";
/// [`crate::Traffic`] by interface slot and counter. Per-CPU array.
pub const COUNTERS: &str = "COUNTERS";
/// [`crate::BindingTraffic`] by entry index. Per-CPU array.
pub const BINDING_COUNTERS: &str = "BINDING_COUNTERS";
/// The single [`crate::Meta`]. Array; the program reads the gateway's MAC from it.
pub const META: &str = "META";

/// The translating XDP program, attached to every interface.
pub const PROGRAM: &str = "natmig";

/// All maps, in the order in which they are created and pinned.
pub const MAPS: [&str; 9] = [
    META,
    ENTRIES,
    INDEX_IPV4,
    TRANSACTIONS,
    ACTIVITY,
    INTERFACES,
    POOLS_IPV4,
    COUNTERS,
    BINDING_COUNTERS,
];
