//! IPv4 (RFC 791): the header as it is read and written.

pub(crate) mod arp;
pub(crate) mod error;
mod frag_needed;
pub(crate) mod to_identity;

use natmig_common::{Aligned, Counter, Interface, Ipv4, Settled};

use crate::{
    address::{Address as _, AddressIpv4},
    checksum::Change,
    environment::Environment,
    family::Ip,
    find::{self, Found, Prefix},
    frame::Frame,
    link::{ETHERNET, Link},
    outcome::Outcome,
    packet::Packet,
    scratch::{Scratch, State},
    shared,
    translate::Rewrite,
    transport::{ICMP, common_coverage, coverage},
};

/// Fields of the header's fragment word.
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Length of a header without options.
const HEADER: u8 = 20;
/// First byte of such a header.
const PLAIN: u8 = 0x45;

impl Ip for Ipv4 {
    type Address = AddressIpv4;

    #[inline(always)]
    fn split(scratch: &mut Scratch) -> (&mut Link, &mut State<Self>) {
        (&mut scratch.link, &mut scratch.ipv4)
    }

    #[inline(always)]
    fn parse<E: Environment>(
        environment: &E,
        link: &mut Link,
        packet: &mut Packet<Self>,
    ) -> Option<Counter> {
        let frame = environment.frame();
        let Some(header) = frame.window::<20>(link.network) else {
            return Some(link.missing(environment, HEADER.into()));
        };
        let version = header.byte::<0>();
        let header_length = (version & 0x0f) << 2;
        let total_length = header.number::<2>();
        let end = u32::from(link.network).wrapping_add(u32::from(total_length));
        link.length = frame.length();
        if end > link.length {
            link.length = environment.frame_length();
        }
        if version >> 4 != 4
            || header_length < HEADER
            || u16::from(header_length) > total_length
            || end > link.length
        {
            return Some(Counter::PassMalformed);
        }
        let fragment = header.number::<6>();
        packet.options = u8::from(header_length != HEADER);
        packet.length = u32::from(total_length);
        packet.class = u32::from(header.byte::<1>());
        packet.hops = header.byte::<8>();
        packet.protocol = header.byte::<9>();
        packet.source = header.address_ipv4::<12>();
        packet.destination = header.address_ipv4::<16>();
        packet.dont_fragment = u8::from(fragment & DONT_FRAGMENT != 0);

        if fragment & FRAGMENT_OFFSET == 0 {
            let transport = link.network.wrapping_add(u16::from(header_length));
            let length = total_length.wrapping_sub(u16::from(header_length));
            packet.transport = transport;
            let covered = coverage(packet.protocol);
            if covered.offset != 0 {
                let at = transport.wrapping_add(covered.offset);
                if covered.offset.wrapping_add(2) > length {
                    return Some(Counter::PassMalformed);
                }
                if frame.window::<2>(at).is_none() {
                    return Some(Counter::PassNotLinear);
                }
                packet.checksum = at;
                packet.optional_checksum = u8::from(covered.optional);
            } else if packet.protocol == ICMP {
                return error::parse(environment, packet, transport, length);
            }
        }
        None
    }

    /// ARP is not in IPv4.
    #[inline(always)]
    fn discover<E: Environment>(
        _environment: &E,
        _interface: &Interface,
        _link: &Link,
        _state: &mut State<Self>,
    ) -> Option<Outcome> {
        None
    }

    #[inline(always)]
    fn is_confined(packet: &Packet<Self>) -> bool {
        packet.destination.is_special()
    }

    #[inline(always)]
    fn prefix<E: Environment>(environment: &E, address: AddressIpv4) -> Prefix {
        find::prefix_ipv4(environment, address)
    }

    #[inline(always)]
    fn route<E: Environment>(environment: &E, address: AddressIpv4) -> u16 {
        find::route_ipv4(environment, address)
    }

    #[inline(always)]
    fn find<E: Environment>(environment: &E, address: AddressIpv4) -> Found {
        find::find_ipv4::<E, Self>(environment, address)
    }

    #[inline(always)]
    fn aligned(aligned: &Aligned, place: u32) -> Option<AddressIpv4> {
        shared::aligned_ipv4(aligned, place)
    }

    #[inline(always)]
    fn settled(settled: &Settled<Self>) -> AddressIpv4 {
        shared::settled_ipv4(settled)
    }

    #[inline(always)]
    fn find_directly<E: Environment>(environment: &E, address: AddressIpv4) -> Option<Found> {
        find::find_directly_ipv4(environment, address)
    }

    #[inline(always)]
    fn glance(frame: &Frame<'_>) -> Option<Packet<Self>> {
        let header = frame.fixed::<14, 20>()?;
        let length = header.number::<2>();
        let payload = length.checked_sub(HEADER.into())?;
        let end = u32::from(length).wrapping_add(ETHERNET.into());
        if header.byte::<0>() != PLAIN
            || end > frame.length()
            || header.number::<6>() & FRAGMENT_OFFSET != 0
        {
            return None;
        }
        let protocol = header.byte::<9>();
        let covered = common_coverage(protocol)?;
        if covered.offset.wrapping_add(2) > payload {
            return None;
        }
        Some(Packet {
            source: header.address_ipv4::<12>(),
            destination: header.address_ipv4::<16>(),
            length: length.into(),
            checksum: covered
                .offset
                .wrapping_add(const { ETHERNET.wrapping_add(20) }),
            optional_checksum: u8::from(covered.optional),
            protocol,
            hops: header.byte::<8>(),
            ..Packet::EMPTY
        })
    }

    #[inline(always)]
    fn write(
        frame: &Frame<'_>,
        link: &Link,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    ) {
        let Some(header) = frame.window::<20>(link.network) else {
            return;
        };
        let mut covered = addresses;
        if rewrite.hop != 0 {
            let old = header.word::<8>();
            header.set_byte::<8>(packet.hops.wrapping_sub(1));
            covered = covered.word(old, header.word::<8>());
        }
        header.set_word::<10>(covered.apply(header.word::<10>()));
        header.set_address_ipv4::<12>(rewrite.source);
        header.set_address_ipv4::<16>(rewrite.destination);
    }

    #[inline(always)]
    fn write_plain(
        frame: &Frame<'_>,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    ) {
        let Some(header) = frame.fixed::<14, 28>() else {
            return;
        };
        let old = header.word::<8>();
        header.set_byte::<8>(packet.hops.wrapping_sub(1));
        let covered = addresses.word(old, header.word::<8>());
        header.set_word::<10>(covered.apply_folded(header.word::<10>()));
        header.set_address_ipv4::<12>(rewrite.source);
        header.set_address_ipv4::<16>(rewrite.destination);
        if packet.optional_checksum != 0 {
            header.set_word::<26>(addresses.apply_udp_folded(header.word::<26>()));
        } else if let Some(tcp) = frame.fixed::<50, 2>() {
            tcp.set_word::<0>(addresses.apply_folded(tcp.word::<0>()));
        }
    }

    #[inline(always)]
    fn write_quoted(
        frame: &Frame<'_>,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    ) -> Option<Change> {
        let header = frame.window::<20>(packet.quote)?;
        let old = header.word::<10>();
        let new = addresses.apply(old);
        header.set_word::<10>(new);
        header.set_address_ipv4::<12>(rewrite.quoted_source);
        header.set_address_ipv4::<16>(rewrite.quoted_destination);
        Some(addresses.word(old, new))
    }

    #[inline(always)]
    fn answer_too_big<E: Environment>(
        environment: &E,
        interface: &Interface,
        link: &Link,
        packet: &Packet<Self>,
        mtu: u16,
    ) -> Option<Counter> {
        frag_needed::answer(environment, interface, link, packet, mtu)
    }
}
