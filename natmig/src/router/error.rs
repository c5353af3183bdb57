//! What can go wrong on a router, said so that an operator knows what to do.

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::{IpNet, Ipv6Net};

use crate::{
    names::SegmentName,
    rule::{Rule, TransactionId},
};

/// An error of the router's tables, programs or kernel state.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The router does not hold this transaction: prepare it (again), in full.
    #[error("transaction {0} is not held by this router: prepare it first")]
    UnknownTransaction(TransactionId),
    /// A committed transaction cannot be aborted, nor prepared with other changes.
    #[error("transaction {0} is committed already: it can only be folded")]
    AlreadyCommitted(TransactionId),
    /// A transaction cannot be folded before it is committed.
    #[error("transaction {0} is not committed: commit or abort it")]
    NotCommitted(TransactionId),
    /// The same number was prepared with other changes.
    #[error(
        "transaction {0} is held with other changes: abort it before it is prepared differently"
    )]
    DifferentChanges(TransactionId),
    /// Another transaction already changes this address.
    #[error(
        "{address} is being changed by transaction {holder}: wait until that is folded or aborted"
    )]
    Busy {
        /// The address.
        address: IpAddr,
        /// The transaction that holds it.
        holder: TransactionId,
    },
    /// An early change names an address that is bound already.
    #[error(
        "{address} is bound already ({rule:?}), so it cannot be a locator that nothing used before: retire it first"
    )]
    InUse {
        /// The address.
        address: IpAddr,
        /// What it is bound to.
        rule: Rule,
    },
    /// The changes contradict themselves.
    #[error("{address} is changed twice in one transaction: name every address once")]
    Twice {
        /// The address.
        address: IpAddr,
    },
    /// A rule names a segment that none of this router's access interfaces serves.
    #[error(
        "no access interface of this router serves segment {segment}: add `segment = \"{segment}\"` to its [[interface]] in the router's configuration"
    )]
    UnknownSegment {
        /// The segment.
        segment: SegmentName,
    },
    /// A rule has addresses of both families.
    #[error(
        "{address} is of another family than the address whose rule names it: bind IPv4 to IPv4 and IPv6 to IPv6"
    )]
    OtherFamily {
        /// The address.
        address: IpAddr,
    },
    /// The tables of prefixes have no room for what is to be said of a prefix.
    #[error("the tables of prefixes have no room for {prefix}: use fewer or larger locator pools")]
    NoPrefixRoom {
        /// The prefix.
        prefix: IpNet,
    },
    /// A locator pool that the tables cannot hold.
    #[error(
        "locator pool {pool} cannot be used: an IPv6 pool has a /64 or a part of one, and a /64 has one pool"
    )]
    UnsuitablePool {
        /// The pool.
        pool: Ipv6Net,
    },
    /// The tables are full.
    #[error(
        "the tables have room for {capacity} addresses and {needed} would be needed: raise `max_addresses` (`max_addresses_ipv6`), unload and load again"
    )]
    Full {
        /// Addresses the tables have room for.
        capacity: u32,
        /// Addresses that would be needed.
        needed: u64,
    },
    /// All transaction slots are in use.
    #[error("all transaction slots are in use: fold or abort migrations first")]
    NoSlot,
    /// Another process writes this instance's tables.
    #[error("instance {instance} is in use by process {holder} ({path}): stop that agent first", path = path.display())]
    Locked {
        /// The instance.
        instance: String,
        /// What the lock file says of its holder.
        holder: String,
        /// The lock file.
        path: PathBuf,
    },
    /// Another process traces this instance.
    #[error(
        "instance {instance} is being traced by process {holder}: there is one tracer at a time; end that one first"
    )]
    Traced {
        /// The instance.
        instance: String,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// The pinned maps were made by another natmig.
    #[error("the maps in {path} have layout version {found}, this natmig needs {expected}: use the natmig that loaded them, or `natmig unload` and load again (interrupts translation)", path = path.display())]
    Abi {
        /// Where the maps are pinned.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// This program's version.
        expected: u32,
    },
    /// Something at the place of the pins is not natmig's.
    #[error("{path} is not natmig's: move it away, or choose another `instance`", path = path.display())]
    NotOurs {
        /// The pin.
        path: PathBuf,
    },
    /// The instance is not loaded.
    #[error("instance {instance} is not loaded on this router ({path} does not exist): run `natmig load` or the agent first", path = path.display())]
    NotLoaded {
        /// The instance.
        instance: String,
        /// Where its maps would be pinned.
        path: PathBuf,
    },
    /// The instance's configuration names an interface that does not exist.
    #[error(
        "interface {0} does not exist in this network namespace: check `name` in the configuration with `ip link`"
    )]
    NoInterface(String),
    /// The interface cannot be a redirect target.
    #[error(
        "interface {interface} is a {kind}: XDP cannot redirect to it; name its ports or the physical interface instead"
    )]
    UnsuitableInterface {
        /// The interface.
        interface: String,
        /// What it is.
        kind: String,
    },
    /// The interface is a VLAN that cannot be told from others.
    #[error("interface {interface} {problem}")]
    UnsuitableVlan {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        problem: String,
    },
    /// Somebody else's XDP program is on the interface.
    #[error(
        "interface {interface} already runs XDP program {name:?} (id {id}) that is not this instance's: look at it with `bpftool prog show id {id}` and `bpftool net`, remove it, or leave the interface out"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// The program's id.
        id: u32,
        /// The program's name.
        name: String,
    },
    /// The driver has no native XDP.
    #[error(
        "interface {interface} refuses native XDP ({cause}): use a driver that supports it, or accept the slow path with --generic"
    )]
    NoNativeXdp {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The tables cannot hold an interface.
    #[error(
        "interface {interface} (index {ifindex}) has no room in the pinned tables (up to {capacity} interfaces): unload and load again"
    )]
    TooManyInterfaces {
        /// The interface.
        interface: String,
        /// Its index.
        ifindex: u32,
        /// Interfaces the tables have room for.
        capacity: u32,
    },
    /// The BPF file system is not mounted.
    #[error("/sys/fs/bpf is no BPF file system: run `mount -t bpf bpf /sys/fs/bpf`")]
    NoBpffs,
    /// The binary holds no eBPF program.
    #[error("this natmig was built without its eBPF program: build it with `cargo xtask build`")]
    NoProgram,
    /// The eBPF program could not be loaded.
    #[error("the kernel refused natmig's eBPF program: {0}")]
    Program(String),
    /// The guard's program is missing.
    #[error("cannot run `nft`: install the package nftables ({0})")]
    NoNft(io::Error),
    /// The guard was refused.
    #[error("nft refused natmig's guard: {0}")]
    Nft(String),
    /// A CPU was processing a packet whenever it was asked for what it has counted.
    #[error(
        "CPU {0} processes packets without a pause, so traffic by binding cannot be counted: try again"
    )]
    BusyCpu(u32),
    /// A system call failed.
    #[error("cannot {doing}: {cause}")]
    System {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl RouterError {
    /// Makes an error of a failed system call.
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::System { doing, cause }
    }
}
