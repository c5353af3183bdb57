//! ICMP errors and the packets that they quote (RFC 792; RFC 1812, section 4.3.2.3; RFC 4884).

use natmig_common::{Counter, Ipv4};

use super::FRAGMENT_OFFSET;
use crate::{environment::Environment, packet::Packet, transport::coverage};

/// Length of the ICMP header in front of the quoted packet.
const ICMP_HEADER: u16 = 8;

/// Whether an ICMP message of this type quotes a packet: destination unreachable, source quench,
/// redirect, time exceeded, parameter problem.
#[inline(always)]
const fn quotes(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Finds the packet that is quoted in the ICMP message of `length` bytes at `transport`, and what of
/// its checksums is inside the quote. Leaves `packet.quote` 0 if there is none that can be read.
/// The counter of a packet that stays untouched, if the quote is out of sight.
#[inline(never)]
pub(crate) fn parse<E: Environment>(
    environment: &E,
    packet: &mut Packet<Ipv4>,
    transport: u16,
    length: u16,
) -> Option<Counter> {
    let frame = environment.frame();
    if length < ICMP_HEADER {
        return None;
    }
    let Some(message) = frame.window::<8>(transport) else {
        return Some(Counter::PassNotLinear);
    };
    if !quotes(message.byte::<0>()) {
        return None;
    }
    let at = transport.wrapping_add(ICMP_HEADER);
    let mut available = length.wrapping_sub(ICMP_HEADER);
    // RFC 4884: the quote's length in 32-bit words, if extensions follow it.
    let quoted_words = u16::from(message.byte::<5>());
    let quoted_length = quoted_words.wrapping_mul(4);
    if quoted_length != 0 && quoted_length < available && matches!(message.byte::<0>(), 3 | 11 | 12)
    {
        available = quoted_length;
    }
    if available < 20 {
        return None;
    }
    let Some(header) = frame.window::<20>(at) else {
        return Some(Counter::PassNotLinear);
    };
    let version = header.byte::<0>();
    let header_length = u16::from((version & 0x0f) << 2);
    let total_length = header.number::<2>();
    if version >> 4 != 4
        || header_length < 20
        || header_length > available
        || header_length > total_length
    {
        return None;
    }
    packet.quote = at;
    packet.icmp_checksum = transport.wrapping_add(2);
    packet.quoted_source = header.address_ipv4::<12>();
    packet.quoted_destination = header.address_ipv4::<16>();
    if total_length < available {
        available = total_length;
    }
    let covered = coverage(header.byte::<9>());
    let end = header_length.wrapping_add(covered.offset).wrapping_add(2);
    let first = header.number::<6>() & FRAGMENT_OFFSET == 0;
    if first && covered.offset != 0 && end <= available {
        let checksum = at.wrapping_add(header_length).wrapping_add(covered.offset);
        if frame.window::<2>(checksum).is_none() {
            return Some(Counter::PassNotLinear);
        }
        packet.quoted_checksum = checksum;
        packet.quoted_optional_checksum = u8::from(covered.optional);
    }
    None
}
