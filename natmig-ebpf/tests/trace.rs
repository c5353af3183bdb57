//! What a trace finds in a frame's first bytes, and which events a filter lets through.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use etherparse::PacketBuilder;
use natmig_common::{
    TRACE_SNAP, TraceAddress, TraceAddresses, TraceEvent, TraceFilter, TracePrefix,
};
use natmig_ebpf::trace::{addresses, wants};

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

const A: [u8; 4] = [10, 1, 1, 10];
const B: [u8; 4] = [10, 9, 0, 1];
const A6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const B6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn found(frame: &[u8]) -> TraceAddresses {
    let mut bytes = [0xa5; TRACE_SNAP];
    let length = frame.len().min(TRACE_SNAP);
    bytes[..length].copy_from_slice(&frame[..length]);
    let mut found = TraceAddresses::NONE;
    addresses(&bytes, u16::try_from(length).unwrap(), &mut found);
    found
}

fn udp_ipv4() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(A, B, 64)
        .udp(1, 2)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

fn udp_ipv6() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(A6, B6, 64)
        .udp(1, 2)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

/// An ICMP error that quotes the frame's packet.
fn error(outer: Outer, quoted: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    match outer {
        Outer::Ipv4 => PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], A, 64)
            .icmpv4_raw(11, 0, [0; 4])
            .write(&mut frame, &quoted[14..])
            .unwrap(),
        Outer::Ipv6 => PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([0xfd; 16], A6, 64)
            .icmpv6_raw(3, 0, [0; 4])
            .write(&mut frame, &quoted[14..])
            .unwrap(),
    }
    frame
}

#[derive(Clone, Copy)]
enum Outer {
    Ipv4,
    Ipv6,
}

fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
    let mut longer = frame[..12].to_vec();
    for _ in 0..tags {
        longer.extend([0x81, 0, 0, 10]);
    }
    longer.extend(&frame[12..]);
    longer
}

#[test]
fn addresses_are_found_behind_tags() {
    for tags in 0..=2 {
        let ipv4 = found(&tagged(&udp_ipv4(), tags));
        assert_eq!(ipv4.source, TraceAddress::ipv4(A), "{tags} tags");
        assert_eq!(ipv4.destination, TraceAddress::ipv4(B), "{tags} tags");
        assert_eq!(ipv4.quoted_source, TraceAddress::NONE);
        let ipv6 = found(&tagged(&udp_ipv6(), tags));
        assert_eq!(ipv6.source, TraceAddress::ipv6(A6), "{tags} tags");
        assert_eq!(ipv6.destination, TraceAddress::ipv6(B6), "{tags} tags");
    }
    assert_eq!(found(&tagged(&udp_ipv4(), 3)), TraceAddresses::NONE);
}

#[test]
fn quoted_addresses_are_found() {
    let ipv4 = found(&error(Outer::Ipv4, &udp_ipv4()));
    assert_eq!(ipv4.quoted_source, TraceAddress::ipv4(A));
    assert_eq!(ipv4.quoted_destination, TraceAddress::ipv4(B));
    let ipv6 = found(&error(Outer::Ipv6, &udp_ipv6()));
    assert_eq!(ipv6.quoted_source, TraceAddress::ipv6(A6));
    assert_eq!(ipv6.quoted_destination, TraceAddress::ipv6(B6));
}

#[test]
fn quoted_addresses_are_found_behind_extension_headers() {
    let plain = error(Outer::Ipv6, &udp_ipv6());
    let mut frame = plain[..54].to_vec();
    frame[20] = HOP_BY_HOP;
    frame.extend([DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([FRAGMENT, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend([ICMPV6, 0, 0, 1, 0, 0, 0, 9]);
    frame.extend(&plain[54..]);
    assert_eq!(found(&frame).quoted_destination, TraceAddress::ipv6(B6));
    // A later fragment has no ICMP header.
    frame[54 + 24 + 3] = 8;
    assert_eq!(found(&frame).quoted_destination, TraceAddress::NONE);
}

#[test]
fn neighbour_messages_show_their_targets() {
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([2; 6].iter().chain(&A).chain(&[0; 6]).chain(&B));
    assert_eq!(found(&arp).source, TraceAddress::ipv4(A));
    assert_eq!(found(&arp).destination, TraceAddress::ipv4(B));
    let mut solicitation = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(A6, [0xff; 16], 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut solicitation, &B6)
        .unwrap();
    let found = found(&solicitation);
    assert_eq!(found.quoted_destination, TraceAddress::ipv6(B6));
    assert_eq!(found.quoted_source, TraceAddress::NONE);
}

#[test]
fn bytes_that_are_not_the_frames_are_not_read() {
    for whole in [
        udp_ipv4(),
        udp_ipv6(),
        error(Outer::Ipv4, &udp_ipv4()),
        error(Outer::Ipv6, &udp_ipv6()),
    ] {
        let all = found(&whole);
        for length in 0..whole.len() {
            let part = found(&whole[..length]);
            for (part, all) in [
                (part.source, all.source),
                (part.destination, all.destination),
                (part.quoted_source, all.quoted_source),
                (part.quoted_destination, all.quoted_destination),
            ] {
                assert!(part == TraceAddress::NONE || part == all, "{length} bytes");
            }
        }
    }
}

fn event() -> TraceEvent {
    let mut event = TraceEvent::EMPTY;
    event.counter = 16;
    event.counters = 1 << 16 | 1 << 21;
    event.ingress = 3;
    event.egress = 5;
    event.before.source = TraceAddress::ipv4(A);
    event.after.quoted_destination = TraceAddress::ipv6(B6);
    event
}

fn prefix(address: TraceAddress, bits: u32) -> TracePrefix {
    let mask = TraceAddress::ipv6((!(u128::MAX.checked_shr(bits).unwrap_or(0))).to_be_bytes());
    TracePrefix { address, mask }
}

#[test]
fn filter_asks_for_verdict_counter_and_interface() {
    let event = event();
    assert!(wants(&TraceFilter::ALL, &event));
    let mut filter = TraceFilter::ALL;
    for (verdicts, counters, ifindex, wanted) in [
        (1 << 16, 0, 0, true),
        (!(1 << 16), 0, 0, false),
        (u64::MAX, 1 << 21 | 1 << 22, 0, true),
        (u64::MAX, 1 << 22, 0, false),
        (u64::MAX, 1 << 16, 0, true),
        (u64::MAX, 0, 3, true),
        (u64::MAX, 0, 5, true),
        (u64::MAX, 0, 4, false),
    ] {
        filter.verdicts = verdicts;
        filter.counters = counters;
        filter.ifindex = ifindex;
        assert_eq!(wants(&filter, &event), wanted, "{filter:?}");
    }
}

#[test]
fn filter_asks_for_addresses_before_and_after() {
    let event = event();
    let filter = |prefixes: &[TracePrefix]| {
        let mut filter = TraceFilter::ALL;
        filter.prefix_count = u32::try_from(prefixes.len()).unwrap();
        filter.prefixes[..prefixes.len()].copy_from_slice(prefixes);
        filter
    };
    let ipv4 = prefix(TraceAddress::ipv4(A), 128);
    let ipv4_net = prefix(TraceAddress::ipv4([10, 1, 0, 0]), 96 + 16);
    let ipv6 = prefix(TraceAddress::ipv6(B6), 128);
    let other = prefix(TraceAddress::ipv4([10, 1, 1, 11]), 128);
    let other_net = prefix(TraceAddress::ipv4([10, 2, 0, 0]), 96 + 16);
    assert!(wants(&filter(&[ipv4]), &event));
    assert!(wants(&filter(&[ipv4_net]), &event));
    assert!(wants(&filter(&[ipv6]), &event));
    assert!(!wants(&filter(&[other, other_net]), &event));
    assert!(wants(&filter(&[other, other_net, ipv4]), &event));
    // What is no address is in no prefix.
    assert!(!wants(&filter(&[prefix(TraceAddress::NONE, 128)]), &event));
}
