//! IPv6 (RFC 8200): the header as it is read and written.

mod error;
mod extension;
mod neighbor;
mod too_big;

use natmig_common::{Aligned, Counter, Interface, Ipv6, Settled};

use crate::{
    address::{Address as _, AddressIpv6},
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
    transport::{Coverage, ICMPV6, common_coverage, coverage, covers_no_address},
};
pub(crate) use extension::Cursor;
use extension::End;

/// Length of the fixed header.
const HEADER: u16 = 40;

/// Where `protocol` has its checksum: as over IPv4, and `ICMPv6`, which has a pseudo-header.
#[inline(always)]
fn covered_by(protocol: u8) -> Coverage {
    if protocol == ICMPV6 {
        Coverage {
            offset: 2,
            optional: false,
        }
    } else {
        coverage(protocol)
    }
}

/// [`Ip::parse`], as a function of its own: the verifier follows each way through it once, and not
/// each way from there on.
#[inline(never)]
fn read<E: Environment>(
    environment: &E,
    link: &mut Link,
    packet: &mut Packet<Ipv6>,
) -> Option<Counter> {
    let frame = environment.frame();
    let Some(header) = frame.window::<40>(link.network) else {
        return Some(link.missing(environment, HEADER));
    };
    let payload = header.number::<4>();
    let length = u32::from(payload).wrapping_add(u32::from(HEADER));
    let end = u32::from(link.network).wrapping_add(length);
    link.length = frame.length();
    if end > link.length {
        link.length = environment.frame_length();
    }
    if header.byte::<0>() >> 4 != 6 || end > link.length {
        return Some(Counter::PassMalformed);
    }
    packet.length = length;
    // Without the version, as routing rules see it.
    packet.class = header.double_word::<0>() & 0x0fff_ffff_u32.to_be();
    packet.hops = header.byte::<7>();
    packet.source = header.address_ipv6::<8>();
    packet.destination = header.address_ipv6::<24>();
    packet.dont_fragment = 1;
    packet.options = 0;
    packet.protocol = header.byte::<6>();
    packet
        .cursor
        .put(packet.protocol, link.network.wrapping_add(HEADER), payload);
    if extension::is_one(packet.protocol) {
        // A jumbogram (RFC 2675) says its length in an option.
        if payload == 0 && packet.protocol == extension::HOP_BY_HOP {
            return Some(Counter::PassExtension);
        }
        let end = extension::walk(environment, &mut packet.cursor);
        packet.protocol = packet.cursor.protocol;
        packet.options = packet.cursor.hop_by_hop;
        match end {
            End::Transport => {}
            End::Fragment => return None,
            End::Opaque => {
                packet.opaque = 1;
                return None;
            }
            End::Truncated => return Some(Counter::PassMalformed),
            End::Hidden => return Some(Counter::PassNotLinear),
        }
    }
    let Cursor { at, left, .. } = packet.cursor;
    packet.transport = at;
    let covered = covered_by(packet.protocol);
    if covered.offset == 0 {
        packet.opaque = u8::from(!covers_no_address(packet.protocol));
        return None;
    }
    if covered.offset.wrapping_add(2) > left {
        return Some(Counter::PassMalformed);
    }
    packet.checksum = at.wrapping_add(covered.offset);
    if frame.window::<2>(packet.checksum).is_none() {
        return Some(Counter::PassNotLinear);
    }
    packet.optional_checksum = u8::from(covered.optional);
    if packet.protocol == ICMPV6 {
        return error::parse(environment, packet, at, left);
    }
    None
}

impl Ip for Ipv6 {
    type Address = AddressIpv6;

    #[inline(always)]
    fn split(scratch: &mut Scratch) -> (&mut Link, &mut State<Self>) {
        (&mut scratch.link, &mut scratch.ipv6)
    }

    #[inline(always)]
    fn parse<E: Environment>(
        environment: &E,
        link: &mut Link,
        packet: &mut Packet<Self>,
    ) -> Option<Counter> {
        read(environment, link, packet)
    }

    #[inline(always)]
    fn discover<E: Environment>(
        environment: &E,
        interface: &Interface,
        link: &Link,
        state: &mut State<Self>,
    ) -> Option<Outcome> {
        if state.packet.protocol == ICMPV6 && state.packet.transport != 0 {
            return neighbor::answer(environment, interface, link, state);
        }
        None
    }

    /// Also by their source: routers must not forward what is from a link-local, loopback or
    /// multicast address (RFC 4291, sections 2.5 and 2.7).
    #[inline(always)]
    fn is_confined(packet: &Packet<Self>) -> bool {
        packet.destination.is_special() || packet.source.is_special()
    }

    #[inline(always)]
    fn prefix<E: Environment>(environment: &E, address: AddressIpv6) -> Prefix {
        find::prefix_ipv6(environment, address)
    }

    #[inline(always)]
    fn route<E: Environment>(environment: &E, address: AddressIpv6) -> u16 {
        find::route_ipv6(environment, address)
    }

    #[inline(always)]
    fn find<E: Environment>(environment: &E, address: AddressIpv6) -> Found {
        find::find_ipv6::<E, Self>(environment, address)
    }

    #[inline(always)]
    fn aligned(aligned: &Aligned, place: u32) -> Option<AddressIpv6> {
        shared::aligned_ipv6(aligned, place)
    }

    #[inline(always)]
    fn settled(settled: &Settled<Self>) -> AddressIpv6 {
        shared::settled_ipv6(settled)
    }

    #[inline(always)]
    fn find_directly<E: Environment>(environment: &E, address: AddressIpv6) -> Option<Found> {
        find::find_directly_ipv6(environment, address)
    }

    #[inline(always)]
    fn glance(frame: &Frame<'_>) -> Option<Packet<Self>> {
        let header = frame.fixed::<14, 40>()?;
        let payload = header.number::<4>();
        let length = u32::from(payload).wrapping_add(HEADER.into());
        let end = length.wrapping_add(ETHERNET.into());
        if header.byte::<0>() >> 4 != 6 || end > frame.length() {
            return None;
        }
        let protocol = header.byte::<6>();
        let covered = common_coverage(protocol)?;
        if covered.offset.wrapping_add(2) > payload {
            return None;
        }
        Some(Packet {
            source: header.address_ipv6::<8>(),
            destination: header.address_ipv6::<24>(),
            length,
            checksum: covered
                .offset
                .wrapping_add(const { ETHERNET.wrapping_add(HEADER) }),
            optional_checksum: u8::from(covered.optional),
            protocol,
            hops: header.byte::<7>(),
            ..Packet::EMPTY
        })
    }

    #[inline(always)]
    fn write(
        frame: &Frame<'_>,
        link: &Link,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        _addresses: Change,
    ) {
        let Some(header) = frame.window::<40>(link.network) else {
            return;
        };
        if rewrite.hop != 0 {
            header.set_byte::<7>(packet.hops.wrapping_sub(1));
        }
        header.set_address_ipv6::<8>(rewrite.source);
        header.set_address_ipv6::<24>(rewrite.destination);
    }

    #[inline(always)]
    fn write_plain(
        frame: &Frame<'_>,
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        addresses: Change,
    ) {
        let Some(header) = frame.fixed::<14, 48>() else {
            return;
        };
        header.set_byte::<7>(packet.hops.wrapping_sub(1));
        header.set_address_ipv6::<8>(rewrite.source);
        header.set_address_ipv6::<24>(rewrite.destination);
        if packet.optional_checksum != 0 {
            header.set_word::<46>(addresses.apply_udp_folded(header.word::<46>()));
        } else if let Some(tcp) = frame.fixed::<70, 2>() {
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
        let header = frame.window::<40>(packet.quote)?;
        header.set_address_ipv6::<8>(rewrite.quoted_source);
        header.set_address_ipv6::<24>(rewrite.quoted_destination);
        Some(addresses)
    }

    #[inline(always)]
    fn answer_too_big<E: Environment>(
        environment: &E,
        interface: &Interface,
        link: &Link,
        packet: &Packet<Self>,
        mtu: u16,
    ) -> Option<Counter> {
        too_big::answer(environment, interface, link, packet, mtu)
    }
}
