//! Tracing: which packets are reported, and what is said of each of them.
//!
//! Whether anything is traced at all is a word in [`crate::Activity`], which the program reads for
//! every packet; what is in here is only looked at while that word is not 0.

use bytemuck::{Pod, Zeroable};

use crate::Counter;

/// Bytes of a packet that an event keeps, from the link-layer header on.
pub const TRACE_SNAP: usize = 256;
/// Prefixes that a filter has room for.
pub const TRACE_PREFIX_COUNT: usize = 8;
/// Bytes of the `EVENTS` ring buffer.
pub const TRACE_RING_BYTES: u32 = 1 << 20;

/// An address of either family: IPv6, or IPv4 mapped into it (`::ffff:10.1.1.10`); all zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct TraceAddress {
    /// The address, network order.
    pub octets: [u8; 16],
}

impl TraceAddress {
    /// No address.
    pub const NONE: Self = Self { octets: [0; 16] };

    /// An IPv4 address.
    #[inline]
    pub const fn ipv4(address: [u8; 4]) -> Self {
        let [a, b, c, d] = address;
        Self {
            octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }

    /// An IPv6 address.
    #[inline]
    pub const fn ipv6(octets: [u8; 16]) -> Self {
        Self { octets }
    }
}

/// The addresses of a packet; [`TraceAddress::NONE`] where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TraceAddresses {
    /// The packet's source; an ARP message's sender.
    pub source: TraceAddress,
    /// The packet's destination; an ARP message's target.
    pub destination: TraceAddress,
    /// Source of the packet that an ICMP error quotes.
    pub quoted_source: TraceAddress,
    /// Destination of the packet that an ICMP error quotes; the target of a neighbour discovery
    /// message.
    pub quoted_destination: TraceAddress,
}

impl TraceAddresses {
    /// No address at all.
    pub const NONE: Self = Self {
        source: TraceAddress::NONE,
        destination: TraceAddress::NONE,
        quoted_source: TraceAddress::NONE,
        quoted_destination: TraceAddress::NONE,
    };
}

/// Addresses that a filter lets through: those that agree with `address` in the bits of `mask`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TracePrefix {
    /// The prefix; bits outside the mask are zero.
    pub address: TraceAddress,
    /// The bits that count. For an IPv4 prefix the first 96 are among them.
    pub mask: TraceAddress,
}

/// The single element of the `TRACE` map: which packets are reported. It is written while nothing is
/// traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TraceFilter {
    /// Verdicts that are reported: bit `n` for counter `n`.
    pub verdicts: u64,
    /// Counters, verdicts or steps, of which a packet must have gone through at least one: bit `n`
    /// for counter `n`. 0 for any.
    pub counters: u64,
    /// One packet in `2^32 / (sample + 1)` is looked at, chosen at random: `u32::MAX` for all.
    pub sample: u32,
    /// The interface that the packet must come in on or leave by; 0 for any.
    pub ifindex: u32,
    /// Number of prefixes; 0 for any address.
    pub prefix_count: u32,
    /// Bytes of a packet that are kept, up to [`TRACE_SNAP`].
    pub snap: u32,
    /// One of the packet's addresses, before or after, must be in one of these.
    pub prefixes: [TracePrefix; TRACE_PREFIX_COUNT],
    /// Events that found no room in the ring buffer; the program adds to it.
    pub lost: u64,
    /// Unused, zero.
    pub _reserved: [u64; 3],
}

impl TraceFilter {
    /// Every packet, whole as far as an event has room.
    pub const ALL: Self = Self {
        verdicts: u64::MAX,
        counters: 0,
        sample: u32::MAX,
        ifindex: 0,
        prefix_count: 0,
        snap: 256,
        prefixes: [TracePrefix {
            address: TraceAddress::NONE,
            mask: TraceAddress::NONE,
        }; TRACE_PREFIX_COUNT],
        lost: 0,
        _reserved: [0; 3],
    };

    /// The bit of a counter in a set of counters.
    #[inline]
    pub const fn bit(counter: Counter) -> u64 {
        1 << (counter.raw() & 63)
    }
}

/// A record of the `EVENTS` ring buffer: what became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TraceEvent {
    /// When the packet was received: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Counters that it went through, the verdict's included: bit `n` for counter `n`.
    pub counters: u64,
    /// The interface that it came in on.
    pub ingress: u32,
    /// The interface that it left by; 0 if it did not.
    pub egress: u32,
    /// Length of the frame as it came in.
    pub length_before: u32,
    /// Length of the frame as it went on; 0 if it was dropped.
    pub length_after: u32,
    /// Bytes of `packet_before` that are the frame's.
    pub kept_before: u16,
    /// Bytes of `packet_after` that are the frame's.
    pub kept_after: u16,
    /// Number of the verdict's [`Counter`].
    pub counter: u8,
    /// The verdict as the kernel knows it: `enum xdp_action`.
    pub action: u8,
    /// The CPU.
    pub cpu: u16,
    /// Addresses of the frame as it came in.
    pub before: TraceAddresses,
    /// Addresses of the frame as it went on.
    pub after: TraceAddresses,
    /// The frame's first bytes as it came in.
    pub packet_before: [u8; TRACE_SNAP],
    /// The frame's first bytes as it went on.
    pub packet_after: [u8; TRACE_SNAP],
}

impl TraceEvent {
    /// Steps that events tell of, as bits.
    pub const STEPS: u64 = TraceFilter::bit(Counter::DestinationTranslated)
        | TraceFilter::bit(Counter::SourceTranslated)
        | TraceFilter::bit(Counter::QuoteTranslated)
        | TraceFilter::bit(Counter::Anchored)
        | TraceFilter::bit(Counter::MovedOn)
        | TraceFilter::bit(Counter::Delivered);

    /// An event of nothing.
    pub const EMPTY: Self = Self {
        time: 0,
        counters: 0,
        ingress: 0,
        egress: 0,
        length_before: 0,
        length_after: 0,
        kept_before: 0,
        kept_after: 0,
        counter: 0,
        action: 0,
        cpu: 0,
        before: TraceAddresses::NONE,
        after: TraceAddresses::NONE,
        packet_before: [0; TRACE_SNAP],
        packet_after: [0; TRACE_SNAP],
    };

    /// What is kept of the frame as it came in.
    pub fn bytes_before(&self) -> &[u8] {
        let kept = usize::from(self.kept_before).min(TRACE_SNAP);
        self.packet_before.get(..kept).unwrap_or_default()
    }

    /// What is kept of the frame as it went on; nothing if it was dropped.
    pub fn bytes_after(&self) -> &[u8] {
        let kept = usize::from(self.kept_after).min(TRACE_SNAP);
        self.packet_after.get(..kept).unwrap_or_default()
    }
}

const _: () = {
    assert!(size_of::<TraceAddresses>() == 64);
    assert!(size_of::<TraceFilter>() == 320);
    assert!(size_of::<TraceEvent>() == 168 + 2 * TRACE_SNAP);
    assert!(TRACE_SNAP.is_power_of_two());
    assert!(TRACE_RING_BYTES.is_power_of_two());
    assert!(Counter::COUNT == 64);
};
