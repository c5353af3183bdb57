//! A traced packet for people and for programs.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use etherparse::{LaxSlicedPacket, TransportSlice};
use natmig_common::{Counter, CounterClass, TraceAddress, TraceAddresses, TraceEvent};
use serde::Serialize;

use super::Names;
use crate::router::reader::class_name;

/// What became of a packet.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EventView {
    /// Nanoseconds since the Unix epoch.
    time_ns: u64,
    cpu: u16,
    /// The interface that it came in on.
    pub(super) interface_in: String,
    /// The interface that it left by.
    pub(super) interface_out: Option<String>,
    /// `passed`, `dropped` or `sent`.
    pub(super) verdict: &'static str,
    /// The verdict's counter.
    pub(super) reason: &'static str,
    /// Its number.
    pub(super) number: u8,
    /// Steps on the way.
    steps: Vec<&'static str>,
    protocol: String,
    before: PacketView,
    /// As it went on; nothing if it was dropped.
    after: Option<PacketView>,
    #[serde(skip)]
    pub(super) raw: TraceEvent,
}

/// A packet, before or after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PacketView {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quoted_source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quoted_destination: Option<IpAddr>,
    /// VLAN identifiers, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vlans: Vec<u16>,
    /// Length of the frame.
    length: u32,
}

fn address(address: TraceAddress) -> Option<IpAddr> {
    (address != TraceAddress::NONE).then(|| Ipv6Addr::from(address.octets).to_canonical())
}

/// Protocol and ports of a frame's first bytes.
fn protocol(bytes: &[u8]) -> (String, Option<(u16, u16)>) {
    let other = || {
        let ethertype = bytes.get(12..14).unwrap_or(&[0, 0]);
        format!("ethertype {:02x}{:02x}", ethertype[0], ethertype[1])
    };
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return ("truncated".to_owned(), None);
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (
            "TCP".to_owned(),
            Some((tcp.source_port(), tcp.destination_port())),
        ),
        Some(TransportSlice::Udp(udp)) => (
            "UDP".to_owned(),
            Some((udp.source_port(), udp.destination_port())),
        ),
        Some(TransportSlice::Icmpv4(icmp)) => {
            (format!("ICMP {}/{}", icmp.type_u8(), icmp.code_u8()), None)
        }
        Some(TransportSlice::Icmpv6(icmp)) => (
            format!("ICMPv6 {}/{}", icmp.type_u8(), icmp.code_u8()),
            None,
        ),
        _ => match &packet.net {
            Some(etherparse::LaxNetSlice::Arp(arp)) => match arp.operation().0 {
                1 => ("ARP request".to_owned(), None),
                2 => ("ARP reply".to_owned(), None),
                number => (format!("ARP {number}"), None),
            },
            Some(net) => {
                let payload = net.ip_payload_ref();
                let protocol = payload.map(|payload| payload.ip_number);
                let fragmented = payload.is_some_and(|payload| payload.fragmented);
                let name = protocol.map_or_else(other, |number| {
                    number
                        .keyword_str()
                        .map_or_else(|| format!("protocol {}", number.0), str::to_owned)
                });
                let kind = if fragmented { " fragment" } else { "" };
                (format!("{name}{kind}"), None)
            }
            None => (other(), None),
        },
    }
}

/// VLAN identifiers of a frame's tags.
fn vlans(bytes: &[u8]) -> Vec<u16> {
    let mut found = Vec::new();
    let mut at = 12;
    while let Some([a @ (0x81 | 0x88), b @ (0x00 | 0xa8), high, low]) = bytes.get(at..at + 4) {
        if (*a, *b) != (0x81, 0x00) && (*a, *b) != (0x88, 0xa8) {
            break;
        }
        found.push(u16::from_be_bytes([*high, *low]) & 0xfff);
        at += 4;
    }
    found
}

impl PacketView {
    fn new(bytes: &[u8], length: u32, addresses: &TraceAddresses) -> Self {
        let (_, ports) = protocol(bytes);
        Self {
            source: address(addresses.source),
            destination: address(addresses.destination),
            source_port: ports.map(|(source, _)| source),
            destination_port: ports.map(|(_, destination)| destination),
            quoted_source: address(addresses.quoted_source),
            quoted_destination: address(addresses.quoted_destination),
            vlans: vlans(bytes),
            length,
        }
    }

    /// Whether somebody would call it the same packet: MAC addresses and lengths aside.
    fn is_alike(&self, other: &Self) -> bool {
        Self {
            length: other.length,
            ..self.clone()
        } == *other
    }
}

/// An address and a port, if there is one.
struct End(Option<IpAddr>, Option<u16>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Some(address), Some(port)) => write!(f, "{}", SocketAddr::new(address, port)),
            (Some(address), None) => write!(f, "{address}"),
            (None, _) => f.write_str("-"),
        }
    }
}

impl fmt::Display for PacketView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.source.is_some() || self.destination.is_some() {
            let source = End(self.source, self.source_port);
            let destination = End(self.destination, self.destination_port);
            write!(f, "{source} > {destination}")?;
        } else {
            f.write_str("-")?;
        }
        match (self.quoted_source, self.quoted_destination) {
            (Some(source), Some(destination)) => write!(f, " [{source} > {destination}]")?,
            (None, Some(target)) => write!(f, " [target {target}]")?,
            (Some(_) | None, None) => {}
        }
        for vlan in &self.vlans {
            write!(f, " vlan {vlan}")?;
        }
        Ok(())
    }
}

impl EventView {
    /// Decodes an event that was at `time` since the Unix epoch.
    pub(super) fn new(event: &TraceEvent, time: Duration, names: &mut Names) -> Self {
        let before = event.bytes_before();
        let after = event.bytes_after();
        let counter = Counter::from_raw(event.counter);
        let class = counter.map(Counter::class);
        Self {
            time_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            cpu: event.cpu,
            interface_in: names.name(event.ingress),
            interface_out: (event.egress != 0).then(|| names.name(event.egress)),
            verdict: class.map_or("?", class_name),
            reason: counter.map_or("?", Counter::name),
            number: event.counter,
            steps: Counter::ALL
                .iter()
                .filter(|counter| counter.class() == CounterClass::Step)
                .filter(|counter| event.counters >> counter.raw() & 1 != 0)
                .map(|counter| counter.name())
                .collect(),
            protocol: protocol(before).0,
            before: PacketView::new(before, event.length_before, &event.before),
            after: (!after.is_empty())
                .then(|| PacketView::new(after, event.length_after, &event.after)),
            raw: *event,
        }
    }

    /// When it was, since the Unix epoch.
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.time_ns)
    }

    /// Where it went, for people.
    pub(super) fn way(&self) -> String {
        let out = match (&self.interface_out, self.verdict) {
            (Some(interface), _) => interface,
            (None, "dropped") => "dropped",
            (None, _) => "kernel",
        };
        format!("{} -> {out}", self.interface_in)
    }

    /// Reason and steps, for people.
    pub(super) fn reasons(&self) -> String {
        let mut text = self.reason.to_owned();
        for step in &self.steps {
            text = format!("{text}+{step}");
        }
        text
    }
}

impl fmt::Display for EventView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time();
        let seconds = time.as_secs() % 86400;
        write!(
            f,
            "{:02}:{:02}:{:02}.{:06}  {}  {} {}  {} {}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            time.subsec_micros(),
            self.way(),
            self.verdict,
            self.reasons(),
            self.protocol,
            self.before,
        )?;
        if let Some(after) = &self.after
            && !after.is_alike(&self.before)
        {
            write!(f, " => {after}")?;
        }
        write!(f, "  {} bytes", self.before.length)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use etherparse::PacketBuilder;
    use natmig_common::TRACE_SNAP;

    use super::*;

    pub(in super::super) fn frame(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(source, destination, 64)
            .udp(4000, 53)
            .write(&mut frame, b"payload")
            .unwrap();
        frame
    }

    /// A translated packet, in on interface 3, out on interface 5.
    pub(in super::super) fn event() -> TraceEvent {
        let before = frame([10, 9, 0, 1], [10, 1, 1, 10]);
        let after = frame([10, 9, 0, 1], [10, 1, 3, 130]);
        let mut event = TraceEvent {
            time: 1,
            counters: 1 << 16 | 1 << 21,
            ingress: 3,
            egress: 5,
            length_before: 49,
            length_after: 49,
            kept_before: 49,
            kept_after: 49,
            counter: 16,
            action: 4,
            cpu: 1,
            ..TraceEvent::EMPTY
        };
        assert!(before.len() == 49 && before.len() < TRACE_SNAP);
        event.packet_before[..49].copy_from_slice(&before);
        event.packet_after[..49].copy_from_slice(&after);
        event.before.source = TraceAddress::ipv4([10, 9, 0, 1]);
        event.before.destination = TraceAddress::ipv4([10, 1, 1, 10]);
        event.after.source = TraceAddress::ipv4([10, 9, 0, 1]);
        event.after.destination = TraceAddress::ipv4([10, 1, 3, 130]);
        event
    }

    pub(in super::super) fn view(event: &TraceEvent) -> EventView {
        let names = [(3, "eth1"), (5, "eth2")];
        let mut names = Names(HashMap::from(
            names.map(|(index, name)| (index, name.to_owned())),
        ));
        EventView::new(event, Duration::new(3723, 4_000), &mut names)
    }

    #[test]
    fn a_line_says_what_became_of_a_packet() {
        assert_eq!(
            view(&event()).to_string(),
            "01:02:03.000004  eth1 -> eth2  sent translated+destination_translated  \
             UDP 10.9.0.1:4000 > 10.1.1.10:53 => 10.9.0.1:4000 > 10.1.3.130:53  49 bytes"
        );
    }

    #[test]
    fn a_dropped_packet_has_no_after() {
        let dropped = TraceEvent {
            egress: 0,
            counter: 14,
            counters: 1 << 14,
            kept_after: 0,
            length_after: 0,
            ..event()
        };
        assert_eq!(
            view(&dropped).to_string(),
            "01:02:03.000004  eth1 -> dropped  dropped stale_source  \
             UDP 10.9.0.1:4000 > 10.1.1.10:53  49 bytes"
        );
    }

    #[test]
    fn json_has_both_packets() {
        let json = serde_json::to_value(view(&event())).unwrap();
        assert_eq!(json["verdict"], "sent");
        assert_eq!(json["number"], 16);
        assert_eq!(json["before"]["destination"], "10.1.1.10");
        assert_eq!(json["after"]["destination"], "10.1.3.130");
        assert_eq!(json["after"]["destination_port"], 53);
        assert_eq!(json["steps"][0], "destination_translated");
    }

    #[test]
    fn any_bytes_can_be_described() {
        for length in 0..60 {
            for fill in [0, 0x08, 0x45, 0x81, 0xff] {
                let bytes = vec![fill; length];
                let (_, _) = protocol(&bytes);
                vlans(&bytes);
            }
        }
        assert_eq!(
            vlans(&[&[0; 12][..], &[0x81, 0, 0x20, 10, 8, 0]].concat()),
            [10]
        );
    }
}
