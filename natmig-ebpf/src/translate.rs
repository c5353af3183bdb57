//! The rewriting: addresses, TTL, checksums, MAC addresses.

use crate::{
    address::{Address, HardwareAddress},
    checksum::Change,
    environment::Environment,
    frame::Frame,
    packet::Packet,
};

/// What a packet's addresses become.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Rewrite {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) quoted_source: Address,
    pub(crate) quoted_destination: Address,
    /// 1 to decrement the TTL.
    pub(crate) hop: u32,
}

impl Rewrite {
    pub(crate) const EMPTY: Self = Self {
        source: Address::NONE,
        destination: Address::NONE,
        quoted_source: Address::NONE,
        quoted_destination: Address::NONE,
        hop: 0,
    };

    /// The packet is to stay as it came in.
    #[inline(always)]
    pub(crate) fn keep(&mut self, packet: &Packet) {
        self.source = packet.source;
        self.destination = packet.destination;
        self.quoted_source = packet.quoted_source;
        self.quoted_destination = packet.quoted_destination;
        self.hop = 0;
    }

    /// Whether the destination becomes another.
    #[inline(always)]
    pub(crate) fn changes_destination(&self, packet: &Packet) -> bool {
        self.destination != packet.destination
    }

    /// Whether the source becomes another.
    #[inline(always)]
    pub(crate) fn changes_source(&self, packet: &Packet) -> bool {
        self.source != packet.source
    }

    /// Whether the quoted packet changes.
    #[inline(always)]
    pub(crate) fn changes_quote(&self, packet: &Packet) -> bool {
        packet.quote != 0
            && (self.quoted_source != packet.quoted_source
                || self.quoted_destination != packet.quoted_destination)
    }

    /// Whether any address changes.
    #[inline(always)]
    pub(crate) fn changes_address(&self, packet: &Packet) -> bool {
        self.changes_destination(packet)
            || self.changes_source(packet)
            || self.changes_quote(packet)
    }
}

/// Rewrites the packet. Everything was found to be there when the packet was parsed, and is not
/// touched where it is not.
#[inline(never)]
pub(crate) fn apply<E: Environment>(environment: &E, packet: &Packet, rewrite: &Rewrite) {
    let frame = environment.frame();
    let Some(header) = frame.window::<20>(packet.network) else {
        return;
    };
    let addresses = Change::NONE
        .address(packet.source, rewrite.source)
        .address(packet.destination, rewrite.destination);
    let mut covered = addresses;
    if rewrite.hop != 0 {
        let old = header.word::<8>();
        header.set_byte::<8>(packet.ttl.wrapping_sub(1));
        covered = covered.word(old, header.word::<8>());
    }
    header.set_word::<10>(covered.apply(header.word::<10>()));
    header.set_address::<12, 14>(rewrite.source);
    header.set_address::<16, 18>(rewrite.destination);
    if packet.checksum != 0 {
        update_checksum(&frame, packet.checksum, packet.optional_checksum, addresses);
    }
    if rewrite.changes_quote(packet) {
        apply_quote(&frame, packet, rewrite);
    }
}

/// Rewrites the packet that an ICMP error quotes; the ICMP checksum covers all of it.
#[inline(always)]
fn apply_quote(frame: &Frame<'_>, packet: &Packet, rewrite: &Rewrite) {
    let Some(header) = frame.window::<20>(packet.quote) else {
        return;
    };
    let addresses = Change::NONE
        .address(packet.quoted_source, rewrite.quoted_source)
        .address(packet.quoted_destination, rewrite.quoted_destination);
    let old = header.word::<10>();
    let new = addresses.apply(old);
    header.set_word::<10>(new);
    header.set_address::<12, 14>(rewrite.quoted_source);
    header.set_address::<16, 18>(rewrite.quoted_destination);
    let mut covered = addresses.word(old, new);
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

/// Sets the frame's MAC addresses.
#[inline(always)]
pub(crate) fn address_frame<E: Environment>(
    environment: &E,
    destination: HardwareAddress,
    source: HardwareAddress,
) {
    if let Some(ethernet) = environment.frame().window::<14>(0) {
        ethernet.set_mac::<0, 2, 4>(destination);
        ethernet.set_mac::<6, 8, 10>(source);
    }
}
