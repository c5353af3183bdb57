//! `ICMPv6` errors and the packets that they quote (RFC 4443; RFC 4884).

use natmig_common::{Counter, Ipv6};

use super::{
    HEADER, covered_by,
    extension::{self, End},
};
use crate::{environment::Environment, packet::Packet};

/// Length of the `ICMPv6` header in front of the quoted packet.
const ICMP_HEADER: u16 = 8;

/// Destination unreachable and time exceeded, which may have extensions behind the quote.
const UNREACHABLE: u8 = 1;
const TIME_EXCEEDED: u8 = 3;

/// Whether an `ICMPv6` message of this type quotes a packet: destination unreachable, packet too
/// big, time exceeded, parameter problem.
#[inline(always)]
const fn quotes(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// Finds the packet that is quoted in the `ICMPv6` message of `length` bytes at `transport`, and what
/// of its checksums is inside the quote. Leaves `packet.quote` 0 if there is none that can be read.
/// The counter of a packet that stays untouched, if the quote is out of sight.
#[inline(never)]
pub(crate) fn parse<E: Environment>(
    environment: &E,
    packet: &mut Packet<Ipv6>,
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
    let kind = message.byte::<0>();
    if !quotes(kind) {
        return None;
    }
    let at = transport.wrapping_add(ICMP_HEADER);
    let mut available = length.wrapping_sub(ICMP_HEADER);
    // RFC 4884: the quote's length in 64-bit words, if extensions follow it.
    let quoted_length = u16::from(message.byte::<4>()).wrapping_mul(8);
    if quoted_length != 0
        && quoted_length < available
        && (kind == UNREACHABLE || kind == TIME_EXCEEDED)
    {
        available = quoted_length;
    }
    if available < HEADER {
        return None;
    }
    let Some(header) = frame.window::<40>(at) else {
        return Some(Counter::PassNotLinear);
    };
    if header.byte::<0>() >> 4 != 6 {
        return None;
    }
    packet.quote = at;
    packet.icmp_checksum = transport.wrapping_add(2);
    packet.quoted_source = header.address_ipv6::<8>();
    packet.quoted_destination = header.address_ipv6::<24>();
    let mut left = available.wrapping_sub(HEADER);
    let payload = header.number::<4>();
    if payload < left {
        left = payload;
    }
    packet
        .cursor
        .put(header.byte::<6>(), at.wrapping_add(HEADER), left);
    match extension::walk(environment, &mut packet.cursor) {
        End::Transport => {}
        End::Fragment | End::Opaque | End::Truncated => return None,
        End::Hidden => return Some(Counter::PassNotLinear),
    }
    let cursor = packet.cursor;
    let covered = covered_by(cursor.protocol);
    if covered.offset != 0 && covered.offset.wrapping_add(2) <= cursor.left {
        let checksum = cursor.at.wrapping_add(covered.offset);
        if frame.window::<2>(checksum).is_none() {
            return Some(Counter::PassNotLinear);
        }
        packet.quoted_checksum = checksum;
        packet.quoted_optional_checksum = u8::from(covered.optional);
    }
    None
}
