//! Extension headers (RFC 8200, section 4).

use natmig_common::{Counter, Ipv6};

use crate::{environment::Environment, packet::Packet};

/// Where a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// At the L4 header, whose protocol is in `packet.protocol`, with so many bytes left of the
    /// packet.
    Transport {
        /// Where it is.
        at: u16,
        /// Bytes from there to the packet's end.
        length: u16,
    },
    /// At what is no header of L4: a later fragment, or a payload that natmig need not understand.
    NoTransport,
    /// At something with which the packet goes to the kernel.
    Pass(Counter),
}

/// Whether the protocol number is an extension header's.
#[inline(always)]
pub(crate) const fn is_one(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Walks from the first extension header, at `at`, to the L4 header.
#[inline(never)]
pub(crate) fn walk<E: Environment>(
    _environment: &E,
    _packet: &mut Packet<Ipv6>,
    _at: u16,
    _length: u16,
) -> Walk {
    Walk::Pass(Counter::PassExtension)
}
