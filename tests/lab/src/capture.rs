//! Captures of every frame at every endpoint. No endpoint may ever see a locator, in any header:
//! Ethernet payloads of ARP, IPv4 and IPv6, neighbour discovery, and the packets that ICMP errors
//! quote.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use nix::{
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt},
};

use crate::{
    clock,
    network::Network,
    topology::Endpoint,
    traffic::{Flow, Kind, MAGIC, flow_of_port},
};

/// Leaks that are kept with all their details.
const KEPT: usize = 200;

/// A locator at an endpoint.
#[derive(Clone, Debug)]
pub struct Leak {
    /// When, in nanoseconds since the epoch.
    pub time: u64,
    /// At which endpoint.
    pub node: String,
    /// On which interface.
    pub interface: String,
    /// The endpoint sent it, having learned the locator somewhere.
    pub outgoing: bool,
    /// The locator.
    pub locator: IpAddr,
    /// The field.
    pub field: &'static str,
    /// The flow that it belongs to.
    pub flow: Option<u32>,
    /// The frame's first bytes.
    pub frame: Vec<u8>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.outgoing {
            "sent by"
        } else {
            "received by"
        };
        write!(
            f,
            "{} as {}, {direction} {} on {}, frame",
            self.locator, self.field, self.node, self.interface
        )?;
        self.frame
            .iter()
            .take(80)
            .try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// What all captures saw.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Frames looked at.
    pub frames: u64,
    /// Frames that the kernel could not keep for us: then nothing can be said about them.
    pub missed: u64,
    /// Frames with a locator.
    pub leaked: u64,
    /// The first of them.
    pub leaks: Vec<Leak>,
    /// Frames of flows (by number) taken by an endpoint that they were not for.
    pub misdelivered: Vec<(u32, String)>,
    /// Leaks by flow.
    pub leaked_by_flow: Vec<u64>,
    /// The first frame that came into each interface, by node and interface.
    pub first: BTreeMap<(String, String), Vec<u8>>,
}

/// Running captures.
#[derive(Debug)]
pub struct Captures {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Findings>>>,
}

struct Tap {
    socket: OwnedFd,
    node: String,
    interface: String,
}

impl Captures {
    /// Opens a capture on every interface of every endpoint.
    pub fn start(network: &Network, flows: &[Flow]) -> Result<Self> {
        Self::start_with(network, flows, &[])
    }

    /// Opens a capture on every interface of every endpoint, and on these interfaces of nodes.
    pub fn start_with(
        network: &Network,
        flows: &[Flow],
        others: &[(String, String)],
    ) -> Result<Self> {
        let endpoints = network.topology().endpoints();
        let interfaces = endpoints.into_iter().flat_map(
            |Endpoint {
                 name, interfaces, ..
             }| {
                let named = interfaces.into_iter();
                named.map(move |interface| (name.clone(), interface))
            },
        );
        let mut taps = Vec::new();
        for (node, interface) in interfaces.chain(others.iter().cloned()) {
            let socket = network
                .node(&node)?
                .enter(|| tap(&interface))
                .with_context(|| format!("capture on {interface} of {node}"))?;
            taps.push(Tap {
                socket,
                node,
                interface,
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pools, flows) = (Arc::clone(&stop), network.pools(), flows.to_vec());
        let thread = thread::spawn(move || capture(&taps, &pools, &flows, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends all captures.
    pub fn finish(mut self) -> Result<Findings> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(findings)) => findings,
            Some(Err(_)) | None => bail!("the capture thread panicked"),
        }
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn tap(interface: &str) -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None::<SockProtocol>,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
    // SAFETY: a sockaddr_ll is plain data, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    address.sll_ifindex = i32::try_from(if_nametoindex(interface)?)?;
    // SAFETY: the address lives until the call returns and its length is its own.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of_val(&address) as u32,
        )
    };
    nix::errno::Errno::result(bound)?;
    Ok(socket)
}

/// How a frame came to a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// For this endpoint, broadcast and multicast included.
    Taken,
    /// For another one, flooded by a bridge.
    Flooded,
    /// From this endpoint.
    Sent,
}

fn capture(taps: &[Tap], pools: &[IpNet], flows: &[Flow], stop: &AtomicBool) -> Result<Findings> {
    let mut findings = Findings {
        leaked_by_flow: vec![0; flows.len()],
        ..Findings::default()
    };
    let mut buffer = vec![0; 65536];
    let mut idle = false;
    // After the stop, until nothing is left in the buffers.
    while !(stop.load(Ordering::Relaxed) && idle) {
        let mut polled: Vec<PollFd> = taps
            .iter()
            .map(|tap| PollFd::new(tap.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, PollTimeout::from(50u8)) {
            Ok(ready) => idle = ready == 0 || stop.load(Ordering::Relaxed),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error).context("poll"),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (tap, _) in taps.iter().zip(ready).filter(|(_, ready)| *ready) {
            while let Some((length, direction)) = receive(tap, &mut buffer) {
                findings.frames += 1;
                let frame = &buffer[..length];
                if direction != Direction::Sent {
                    let place = (tap.node.clone(), tap.interface.clone());
                    let first = findings.first.entry(place);
                    first.or_insert_with(|| frame.to_vec());
                }
                inspect(tap, frame, direction, pools, flows, &mut findings);
            }
        }
    }
    for tap in taps {
        findings.missed += u64::from(missed(tap)?);
    }
    Ok(findings)
}

fn receive(tap: &Tap, buffer: &mut [u8]) -> Option<(usize, Direction)> {
    // SAFETY: a sockaddr_ll is plain data, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: buffer and address live until the call returns, and their lengths are theirs.
    let length = unsafe {
        libc::recvfrom(
            tap.socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            std::ptr::from_mut(&mut address).cast(),
            &raw mut size,
        )
    };
    let length = usize::try_from(length).ok()?;
    let direction = match address.sll_pkttype {
        libc::PACKET_OTHERHOST => Direction::Flooded,
        libc::PACKET_OUTGOING => Direction::Sent,
        _ => Direction::Taken,
    };
    Some((length, direction))
}

fn missed(tap: &Tap) -> Result<u32> {
    const PACKET_STATISTICS: libc::c_int = 6;
    let mut statistics = [0u32; 2];
    let mut size = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: `tpacket_stats` is two 32-bit words, and the array lives until the call returns.
    let result = unsafe {
        libc::getsockopt(
            tap.socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    nix::errno::Errno::result(result).context("capture statistics")?;
    Ok(statistics[1])
}

fn inspect(
    tap: &Tap,
    frame: &[u8],
    direction: Direction,
    pools: &[IpNet],
    flows: &[Flow],
    findings: &mut Findings,
) {
    let seen = dissect(frame);
    let flow = seen.key.and_then(|key| key.flow(flows));
    let locator = seen
        .addresses
        .iter()
        .find(|(_, address)| pools.iter().any(|pool| pool.contains(address)));
    if let Some(&(field, locator)) = locator {
        findings.leaked += 1;
        if let Some(count) = flow.and_then(|flow| findings.leaked_by_flow.get_mut(flow.id as usize))
        {
            *count += 1;
        }
        if findings.leaks.len() < KEPT {
            findings.leaks.push(Leak {
                time: clock::now(),
                node: tap.node.clone(),
                interface: tap.interface.clone(),
                outgoing: direction == Direction::Sent,
                locator,
                field,
                flow: flow.map(|flow| flow.id),
                frame: frame[..frame.len().min(128)].to_vec(),
            });
        }
    }
    if direction == Direction::Taken
        && seen.probe
        && let Some(flow) = flow
    {
        let for_us = if seen.reply { &flow.from } else { &flow.to };
        // Both directions of a pair have the same ports: either end may be meant.
        let pair = flow.kind == Kind::Udp && (tap.node == flow.from || tap.node == flow.to);
        if *for_us != tap.node && !pair {
            findings.misdelivered.push((flow.id, tap.node.clone()));
        }
    }
}

/// What tells to which flow a packet belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Ports(u16, u16),
    Echo(u16),
}

impl Key {
    fn flow(self, flows: &[Flow]) -> Option<&Flow> {
        match self {
            Self::Ports(source, destination) => {
                flow_of_port(flows, destination).or_else(|| flow_of_port(flows, source))
            }
            Self::Echo(id) => flows
                .get(usize::from(id))
                .filter(|flow| flow.kind == Kind::Ping),
        }
    }
}

/// What a frame shows.
#[derive(Debug, Default)]
struct Seen {
    addresses: Vec<(&'static str, IpAddr)>,
    key: Option<Key>,
    /// A datagram of ours.
    probe: bool,
    /// An answer to a ping.
    reply: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn address(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn address_ipv6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

impl Seen {
    fn add<const N: usize>(&mut self, fields: [(&'static str, Option<IpAddr>); N]) {
        self.addresses.extend(
            fields
                .into_iter()
                .filter_map(|(field, address)| Some((field, address?))),
        );
    }

    /// Ports of a UDP or TCP header.
    fn ports(&mut self, payload: &[u8], is_udp: bool, quoted: bool) {
        self.key = word(payload, 0)
            .zip(word(payload, 2))
            .map(|(source, destination)| Key::Ports(source, destination));
        self.probe = !quoted && is_udp && payload.get(8..12) == Some(&MAGIC);
    }

    /// An echo request or reply.
    fn echo(&mut self, payload: &[u8], is_reply: bool, quoted: bool) {
        self.key = word(payload, 4).map(Key::Echo);
        self.reply = is_reply;
        self.probe = !quoted && payload.get(8..12) == Some(&MAGIC);
    }
}

fn names(quoted: bool) -> [&'static str; 2] {
    if quoted {
        ["quoted source", "quoted destination"]
    } else {
        ["source", "destination"]
    }
}

fn dissect(frame: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let mut at = 12;
    while matches!(word(frame, at), Some(0x8100 | 0x88a8)) {
        at += 4;
    }
    let rest = frame.get(at + 2..).unwrap_or_default();
    match word(frame, at) {
        Some(0x0800) => ipv4(rest, &mut seen, false),
        Some(0x86dd) => ipv6(rest, &mut seen, false),
        Some(0x0806) => seen.add([
            ("ARP sender", address(rest, 14)),
            ("ARP target", address(rest, 24)),
        ]),
        Some(_) | None => {}
    }
    seen
}

fn ipv4(packet: &[u8], seen: &mut Seen, quoted: bool) {
    let [source, destination] = names(quoted);
    seen.add([
        (source, address(packet, 12)),
        (destination, address(packet, 16)),
    ]);
    let Some(&first) = packet.first() else { return };
    let fragment = word(packet, 6).unwrap_or(0) & 0x1fff;
    let payload = packet
        .get(usize::from(first & 15) * 4..)
        .unwrap_or_default();
    if fragment != 0 {
        return;
    }
    match packet.get(9) {
        Some(protocol @ (6 | 17)) => seen.ports(payload, *protocol == 17, quoted),
        Some(1) => match payload.first() {
            Some(3 | 4 | 5 | 11 | 12) if !quoted => {
                ipv4(payload.get(8..).unwrap_or_default(), seen, true);
            }
            Some(kind @ (0 | 8)) => seen.echo(payload, *kind == 0, quoted),
            Some(_) | None => {}
        },
        Some(_) | None => {}
    }
}

fn ipv6(packet: &[u8], seen: &mut Seen, quoted: bool) {
    let [source, destination] = names(quoted);
    seen.add([
        (source, address_ipv6(packet, 8)),
        (destination, address_ipv6(packet, 24)),
    ]);
    let Some(&next) = packet.get(6) else { return };
    let (mut next, mut at) = (next, 40);
    // Extension headers, as far as they have the common form; a fragment's has a fixed length.
    while let 0 | 43 | 44 | 60 = next {
        let Some(header) = packet.get(at..at + 8) else {
            return;
        };
        if next == 44 && word(header, 2).unwrap_or(0) & 0xfff8 != 0 {
            return;
        }
        at += if next == 44 {
            8
        } else {
            8 + usize::from(header[1]) * 8
        };
        next = header[0];
    }
    let payload = packet.get(at..).unwrap_or_default();
    match next {
        6 | 17 => seen.ports(payload, next == 17, quoted),
        58 => icmpv6(payload, seen, quoted),
        _ => {}
    }
}

fn icmpv6(message: &[u8], seen: &mut Seen, quoted: bool) {
    match message.first() {
        Some(1..=4) if !quoted => ipv6(message.get(8..).unwrap_or_default(), seen, true),
        Some(kind @ (128 | 129)) => seen.echo(message, *kind == 129, quoted),
        // Neighbour solicitation and advertisement.
        Some(135 | 136) => seen.add([("ND target", address_ipv6(message, 8))]),
        Some(137) => seen.add([
            ("redirect target", address_ipv6(message, 8)),
            ("redirect destination", address_ipv6(message, 24)),
        ]),
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 4] = [10, 1, 1, 50];
    const LOCATOR: [u8; 4] = [10, 1, 2, 128];
    const HOST_IPV6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50];
    const LOCATOR_IPV6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0];

    fn packet_ipv6(next: u8, source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        packet
    }

    fn packet(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        packet
    }

    fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn fields(frame: &[u8]) -> Vec<&'static str> {
        let locators = [IpAddr::from(LOCATOR), IpAddr::from(LOCATOR_IPV6)];
        dissect(frame)
            .addresses
            .into_iter()
            .filter(|(_, address)| locators.contains(address))
            .map(|(field, _)| field)
            .collect()
    }

    #[test]
    fn locators_are_found_in_every_header() {
        assert_eq!(
            fields(&frame(0x0800, &packet(17, LOCATOR, HOST, &[0; 8]))),
            ["source"]
        );
        assert_eq!(
            fields(&frame(0x0800, &packet(17, HOST, LOCATOR, &[0; 8]))),
            ["destination"]
        );
        let mut error = vec![3, 4, 0, 0, 0, 0, 0, 0];
        error.extend(packet(6, HOST, LOCATOR, &[0; 8]));
        assert_eq!(
            fields(&frame(0x0800, &packet(1, HOST, HOST, &error))),
            ["quoted destination"]
        );
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        arp.extend(HOST);
        arp.extend([0; 6]);
        arp.extend(LOCATOR);
        assert_eq!(fields(&frame(0x0806, &arp)), ["ARP target"]);
    }

    #[test]
    fn ipv6_locators_are_found_in_every_header() {
        let fields = |packet: &[u8]| fields(&frame(0x86dd, packet));
        let plain = packet_ipv6(17, LOCATOR_IPV6, HOST_IPV6, &[0; 8]);
        assert_eq!(fields(&plain), ["source"]);
        let plain = packet_ipv6(17, HOST_IPV6, LOCATOR_IPV6, &[0; 8]);
        assert_eq!(fields(&plain), ["destination"]);
        // Packet too big, behind a hop-by-hop header.
        let mut error = vec![58, 0, 5, 2, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 5, 0];
        error.extend(packet_ipv6(6, HOST_IPV6, LOCATOR_IPV6, &[0; 8]));
        let error = packet_ipv6(0, HOST_IPV6, HOST_IPV6, &error);
        assert_eq!(fields(&error), ["quoted destination"]);
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend(LOCATOR_IPV6);
        let solicitation = packet_ipv6(58, HOST_IPV6, HOST_IPV6, &solicitation);
        assert_eq!(fields(&solicitation), ["ND target"]);
        for length in 0..error.len() {
            dissect(&frame(0x86dd, &error[..length]));
        }
    }

    #[test]
    fn truncated_frames_are_no_panic() {
        let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
        error.extend(packet(6, HOST, LOCATOR, &[0; 8]));
        let whole = frame(0x0800, &packet(1, HOST, HOST, &error));
        for length in 0..whole.len() {
            dissect(&whole[..length]);
        }
    }
}
