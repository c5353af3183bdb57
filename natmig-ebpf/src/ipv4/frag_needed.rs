//! "Fragmentation needed" (RFC 792, RFC 1191), for a packet that is to be translated: the kernel
//! would quote what the packet was turned into, so the program answers, quoting what came in.

use natmig_common::{Counter, Interface, Ipv4};

use crate::{
    address::{Address as _, AddressIpv4, HardwareAddress},
    checksum,
    environment::Environment,
    frame::Window,
    link::Link,
    packet::Packet,
};

/// Bytes of the packet that are quoted. A packet shorter than that is left to the kernel.
const QUOTE: u16 = 128;
/// IP header and ICMP header.
const HEADERS: u16 = 28;
/// Both and the quote.
const TOTAL: u16 = 156;
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
    if address.is_none() || packet.length < u32::from(QUOTE) {
        return None;
    }
    let network = link.network;
    let tags = {
        let frame = environment.frame();
        // All that is quoted must be in the linear part.
        frame.window::<128>(network)?;
        tags(&frame.window::<22>(0)?)
    };
    if !environment.reshape(HEADERS, network.wrapping_add(TOTAL)) {
        return None;
    }
    if write(environment, link, packet, address, mtu, tags).is_none() {
        return Some(Counter::DropNoRoom);
    }
    Some(Counter::FragNeededSent)
}

/// The bytes of the Ethernet header from its `EtherType` on, as far as they may be tags.
type Tags = [u16; 5];

#[inline(always)]
fn tags(ethernet: &Window<'_, 22>) -> Tags {
    [
        ethernet.word::<12>(),
        ethernet.word::<14>(),
        ethernet.word::<16>(),
        ethernet.word::<18>(),
        ethernet.word::<20>(),
    ]
}

/// Writes all headers in front of the quote.
#[inline(always)]
fn write<E: Environment>(
    environment: &E,
    link: &Link,
    packet: &Packet<Ipv4>,
    address: AddressIpv4,
    mtu: u16,
    tags: Tags,
) -> Option<()> {
    let frame = environment.frame();
    let ethernet = frame.window::<22>(0)?;
    let own: HardwareAddress = link.destination_mac;
    ethernet.set_mac::<0>(link.source_mac);
    ethernet.set_mac::<6>(own);
    let [first, second, third, fourth, fifth] = tags;
    ethernet.set_word::<12>(first);
    ethernet.set_word::<14>(second);
    ethernet.set_word::<16>(third);
    ethernet.set_word::<18>(fourth);
    ethernet.set_word::<20>(fifth);

    let message = frame.window::<136>(link.network.wrapping_add(20))?;
    message.set_byte::<0>(3);
    message.set_byte::<1>(4);
    message.set_number::<2>(0);
    message.set_number::<4>(0);
    message.set_number::<6>(mtu);
    message.set_word::<2>(checksum::finish(message.sum()));

    let header = frame.window::<20>(link.network)?;
    header.set_byte::<0>(0x45);
    header.set_byte::<1>(0xc0);
    header.set_number::<2>(TOTAL);
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
