//! "Packet too big" (RFC 4443, section 3.2), for a packet that is to be translated: the kernel would
//! quote what the packet was turned into, so the program answers, quoting what came in.

use natmig_common::{Counter, Interface, Ipv6};

use super::neighbor::pseudo_header;
use crate::{
    address::{Address as _, AddressIpv6},
    checksum,
    environment::Environment,
    link::Link,
    packet::Packet,
    too_big,
    transport::ICMPV6,
};

/// IP header and `ICMPv6` header.
const HEADERS: u16 = 48;
/// An answer is no longer than what every link takes, 1280 bytes (RFC 4443, section 2.4).
const MOST: u16 = 1232;
/// A header and 8 bytes.
const LEAST: u16 = 48;
const HOPS: u8 = 64;

/// Turns the frame into an answer to its sender. The counter of the answer, or
/// [`Counter::DropNoRoom`] if the frame has no room for it; `None`, the frame as it was, if none can be
/// given.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    environment: &E,
    interface: &Interface,
    link: &Link,
    packet: &Packet<Ipv6>,
    mtu: u16,
) -> Option<Counter> {
    let address = AddressIpv6::new(interface.address_ipv6);
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
    packet: &Packet<Ipv6>,
    address: AddressIpv6,
    mtu: u16,
    quoted: u16,
) -> Option<()> {
    let frame = environment.frame();
    let length = quoted.wrapping_add(8);
    let header = frame.window::<48>(link.network)?;
    header.set_double_word::<0>(0x6000_0000_u32.to_be());
    header.set_number::<4>(length);
    header.set_byte::<6>(ICMPV6);
    header.set_byte::<7>(HOPS);
    header.set_address_ipv6::<8>(address);
    header.set_address_ipv6::<24>(packet.source);
    header.set_byte::<40>(2);
    header.set_byte::<41>(0);
    header.set_word::<42>(0);
    header.set_number::<44>(0);
    header.set_number::<46>(mtu);
    let message = frame.window::<8>(link.network.wrapping_add(40))?;
    let quote = too_big::sum::<MOST>(&frame, link.network.wrapping_add(HEADERS), quoted)?;
    let sum = message
        .sum()
        .wrapping_add(pseudo_header(address, packet.source, length))
        .wrapping_add(quote);
    message.set_word::<2>(checksum::finish(sum));
    Some(())
}
