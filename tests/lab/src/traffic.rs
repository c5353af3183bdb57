//! Traffic between endpoints of the lab: real sockets, opened inside the namespaces and served by
//! threads of this process.

mod datagram;
mod http;
mod tcp;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{clock, network::Network, run};

pub use datagram::{Datagrams, MAGIC};

/// Ports of datagram streams begin here; each stream has its own number above it.
pub const UDP_PORTS: u16 = 20000;
/// Ports of TCP transfers begin here.
pub const TCP_PORTS: u16 = 30000;
/// Port of the HTTP servers.
pub const HTTP_PORT: u16 = 8080;

/// What a flow is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Numbered datagrams in one direction.
    Udp,
    /// Echo requests, each answered by the other side's kernel.
    Ping,
    /// One connection that lasts, with checked content in both directions.
    Tcp,
    /// Downloads by curl, one connection each.
    Http,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "udp",
            Self::Ping => "ping",
            Self::Tcp => "tcp",
            Self::Http => "http",
        })
    }
}

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its number, in its packets too: position in the list of flows.
    pub id: u32,
    /// What it is made of.
    pub kind: Kind,
    /// Who sends, or opens the connection.
    pub from: String,
    /// Who receives, or serves.
    pub to: String,
    /// What `from` or `to` is to the VM that the flow is about.
    pub relation: String,
    from_address: IpAddr,
    to_address: IpAddr,
    /// Ports of both ends are this far above the first of their kind.
    port: u16,
}

impl Flow {
    /// Its kind, and that it is IPv6 if it is.
    pub fn label(&self) -> String {
        let family = if self.to_address.is_ipv6() { "6" } else { "" };
        format!("{}{family}", self.kind)
    }
}

/// What became of a flow.
#[derive(Clone, Debug)]
pub struct Record {
    /// The flow.
    pub flow: Flow,
    /// Packets of datagram flows.
    pub datagrams: Datagrams,
    /// Bytes that were checked, of connections.
    pub bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// Longest time without progress of a connection, in nanoseconds.
    pub stall: u64,
    /// Why a connection broke.
    pub broken: Option<String>,
}

/// Rates of all flows.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Datagrams a second in each direction of each pair.
    pub udp: u32,
    /// Echo requests a second.
    pub ping: u32,
    /// Bytes a second in each direction of each TCP transfer.
    pub tcp: u32,
    /// Bytes a second of each HTTP download.
    pub http: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            udp: 45,
            ping: 10,
            tcp: 24_000,
            http: 32_000,
        }
    }
}

/// Two endpoints that talk, and why they were chosen.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The VM.
    pub vm: String,
    /// Whom it talks to.
    pub peer: String,
    /// What the peer is to it.
    pub relation: String,
}

/// Everything of `kinds` between every pair, in every address family that both have; datagrams are
/// two flows, one in each direction.
pub fn flows(network: &Network, pairs: &[Pair], kinds: &[Kind]) -> Result<Vec<Flow>> {
    let endpoint = |name: &str| {
        network
            .topology()
            .endpoint(name)
            .with_context(|| format!("no endpoint {name}"))
    };
    let mut flows: Vec<Flow> = Vec::new();
    for pair in pairs {
        let (vm, peer) = (endpoint(&pair.vm)?, endpoint(&pair.peer)?);
        // Endpoints have IPv4, and perhaps IPv6.
        for (vm_address, peer_address) in vm.addresses().zip(peer.addresses()) {
            let vm = (&pair.vm, vm_address);
            let peer = (&pair.peer, peer_address);
            for &kind in kinds {
                let port = u16::try_from(flows.len())?;
                let ways: &[[(&String, IpAddr); 2]] = match kind {
                    Kind::Udp => &[[peer, vm], [vm, peer]],
                    Kind::Ping | Kind::Tcp | Kind::Http => &[[peer, vm]],
                };
                for [(from, from_address), (to, to_address)] in ways {
                    flows.push(Flow {
                        id: u32::try_from(flows.len())?,
                        kind,
                        from: (*from).clone(),
                        to: (*to).clone(),
                        relation: pair.relation.clone(),
                        from_address: *from_address,
                        to_address: *to_address,
                        port,
                    });
                }
            }
        }
    }
    Ok(flows)
}

/// The flow that a port number belongs to.
pub fn flow_of_port(flows: &[Flow], port: u16) -> Option<&Flow> {
    let (first, kind) = if port >= TCP_PORTS {
        (TCP_PORTS, Kind::Tcp)
    } else {
        (UDP_PORTS, Kind::Udp)
    };
    flows
        .iter()
        .find(|flow| flow.kind == kind && flow.port + first == port)
}

/// Running traffic.
#[derive(Debug)]
pub struct Traffic {
    flows: Vec<Flow>,
    stop: Arc<AtomicBool>,
    datagrams: datagram::Engine,
    tcp: BTreeMap<u32, tcp::Transfer>,
    http: BTreeMap<u32, http::Downloads>,
    servers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Opens all sockets, starts all flows, and returns once every one of them has been heard at its other end.
    pub fn start(network: &Network, flows: Vec<Flow>, rates: Rates) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut servers = BTreeMap::new();
        let mut tcp = BTreeMap::new();
        let mut http = BTreeMap::new();
        for flow in &flows {
            match flow.kind {
                Kind::Tcp => {
                    tcp.insert(
                        flow.id,
                        tcp::Transfer::start(network, flow, rates.tcp, &stop)?,
                    );
                }
                Kind::Http => {
                    if !servers.contains_key(&flow.to) {
                        servers.insert(
                            flow.to.clone(),
                            http::serve(network.node(&flow.to)?, &stop)?,
                        );
                    }
                    http.insert(
                        flow.id,
                        http::Downloads::start(network, flow, rates.http, &stop)?,
                    );
                }
                Kind::Udp | Kind::Ping => {}
            }
        }
        let datagrams = datagram::Engine::start(network, &flows, rates)?;
        let traffic = Self {
            flows,
            stop,
            datagrams,
            tcp,
            http,
            servers: servers.into_values().collect(),
        };
        run::wait_for(
            "first packets of all flows",
            Duration::from_secs(15),
            || {
                traffic.check()?;
                Ok(traffic.silent().is_empty().then_some(()))
            },
        )
        .with_context(|| format!("silent: {}", traffic.silent().join(", ")))?;
        Ok(traffic)
    }

    /// Its flows.
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    fn silent(&self) -> Vec<String> {
        let heard = |flow: &Flow| match flow.kind {
            Kind::Udp | Kind::Ping => self.datagrams.heard(flow.id),
            Kind::Tcp => self.tcp[&flow.id].bytes() > 0,
            Kind::Http => self.http[&flow.id].completed() > 0,
        };
        let silent = self.flows.iter().filter(|flow| !heard(flow));
        silent
            .map(|flow| format!("{} {} → {}", flow.label(), flow.from, flow.to))
            .collect()
    }

    /// Datagrams sent up to now.
    pub fn sent(&self) -> u64 {
        self.datagrams.sent()
    }

    /// An error if a connection broke.
    pub fn check(&self) -> Result<()> {
        let broken = (self.tcp.values().filter_map(tcp::Transfer::broken))
            .chain(self.http.values().filter_map(http::Downloads::broken));
        match broken.into_iter().next() {
            Some(why) => anyhow::bail!("a connection broke: {why}"),
            None => Ok(()),
        }
    }

    /// Waits until everything that was sent by then has arrived, or until `deadline`; then ends
    /// all flows and says what became of them.
    pub fn finish(mut self, deadline: Duration) -> Result<Vec<Record>> {
        let datagrams = self.datagrams.finish(deadline);
        self.stop.store(true, Ordering::Relaxed);
        let mut records = Vec::new();
        for (flow, datagrams) in std::mem::take(&mut self.flows).into_iter().zip(datagrams) {
            let id = flow.id;
            let mut record = Record {
                flow,
                datagrams,
                bytes: 0,
                connections: 0,
                stall: 0,
                broken: None,
            };
            if let Some(transfer) = self.tcp.remove(&id) {
                transfer.finish(&mut record);
            }
            if let Some(downloads) = self.http.remove(&id) {
                downloads.finish(&mut record);
            }
            records.push(record);
        }
        for server in self.servers.drain(..) {
            if server.join().is_err() {
                anyhow::bail!("an HTTP server panicked");
            }
        }
        Ok(records)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Byte `position` of the content of `stream`: any shift, loss or mixture of streams shows.
pub(crate) fn content(stream: u32, position: u64) -> u8 {
    let mixed = (position / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(stream) << 32);
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()[(position % 8) as usize]
}

/// Notes progress of a connection: how long it stalled at most.
#[derive(Debug)]
struct Progress {
    last: Instant,
    longest: Duration,
}

impl Progress {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// When a packet is due next, so that a pause of this process is not followed by a burst.
fn next_due(due: u64, interval: u64) -> u64 {
    let next = due + interval;
    let now = clock::now();
    if next + 20 * interval < now {
        now
    } else {
        next
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A flow for tests of what is done with flows.
    pub(crate) fn flow(from: &str, to: &str) -> Flow {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        Flow {
            id: 0,
            kind: Kind::Udp,
            from: from.into(),
            to: to.into(),
            relation: String::new(),
            from_address: address,
            to_address: address,
            port: 0,
        }
    }

    #[test]
    fn content_tells_streams_and_positions_apart() {
        let a: Vec<u8> = (0..64).map(|at| content(1, at)).collect();
        let b: Vec<u8> = (0..64).map(|at| content(2, at)).collect();
        let shifted: Vec<u8> = (1..65).map(|at| content(1, at)).collect();
        assert_ne!(a, b);
        assert_ne!(a, shifted);
    }
}
