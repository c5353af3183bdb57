//! Tracing: the addresses of a frame's first bytes, and whether a filter lets an event through.
//!
//! Reads the bytes that an event keeps, before and after, and nothing of what the stages made of the
//! packet: a trace shows what was there, also where they were wrong. Addresses that lie behind the
//! bytes kept are not seen.

use natmig_common::{
    Counter, Family as _, Ipv4, Ipv6, TRACE_PREFIX_COUNT, TRACE_SNAP, TraceAddress, TraceAddresses,
    TraceEvent, TraceFilter,
};

use crate::{
    barrier::opaque,
    family::Ip,
    outcome::Outcome,
    scratch::{Scratch, State},
};

/// IPv6 extension headers that are looked through.
const MOST_HEADERS: u32 = 4;
/// Tags (802.1Q, 802.1ad) that are looked through.
const MOST_TAGS: u32 = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// The bits of the counters that the frame went through, as far as an event tells: its verdict, and
/// the steps among [`TraceEvent::STEPS`].
#[inline(always)]
pub fn counters(scratch: &Scratch, verdict: u8) -> u64 {
    let bit = 1 << (verdict & 63);
    if bit & (TraceFilter::bit(Counter::Translated) | TraceFilter::bit(Counter::Transit)) == 0 {
        return bit;
    }
    bit | match scratch.family {
        Ipv4::NUMBER => steps(&scratch.ipv4),
        Ipv6::NUMBER => steps(&scratch.ipv6),
        _ => 0,
    }
}

/// What was done with a packet that was sent on, as `process` counts it.
#[inline(always)]
fn steps<I: Ip>(state: &State<I>) -> u64 {
    let State {
        packet,
        plan,
        rewrite,
        ..
    } = state;
    let mut bits = 0;
    for (holds, counter) in [
        (
            rewrite.changes_destination(packet),
            Counter::DestinationTranslated,
        ),
        (rewrite.changes_source(packet), Counter::SourceTranslated),
        (rewrite.changes_quote(packet), Counter::QuoteTranslated),
        (plan.anchored != 0, Counter::Anchored),
        (plan.moved_on != 0, Counter::MovedOn),
        (plan.deliver != 0, Counter::Delivered),
    ] {
        if holds {
            bits |= TraceFilter::bit(counter);
        }
    }
    bits
}

/// The interface by which the frame leaves, as `INTERFACES` has it; 0 if it does not leave.
#[inline(always)]
pub fn egress(scratch: &Scratch, outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Pass(..) | Outcome::Drop(..) => 0,
        Outcome::Reply(..) => scratch.link.ingress,
        Outcome::Redirect(..) => match scratch.family {
            Ipv4::NUMBER => scratch.ipv4.hop.ifindex,
            Ipv6::NUMBER => scratch.ipv6.hop.ifindex,
            _ => 0,
        },
    }
}

/// The bytes of a frame that an event keeps.
struct Kept<'a> {
    bytes: &'a [u8; TRACE_SNAP],
    length: usize,
}

impl Kept<'_> {
    /// The `N` bytes at `at`; `None` if not all of them are the frame's.
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // Compared as the verifier can follow it, and as it is meant.
        let at = opaque(at);
        if at > const { TRACE_SNAP.saturating_sub(N) } || at.saturating_add(N) > self.length {
            return None;
        }
        let mut read = [0; N];
        for (offset, byte) in read.iter_mut().enumerate() {
            *byte = *self.bytes.get(at.saturating_add(offset))?;
        }
        Some(read)
    }

    #[inline(always)]
    fn number(&self, at: usize) -> Option<u16> {
        self.read(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn ipv4(&self, at: usize) -> Option<TraceAddress> {
        self.read(at).map(TraceAddress::ipv4)
    }

    #[inline(always)]
    fn ipv6(&self, at: usize) -> Option<TraceAddress> {
        self.read(at).map(TraceAddress::ipv6)
    }
}

/// The addresses of a frame of which `length` bytes are kept. Those behind a field that is not there
/// are not looked for.
#[inline(never)]
pub fn addresses(bytes: &[u8; TRACE_SNAP], length: u16, found: &mut TraceAddresses) {
    *found = TraceAddresses::NONE;
    let kept = Kept {
        bytes,
        length: usize::from(length),
    };
    let _: Option<()> = link(&kept, found);
}

#[inline(always)]
fn link(kept: &Kept<'_>, found: &mut TraceAddresses) -> Option<()> {
    let mut at = 12_usize;
    let mut kind = kept.number(at)?;
    let mut tags = 0;
    while tags < MOST_TAGS && matches!(kind, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
        at = at.saturating_add(4);
        kind = kept.number(at)?;
        tags = tags.saturating_add(1);
    }
    let network = at.saturating_add(2);
    match kind {
        ETHERTYPE_IPV4 => ipv4(kept, network, found),
        ETHERTYPE_IPV6 => ipv6(kept, network, found),
        ETHERTYPE_ARP => {
            found.source = kept.ipv4(network.saturating_add(14))?;
            found.destination = kept.ipv4(network.saturating_add(24))?;
            Some(())
        }
        _ => None,
    }
}

#[inline(always)]
fn ipv4(kept: &Kept<'_>, at: usize, found: &mut TraceAddresses) -> Option<()> {
    let [version, _, _, _, _, _, high, low, _, protocol] = kept.read::<10>(at)?;
    found.source = kept.ipv4(at.saturating_add(12))?;
    found.destination = kept.ipv4(at.saturating_add(16))?;
    let is_first = u16::from_be_bytes([high & 0x1f, low]) == 0;
    if protocol != ICMP || !is_first {
        return None;
    }
    let message = at.saturating_add(usize::from(version & 15).saturating_mul(4));
    let [3 | 4 | 5 | 11 | 12] = kept.read(message)? else {
        return None;
    };
    let quote = message.saturating_add(8);
    found.quoted_source = kept.ipv4(quote.saturating_add(12))?;
    found.quoted_destination = kept.ipv4(quote.saturating_add(16))?;
    Some(())
}

#[inline(always)]
fn ipv6(kept: &Kept<'_>, at: usize, found: &mut TraceAddresses) -> Option<()> {
    let [mut next] = kept.read(at.saturating_add(6))?;
    found.source = kept.ipv6(at.saturating_add(8))?;
    found.destination = kept.ipv6(at.saturating_add(24))?;
    let mut message = at.saturating_add(40);
    let mut headers = 0;
    while headers < MOST_HEADERS && next != ICMPV6 {
        let [following, units, high, low] = kept.read(message)?;
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                usize::from(units).saturating_add(1).saturating_mul(8)
            }
            AUTHENTICATION => usize::from(units).saturating_add(2).saturating_mul(4),
            FRAGMENT if u16::from_be_bytes([high, low & 0xf8]) == 0 => 8,
            _ => return None,
        };
        next = following;
        message = message.saturating_add(length);
        headers = headers.saturating_add(1);
    }
    if next != ICMPV6 {
        return None;
    }
    let quote = message.saturating_add(8);
    match kept.read(message)? {
        [0..128] => {
            found.quoted_source = kept.ipv6(quote.saturating_add(8))?;
            found.quoted_destination = kept.ipv6(quote.saturating_add(24))?;
        }
        // A neighbour solicitation's or advertisement's target.
        [135 | 136] => found.quoted_destination = kept.ipv6(quote)?,
        [_] => {}
    }
    Some(())
}

/// Whether the filter lets the event through. Sampling has been done before.
#[inline(never)]
pub fn wants(filter: &TraceFilter, event: &TraceEvent) -> bool {
    let verdict = 1_u64 << (event.counter & 63);
    if filter.verdicts & verdict == 0
        || (filter.counters != 0 && filter.counters & event.counters == 0)
    {
        return false;
    }
    let of_interface =
        filter.ifindex == 0 || filter.ifindex == event.ingress || filter.ifindex == event.egress;
    of_interface && (filter.prefix_count == 0 || has_address(filter, event))
}

/// Whether one of the packet's addresses is in one of the filter's prefixes.
#[inline(always)]
fn has_address(filter: &TraceFilter, event: &TraceEvent) -> bool {
    let mut matches = 0_u64;
    for (number, prefix) in filter.prefixes.iter().enumerate() {
        if number >= TRACE_PREFIX_COUNT.min(usize::try_from(filter.prefix_count).unwrap_or(0)) {
            break;
        }
        let mask = words(&prefix.mask);
        let wanted = words(&prefix.address);
        for address in [
            &event.before.source,
            &event.before.destination,
            &event.before.quoted_source,
            &event.before.quoted_destination,
            &event.after.source,
            &event.after.destination,
            &event.after.quoted_source,
            &event.after.quoted_destination,
        ] {
            let [high, low] = words(address);
            let differs = ((high ^ wanted[0]) & mask[0]) | ((low ^ wanted[1]) & mask[1]);
            // Without branches: the verifier would follow each of them.
            matches |= is_zero(differs) & (is_zero(high | low) ^ 1);
        }
    }
    matches != 0
}

/// The address's halves, as they are in memory.
#[inline(always)]
fn words(address: &TraceAddress) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// 1 if the value is 0, else 0.
#[inline(always)]
fn is_zero(value: u64) -> u64 {
    ((value | value.wrapping_neg()) >> 63) ^ 1
}
