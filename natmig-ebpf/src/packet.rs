//! A packet, as `parse` understood it.

use crate::address::{Address, HardwareAddress};

/// A packet, as `parse` understood it: offsets are from the frame's first byte, in bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Packet {
    /// Source of the frame.
    pub source_mac: HardwareAddress,
    /// Destination of the frame.
    pub destination_mac: HardwareAddress,
    /// The interface on which the frame came in.
    pub ingress: u32,
    /// The packet's source.
    pub source: Address,
    /// The packet's destination.
    pub destination: Address,
    /// Source of the packet quoted in an ICMP error.
    pub quoted_source: Address,
    /// Destination of the packet quoted in an ICMP error.
    pub quoted_destination: Address,
    /// IP total length.
    pub total_length: u16,
    /// Where the IP header is.
    pub network: u16,
    /// Where the L4 checksum is that covers the addresses; 0 if there is none in this packet.
    pub checksum: u16,
    /// Where the quoted IP header is; 0 if nothing is quoted.
    pub quote: u16,
    /// Where the quoted packet's L4 checksum is; 0 if it has none or the quote ends before it.
    pub quoted_checksum: u16,
    /// Where the ICMP checksum is, if something is quoted.
    pub icmp_checksum: u16,
    /// Length of the IP header.
    pub header_length: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// 1 if the packet must not be fragmented.
    pub dont_fragment: u8,
    /// 1 if `checksum` is one that may be absent (UDP, UDP-Lite).
    pub optional_checksum: u8,
    /// As `optional_checksum`, for the quoted packet.
    pub quoted_optional_checksum: u8,
    /// The interface's role.
    pub role: u8,
}

impl Packet {
    /// A packet of which nothing is known.
    pub(crate) const EMPTY: Self = Self {
        source_mac: HardwareAddress::NONE,
        destination_mac: HardwareAddress::NONE,
        ingress: 0,
        source: Address::NONE,
        destination: Address::NONE,
        quoted_source: Address::NONE,
        quoted_destination: Address::NONE,
        total_length: 0,
        network: 0,
        checksum: 0,
        quote: 0,
        quoted_checksum: 0,
        icmp_checksum: 0,
        header_length: 0,
        protocol: 0,
        ttl: 0,
        tos: 0,
        dont_fragment: 0,
        optional_checksum: 0,
        quoted_optional_checksum: 0,
        role: 0,
    };

    /// Begins with a packet: sets what `parse` does not set for every packet that it accepts.
    #[inline(always)]
    pub(crate) fn begin(&mut self, ingress: u32, role: u8) {
        self.ingress = ingress;
        self.role = role;
        self.checksum = 0;
        self.quote = 0;
        self.quoted_source = Address::NONE;
        self.quoted_destination = Address::NONE;
        self.quoted_checksum = 0;
        self.icmp_checksum = 0;
        self.optional_checksum = 0;
        self.quoted_optional_checksum = 0;
    }

    /// Whether the packet came in on an interface of this role.
    #[inline(always)]
    pub fn is_from(&self, role: natmig_common::Role) -> bool {
        natmig_common::Role::from_raw(self.role) == Some(role)
    }
}
