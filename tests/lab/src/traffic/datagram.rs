//! Numbered datagrams: UDP streams and pings. One thread sends them all on time, one receives them
//! all; arrival times are the kernel's, so that a busy machine does not look like a lossy network.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Flow, Kind, Rates, UDP_PORTS, content, next_due};
use crate::{clock, network::Network};

/// First bytes of every payload.
pub const MAGIC: [u8; 4] = *b"NMLB";
/// Magic, flow, number, time.
const HEADER: usize = 4 + 4 + 8 + 8;
const LARGEST: usize = 1400;

/// Packets of one flow, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct Datagrams {
    /// When each was sent, in nanoseconds since the epoch.
    pub sent: Vec<u64>,
    /// When each arrived first, 0 if it did not.
    pub received: Vec<u64>,
    /// Arrivals beyond the first of each packet.
    pub duplicated: u64,
    /// Arrivals from or to a wrong address, at a wrong receiver, or with wrong content.
    pub misdelivered: u64,
}

impl Datagrams {
    /// Longest time from sending to arrival (of a ping: of its answer), in nanoseconds.
    pub fn longest_delay(&self) -> u64 {
        self.pairs()
            .map(|(sent, received)| received.saturating_sub(sent))
            .max()
            .unwrap_or(0)
    }

    /// Longest time without an arrival, in nanoseconds, and when it began.
    pub fn longest_gap(&self) -> (u64, u64) {
        let mut arrivals: Vec<u64> = self.pairs().map(|(_, received)| received).collect();
        arrivals.sort_unstable();
        arrivals
            .windows(2)
            .map(|pair| (pair[1] - pair[0], pair[0]))
            .max()
            .unwrap_or((0, 0))
    }

    /// Sending and arrival of all that arrived.
    fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sent
            .iter()
            .copied()
            .zip(self.received.iter().copied())
            .filter(|(_, received)| *received != 0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another thread is reported when it is joined; counts stay valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Stream {
    flow: Flow,
    sender: Arc<Socket>,
    log: Mutex<Datagrams>,
}

/// Sends and receives all datagram flows.
#[derive(Debug)]
pub(super) struct Engine {
    streams: Arc<Vec<Option<Stream>>>,
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// A socket and where it is: the receiver of `Kind::Udp`, or the sender of `Kind::Ping`.
struct Receiver {
    socket: Arc<Socket>,
    kind: Kind,
    node: String,
}

impl Engine {
    pub(super) fn start(network: &Network, flows: &[Flow], rates: Rates) -> Result<Self> {
        let mut receivers: Vec<Receiver> = Vec::new();
        let mut streams: Vec<Option<Stream>> = Vec::new();
        for flow in flows {
            let port = flow.port + UDP_PORTS;
            let sender = match flow.kind {
                Kind::Tcp | Kind::Http => {
                    streams.push(None);
                    continue;
                }
                Kind::Udp => open(
                    network,
                    &flow.from,
                    Type::DGRAM,
                    Protocol::UDP,
                    SocketAddr::new(unspecified(flow.from_address), port),
                ),
                Kind::Ping => open(
                    network,
                    &flow.from,
                    Type::RAW,
                    if flow.from_address.is_ipv4() {
                        Protocol::ICMPV4
                    } else {
                        Protocol::ICMPV6
                    },
                    SocketAddr::new(flow.from_address, 0),
                ),
            };
            // The other direction of a pair has the same ports: its sender is this one's receiver.
            let shared = streams.iter().flatten().find(|other: &&Stream| {
                flow.kind == Kind::Udp && other.flow.port == flow.port && other.flow.to == flow.from
            });
            let sender = match shared {
                Some(other) => receivers
                    .iter()
                    .find(|receiver| {
                        receiver.kind == Kind::Udp
                            && receiver.node == flow.from
                            && local_port(&receiver.socket) == port
                    })
                    .map(|receiver| Arc::clone(&receiver.socket))
                    .with_context(|| format!("no receiver of flow {}", other.flow.id))?,
                None => Arc::new(sender?),
            };
            let receiver = match (flow.kind, shared) {
                (Kind::Udp, Some(other)) => Arc::clone(&other.sender),
                (Kind::Udp, None) => Arc::new(open(
                    network,
                    &flow.to,
                    Type::DGRAM,
                    Protocol::UDP,
                    SocketAddr::new(unspecified(flow.to_address), port),
                )?),
                (Kind::Ping | Kind::Tcp | Kind::Http, _) => Arc::clone(&sender),
            };
            let node = if flow.kind == Kind::Udp {
                &flow.to
            } else {
                &flow.from
            };
            receivers.push(Receiver {
                socket: receiver,
                kind: flow.kind,
                node: node.clone(),
            });
            streams.push(Some(Stream {
                flow: flow.clone(),
                sender,
                log: Mutex::default(),
            }));
        }
        let mut engine = Self {
            streams: Arc::new(streams),
            sending: Arc::new(AtomicBool::new(true)),
            receiving: Arc::new(AtomicBool::new(true)),
            sent: Arc::default(),
            threads: Vec::new(),
        };
        let (streams, receiving) = (Arc::clone(&engine.streams), Arc::clone(&engine.receiving));
        engine.threads.push(thread::spawn(move || {
            receive_all(&receivers, &streams, &receiving)
        }));
        let (streams, sending, sent) = (
            Arc::clone(&engine.streams),
            Arc::clone(&engine.sending),
            Arc::clone(&engine.sent),
        );
        engine.threads.push(thread::spawn(move || {
            send_all(&streams, rates, &sending, &sent);
            Ok(())
        }));
        Ok(engine)
    }

    pub(super) fn heard(&self, id: u32) -> bool {
        let stream = self.streams.get(id as usize).and_then(Option::as_ref);
        stream.is_some_and(|stream| lock(&stream.log).received.iter().any(|time| *time != 0))
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn outstanding(&self) -> usize {
        let missing = |stream: &Stream| {
            lock(&stream.log)
                .received
                .iter()
                .filter(|time| **time == 0)
                .count()
        };
        self.streams.iter().flatten().map(missing).sum()
    }

    /// Ends sending, then receiving when nothing arrived for a while. In the order of the flows.
    pub(super) fn finish(&mut self, deadline: Duration) -> Vec<Datagrams> {
        self.sending.store(false, Ordering::Relaxed);
        if let Some(sender) = self.threads.pop() {
            report(sender);
        }
        let start = Instant::now();
        let (mut before, mut since) = (self.outstanding(), Instant::now());
        while before > 0
            && start.elapsed() < deadline
            && since.elapsed() < Duration::from_millis(500)
        {
            thread::sleep(Duration::from_millis(10));
            let left = self.outstanding();
            if left != before {
                (before, since) = (left, Instant::now());
            }
        }
        self.receiving.store(false, Ordering::Relaxed);
        self.threads.drain(..).for_each(report);
        let logs = self.streams.iter();
        logs.map(|stream| {
            stream
                .as_ref()
                .map(|stream| lock(&stream.log).clone())
                .unwrap_or_default()
        })
        .collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.sending.store(false, Ordering::Relaxed);
        self.receiving.store(false, Ordering::Relaxed);
        self.threads.drain(..).for_each(report);
    }
}

fn report(thread: JoinHandle<Result<()>>) {
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("natmig-lab: datagrams: {error:#}"),
        Err(_) => eprintln!("natmig-lab: datagrams: a thread panicked"),
    }
}

fn local_port(socket: &Socket) -> u16 {
    socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
        .map_or(0, |address| address.port())
}

/// Any address of the same family.
fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn open(
    network: &Network,
    node: &str,
    kind: Type,
    protocol: Protocol,
    local: SocketAddr,
) -> Result<Socket> {
    network.node(node)?.enter(|| {
        let socket = Socket::new(Domain::for_address(local), kind, Some(protocol))?;
        if local.is_ipv6() && kind == Type::DGRAM {
            socket.set_only_v6(true)?;
        }
        socket.set_recv_buffer_size(1 << 20)?;
        socket
            .bind(&local.into())
            .with_context(|| format!("{local} in {node}"))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        match local {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        Ok(socket)
    })
}

fn send_all(streams: &[Option<Stream>], rates: Rates, sending: &AtomicBool, sent: &AtomicU64) {
    let mut due = BinaryHeap::new();
    let start = clock::now();
    for stream in streams.iter().flatten() {
        let rate = if stream.flow.kind == Kind::Ping {
            rates.ping
        } else {
            rates.udp
        };
        let interval = 1_000_000_000 / u64::from(rate.max(1));
        // Spread over the interval, so that flows do not send in step.
        let offset = u64::from(stream.flow.id).wrapping_mul(0x9e37_79b9) % interval;
        due.push(Reverse((start + offset, interval, stream.flow.id)));
    }
    let mut packet = vec![0; LARGEST + 8];
    while sending.load(Ordering::Relaxed) {
        let Some(Reverse((time, interval, id))) = due.pop() else {
            return;
        };
        let now = clock::now();
        if time > now {
            thread::sleep(Duration::from_nanos((time - now).min(50_000_000)));
            if clock::now() < time {
                due.push(Reverse((time, interval, id)));
                continue;
            }
        }
        if let Some(stream) = &streams[id as usize] {
            send(stream, &mut packet);
            sent.fetch_add(1, Ordering::Relaxed);
        }
        due.push(Reverse((next_due(time, interval), interval, id)));
    }
}

/// Sizes go up and down, to have odd lengths and full packets too.
fn size(number: u64) -> usize {
    HEADER
        + (number.wrapping_mul(389) % (LARGEST - HEADER) as u64) as usize
            / if number.is_multiple_of(8) { 1 } else { 8 }
}

fn payload(flow: u32, number: u64, time: u64, to: &mut [u8]) {
    to[..4].copy_from_slice(&MAGIC);
    to[4..8].copy_from_slice(&flow.to_be_bytes());
    to[8..16].copy_from_slice(&number.to_be_bytes());
    to[16..24].copy_from_slice(&time.to_be_bytes());
    for (position, byte) in to[HEADER..].iter_mut().enumerate() {
        *byte = content(flow, number + position as u64);
    }
}

fn send(stream: &Stream, packet: &mut [u8]) {
    let flow = &stream.flow;
    let mut log = lock(&stream.log);
    let number = log.sent.len() as u64;
    let time = clock::now();
    log.sent.push(time);
    log.received.push(0);
    // A send that fails is a packet that does not arrive: it counts as lost.
    drop(log);
    let size = size(number);
    let ignored = match flow.kind {
        Kind::Ping => {
            let packet = &mut packet[..8 + size];
            packet[..8].fill(0);
            packet[0] = if flow.to_address.is_ipv4() { 8 } else { 128 };
            packet[4..6].copy_from_slice(&(flow.id as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
            payload(flow.id, number, time, &mut packet[8..]);
            // Of ICMPv6 the kernel computes it, because it includes addresses.
            let sum = checksum(packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
            stream
                .sender
                .send_to(packet, &SocketAddr::new(flow.to_address, 0).into())
        }
        Kind::Udp | Kind::Tcp | Kind::Http => {
            payload(flow.id, number, time, &mut packet[..size]);
            stream.sender.send_to(
                &packet[..size],
                &SocketAddr::new(flow.to_address, flow.port + UDP_PORTS).into(),
            )
        }
    };
    drop(ignored);
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| {
            u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn receive_all(
    receivers: &[Receiver],
    streams: &[Option<Stream>],
    receiving: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; 4096];
    let mut control = cmsg_space!(TimeSpec, libc::in6_pktinfo);
    while receiving.load(Ordering::Relaxed) {
        let mut polled: Vec<PollFd> = receivers
            .iter()
            .map(|receiver| PollFd::new(receiver.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, PollTimeout::from(50u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (receiver, _) in receivers.iter().zip(ready).filter(|(_, ready)| *ready) {
            while let Some(arrival) = receive(receiver, &mut buffer, &mut control) {
                note(receiver, streams, &arrival);
            }
        }
    }
    Ok(())
}

struct Arrival {
    payload: Vec<u8>,
    from: IpAddr,
    to: Option<IpAddr>,
    time: u64,
    echo_reply: bool,
}

fn receive(receiver: &Receiver, buffer: &mut [u8], control: &mut [u8]) -> Option<Arrival> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        receiver.socket.as_raw_fd(),
        &mut parts,
        Some(control),
        MsgFlags::empty(),
    )
    .ok()?;
    let from = message.address?;
    let ipv4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
    let ipv6 = from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip()));
    let from = ipv4.or(ipv6)?;
    let (mut time, mut to) = (clock::now(), None);
    for part in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmTimestampns(stamp) = part {
            time = stamp.tv_sec() as u64 * 1_000_000_000 + stamp.tv_nsec() as u64;
        } else if let ControlMessageOwned::Ipv4PacketInfo(info) = part {
            to = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = part {
            to = Some(IpAddr::from(info.ipi6_addr.s6_addr));
        }
    }
    let length = message.bytes;
    let bytes = &buffer[..length];
    if receiver.kind == Kind::Udp {
        return Some(Arrival {
            payload: bytes.to_vec(),
            from,
            to,
            time,
            echo_reply: false,
        });
    }
    // A raw IPv4 socket gives the IP header too.
    let header = match from {
        IpAddr::V4(_) => bytes.first().map_or(0, |first| usize::from(first & 15) * 4),
        IpAddr::V6(_) => 0,
    };
    let icmp = bytes.get(header..).unwrap_or_default();
    let reply = if from.is_ipv4() { 0 } else { 129 };
    let echo_reply = icmp.first() == Some(&reply);
    Some(Arrival {
        payload: icmp.get(8..).unwrap_or_default().to_vec(),
        from,
        to,
        time,
        echo_reply,
    })
}

fn note(receiver: &Receiver, streams: &[Option<Stream>], arrival: &Arrival) {
    let bytes = &arrival.payload;
    if bytes.len() < HEADER || bytes[..4] != MAGIC {
        return;
    }
    let word = |at: usize| {
        u64::from_be_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
            bytes[at + 4],
            bytes[at + 5],
            bytes[at + 6],
            bytes[at + 7],
        ])
    };
    let id = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let number = word(8);
    let Some(stream) = streams.get(id as usize).and_then(Option::as_ref) else {
        return;
    };
    let flow = &stream.flow;
    let (peer, own) = match flow.kind {
        Kind::Ping if receiver.kind == Kind::Ping => {
            // Every raw socket of a namespace sees every answer; requests of others too.
            if !arrival.echo_reply
                || receiver.node != flow.from
                || !std::ptr::eq(Arc::as_ptr(&receiver.socket), Arc::as_ptr(&stream.sender))
            {
                return;
            }
            (flow.to_address, flow.from_address)
        }
        Kind::Ping | Kind::Udp | Kind::Tcp | Kind::Http => (flow.from_address, flow.to_address),
    };
    let node = if flow.kind == Kind::Ping {
        &flow.from
    } else {
        &flow.to
    };
    let right_place =
        receiver.node == *node && arrival.from == peer && arrival.to.is_none_or(|to| to == own);
    let right_content = bytes.len() == size(number)
        && bytes[HEADER..]
            .iter()
            .enumerate()
            .all(|(position, byte)| *byte == content(id, number + position as u64));
    let mut log = lock(&stream.log);
    let Some(first) = log.received.get_mut(number as usize) else {
        log.misdelivered += 1;
        return;
    };
    if *first == 0 {
        *first = arrival.time.max(1);
    } else {
        log.duplicated += 1;
    }
    if !right_place || !right_content {
        log.misdelivered += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_delays_are_those_of_arrivals() {
        let log = Datagrams {
            sent: vec![100, 200, 300, 400],
            received: vec![110, 0, 350, 405],
            ..Datagrams::default()
        };
        assert_eq!(log.longest_delay(), 50);
        assert_eq!(log.longest_gap(), (240, 110));
    }

    #[test]
    fn sizes_are_odd_even_and_full() {
        let sizes: Vec<_> = (0..1000).map(size).collect();
        assert!(sizes.iter().all(|size| (HEADER..LARGEST).contains(size)));
        assert!(sizes.iter().any(|size| *size > LARGEST - 100));
        assert!(sizes.iter().any(|size| size % 2 == 1));
    }

    #[test]
    fn checksum_of_checksummed_is_zero() {
        let mut packet = [8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
