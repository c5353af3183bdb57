//! Answering neighbour discovery (RFC 4861) for VMs that are away, and for the old neighbours of
//! visitors.

use natmig_common::{Counter, Interface, Ipv6};

use crate::{environment::Environment, link::Link, outcome::Outcome, scratch::State};

/// Router solicitation to redirect: what never leaves its link.
const MESSAGES: core::ops::RangeInclusive<u8> = 133..=137;

/// The outcome of a message of neighbour discovery; `None` if the `ICMPv6` packet is none.
#[inline(never)]
pub(crate) fn answer<E: Environment>(
    environment: &E,
    _interface: &Interface,
    _link: &Link,
    state: &mut State<Ipv6>,
) -> Option<Outcome> {
    let frame = environment.frame();
    let message = frame.window::<4>(state.packet.transport)?;
    if !MESSAGES.contains(&message.byte::<0>()) {
        return None;
    }
    Some(Outcome::Pass(Counter::PassNeighbor))
}
