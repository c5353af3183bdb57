//! The lab's network: namespaces, bridges, links, addresses and routes, and what happens to them:
//! links are cut and restored, VMs unplugged and plugged in elsewhere.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, socket},
};
use std::os::fd::AsRawFd as _;

use crate::{
    clock,
    device::{self, Attachment, PassProgram},
    namespace::{Namespace, ip, ip_force},
    routing::{self, Routes},
    topology::{Endpoint, RoutedLink, Topology},
};

/// The management network, apart from everything else.
const MANAGEMENT: &str = "mgmt";
/// Its addresses; the controller has the first one.
const MANAGEMENT_NET: [u8; 3] = [198, 18, 0];

/// For how long neighbours are trusted, in milliseconds: longer than any run.
const NEIGHBOR_TRUST: &str = "1000000000";

/// Time after which an endpoint would ask whether an announced neighbour is there, in seconds.
const ANNOUNCEMENT_TRUST: &str = "3600";

/// A network of namespaces.
#[derive(Debug)]
pub struct Network {
    topology: Topology,
    prefix: String,
    nodes: BTreeMap<String, Namespace>,
    links: Vec<RoutedLink>,
    live: Vec<bool>,
    tables: BTreeMap<String, Routes>,
    /// Where each VM is plugged in.
    places: BTreeMap<String, Option<String>>,
    /// Programs at the ends of links where routers' programs send to and none of natmig's is.
    attachments: Vec<Attachment>,
}

fn add_address(lines: &mut Lines, node: &str, address: IpNet, interface: &str) {
    // Nobody else has it, and a lab does not wait until that is known.
    let kind = match address {
        IpNet::V4(address) if address.prefix_len() < 31 => " broadcast +",
        IpNet::V4(_) => "",
        IpNet::V6(_) => " nodad",
    };
    lines.add(
        node,
        format_args!("address add {address} dev {interface}{kind}"),
    );
}

/// Gives a routed link's interfaces their addresses, and brings them up.
fn address_link(lines: &mut Lines, link: &RoutedLink) {
    for end in &link.ends {
        for address in end.prefixes() {
            add_address(lines, &end.node, address, &end.interface);
        }
        lines.add(
            &end.node,
            format_args!("link set {} mtu {} up", end.interface, link.mtu),
        );
    }
}

fn plug_node(vm: &str) -> String {
    format!("plug-{vm}")
}

/// Lines for `ip -batch`, by node.
#[derive(Default)]
struct Lines(BTreeMap<String, String>);

impl Lines {
    fn add(&mut self, node: &str, line: fmt::Arguments<'_>) {
        let lines = self.0.entry(node.to_owned()).or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{line}");
    }
}

impl Network {
    /// Builds it, with every VM at home.
    pub fn build(topology: Topology, prefix: &str) -> Result<Self> {
        let links = topology.routed_links();
        let live = vec![true; links.len()];
        let places = topology
            .vms
            .iter()
            .map(|vm| (vm.name.clone(), None))
            .collect();
        let mut network = Self {
            topology,
            prefix: prefix.to_owned(),
            nodes: BTreeMap::new(),
            links,
            live,
            tables: BTreeMap::new(),
            places,
            attachments: Vec::new(),
        };
        network.create_nodes()?;
        network.create_links()?;
        network.address()?;
        network.set_offloads()?;
        network.reroute(&[])?;
        for vm in network.topology.vms.clone() {
            network.plug(&vm.name, &vm.segment)?;
        }
        Ok(network)
    }

    /// Its description.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The namespace of a node: a router, segment, VM, host, the outside host, or `mgmt`.
    pub fn node(&self, name: &str) -> Result<&Namespace> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node {name} in the lab"))
    }

    /// Names of all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The management network's namespace and the controller's address in it.
    pub fn management(&self) -> Result<(&Namespace, Ipv4Addr)> {
        Ok((self.node(MANAGEMENT)?, management_address(0)))
    }

    /// Where a VM is plugged in.
    pub fn place(&self, vm: &str) -> Option<&str> {
        self.places.get(vm)?.as_deref()
    }

    fn create_nodes(&mut self) -> Result<()> {
        let topology = &self.topology;
        let names: Vec<String> = (topology.routers.iter().map(|router| router.name.clone()))
            .chain(topology.segments.iter().map(|segment| segment.name.clone()))
            .chain(
                topology
                    .vms
                    .iter()
                    .flat_map(|vm| [vm.name.clone(), plug_node(&vm.name)]),
            )
            .chain(topology.hosts.iter().map(|host| host.name.clone()))
            .chain(topology.outside.iter().map(|outside| outside.name.clone()))
            .chain([MANAGEMENT.to_owned()])
            .collect();
        for name in names {
            let namespace = Namespace::create(&format!("{}{name}", self.prefix))?;
            if self.topology.router(&name).is_some() {
                namespace.enable_ipv6()?;
                namespace.sysctl(&[
                    ("net.ipv4.ip_forward", "1"),
                    ("net.ipv6.conf.all.forwarding", "1"),
                    ("net.ipv4.conf.all.rp_filter", "2"),
                    ("net.ipv4.conf.default.rp_filter", "2"),
                    ("net.ipv4.conf.all.send_redirects", "0"),
                    ("net.ipv4.conf.default.send_redirects", "0"),
                    // So that traceroute need not wait for its answers.
                    ("net.ipv4.icmp_ratelimit", "0"),
                    ("net.ipv6.icmp.ratelimit", "0"),
                ])?;
            } else {
                if self.topology.endpoint(&name).is_some() {
                    namespace.enable_ipv6()?;
                }
                namespace.sysctl(&[
                    ("net.ipv4.conf.all.rp_filter", "0"),
                    ("net.ipv4.conf.default.rp_filter", "0"),
                ])?;
            }
            self.nodes.insert(name, namespace);
        }
        Ok(())
    }

    /// All veth pairs as `(node, interface)` at both ends.
    fn pairs(&self) -> Vec<[(String, String); 2]> {
        let pair = |a: &str, b: &str, c: &str, d: &str| {
            [(a.to_owned(), b.to_owned()), (c.to_owned(), d.to_owned())]
        };
        let topology = &self.topology;
        let mut pairs = Vec::new();
        for link in &self.links {
            let [a, b] = &link.ends;
            pairs.push(pair(&a.node, &a.interface, &b.node, &b.interface));
        }
        for segment in &topology.segments {
            for router in &segment.routers {
                pairs.push(pair(router, &segment.name, &segment.name, router));
            }
        }
        for host in &topology.hosts {
            pairs.push(pair(&host.name, "eth0", &host.segment, &host.name));
        }
        for vm in &topology.vms {
            let plug = plug_node(&vm.name);
            pairs.push(pair(&vm.name, "eth0", &plug, "guest"));
            for segment in &topology.segments {
                pairs.push(pair(&plug, &segment.name, &segment.name, &vm.name));
            }
        }
        for router in &topology.routers {
            pairs.push(pair(&router.name, "mgmt0", MANAGEMENT, &router.name));
        }
        pairs
    }

    /// Makes a veth pair, from `(node, interface)` at both ends.
    fn veth_line(&self, [one, other]: &[(String, String); 2]) -> Result<String> {
        let (node, peer) = (self.node(&one.0)?, self.node(&other.0)?);
        let (interface, peer_interface) = (&one.1, &other.1);
        Ok(format!(
            "link add {interface} netns {} type veth peer name {peer_interface} netns {}\n",
            node.name(),
            peer.name()
        ))
    }

    fn create_links(&self) -> Result<()> {
        let lines: Result<String> = self.pairs().iter().map(|it| self.veth_line(it)).collect();
        ip(None, &lines?)?;
        let bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        for segment in &self.topology.segments {
            ip(
                Some(self.node(&segment.name)?),
                &format!("link add rack {bridge}\nlink set rack up\n"),
            )?;
        }
        for vm in &self.topology.vms {
            let node = self.node(&plug_node(&vm.name))?;
            ip(
                Some(node),
                &format!("link add plug {bridge}\nlink set plug up\nlink set guest master plug\n"),
            )?;
        }
        ip(
            Some(self.node(MANAGEMENT)?),
            &format!("link add mgmt {bridge}\nlink set mgmt up\n"),
        )?;
        Ok(())
    }

    /// Gives addresses, puts ports into bridges, and brings everything up.
    fn address(&self) -> Result<()> {
        let mut lines = Lines::default();
        self.address_routers(&mut lines);
        self.address_machines(&mut lines)?;
        for (node, lines) in lines.0 {
            ip(Some(self.node(&node)?), &lines)?;
        }
        Ok(())
    }

    fn address_routers(&self, lines: &mut Lines) {
        let topology = &self.topology;
        for link in &self.links {
            address_link(lines, link);
        }
        for segment in &topology.segments {
            let name = &segment.name;
            for (index, router) in segment.routers.iter().enumerate() {
                let addresses = Topology::access_addresses(segment, index);
                let ipv4 = addresses.iter().find_map(|address| match address {
                    IpNet::V4(address) => Some(address.addr()),
                    IpNet::V6(_) => None,
                });
                let mac = Topology::mac(ipv4.unwrap_or(segment.gateway));
                for address in addresses {
                    add_address(lines, router, address, name);
                }
                lines.add(router, format_args!("link set {name} address {mac} up"));
                lines.add(name, format_args!("link set {router} master rack up"));
            }
        }
        for (index, router) in topology.routers.iter().enumerate() {
            let address = management_address(10 + index);
            lines.add(
                &router.name,
                format_args!("address add {address}/24 dev mgmt0"),
            );
            lines.add(&router.name, format_args!("link set mgmt0 up"));
            lines.add(
                MANAGEMENT,
                format_args!("link set {} master mgmt up", router.name),
            );
        }
        lines.add(
            MANAGEMENT,
            format_args!("address add {}/24 dev mgmt", management_address(0)),
        );
    }

    fn address_machines(&self, lines: &mut Lines) -> Result<()> {
        let topology = &self.topology;
        let vms = topology.vms.iter().map(|vm| (&vm.name, &vm.segment));
        let hosts = topology
            .hosts
            .iter()
            .map(|host| (&host.name, &host.segment));
        for (name, segment) in vms.chain(hosts) {
            let segment = topology.segment(segment).context("checked when parsed")?;
            let machine = topology.endpoint(name).context("checked when parsed")?;
            let mac = Topology::mac(machine.address);
            lines.add(name, format_args!("link set eth0 address {mac} up"));
            for (address, prefix) in machine.addresses().zip(segment.prefixes()) {
                let address = IpNet::new(address, prefix.prefix_len())?;
                add_address(lines, name, address, "eth0");
            }
            for gateway in segment.gateways() {
                lines.add(
                    name,
                    format_args!("route add default via {gateway} dev eth0"),
                );
            }
        }
        for host in &topology.hosts {
            lines.add(
                &host.segment,
                format_args!("link set {} master rack up", host.name),
            );
        }
        for vm in &topology.vms {
            let plug = plug_node(&vm.name);
            lines.add(&plug, format_args!("link set guest up"));
            for segment in &topology.segments {
                lines.add(&plug, format_args!("link set {} up", segment.name));
                lines.add(&segment.name, format_args!("link set {} up", vm.name));
            }
        }
        if let Some(outside) = &topology.outside {
            let endpoint = topology.endpoint(&outside.name);
            for address in endpoint.iter().flat_map(Endpoint::addresses) {
                add_address(lines, &outside.name, address.into(), "lo");
            }
        }
        Ok(())
    }

    /// Makes packets on all links look to XDP as they would on a wire.
    fn set_offloads(&mut self) -> Result<()> {
        let program = PassProgram::load()?;
        let mut attachments = Vec::new();
        let topology = &self.topology;
        let mut interfaces: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, interface) in self.pairs().into_iter().flatten() {
            interfaces.entry(node).or_default().push(interface);
        }
        for (node, interfaces) in interfaces {
            let segment = topology.segment(&node);
            let outside = topology
                .outside
                .as_ref()
                .is_some_and(|outside| outside.name == node);
            let attached = self.node(&node)?.enter(|| {
                let mut attached = Vec::new();
                for interface in &interfaces {
                    device::complete_packets(interface)?;
                    if outside || segment.is_some_and(|segment| segment.routers.contains(interface))
                    {
                        attached.push(program.attach(interface)?);
                    }
                }
                Ok(attached)
            })?;
            attachments.extend(attached);
        }
        self.attachments = attachments;
        Ok(())
    }

    /// Brings every node's static routes to the shortest paths over the live links; on `touched`
    /// nodes, whose kernel may have dropped routes by itself, all of them are written again.
    fn reroute(&mut self, touched: &[&str]) -> Result<()> {
        let tables = routing::routes(&self.topology, &self.links, &self.live);
        let outside = self.topology.outside.as_ref();
        let outside = outside.and_then(|outside| self.topology.endpoint(&outside.name));
        for (node, new) in &tables {
            let mut old = self.tables.remove(node).unwrap_or_default();
            if touched.contains(&node.as_str()) {
                old.values_mut().for_each(Vec::clear);
            }
            let sources: Vec<IpAddr> = outside
                .iter()
                .filter(|outside| outside.name == *node)
                .flat_map(Endpoint::addresses)
                .collect();
            ip_force(Some(self.node(node)?), &routing::batch(&old, new, &sources))?;
        }
        self.tables = tables;
        Ok(())
    }

    fn link(&self, a: &str, b: &str) -> Result<usize> {
        self.links
            .iter()
            .position(|link| {
                let [x, y] = [&link.ends[0].node, &link.ends[1].node];
                (x == a && y == b) || (x == b && y == a)
            })
            .with_context(|| format!("no link {a} – {b}"))
    }

    fn set_links(&mut self, links: &[usize], live: bool) -> Result<()> {
        let state = if live { "up" } else { "down" };
        let mut lines = Lines::default();
        for &index in links {
            self.live[index] = live;
            for end in &self.links[index].ends {
                lines.add(
                    &end.node,
                    format_args!("link set {} {state}", end.interface),
                );
            }
        }
        for (node, lines) in &lines.0 {
            ip(Some(self.node(node)?), lines)?;
        }
        let touched: Vec<&str> = lines.0.keys().map(String::as_str).collect();
        self.reroute(&touched)
    }

    /// Cuts a link between two routers, as if the cable were pulled, then routes around it.
    pub fn cut_link(&mut self, a: &str, b: &str) -> Result<()> {
        self.set_links(&[self.link(a, b)?], false)
    }

    /// Brings a link back.
    pub fn restore_link(&mut self, a: &str, b: &str) -> Result<()> {
        self.set_links(&[self.link(a, b)?], true)
    }

    /// Takes a fabric link away, interfaces and all, then routes around it.
    pub fn remove_link(&mut self, a: &str, b: &str) -> Result<()> {
        let index = self.fabric_link(a, b)?;
        let [near, far] = self.links[index].ends.clone();
        // The far end goes with it.
        let line = format!("link delete {}\n", near.interface);
        ip(Some(self.node(&near.node)?), &line)?;
        self.live[index] = false;
        self.reroute(&[&near.node, &far.node])
    }

    /// Makes a removed link anew, as it was; nothing is routed over it until it is restored.
    pub fn make_link(&self, a: &str, b: &str) -> Result<()> {
        let link = &self.links[self.fabric_link(a, b)?];
        let [near, far] = link.ends.clone();
        let pair = [(near.node, near.interface), (far.node, far.interface)];
        ip(None, &self.veth_line(&pair)?)?;
        let mut lines = Lines::default();
        address_link(&mut lines, link);
        for (node, interface) in &pair {
            let node = self.node(node)?;
            node.enter(|| device::complete_packets(interface))?;
        }
        for (node, lines) in &lines.0 {
            ip(Some(self.node(node)?), lines)?;
        }
        Ok(())
    }

    /// A link whose ends are both natmig's.
    fn fabric_link(&self, a: &str, b: &str) -> Result<usize> {
        let index = self.link(a, b)?;
        ensure!(!self.links[index].external, "{a} – {b} leads outside");
        Ok(index)
    }

    fn links_of(&self, router: &str) -> Vec<usize> {
        let is_its = |link: &RoutedLink| link.ends.iter().any(|end| end.node == router);
        (0..self.links.len())
            .filter(|&index| is_its(&self.links[index]))
            .collect()
    }

    /// Cuts all routed links of a router, then routes around it.
    pub fn isolate(&mut self, router: &str) -> Result<()> {
        self.set_links(&self.links_of(router), false)
    }

    /// Brings all routed links of a router back.
    pub fn rejoin(&mut self, router: &str) -> Result<()> {
        self.set_links(&self.links_of(router), true)
    }

    /// Brings all links back that are cut.
    pub fn restore_all(&mut self) -> Result<()> {
        let is_cut = |index: &usize| !self.live[*index];
        let cut: Vec<usize> = (0..self.links.len()).filter(is_cut).collect();
        self.set_links(&cut, true)
    }

    /// Lets nobody doubt whether his neighbours are still there. A guest that is paused for seconds
    /// asks for nobody meanwhile, but one that is unplugged here goes on: when its neighbours' entries
    /// have failed, it asks again only once a second, and so do they, and what they would send until
    /// then they drop in the end. So endpoints do not doubt what an announcement told them either: a
    /// wrong entry stays, and is noticed.
    pub fn trust_neighbors(&self) -> Result<()> {
        for (node, interface) in self.pairs().into_iter().flatten() {
            let mut settings = Vec::new();
            if self.topology.endpoint(&node).is_some() || self.topology.router(&node).is_some() {
                settings.push(("base_reachable_time_ms", NEIGHBOR_TRUST));
            }
            if self.topology.endpoint(&node).is_some() {
                settings.push(("delay_first_probe_time", ANNOUNCEMENT_TRUST));
            }
            let namespace = self.node(&node)?;
            for (setting, value) in settings {
                for family in ["ipv4", "ipv6"] {
                    let name = format!("net.{family}.neigh.{interface}.{setting}");
                    namespace.sysctl(&[(&name, value)])?;
                }
            }
        }
        Ok(())
    }

    /// Has connections try again every two seconds at the latest, where the kernel can be told (Linux
    /// 6.15): otherwise an outage of a minute silences them for another two, and when their VMs move
    /// all the time each attempt may fall into a move. They may try 255 times; the usual 15 would be
    /// over after half a minute.
    pub fn retry_soon(&self) -> Result<()> {
        const SETTING: &str = "net.ipv4.tcp_rto_max_ms";
        for (name, namespace) in &self.nodes {
            if self.topology.endpoint(name).is_none() {
                continue;
            }
            let path = format!("/proc/sys/{}", SETTING.replace('.', "/"));
            if namespace.enter(|| Ok(std::path::Path::new(&path).exists()))? {
                namespace.sysctl(&[(SETTING, "2000"), ("net.ipv4.tcp_retries2", "255")])?;
            }
        }
        Ok(())
    }

    /// Takes a router off the management network, or puts it back.
    pub fn set_management(&self, router: &str, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        let line = format!("link set mgmt0 {state}\n");
        ip(Some(self.node(router)?), &line)
    }

    /// Takes a VM off its rack; its own link keeps carrier. Returns when it began, in nanoseconds
    /// since the epoch.
    pub fn unplug(&mut self, vm: &str) -> Result<u64> {
        let place = self
            .places
            .get_mut(vm)
            .with_context(|| format!("no VM {vm}"))?;
        let segment = place
            .take()
            .with_context(|| format!("{vm} is not plugged in"))?;
        let plug = self.node(&plug_node(vm))?;
        let began = clock::now();
        plug.enter(|| device::remove_port("plug", &segment))?;
        self.node(&segment)?
            .enter(|| device::remove_port("rack", vm))?;
        Ok(began)
    }

    /// Plugs a VM into a rack and says so as a hypervisor does. Returns when it was done, in
    /// nanoseconds since the epoch.
    pub fn plug(&mut self, vm: &str, segment: &str) -> Result<u64> {
        ensure!(
            self.topology.segment(segment).is_some(),
            "no segment {segment}"
        );
        let address = self
            .topology
            .vm(vm)
            .with_context(|| format!("no VM {vm}"))?
            .address;
        ensure!(self.place(vm).is_none(), "{vm} is plugged in already");
        self.node(segment)?.enter(|| device::add_port("rack", vm))?;
        self.node(&plug_node(vm))?.enter(|| {
            device::add_port("plug", segment)?;
            let mac = vm_mac(address);
            announce(segment, mac, mac)
        })?;
        let done = clock::now();
        self.places.insert(vm.to_owned(), Some(segment.to_owned()));
        Ok(done)
    }

    /// Sends the RARP frame of [`Self::plug`] out of a node's interface: from the MAC address `source`,
    /// in the name of `named`.
    pub fn announce(
        &self,
        node: &str,
        interface: &str,
        source: [u8; 6],
        named: [u8; 6],
    ) -> Result<()> {
        self.node(node)?
            .enter(|| announce(interface, source, named))
    }

    /// Prefix of the pools that no endpoint may ever see.
    pub fn pools(&self) -> Vec<IpNet> {
        self.topology.pools()
    }
}

fn management_address(index: usize) -> Ipv4Addr {
    let [a, b, c] = MANAGEMENT_NET;
    Ipv4Addr::new(a, b, c, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

/// A VM's MAC address.
pub fn vm_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// Sends the RARP frame with which QEMU tells switches where a guest is, out of `interface`.
fn announce(interface: &str, source: [u8; 6], named: [u8; 6]) -> Result<()> {
    const RARP: [u8; 2] = [0x80, 0x35];
    let mut frame = Vec::with_capacity(60);
    frame.extend([0xff; 6]);
    frame.extend(source);
    frame.extend(RARP);
    // Ethernet, IPv4, lengths of both, request reverse.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(named);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None::<SockProtocol>,
    )?;
    // SAFETY: a sockaddr_ll is plain data, for which all zeroes are valid.
    let mut link: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    link.sll_family = u16::try_from(libc::AF_PACKET)?;
    link.sll_ifindex = i32::try_from(if_nametoindex(interface)?)?;
    link.sll_halen = 6;
    // SAFETY: frame and address live until the call returns, and their lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            MsgFlags::empty().bits(),
            std::ptr::from_ref(&link).cast(),
            libc::socklen_t::try_from(size_of_val(&link))?,
        )
    };
    nix::errno::Errno::result(sent).with_context(|| format!("announcement on {interface}"))?;
    Ok(())
}
