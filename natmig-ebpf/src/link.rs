//! The link layer: Ethernet with up to two tags, and the VLANs that are interfaces of their own.
//!
//! On a device that carries such VLANs (a trunk) the outer 802.1Q tag says on which of them the frame
//! came in, and belongs to that interface: it is gone when the frame leaves elsewhere. All other tags
//! stay on the frame.

use natmig_common::{Counter, FLAG_TRUNK, Interface};

use crate::{
    address::HardwareAddress,
    environment::{Environment, Hop},
};

/// Values of the `EtherType` field.
pub(crate) const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
pub(crate) const IPV6: u16 = 0x86dd;
const REVERSE_ARP: u16 = 0x8035;

/// Length of a tag, and of the header without any.
const TAG: u16 = 4;
pub(crate) const ETHERNET: u16 = 14;

/// A frame, as far as the link layer goes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Link {
    /// Source of the frame.
    pub source_mac: HardwareAddress,
    /// Destination of the frame.
    pub destination_mac: HardwareAddress,
    /// The interface on which the frame came in: a VLAN, if its tag says so.
    pub ingress: u32,
    /// Length of the whole frame; 0 before that is known.
    pub length: u32,
    /// Where the network layer's header is.
    pub network: u16,
    /// The outer tag's word, host order, if there is one.
    pub tag: u16,
    /// 1 if the outer tag is the ingress interface's own.
    pub tagged: u8,
    /// The interface's role.
    pub role: u8,
}

/// What the link layer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ipv4,
    Ipv6,
    Arp,
    ReverseArp,
    Other,
    Truncated,
}

impl Link {
    /// A frame of which nothing is known.
    pub(crate) const EMPTY: Self = Self {
        source_mac: HardwareAddress::NONE,
        destination_mac: HardwareAddress::NONE,
        ingress: 0,
        length: 0,
        network: 0,
        tag: 0,
        tagged: 0,
        role: 0,
    };

    /// Why `length` bytes of the network layer's header are not in the frame's linear part.
    #[inline(always)]
    pub(crate) fn missing<E: Environment>(&self, environment: &E, length: u16) -> Counter {
        let end = u32::from(self.network).wrapping_add(u32::from(length));
        if environment.frame_length() < end {
            Counter::PassMalformed
        } else {
            Counter::PassNotLinear
        }
    }

    /// Whether the packet came in on an interface of this role.
    #[inline(always)]
    pub fn is_from(&self, role: natmig_common::Role) -> bool {
        natmig_common::Role::from_raw(self.role) == Some(role)
    }
}

/// Reads the Ethernet header and up to two tags.
#[inline(always)]
pub(crate) fn parse<E: Environment>(environment: &E, link: &mut Link) -> Kind {
    let frame = environment.frame();
    let Some(ethernet) = frame.window::<14>(0) else {
        return Kind::Truncated;
    };
    link.destination_mac = ethernet.mac::<0>();
    link.source_mac = ethernet.mac::<6>();
    link.network = ETHERNET;
    let kind = ethernet.number::<12>();
    if kind == VLAN || kind == SERVICE_VLAN {
        return parse_tags(environment, link, kind);
    }
    kind_of(kind)
}

#[inline(always)]
fn kind_of(kind: u16) -> Kind {
    match kind {
        IPV4 => Kind::Ipv4,
        IPV6 => Kind::Ipv6,
        ARP => Kind::Arp,
        REVERSE_ARP => Kind::ReverseArp,
        _ => Kind::Other,
    }
}

/// Reads the tags, of which the first has this `EtherType`.
#[inline(never)]
fn parse_tags<E: Environment>(environment: &E, link: &mut Link, outer: u16) -> Kind {
    let frame = environment.frame();
    let Some(tag) = frame.window::<4>(ETHERNET) else {
        return Kind::Truncated;
    };
    // A service tag is none of the VLANs.
    link.tag = if outer == VLAN { tag.number::<0>() } else { 0 };
    link.network = 18;
    let mut kind = tag.number::<2>();
    if kind == VLAN || kind == SERVICE_VLAN {
        let Some(tag) = frame.window::<4>(18) else {
            return Kind::Truncated;
        };
        kind = tag.number::<2>();
        link.network = 22;
    }
    kind_of(kind)
}

/// The interface on which the frame came in on `device`; `None` if its tag is none of the VLANs there.
#[inline(always)]
pub(crate) fn interface<'a, E: Environment>(
    environment: &'a E,
    device: &'a Interface,
    link: &mut Link,
) -> Option<&'a Interface> {
    if device.flags & FLAG_TRUNK == 0 || link.network <= ETHERNET {
        return Some(device);
    }
    let ifindex = environment.vlan(link.ingress, link.tag & 0x0fff)?;
    link.ingress = ifindex;
    link.tagged = 1;
    environment.interface(ifindex)
}

/// Gives the frame its MAC addresses and the egress interface's tag. False if it has no room for that.
#[inline(always)]
pub(crate) fn leave<E: Environment>(environment: &E, link: &Link, hop: &Hop) -> bool {
    if (link.tagged != 0 || hop.vlan != 0) && !set_tag(environment, link, hop.vlan) {
        return false;
    }
    set_macs(environment, hop.destination_mac, hop.source_mac);
    true
}

/// Exchanges the ingress interface's tag for the egress interface's.
#[inline(never)]
fn set_tag<E: Environment>(environment: &E, link: &Link, vlan: u16) -> bool {
    if link.tagged != 0 && vlan == 0 {
        return environment.shift(i32::from(TAG).wrapping_neg());
    }
    if link.tagged == 0 && !environment.shift(i32::from(TAG)) {
        return false;
    }
    let frame = environment.frame();
    let Some(ethernet) = frame.window::<16>(0) else {
        return false;
    };
    ethernet.set_number::<12>(VLAN);
    ethernet.set_number::<14>(vlan);
    true
}

/// Sets the frame's MAC addresses.
#[inline(always)]
pub(crate) fn set_macs<E: Environment>(
    environment: &E,
    destination: HardwareAddress,
    source: HardwareAddress,
) {
    if let Some(ethernet) = environment.frame().fixed::<0, 14>() {
        ethernet.set_mac::<0>(destination);
        ethernet.set_mac::<6>(source);
    }
}
