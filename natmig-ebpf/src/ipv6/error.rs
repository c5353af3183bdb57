//! `ICMPv6` errors and the packets that they quote (RFC 4443).

use natmig_common::Ipv6;

use crate::{environment::Environment, packet::Packet};

/// Finds the packet that is quoted in the `ICMPv6` message of `length` bytes at `transport`, and what
/// of its checksums is inside the quote. Leaves `packet.quote` 0 if there is none that can be read.
#[inline(always)]
pub(crate) fn parse<E: Environment>(
    _environment: &E,
    _packet: &mut Packet<Ipv6>,
    _transport: u16,
    _length: u16,
) {
}
