//! What natmig keeps in the kernel beside its programs: the router's port, host routes and permanent
//! neighbours under a protocol number of natmig's own, promiscuous mode.
//!
//! All of it follows from the tables and is reconciled with them at start.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use natmig_common::{Action, FLAG_PROMISCUOUS, Interface, Role};

use super::{
    RouterError,
    address_map::{AddressMap, AddressSet},
    instance::Instance,
    interfaces::Attached,
    netlink::{Change, Socket},
    tables::Bound,
    version::Decoded,
};

/// `ETHTOOL_STXCSUM`, include/uapi/linux/ethtool.h.
const SET_TX_CHECKSUM: u32 = 0x17;

/// Both ends of the router's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// The kernel's end, where host routes point.
    pub(super) near: u32,
    /// natmig's end, where the program runs.
    pub(super) far: u32,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
}

/// How the kernel reaches an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostRoute {
    /// Through the router's port, where the program translates. The kernel speaks with its address
    /// on the VM's home segment: others of its addresses may be unknown in the fabric.
    Port { home: u32 },
    /// Directly, on the access interface where the VM visits.
    Access { ifindex: u32, mac: [u8; 6] },
}

fn host_route(version: &Decoded) -> Option<HostRoute> {
    if version.is_home() {
        return Some(HostRoute::Port {
            home: version.ifindex,
        });
    }
    version.is_visitor().then_some(HostRoute::Access {
        ifindex: version.ifindex,
        mac: version.mac,
    })
}

/// How the kernel reaches a bound identity, of which this version counts.
///
/// Its way to a visitor is given up as soon as it is prepared that the VM leaves. What little the kernel
/// forwards to it until the commit goes by the VM's home, which sends it here again. From the commit on
/// the identity may be unbound, and then everything to it is the kernel's, which would send it where the
/// VM was, and tell hosts of that segment to do so by themselves (redirects, RFC 4861, section 8).
fn host_route_of(bound: &Bound, version: &Decoded) -> Option<HostRoute> {
    let leaves = |pending: &Decoded| pending.action != Action::Local && !pending.is_home();
    match host_route(version) {
        Some(HostRoute::Access { .. }) if bound.pending.as_ref().is_some_and(leaves) => None,
        route => route,
    }
}

/// The interface on which frames for other MAC addresses matter because of a version.
fn watched(version: &Decoded) -> Option<u32> {
    (version.is_home() || version.action == Action::Local).then_some(version.ifindex)
}

/// The port's address: the dummy address of RFC 7600, which nothing ever talks to.
const PORT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The kernel's state of one instance.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) socket: Socket,
    pub(super) port: Port,
    routes: AddressMap<IpAddr, HostRoute>,
    /// The router's addresses by interface, of both families.
    own_addresses: BTreeMap<u32, [Option<IpAddr>; 2]>,
    watched: BTreeMap<u32, AddressSet<IpAddr>>,
}

impl Kernel {
    pub(super) fn new(socket: Socket, port: Port) -> Self {
        Self {
            socket,
            port,
            routes: AddressMap::default(),
            own_addresses: BTreeMap::new(),
            watched: BTreeMap::new(),
        }
    }

    /// Finds the port, or creates it; sets it up either way.
    pub(super) fn ensure_port(
        socket: &mut Socket,
        instance: &Instance,
        mtu: u32,
    ) -> Result<Port, RouterError> {
        let (near, far) = instance.port();
        let doing = || RouterError::system(format!("set up the router's port {near}"));
        if Self::find_port(socket, instance)?.is_none() {
            socket
                .create_port(&near, &far, port_mac(&instance.name))
                .map_err(doing())?;
        }
        let Some(port) = Self::find_port(socket, instance)? else {
            return Err(RouterError::NoInterface(near));
        };
        for ifindex in [port.near, port.far] {
            if port.mtu != mtu {
                socket.set_mtu(ifindex, mtu).map_err(doing())?;
            }
            let flags = libc::IFF_NOARP | libc::IFF_UP;
            socket.set_flags(ifindex, flags, flags).map_err(doing())?;
        }
        // The program cannot complete a checksum that the kernel left to hardware.
        disable_tx_checksum(&near).map_err(doing())?;
        write_sysctl("ipv4", &far, "rp_filter", "0").map_err(doing())?;
        // A packet that the program leaves to the kernel, to resolve its next hop or to fragment it,
        // comes in here with the router's own address as its source.
        write_sysctl("ipv4", &far, "accept_local", "1").map_err(doing())?;
        for (name, value) in [("accept_ra", "0"), ("forwarding", "1")] {
            match write_sysctl("ipv6", &far, name, value) {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(doing())?,
            }
        }
        // Where reverse-path filtering is loose for all interfaces, the kernel drops whatever comes in
        // on an interface without an address.
        socket
            .add_address(port.far, PORT_ADDRESS)
            .map_err(doing())?;
        Ok(Port { mtu, ..port })
    }

    /// The port, if it exists.
    pub(super) fn find_port(
        socket: &mut Socket,
        instance: &Instance,
    ) -> Result<Option<Port>, RouterError> {
        let (near, far) = instance.port();
        let links = socket
            .links()
            .map_err(RouterError::system("list interfaces"))?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let (Some(near_link), Some(far_link)) = (find(&near), find(&far)) else {
            return Ok(None);
        };
        if near_link.kind.as_deref() != Some("veth") || near_link.mac != far_link.mac {
            return Err(RouterError::NotOurs { path: near.into() });
        }
        Ok(Some(Port {
            near: near_link.ifindex,
            far: far_link.ifindex,
            mac: near_link.mac,
            mtu: near_link.mtu,
        }))
    }

    /// Makes the kernel hold what the tables say, whatever it holds. `entries` come with the
    /// version that counts.
    pub(super) fn reconcile(
        &mut self,
        entries: impl Iterator<Item = (Bound, Decoded)>,
        access: &HashSet<u32>,
    ) -> Result<(), RouterError> {
        let mut wanted = AddressMap::default();
        for (bound, version) in entries {
            self.watch(&bound);
            if let Some(route) = host_route_of(&bound, &version) {
                wanted.insert(bound.address, route);
            }
        }
        let doing = || RouterError::system("reconcile host routes and neighbours");
        let mut changes = Vec::new();
        let ours = |ifindex: &u32| *ifindex == self.port.near || access.contains(ifindex);
        let mut present = AddressSet::default();
        for (address, ifindex) in self.socket.routes().map_err(doing())? {
            let right = match wanted.get(&address) {
                Some(HostRoute::Port { .. }) => ifindex == self.port.near,
                Some(HostRoute::Access { ifindex: right, .. }) => ifindex == *right,
                None => false,
            };
            if right {
                present.insert(address);
            } else if ours(&ifindex) {
                changes.push(Change::RemoveRoute { address, ifindex });
            }
        }
        let mut resolved = AddressSet::default();
        for (address, ifindex, mac) in self.socket.neighbors().map_err(doing())? {
            if wanted.get(&address) == Some(&HostRoute::Access { ifindex, mac }) {
                resolved.insert(address);
            } else if ours(&ifindex) {
                changes.push(Change::RemoveNeighbor { address, ifindex });
            }
        }
        for (address, route) in &wanted {
            if let HostRoute::Access { ifindex, mac } = *route
                && !resolved.contains(address)
            {
                changes.push(Change::AddNeighbor {
                    address: *address,
                    ifindex,
                    mac,
                });
            }
            if !present.contains(address) {
                changes.push(self.add_route(*address, *route));
            }
        }
        self.socket.apply(&changes).map_err(doing())?;
        self.routes = wanted;
        Ok(())
    }

    fn add_route(&self, address: IpAddr, route: HostRoute) -> Change {
        let (ifindex, segment) = match route {
            HostRoute::Port { home } => (self.port.near, home),
            HostRoute::Access { ifindex, .. } => (ifindex, ifindex),
        };
        Change::AddRoute {
            address,
            ifindex,
            source: self
                .own_addresses
                .get(&segment)
                .and_then(|own| own[usize::from(address.is_ipv6())]),
        }
    }

    /// Takes note of the router's interfaces: its own addresses on them; that access interfaces
    /// receive frames to the gateway's MAC address, which guests and their peers keep sending long
    /// after a VM has gone home.
    pub(super) fn adopt(
        &mut self,
        interfaces: &BTreeMap<u32, Attached>,
        gateway_mac: [u8; 6],
    ) -> Result<(), RouterError> {
        let mut changes = Vec::new();
        self.own_addresses.clear();
        for (ifindex, attached) in interfaces {
            let interface = &attached.interface;
            let own = [
                IpAddr::from(interface.address),
                IpAddr::from(interface.address_ipv6),
            ];
            let own = own.map(|address| (!address.is_unspecified()).then_some(address));
            self.own_addresses.insert(*ifindex, own);
            let is_access = attached.interface.role == Role::Access as u8;
            if is_access && attached.interface.mac != gateway_mac {
                changes.push(Change::TakeMac {
                    ifindex: *ifindex,
                    mac: gateway_mac,
                });
            }
        }
        self.socket.apply(&changes).map_err(RouterError::system(
            "set up MAC addresses of the interfaces",
        ))
    }

    /// Has the kernel keep the gateways of its routes resolved: the program's look-ups resolve no
    /// neighbour, and do not tell the kernel that one is used.
    pub(super) fn keep_gateways(
        &mut self,
        interfaces: &BTreeMap<u32, Attached>,
    ) -> Result<(), RouterError> {
        let doing = || RouterError::system("keep the next hops resolved");
        let gateways = self.socket.gateways().map_err(doing())?;
        // Being kept would end their permanence.
        let permanent = self.socket.permanent_neighbors().map_err(doing())?;
        let changes: Vec<Change> = gateways
            .into_iter()
            .filter(|gateway| interfaces.contains_key(&gateway.1) && !permanent.contains(gateway))
            .map(|(address, ifindex)| Change::KeepNeighbor { address, ifindex })
            .collect();
        self.socket.apply(&changes).map_err(doing())
    }

    /// Gives both ends of the port another MTU.
    pub(super) fn set_port_mtu(&mut self, mtu: u32) -> Result<(), RouterError> {
        if self.port.mtu == mtu {
            return Ok(());
        }
        for ifindex in [self.port.near, self.port.far] {
            self.socket
                .set_mtu(ifindex, mtu)
                .map_err(RouterError::system("set the MTU of the router's port"))?;
        }
        self.port.mtu = mtu;
        Ok(())
    }

    /// Lets the kernel's routes and neighbours follow versions that were committed.
    pub(super) fn follow(
        &mut self,
        versions: impl Iterator<Item = (IpAddr, Decoded)>,
    ) -> Result<(), RouterError> {
        self.set_routes(versions.map(|(address, version)| (address, host_route(&version))))
    }

    /// Lets them follow what the tables say of addresses, with the versions that count.
    pub(super) fn follow_entries(
        &mut self,
        entries: impl Iterator<Item = (Bound, Decoded)>,
    ) -> Result<(), RouterError> {
        self.set_routes(
            entries.map(|(bound, version)| (bound.address, host_route_of(&bound, &version))),
        )
    }

    fn set_routes(
        &mut self,
        routes: impl Iterator<Item = (IpAddr, Option<HostRoute>)>,
    ) -> Result<(), RouterError> {
        let mut changes = Vec::new();
        for (address, wanted) in routes {
            let held = self.routes.get(&address).copied();
            if wanted == held {
                continue;
            }
            if let Some(HostRoute::Access { ifindex, .. }) = held {
                changes.push(Change::RemoveNeighbor { address, ifindex });
            }
            if let Some(route) = wanted {
                if let HostRoute::Access { ifindex, mac } = route {
                    changes.push(Change::AddNeighbor {
                        address,
                        ifindex,
                        mac,
                    });
                }
                changes.push(self.add_route(address, route));
                self.routes.insert(address, route);
            } else {
                self.routes.remove(&address);
                let ifindex = match held {
                    Some(HostRoute::Access { ifindex, .. }) => ifindex,
                    Some(HostRoute::Port { .. }) | None => self.port.near,
                };
                changes.push(Change::RemoveRoute { address, ifindex });
            }
        }
        self.socket
            .apply(&changes)
            .map_err(RouterError::system("set host routes and neighbours"))
    }

    /// Notes on which interfaces frames for others matter because of an address.
    pub(super) fn watch(&mut self, bound: &Bound) {
        let address = bound.address;
        let needed = [
            watched(&bound.current),
            bound.pending.as_ref().and_then(watched),
        ];
        for (ifindex, addresses) in &mut self.watched {
            if !needed.contains(&Some(*ifindex)) {
                addresses.remove(&address);
            }
        }
        for ifindex in needed.into_iter().flatten() {
            self.watched.entry(ifindex).or_default().insert(address);
        }
    }

    /// Whether what becomes of an address concerns the kernel: it does not if it never did, and the
    /// version says nothing of this router's interfaces.
    pub(super) fn is_concerned(&self, address: IpAddr, version: &Decoded) -> bool {
        host_route(version).is_some()
            || watched(version).is_some()
            || self.routes.contains_key(&address)
            || self
                .watched
                .values()
                .any(|addresses| addresses.contains(&address))
    }

    /// Whether an interface must take frames for others.
    pub(super) fn needs_promiscuity(&self, ifindex: u32) -> bool {
        self.watched
            .get(&ifindex)
            .is_some_and(|addresses| !addresses.is_empty())
    }

    /// Switches promiscuous mode.
    pub(super) fn set_promiscuous(&mut self, ifindex: u32, on: bool) -> Result<(), RouterError> {
        let flags = if on { libc::IFF_PROMISC } else { 0 };
        self.socket
            .set_flags(ifindex, flags, libc::IFF_PROMISC)
            .map_err(RouterError::system(format!(
                "switch promiscuous mode of interface {ifindex}"
            )))
    }
}

/// Removes what an instance holds in the kernel.
pub(super) fn remove(
    socket: &mut Socket,
    port: Option<Port>,
    interfaces: &BTreeMap<u32, Interface>,
    gateway_mac: Option<[u8; 6]>,
) -> Result<(), RouterError> {
    let doing = || RouterError::system("remove host routes, neighbours and port");
    let mut changes = Vec::new();
    for (ifindex, interface) in interfaces {
        if let Some(mac) = gateway_mac
            && interface.role == Role::Access as u8
        {
            changes.push(Change::ReleaseMac {
                ifindex: *ifindex,
                mac,
            });
        }
    }
    for (address, ifindex, _) in socket.neighbors().map_err(doing())? {
        if interfaces.contains_key(&ifindex) {
            changes.push(Change::RemoveNeighbor { address, ifindex });
        }
    }
    for (address, ifindex) in socket.kept_neighbors().map_err(doing())? {
        if interfaces.contains_key(&ifindex) {
            changes.push(Change::LetGoNeighbor { address, ifindex });
        }
    }
    for (address, ifindex) in socket.routes().map_err(doing())? {
        if interfaces.contains_key(&ifindex) || port.is_some_and(|port| port.near == ifindex) {
            changes.push(Change::RemoveRoute { address, ifindex });
        }
    }
    socket.apply(&changes).map_err(doing())?;
    for (ifindex, interface) in interfaces {
        if interface.flags & FLAG_PROMISCUOUS != 0 {
            socket
                .set_flags(*ifindex, 0, libc::IFF_PROMISC)
                .map_err(doing())?;
        }
    }
    if let Some(port) = port {
        socket.remove_link(port.near).map_err(doing())?;
    }
    Ok(())
}

/// The MAC address of both ends of a port: locally administered, the same at every start.
fn port_mac(instance: &str) -> [u8; 6] {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(instance.as_bytes());
    [0x02, 0x6e, 0x6d, hash[0], hash[1], hash[2]]
}

fn disable_tx_checksum(interface: &str) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = Value {
        command: SET_TX_CHECKSUM,
        data: 0,
    };
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value it points to are valid during the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn write_sysctl(family: &str, interface: &str, name: &str, value: &str) -> io::Result<()> {
    std::fs::write(
        format!("/proc/sys/net/{family}/conf/{interface}/{name}"),
        value,
    )
}

/// What the network namespace's settings do to natmig, where that is not what it needs. `ipv6`: some
/// segment has an IPv6 prefix.
pub(super) fn warnings(interfaces: &[String], ipv6: bool) -> Vec<String> {
    let read = |path: String| -> u32 {
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let conf = |family: &str, interface: &str, name: &str| {
        read(format!("/proc/sys/net/{family}/conf/{interface}/{name}"))
    };
    let mut warnings = Vec::new();
    if read("/proc/sys/net/ipv4/ip_forward".to_owned()) == 0 {
        warnings.push(
            "net.ipv4.ip_forward is 0, so this router forwards nothing: set it to 1".to_owned(),
        );
    }
    for interface in interfaces {
        // The kernel takes the larger of the two.
        let ipv4 = |name: &str| conf("ipv4", "all", name).max(conf("ipv4", interface, name));
        if ipv4("rp_filter") == 1 {
            warnings.push(format!("net.ipv4.conf.{interface}.rp_filter is strict, so fall-backs to the kernel may be dropped: set it and net.ipv4.conf.all.rp_filter to 2 or 0"));
        }
        if ipv4("send_redirects") == 1 {
            warnings.push(format!("net.ipv4.conf.{interface}.send_redirects is on, so hosts may be told other paths: set it and net.ipv4.conf.all.send_redirects to 0"));
        }
        if ipv6 && conf("ipv6", interface, "forwarding") == 0 {
            warnings.push(format!("net.ipv6.conf.{interface}.forwarding is 0, so IPv6 that comes in there is not forwarded: set net.ipv6.conf.all.forwarding to 1"));
        }
    }
    warnings
}
