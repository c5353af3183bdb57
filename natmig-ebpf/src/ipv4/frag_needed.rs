//! "Fragmentation needed" (RFC 792, RFC 1191), for a packet that is to be translated: the kernel
//! would quote what the packet was turned into, so the program answers, quoting what came in.

use natmig_common::{Counter, Interface, Ipv4};

use crate::{
    address::{Address as _, AddressIpv4},
    checksum,
    environment::Environment,
    link::Link,
    packet::Packet,
    too_big,
};

/// IP header and ICMP header.
const HEADERS: u16 = 28;
/// An answer has up to 576 bytes (RFC 1812, section 4.3.2.3).
const MOST: u16 = 548;
/// A header and 8 bytes (RFC 792).
const LEAST: u16 = 28;
const TTL: u8 = 64;

/// Turns the frame into an answer to its sender. The counter of the answer, or
/// [`Counter::DropNoRoom`] if the frame has no room for it; `None`, the frame as it was, if none can be
/// given.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    packet: &Packet<Ipv4>,
    mtu: u16,
) -> Option<Counter> {
    let address = AddressIpv4::new(interface.address);
    if address.is_none() {
        return None;
    }
    let quoted = too_big::quotable(environment, link, packet.length, LEAST, MOST)?;
    if let Err(counter) = too_big::make_room(environment, link, HEADERS, quoted) {
        return counter;
    }
    Some(
        match write(environment, link, packet, address, mtu, quoted) {
            Some(()) => Counter::FragNeededSent,
            None => Counter::DropNoRoom,
        },
    )
}

/// Writes all headers in front of the quote.
#[inline(always)]
fn write<E: Environment>(
    environment: &E,
    link: &Link,
    packet: &Packet<Ipv4>,
    address: AddressIpv4,
    mtu: u16,
    quoted: u16,
) -> Option<()> {
    let frame = environment.frame();
    let message = frame.window::<8>(link.network.wrapping_add(20))?;
    message.set_byte::<0>(3);
    message.set_byte::<1>(4);
    message.set_number::<2>(0);
    message.set_number::<4>(0);
    message.set_number::<6>(mtu);
    let quote = too_big::sum::<MOST>(&frame, link.network.wrapping_add(HEADERS), quoted)?;
    message.set_word::<2>(checksum::finish(message.sum().wrapping_add(quote)));

    let header = frame.window::<20>(link.network)?;
    header.set_byte::<0>(0x45);
    header.set_byte::<1>(0xc0);
    header.set_number::<2>(HEADERS.wrapping_add(quoted));
    header.set_number::<4>(0);
    header.set_number::<6>(0x4000);
    header.set_byte::<8>(TTL);
    header.set_byte::<9>(1);
    header.set_word::<10>(0);
    header.set_address_ipv4::<12>(address);
    header.set_address_ipv4::<16>(packet.source);
    header.set_word::<10>(checksum::finish(header.sum()));
    Some(())
}
