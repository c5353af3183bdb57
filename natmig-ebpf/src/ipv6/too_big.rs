//! "Packet too big" (RFC 4443, section 3.2), for a packet that is to be translated: the kernel would
//! quote what the packet was turned into, so the program answers, quoting what came in.

use natmig_common::{Counter, Interface, Ipv6};

use crate::{environment::Environment, link::Link, packet::Packet};

/// Turns the frame into an answer to its sender. The counter of the answer, or
/// [`Counter::DropNoRoom`] if the frame has no room for it; `None`, the frame as it was, if none can be
/// given.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    _environment: &E,
    _interface: &Interface,
    _link: &Link,
    _packet: &Packet<Ipv6>,
    _mtu: u16,
) -> Option<Counter> {
    None
}
