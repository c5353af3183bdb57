//! What the program knows of the router's interfaces, and the locator pools of the fabric.

use crate::Mac;

/// Role of an interface in the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// A segment: hosts and VMs.
    Access = 1,
    /// Another router of the fabric.
    Fabric = 2,
    /// Outside the datacenter.
    External = 3,
    /// The near end of the router's own port: packets that its kernel sends to away VMs enter here.
    /// A packet that cannot be forwarded from here is dropped, because passing it on would return it.
    Kernel = 4,
}

impl Role {
    /// The role with this number, or `None` for a number that is none.
    #[inline]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Access),
            2 => Some(Self::Fabric),
            3 => Some(Self::External),
            4 => Some(Self::Kernel),
            _ => None,
        }
    }

    /// The role's name, as configuration files and reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Fabric => "fabric",
            Self::External => "external",
            Self::Kernel => "kernel",
        }
    }
}

/// This router owns the segment's gateway address, so it answers ARP and takes frames for VMs.
pub const FLAG_GATEWAY_OWNER: u8 = 1;
/// Sources of visitors keep their identity inside the fabric (`source = "identity"`).
pub const FLAG_KEEP_SOURCE: u8 = 2;

/// The agent switched the interface's promiscuous mode on, and will switch it off; nothing that the
/// program looks at.
pub const FLAG_PROMISCUOUS: u8 = 4;

/// VLANs lie on the interface: a tag tells which, see [`VlanKey`]. A frame with a tag that is none of
/// them passes untouched.
pub const FLAG_TRUNK: u8 = 8;

/// `Interface::slot` of the packets on interfaces that are not in the table; no interface has it.
pub const UNKNOWN_SLOT: u16 = 0;

/// Element of the `INTERFACES` map, a cache line; all zero where natmig has no interface of that
/// ifindex.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Interface {
    /// [`Role`], or 0. A device that only carries VLANs has 0 and [`FLAG_TRUNK`].
    pub role: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// Element of `COUNTERS` with the interface's counters, from 1 on; see [`UNKNOWN_SLOT`].
    pub slot: u16,
    /// The interface's own MAC address.
    pub mac: Mac,
    /// The interface's MTU in bytes, without the link-layer header.
    pub mtu: u16,
    /// Source address of ICMP errors that the program sends here; 0 if it must not send any.
    pub address: [u8; 4],
    /// Prefix of the access interface's segment, network order; 0 elsewhere.
    pub prefix: [u8; 4],
    /// Netmask of `prefix`, network order; 0 where there is no segment.
    pub netmask: [u8; 4],
    /// The device that frames to this interface are redirected to, if it is a VLAN; else 0.
    pub parent: u32,
    /// VLAN identifier (802.1Q), if it is a VLAN; else 0.
    pub vlan: u16,
    /// Length of `prefix_ipv6`; 0 where there is no IPv6 segment.
    pub prefix_length_ipv6: u8,
    /// Unused, zero.
    pub _pad: u8,
    /// Source address of `ICMPv6` errors that the program sends here; unspecified if it must not.
    pub address_ipv6: [u8; 16],
    /// IPv6 prefix of the access interface's segment, network order.
    pub prefix_ipv6: [u8; 16],
}

impl Interface {
    /// Whether visitors' sources are left as identities on this interface.
    #[inline]
    pub const fn keeps_source(&self) -> bool {
        self.flags & FLAG_KEEP_SOURCE != 0
    }

    /// Sets whether visitors' sources are left as identities on this interface.
    pub const fn set_keeps_source(&mut self, keeps: bool) {
        if keeps {
            self.flags |= FLAG_KEEP_SOURCE;
        } else {
            self.flags &= !FLAG_KEEP_SOURCE;
        }
    }

    /// Whether this router owns the gateway address of the interface's segment.
    #[inline]
    pub const fn owns_gateway(&self) -> bool {
        self.flags & FLAG_GATEWAY_OWNER != 0
    }
}

/// Key of the `VLANS` hash, whose value is the ifindex under which `INTERFACES` has the VLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct VlanKey {
    /// The device on which the frame came in.
    pub parent: u32,
    /// VLAN identifier of its outer tag, host order.
    pub vlan: u32,
}

const _: () = {
    assert!(size_of::<Interface>() == 64);
    assert!(size_of::<VlanKey>() == 8);
};
