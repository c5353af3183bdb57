//! Equal paths: flows are spread over them, each keeps to its own with all that belongs to it, and none
//! is lost with one of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use natmig::router::reader::Reader;
use natmig_lab::{Lab, run::wait_for};
use nix::net::if_::if_nametoindex;

use crate::common::{migrate, run, scenario, three_tier};

/// Each from an address of its own to the VM: what makes flows differ is their addresses, since
/// fragments show no more.
const FLOWS: u8 = 32;

/// Bytes of a flow's datagrams in a round: some are larger than a link's MTU.
const SIZES: [usize; 6] = [100, 4000, 100, 4000, 100, 100];

/// Packets that these become, in either family.
const PACKETS: u64 = 4 + 2 * 3;

/// Within this everything happens that happens at all: generous, the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// The counters of what comes in on a router's interface.
struct Counters {
    reader: Reader,
    ifindex: u32,
}

impl Counters {
    fn open(lab: &Lab, router: &str, interface: &str) -> Result<Self> {
        let node = lab.network.node(router)?;
        Ok(Self {
            reader: Reader::open(&lab.instance(router))?,
            ifindex: node.enter(|| Ok(if_nametoindex(interface)?))?,
        })
    }

    fn packets(&self, name: &str) -> Result<u64> {
        let interfaces = self.reader.interfaces()?;
        let interface = interfaces.iter().find(|it| it.ifindex == self.ifindex);
        let counters = interface.map(|interface| &interface.counters);
        let counter = counters.into_iter().flatten().find(|it| it.name == name);
        Ok(counter.with_context(|| format!("no {name}"))?.packets)
    }
}

/// Flows from host1 to vm1, which is away: edge1 has two equal paths for them.
struct Flows {
    senders: Vec<UdpSocket>,
    receiver: UdpSocket,
    edge1: Counters,
    paths: BTreeMap<&'static str, Counters>,
}

fn source(vm: IpAddr, flow: u8) -> (IpAddr, u8) {
    match vm {
        IpAddr::V4(_) => (Ipv4Addr::new(10, 1, 1, 64 + flow).into(), 24),
        IpAddr::V6(_) => {
            let last = 0x100 + u16::from(flow);
            (Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last).into(), 64)
        }
    }
}

impl Flows {
    fn open(lab: &Lab, vm: IpAddr) -> Result<Self> {
        let host = lab.network.node("host1")?;
        let mut senders = Vec::new();
        for flow in 0..FLOWS {
            let (source, length) = source(vm, flow);
            let address = format!("{source}/{length}");
            run(
                lab,
                "host1",
                "ip",
                &["address", "add", &address, "dev", "eth0"],
            )?;
            senders.push(host.enter(|| Ok(UdpSocket::bind((source, 0))?))?);
        }
        let guest = lab.network.node("vm1")?;
        let receiver = guest.enter(|| Ok(UdpSocket::bind((vm, 0))?))?;
        receiver.set_read_timeout(Some(DEADLINE))?;
        Ok(Self {
            senders,
            receiver,
            edge1: Counters::open(lab, "edge1", "rack1")?,
            paths: BTreeMap::from([
                ("agg1", Counters::open(lab, "agg1", "edge1")?),
                ("agg2", Counters::open(lab, "agg2", "edge1")?),
            ]),
        })
    }

    /// Packets that came by each path.
    fn counted(&self) -> Result<BTreeMap<&'static str, u64>> {
        let paths = self.paths.iter();
        paths
            .map(|(path, counters)| Ok((*path, counters.packets("transit")?)))
            .collect()
    }

    /// Sends a flow's datagrams, all of which must arrive; how many packets took each path.
    fn send(&self, sender: &UdpSocket) -> Result<BTreeMap<&'static str, u64>> {
        let from = sender.local_addr()?;
        let before = self.counted()?;
        for (number, size) in SIZES.into_iter().enumerate() {
            let datagram = vec![u8::try_from(number)?; size];
            sender.send_to(&datagram, self.receiver.local_addr()?)?;
            let mut received = vec![0; size + 1];
            let (length, source) = self
                .receiver
                .recv_from(&mut received)
                .with_context(|| format!("datagram {number} from {from} is lost"))?;
            received.truncate(length);
            ensure!(
                source == from && received == datagram,
                "{length} bytes from {source} arrived instead of datagram {number} from {from}"
            );
        }
        let mut took = self.counted()?;
        for (path, packets) in &mut took {
            *packets -= before[path];
        }
        Ok(took)
    }

    /// The path that each flow takes by natmig's own next hops; `None` if one took several. While the
    /// machine is so busy that an agent vouches for them late, the kernel is asked, which spreads in its
    /// own way: such a round does not count.
    fn paths(&self) -> Result<Option<Vec<&'static str>>> {
        let took = wait_for("flows that do not ask the kernel", DEADLINE, || {
            let asked = self.edge1.packets("fib_asked")?;
            let took: Result<Vec<_>> = self.senders.iter().map(|it| self.send(it)).collect();
            let took = took?;
            Ok((self.edge1.packets("fib_asked")? == asked).then_some(took))
        })?;
        let path = |took: &BTreeMap<&'static str, u64>| {
            let whole = took.iter().find(|(_, packets)| **packets == PACKETS);
            whole.map(|(path, _)| *path)
        };
        Ok(took.iter().map(path).collect())
    }
}

/// Flows that took a path.
fn share(paths: &[&str], path: &str) -> usize {
    paths.iter().filter(|it| **it == path).count()
}

fn spread(lab: &mut Lab, vm: IpAddr) -> Result<()> {
    migrate(lab, &[("vm1", "rack3")])?;
    lab.wait_followed()?;
    let flows = Flows::open(lab, vm)?;
    // A path is left out until its neighbour is resolved.
    let paths = wait_for("flows on both paths", DEADLINE, || {
        let paths = flows.paths()?.unwrap_or_default();
        let are_used = share(&paths, "agg1") > 0 && share(&paths, "agg2") > 0;
        Ok(are_used.then_some(paths))
    })?;
    let fair = usize::from(FLOWS / 4);
    ensure!(
        share(&paths, "agg1") >= fair && share(&paths, "agg2") >= fair,
        "{paths:?}"
    );
    let again = flows.paths()?.context("a flow took several paths")?;
    ensure!(again == paths, "{again:?} after {paths:?}");
    for (cut, left) in [("agg1", "agg2"), ("agg2", "agg1")] {
        lab.network.cut_link(cut, "edge1")?;
        lab.wait_followed()?;
        let moved = flows.paths()?.context("a flow took several paths")?;
        ensure!(
            share(&moved, left) == flows.senders.len(),
            "{cut} is cut off: {moved:?}"
        );
        lab.network.restore_link(cut, "edge1")?;
        wait_for("flows on the paths that they had", DEADLINE, || {
            Ok((flows.paths()?.as_ref() == Some(&paths)).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn flows_of_ipv4_are_spread_and_move_with_their_paths() {
    scenario(three_tier(), |lab| spread(lab, [10, 1, 1, 10].into()));
}

#[test]
fn flows_of_ipv6_are_spread_and_move_with_their_paths() {
    scenario(three_tier(), |lab| {
        let vm = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
        spread(lab, vm.into())
    });
}
