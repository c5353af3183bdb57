//! A packet, as the family's `parse` understood it.

use crate::{address::Address as _, family::Ip, ipv6::Cursor};

/// A packet, as the family's `parse` understood it: offsets are from the frame's first byte, in
/// bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Packet<I: Ip> {
    /// The packet's source.
    pub source: I::Address,
    /// The packet's destination.
    pub destination: I::Address,
    /// Source of the packet quoted in an ICMP error.
    pub quoted_source: I::Address,
    /// Destination of the packet quoted in an ICMP error.
    pub quoted_destination: I::Address,
    /// Length of the IP packet, header included.
    pub length: u32,
    /// IPv4: type of service. IPv6: traffic class and flow label, as in the packet.
    pub class: u32,
    /// Where the L4 header is; 0 if this packet has none, being a later fragment.
    pub transport: u16,
    /// Where the L4 checksum is that covers the addresses; 0 if there is none in this packet.
    pub checksum: u16,
    /// Where the quoted IP header is; 0 if nothing is quoted.
    pub quote: u16,
    /// Where the quoted packet's L4 checksum is; 0 if it has none or the quote ends before it.
    pub quoted_checksum: u16,
    /// Where the ICMP checksum is, if something is quoted.
    pub icmp_checksum: u16,
    /// IP protocol of what `transport` is the header of.
    pub protocol: u8,
    /// Hop limit (time to live).
    pub hops: u8,
    /// 1 if a router must not fragment the packet.
    pub dont_fragment: u8,
    /// 1 if the header has options that routers may have to look at, or some such extension.
    pub options: u8,
    /// 1 if `checksum` is one that may be absent (UDP, UDP-Lite).
    pub optional_checksum: u8,
    /// As `optional_checksum`, for the quoted packet.
    pub quoted_optional_checksum: u8,
    /// 1 if the payload of an IPv6 packet is not understood.
    pub opaque: u8,
    /// IPv6: where the walk over extension headers is.
    pub(crate) cursor: Cursor,
}

impl<I: Ip> Packet<I> {
    /// A packet of which nothing is known.
    pub(crate) const EMPTY: Self = Self {
        source: I::Address::NONE,
        destination: I::Address::NONE,
        quoted_source: I::Address::NONE,
        quoted_destination: I::Address::NONE,
        length: 0,
        class: 0,
        transport: 0,
        checksum: 0,
        quote: 0,
        quoted_checksum: 0,
        icmp_checksum: 0,
        protocol: 0,
        hops: 0,
        dont_fragment: 0,
        options: 0,
        optional_checksum: 0,
        quoted_optional_checksum: 0,
        opaque: 0,
        cursor: Cursor::EMPTY,
    };

    /// Begins with a packet: sets what says that there is none of something, where `parse` sets it
    /// only if there is. (Four words in a row, so that it is one store: more would become a call.)
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.transport = 0;
        self.checksum = 0;
        self.quote = 0;
        self.quoted_checksum = 0;
        self.opaque = 0;
    }
}
