//! What the gatherer reads and the checks judge. `None` is what could not be read, or is not there
//! to be read in this network namespace or on this kernel; no check takes it for bad.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use natmig_common::Role;

use crate::router::next_hops::Pulse;

/// All that the checks look at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The machine.
    pub machine: Machine,
    /// The network namespace's settings.
    pub forwarding: Forwarding,
    /// The instance of natmig.
    pub instance: Instance,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
}

/// Kernel, BPF and clock.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel's release, as `uname -r` says it.
    pub release: String,
    /// CPUs that are online.
    pub cpus: u32,
    /// Whether the kernel describes its types.
    pub btf: bool,
    /// Whether a BPF file system is on `/sys/fs/bpf`.
    pub bpffs: bool,
    /// Whether programs are compiled: `net.core.bpf_jit_enable`, which only the first network
    /// namespace shows, or what the kernel says of the instance's program.
    pub jit: Option<bool>,
    /// `net.core.bpf_jit_harden`.
    pub jit_harden: Option<u32>,
    /// `kernel.bpf_stats_enabled`.
    pub bpf_stats: Option<u32>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// The tightest memory limit of this process's control groups, to which BPF maps are charged.
    pub memory_limit: Option<MemoryLimit>,
    /// Whether the kernel thinks its clock synchronised.
    pub clock_synchronised: Option<bool>,
}

/// A memory limit of a control group.
#[derive(Clone, Debug)]
pub struct MemoryLimit {
    /// The file that sets it.
    pub file: PathBuf,
    /// The limit in bytes.
    pub bytes: u64,
}

/// Settings of the network namespace.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<u32>,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forwarding: Option<u32>,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter: Option<u32>,
    /// `net.ipv4.conf.all.send_redirects`.
    pub send_redirects: Option<u32>,
    /// `net.ipv4.neigh.default.gc_thresh3`, which only the first network namespace shows.
    pub neighbor_limit: Option<u32>,
    /// What `nft --version` says.
    pub nft: Option<String>,
}

/// An instance of natmig.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// The configuration file that was named.
    pub config_file: Option<PathBuf>,
    /// What is pinned.
    pub pins: Pins,
    /// Kernel memory that its maps take, or would take.
    pub memory: Option<u64>,
    /// Families of nftables in which its guard's table is missing.
    pub missing_guards: Option<Vec<&'static str>>,
    /// Its heartbeat.
    pub pulse: Option<Pulse>,
    /// Events that its last trace lost.
    pub trace_lost: Option<u64>,
    /// The router's port.
    pub port: Port,
}

/// What is at the place of an instance's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pins {
    /// Nothing.
    None,
    /// Maps that this natmig reads.
    Loaded {
        /// The version of their layout.
        abi_version: u32,
    },
    /// Maps of another natmig.
    OtherLayout {
        /// The version of their layout.
        found: u32,
        /// The version of this natmig's.
        expected: u32,
    },
    /// What could not be read, and why.
    Unreadable(String),
}

/// The router's port.
#[derive(Clone, Debug)]
pub struct Port {
    /// The kernel's end.
    pub name: String,
    /// Whether it is there and up.
    pub up: bool,
    /// Whether checksums of what it sends are left to hardware.
    pub tx_checksum: Option<bool>,
}

/// An interface, as the configuration and the kernel have it.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its role, if a configuration says it.
    pub role: Option<Role>,
    /// The segment's prefix.
    pub prefix: Option<Ipv4Net>,
    /// The segment's gateway address.
    pub gateway: Option<Ipv4Addr>,
    /// What the kernel says; `None` if the interface does not exist.
    pub link: Option<Link>,
}

/// What the kernel says of an interface.
#[derive(Clone, Debug)]
pub struct Link {
    /// Whether it is administratively up.
    pub up: bool,
    /// The kind of a virtual interface, such as `veth`.
    pub kind: Option<String>,
    /// The interface that it is on top of, if that is in this network namespace.
    pub lower: Option<Lower>,
    /// VLAN interfaces on top of it.
    pub vlans: Vec<String>,
    /// Its MTU.
    pub mtu: u32,
    /// The XDP program on it.
    pub xdp: Xdp,
    /// Its driver.
    pub driver: Option<String>,
    /// What its driver can do with XDP, from the kernel's `netdev` family (Linux 6.3).
    pub xdp_features: Option<XdpFeatures>,
    /// Its queues.
    pub queues: Option<Queues>,
    /// Its offloads.
    pub offloads: Offloads,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// `net.ipv4.conf.*.rp_filter`.
    pub rp_filter: Option<u32>,
    /// `net.ipv4.conf.*.forwarding`.
    pub forwarding: Option<u32>,
    /// `net.ipv4.conf.*.send_redirects`.
    pub send_redirects: Option<u32>,
}

/// The interface below another, or at the other end of it.
#[derive(Clone, Debug)]
pub struct Lower {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Option<String>,
    /// Its offloads.
    pub offloads: Offloads,
    /// Its MTU.
    pub mtu: u32,
    /// The XDP program on it.
    pub xdp: Xdp,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// None.
    None,
    /// The instance's.
    Ours {
        /// Whether it runs in generic mode.
        generic: bool,
    },
    /// Somebody else's.
    Foreign {
        /// Its id.
        id: u32,
        /// Its name.
        name: String,
    },
}

/// What a driver can do with XDP: the bits of `enum netdev_xdp_act`, include/uapi/linux/netdev.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Runs programs.
    pub const BASIC: u64 = 1;
    /// Redirects what it receives.
    pub const REDIRECT: u64 = 1 << 1;
    /// Sends what others redirect to it.
    pub const TARGET: u64 = 1 << 2;
    /// Receives packets of several buffers.
    pub const FRAGS: u64 = 1 << 5;
    /// Sends packets of several buffers that others redirect to it.
    pub const TARGET_FRAGS: u64 = 1 << 6;

    /// Whether it has all of these.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// Receive queues of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// In use.
    pub receive: u32,
    /// That it could use.
    pub most: u32,
    /// Whether queues serve both directions.
    pub combined: bool,
}

/// Offloads of an interface that matter to an XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Merges packets in hardware, and loses their sizes.
    pub lro: Option<bool>,
    /// Merges packets in hardware.
    pub gro_hw: Option<bool>,
    /// Takes VLAN tags out of received frames.
    pub rx_vlan: Option<bool>,
    /// Leaves checksums of what is sent to hardware.
    pub tx_checksum: Option<bool>,
}
