//! Bytes to [`Packet`], in one bounded pass: Ethernet with up to two VLAN tags, IPv4 (RFC 791), and
//! of the layer above only where its checksum is.

use natmig_common::Counter;

use crate::{environment::Environment, icmp_error, packet::Packet};

/// Values of the `EtherType` field.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// IP protocols.
pub(crate) const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// Fields of the IPv4 header's fragment word.
const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What the link layer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Ipv4,
    Arp,
    Other,
    Truncated,
}

/// Reads the Ethernet header and up to two tags, which stay as they are; sets `packet.network`.
#[inline(never)]
pub(crate) fn link<E: Environment>(environment: &E, packet: &mut Packet) -> Link {
    let frame = environment.frame();
    let Some(ethernet) = frame.window::<14>(0) else {
        return Link::Truncated;
    };
    packet.destination_mac = ethernet.mac::<0, 2, 4>();
    packet.source_mac = ethernet.mac::<6, 8, 10>();
    let mut kind = ethernet.number::<12>();
    let mut network = 14;
    if kind == VLAN || kind == SERVICE_VLAN {
        let Some(tag) = frame.window::<4>(14) else {
            return Link::Truncated;
        };
        kind = tag.number::<2>();
        network = 18;
        if kind == VLAN || kind == SERVICE_VLAN {
            let Some(tag) = frame.window::<4>(18) else {
                return Link::Truncated;
            };
            kind = tag.number::<2>();
            network = 22;
        }
    }
    packet.network = network;
    match kind {
        IPV4 => Link::Ipv4,
        ARP => Link::Arp,
        _ => Link::Other,
    }
}

/// Where an L4 protocol's checksum is that covers the addresses, and how it ends a packet.
#[derive(Clone, Copy)]
pub(crate) struct Coverage {
    /// Offset of the checksum from the L4 header; 0 if there is none.
    pub(crate) offset: u16,
    /// Whether zero stands for "no checksum".
    pub(crate) optional: bool,
}

/// Where `protocol` has its checksum.
#[inline(always)]
pub(crate) fn coverage(protocol: u8) -> Coverage {
    match protocol {
        TCP => Coverage {
            offset: 16,
            optional: false,
        },
        UDP | UDP_LITE => Coverage {
            offset: 6,
            optional: true,
        },
        DCCP => Coverage {
            offset: 6,
            optional: false,
        },
        // SCTP's CRC32c covers no addresses, nor does anything in ICMP, ESP, GRE.
        _ => Coverage {
            offset: 0,
            optional: false,
        },
    }
}

/// Reads the IPv4 header at `packet.network`. The counter of a packet that stays untouched, if the
/// packet is not one that natmig may touch.
#[inline(never)]
pub(crate) fn ipv4<E: Environment>(environment: &E, packet: &mut Packet) -> Option<Counter> {
    let frame = environment.frame();
    let Some(header) = frame.window::<20>(packet.network) else {
        return Some(Counter::PassMalformed);
    };
    let version = header.byte::<0>();
    let header_length = (version & 0x0f) << 2;
    let total_length = header.number::<2>();
    let end = u32::from(packet.network).wrapping_add(u32::from(total_length));
    let whole = frame.has(end) || end <= environment.frame_length();
    if version >> 4 != 4 || header_length < 20 || u16::from(header_length) > total_length || !whole
    {
        return Some(Counter::PassMalformed);
    }
    let fragment = header.number::<6>();
    packet.header_length = header_length;
    packet.total_length = total_length;
    packet.tos = header.byte::<1>();
    packet.ttl = header.byte::<8>();
    packet.protocol = header.byte::<9>();
    packet.source = header.address::<12, 14>();
    packet.destination = header.address::<16, 18>();
    packet.dont_fragment = u8::from(fragment & DONT_FRAGMENT != 0);

    if fragment & FRAGMENT_OFFSET == 0 {
        let transport = packet.network.wrapping_add(u16::from(header_length));
        let length = total_length.wrapping_sub(u16::from(header_length));
        let covered = coverage(packet.protocol);
        if covered.offset != 0 {
            let at = transport.wrapping_add(covered.offset);
            if covered.offset.wrapping_add(2) > length || frame.window::<2>(at).is_none() {
                return Some(Counter::PassMalformed);
            }
            packet.checksum = at;
            packet.optional_checksum = u8::from(covered.optional);
        } else if packet.protocol == ICMP {
            icmp_error::parse(&frame, packet, transport, length);
        }
    }
    if packet.destination.is_special() {
        return Some(Counter::PassMulticast);
    }
    None
}
