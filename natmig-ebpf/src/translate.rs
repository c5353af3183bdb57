//! The rewriting: addresses, hop limit (TTL), checksums.

use crate::{
    address::Address as _, checksum::Change, environment::Environment, family::Ip, frame::Frame,
    link::Link, packet::Packet,
};

/// What a packet's addresses become.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Rewrite<I: Ip> {
    pub(crate) source: I::Address,
    pub(crate) destination: I::Address,
    pub(crate) quoted_source: I::Address,
    pub(crate) quoted_destination: I::Address,
    /// 1 to decrement the hop limit.
    pub(crate) hop: u32,
}

impl<I: Ip> Rewrite<I> {
    pub(crate) const EMPTY: Self = Self {
        source: I::Address::NONE,
        destination: I::Address::NONE,
        quoted_source: I::Address::NONE,
        quoted_destination: I::Address::NONE,
        hop: 0,
    };

    /// The packet is to stay as it came in.
    #[inline(always)]
    pub(crate) fn keep(&mut self, packet: &Packet<I>) {
        self.source = packet.source;
        self.destination = packet.destination;
        self.quoted_source = packet.quoted_source;
        self.quoted_destination = packet.quoted_destination;
        self.hop = 0;
    }

    /// Whether the destination becomes another.
    #[inline(always)]
    pub(crate) fn changes_destination(&self, packet: &Packet<I>) -> bool {
        self.destination != packet.destination
    }

    /// Whether the source becomes another.
    #[inline(always)]
    pub(crate) fn changes_source(&self, packet: &Packet<I>) -> bool {
        self.source != packet.source
    }

    /// Whether the quoted packet changes.
    #[inline(always)]
    pub(crate) fn changes_quote(&self, packet: &Packet<I>) -> bool {
        packet.quote != 0
            && (self.quoted_source != packet.quoted_source
                || self.quoted_destination != packet.quoted_destination)
    }

    /// Whether any address changes.
    #[inline(always)]
    pub(crate) fn changes_address(&self, packet: &Packet<I>) -> bool {
        self.changes_destination(packet)
            || self.changes_source(packet)
            || self.changes_quote(packet)
    }
}

/// Rewrites the packet. Everything was found to be there when the packet was parsed, and is not
/// touched where it is not.
#[inline(always)]
pub(crate) fn apply<E: Environment, I: Ip>(
    environment: &E,
    link: &Link,
    packet: &Packet<I>,
    rewrite: &Rewrite<I>,
) {
    let frame = environment.frame();
    let addresses = Change::NONE
        .address(packet.source, rewrite.source)
        .address(packet.destination, rewrite.destination);
    I::write(&frame, link, packet, rewrite, addresses);
    if packet.checksum != 0 {
        update_checksum(&frame, packet.checksum, packet.optional_checksum, addresses);
    }
    if rewrite.changes_quote(packet) {
        apply_quote(&frame, packet, rewrite);
    }
}

/// [`apply`], of a packet that [`Ip::glance`] read, with its hop limit decremented.
#[inline(always)]
pub(crate) fn apply_plain<I: Ip>(frame: &Frame<'_>, packet: &Packet<I>, rewrite: &Rewrite<I>) {
    let addresses = Change::NONE
        .address(packet.source, rewrite.source)
        .address(packet.destination, rewrite.destination)
        .folded();
    I::write_plain(frame, packet, rewrite, addresses);
}

/// [`apply`], as a function of its own: all programs' stacks together have 512 bytes, and addresses
/// of IPv6 take many of them.
#[inline(never)]
pub(crate) fn apply_apart<E: Environment, I: Ip>(
    environment: &E,
    link: &Link,
    packet: &Packet<I>,
    rewrite: &Rewrite<I>,
) {
    apply(environment, link, packet, rewrite);
}

/// Rewrites the packet that an ICMP error quotes; the ICMP checksum covers all of it.
#[inline(always)]
fn apply_quote<I: Ip>(frame: &Frame<'_>, packet: &Packet<I>, rewrite: &Rewrite<I>) {
    let addresses = Change::NONE
        .address(packet.quoted_source, rewrite.quoted_source)
        .address(packet.quoted_destination, rewrite.quoted_destination);
    let Some(mut covered) = I::write_quoted(frame, packet, rewrite, addresses) else {
        return;
    };
    if packet.quoted_checksum != 0 {
        let optional = packet.quoted_optional_checksum;
        covered = covered.and(update_checksum(
            frame,
            packet.quoted_checksum,
            optional,
            addresses,
        ));
    }
    update_checksum(frame, packet.icmp_checksum, 0, covered);
}

/// Updates the checksum at `offset`, and says what that does to a checksum that covers it.
#[inline(always)]
fn update_checksum(frame: &Frame<'_>, offset: u16, optional: u8, change: Change) -> Change {
    let Some(field) = frame.window::<2>(offset) else {
        return Change::NONE;
    };
    let old = field.word::<0>();
    let new = if optional == 0 {
        change.apply(old)
    } else {
        change.apply_udp(old)
    };
    field.set_word::<0>(new);
    Change::NONE.word(old, new)
}
