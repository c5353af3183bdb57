//! A generator, a router and a sink in three namespaces, joined by veth pairs.
//!
//! ```text
//! generator  g ──────── in  router  out ──────── k  sink
//! ```
//!
//! Both ends have a sink, so traffic can go either way. Interfaces have the same names and addresses
//! in every site, and indices that tell the site's lane.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use natmig_bench_ebpf::{IN, LANES, OUT};
use natmig_lab::{
    namespace::{Namespace, ip},
    run::Run,
};

use crate::{
    machine,
    programs::Programs,
    traffic::{Area, Density, Direction, Family},
};

/// MAC addresses of the interfaces `g`, `in`, `out` and `k`.
pub const MACS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 0, 0x12],
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 3],
    [2, 0, 0, 0, 0, 4],
];

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Which transmit queue takes what a router's kernel forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// That of the CPU, as with what XDP programs send: most drivers of network cards set it so (XPS).
    ByCpu,
    /// One by a hash of the flow: what the kernel does for a veth by itself.
    ByFlow,
}

/// A generator, a router and a sink.
#[derive(Debug)]
pub struct Site {
    /// Tells its packets from those of other sites.
    pub lane: u32,
    /// Namespace of the generator.
    pub generator: Namespace,
    /// Namespace of the router; none where generator and sink are joined directly.
    pub router: Option<Namespace>,
    /// Namespace of the sink.
    pub sink: Namespace,
}

impl Site {
    /// Builds it. Its router, if there is one, routes everything that traffic can carry.
    pub fn build(run: &Run, lane: u32, has_router: bool, choice: Queues) -> Result<Self> {
        let name = |what: &str| format!("{}b{lane}{what}", run.prefix());
        let generator = Namespace::create(&name("g"))?;
        let sink = Namespace::create(&name("k"))?;
        let mut site = Self {
            lane,
            generator,
            router: None,
            sink,
        };
        let cpus = machine::online();
        let queues = format!("numrxqueues {cpus} numtxqueues {cpus}");
        let pair = |here: &str,
                    index: u32,
                    mac: usize,
                    there: &str,
                    other: u32,
                    peer: usize,
                    to: &str| {
            format!(
                "link add name {here} index {index} address {} {queues} type veth peer name {there} \
                 index {other} address {} {queues} netns {to}\n",
                text(MACS[mac]),
                text(MACS[peer]),
            )
        };
        let (near, far) = (LANES + lane, 2 * LANES + lane);
        if has_router {
            let router = Namespace::create(&name("r"))?;
            ip(
                Some(&router),
                &pair("in", IN + lane, 1, "g", near, 0, site.generator.name()),
            )?;
            ip(
                Some(&router),
                &pair("out", OUT + lane, 2, "k", far, 3, site.sink.name()),
            )?;
            configure(&router)?;
            if choice == Queues::ByCpu {
                give_queues_to_cpus(&router, cpus)?;
            }
            site.router = Some(router);
        } else {
            ip(
                Some(&site.generator),
                &pair("g", near, 0, "k", far, 3, site.sink.name()),
            )?;
        }
        // The kernels at both ends answer for these addresses when the router asks for neighbours.
        for (namespace, interface, address, address6) in [
            (&site.generator, "g", "192.0.2.2/30", "fd00:0:0:1::2/64"),
            (&site.sink, "k", "192.0.2.6/30", "fd00:0:0:2::2/64"),
        ] {
            namespace.sysctl(&[
                ("net.ipv6.conf.all.disable_ipv6", "0"),
                (&format!("net.ipv6.conf.{interface}.accept_dad"), "0"),
                (
                    &format!("net.ipv6.conf.{interface}.router_solicitations"),
                    "0",
                ),
            ])?;
            ip(
                Some(namespace),
                &format!(
                    "link set {interface} up\naddress add {address} dev {interface}\n\
                     address add {address6} dev {interface} nodad\n"
                ),
            )?;
        }
        Ok(site)
    }

    /// The router's namespace.
    pub fn router(&self) -> Result<&Namespace> {
        self.router.as_ref().context("the site has no router")
    }

    /// Attaches sinks to both ends.
    pub fn attach_sinks(&self, programs: &mut Programs) -> Result<()> {
        self.generator
            .enter(|| programs.attach("sink", "g").map(drop))?;
        self.sink.enter(|| programs.attach("sink", "k").map(drop))
    }

    /// Namespace and index of the interface that traffic of a direction is sent from.
    pub fn sender(&self, direction: Direction) -> (&Namespace, u32) {
        match direction {
            Direction::Inwards => (&self.generator, LANES + self.lane),
            Direction::Outwards => (&self.sink, 2 * LANES + self.lane),
        }
    }

    /// The router's interface at which traffic of a direction comes in.
    pub fn ingress(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Inwards => IN + self.lane,
            Direction::Outwards => OUT + self.lane,
        }
    }

    /// MAC addresses, destination and source, of frames in a direction: as sent, and as they arrive.
    pub fn macs(&self, direction: Direction) -> ([[u8; 6]; 2], [[u8; 6]; 2]) {
        let [g, inner, outer, k] = MACS;
        if self.router.is_none() {
            return ([k, g], [k, g]);
        }
        match direction {
            Direction::Inwards => ([inner, g], [k, outer]),
            Direction::Outwards => ([outer, k], [g, inner]),
        }
    }
}

/// Addresses, routes and settings of a router.
fn configure(router: &Namespace) -> Result<()> {
    router.sysctl(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv4.conf.in.rp_filter", "0"),
        ("net.ipv4.conf.out.rp_filter", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv6.conf.in.accept_dad", "0"),
        ("net.ipv6.conf.out.accept_dad", "0"),
        ("net.ipv6.conf.in.router_solicitations", "0"),
        ("net.ipv6.conf.out.router_solicitations", "0"),
    ])?;
    let mut lines = String::from(
        "link set in up\nlink set out up\n\
         address add 192.0.2.1/30 dev in\naddress add 192.0.2.5/30 dev out\n\
         address add fd00:0:0:1::1/64 dev in nodad\naddress add fd00:0:0:2::1/64 dev out nodad\n",
    );
    let (g, k) = (text(MACS[0]), text(MACS[3]));
    write!(
        lines,
        "neighbor add 192.0.2.2 lladdr {g} dev in nud permanent\n\
         neighbor add 192.0.2.6 lladdr {k} dev out nud permanent\n\
         neighbor add fd00:0:0:1::2 lladdr {g} dev in nud permanent\n\
         neighbor add fd00:0:0:2::2 lladdr {k} dev out nud permanent\n"
    )?;
    for area in [
        Area::Identities(Density::Dense),
        Area::Locators(Density::Dense),
        Area::VisitorLocators,
        Area::Untouched,
        Area::Clients,
    ] {
        let (near, far) = ("192.0.2.2", "192.0.2.6");
        let (near6, far6) = ("fd00:0:0:1::2", "fd00:0:0:2::2");
        let (via, via6) = match area {
            Area::Clients => (near, near6),
            Area::Identities(_)
            | Area::Locators(_)
            | Area::Visitors
            | Area::VisitorLocators
            | Area::Untouched => (far, far6),
        };
        write!(
            lines,
            "route add {} via {via}\nroute add {} via {via6}\n",
            area.prefix(Family::Ipv4),
            area.prefix(Family::Ipv6),
        )?;
    }
    ip(Some(router), &lines)
}

/// Has what the kernel forwards leave through the queue of its CPU, as what XDP programs send does. By itself
/// the kernel spreads flows over all queues, and then the chains of all CPUs meet at the sink.
fn give_queues_to_cpus(router: &Namespace, cpus: usize) -> Result<()> {
    let mut script = String::from("set -e\n");
    for interface in ["in", "out"] {
        for cpu in 0..cpus {
            // Words of 32 bits, the highest first.
            let mask = format!("{:x}{}", 1_u32 << (cpu % 32), ",00000000".repeat(cpu / 32));
            writeln!(
                script,
                "echo {mask} > /sys/class/net/{interface}/queues/tx-{cpu}/xps_cpus"
            )?;
        }
    }
    // `ip netns exec` mounts the namespace's own /sys.
    let output = Command::new("ip")
        .args(["netns", "exec", router.name(), "sh", "-c", &script])
        .output()
        .context("cannot run ip (package iproute2)")?;
    anyhow::ensure!(
        output.status.success(),
        "queues of CPUs: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Has the router's interfaces poll, as they do with a program, so that generators can send to them.
pub fn poll_without_program(router: &Namespace) -> Result<()> {
    for interface in ["in", "out"] {
        let output = router
            .command("ethtool")
            .args(["-K", interface, "gro", "on"])
            .output()
            .context("cannot run ethtool (package ethtool)")?;
        anyhow::ensure!(
            output.status.success(),
            "ethtool -K {interface} gro on: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A file in the run's directory.
pub fn file(run: &Run, name: &str) -> PathBuf {
    Path::new(run.directory()).join(name)
}
