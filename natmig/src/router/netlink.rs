//! rtnetlink as this router needs it: links, addresses, host routes and neighbours of its own
//! protocol number, many changes per system call, and no runtime around it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::warn;

/// Protocol number of natmig's routes and neighbours (`RTPROT_*` above those that iproute2 names).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(110);

/// Requests per system call: their answers fit a default receive buffer.
const CHUNK: usize = 100;

/// Bytes of the receive buffer: more than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 1 << 17;

/// A network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) flags: u32,
    /// The kind of a virtual interface, such as `veth`, `bridge`, `vlan`.
    pub(super) kind: Option<String>,
    /// The interface that this one is on top of, in this namespace or another.
    pub(super) lower: Option<u32>,
    /// Whether that one is in another network namespace, so that its index means nothing here.
    pub(super) lower_is_elsewhere: bool,
    /// Id of the XDP program that runs on it.
    pub(super) xdp: Option<u32>,
    /// Whether that runs in generic mode.
    pub(super) xdp_generic: bool,
}

/// A change of the kernel's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    AddRoute {
        address: Ipv4Addr,
        ifindex: u32,
        /// The address that the kernel's own packets get.
        source: Option<Ipv4Addr>,
    },
    RemoveRoute {
        address: Ipv4Addr,
        ifindex: u32,
    },
    AddNeighbor {
        address: Ipv4Addr,
        ifindex: u32,
        mac: [u8; 6],
    },
    RemoveNeighbor {
        address: Ipv4Addr,
        ifindex: u32,
    },
    /// Has an interface receive unicast frames for a further MAC address.
    TakeMac {
        ifindex: u32,
        mac: [u8; 6],
    },
    ReleaseMac {
        ifindex: u32,
        mac: [u8; 6],
    },
    /// Has the kernel keep a neighbour resolved, whether it uses it itself or not.
    KeepNeighbor {
        address: Ipv4Addr,
        ifindex: u32,
    },
}

/// A request that is acknowledged.
struct Request {
    message: RouteNetlinkMessage,
    /// `NLM_F_*` beyond those that every request has.
    flags: u16,
    /// The error that means what was asked for is so already.
    ignore: Option<i32>,
}

impl Request {
    fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self {
            message,
            flags,
            ignore: None,
        }
    }

    fn ignoring(self, errno: i32) -> Self {
        Self {
            ignore: Some(errno),
            ..self
        }
    }
}

impl From<&Change> for Request {
    fn from(change: &Change) -> Self {
        use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewNeighbour, NewRoute};

        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        match *change {
            Change::AddRoute {
                address,
                ifindex,
                source,
            } => {
                let mut route = host_route(address, ifindex);
                let source = source.map(RouteAddress::Inet);
                route
                    .attributes
                    .extend(source.map(RouteAttribute::PrefSource));
                Self::new(NewRoute(route), replace)
            }
            // What is gone is gone.
            Change::RemoveRoute { address, ifindex } => {
                Self::new(DelRoute(host_route(address, ifindex)), 0).ignoring(libc::ESRCH)
            }
            Change::AddNeighbor {
                address,
                ifindex,
                mac,
            } => {
                let mut message = neighbor(address, ifindex);
                message.header.state = NeighbourState::Permanent;
                message.attributes.extend([
                    NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                    NeighbourAttribute::Protocol(PROTOCOL),
                ]);
                Self::new(NewNeighbour(message), replace)
            }
            Change::RemoveNeighbor { address, ifindex } => {
                Self::new(DelNeighbour(neighbor(address, ifindex)), 0).ignoring(libc::ENOENT)
            }
            Change::KeepNeighbor { address, ifindex } => {
                let mut message = neighbor(address, ifindex);
                // Linux 5.16 and later.
                let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
                message.attributes.push(managed);
                // Not with a permanent entry, which needs no keeping.
                Self::new(NewNeighbour(message), replace).ignoring(libc::EINVAL)
            }
            Change::TakeMac { ifindex, mac } => {
                let message = NewNeighbour(receive_filter(ifindex, mac));
                Self::new(message, NLM_F_CREATE).ignoring(libc::EEXIST)
            }
            Change::ReleaseMac { ifindex, mac } => {
                let message = DelNeighbour(receive_filter(ifindex, mac));
                Self::new(message, 0).ignoring(libc::ENOENT)
            }
        }
    }
}

/// A unicast host route of natmig's.
fn host_route(address: Ipv4Addr, ifindex: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 32,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: PROTOCOL,
        scope: RouteScope::Link,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(address)),
        RouteAttribute::Oif(ifindex),
    ];
    message
}

fn neighbor(address: Ipv4Addr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
        address,
    ))];
    message
}

/// An entry of an interface's own table of MAC addresses.
fn receive_filter(ifindex: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            inner: netlink_sys::Socket::new(NETLINK_ROUTE)?,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Sends requests in one datagram; returns the first one's sequence number.
    fn send(
        &mut self,
        requests: impl Iterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (message, flags) in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = flags | NLM_F_REQUEST;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.inner.send(&bytes, 0)?;
        Ok(first)
    }

    /// Calls `each` with sequence number and payload of every message of the next datagram.
    fn receive(
        &mut self,
        mut each: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>),
    ) -> io::Result<()> {
        self.buffer.clear();
        self.inner.recv(&mut self.buffer, 0)?;
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => each(message.header.sequence_number, message.payload),
                // One interface or route of an unknown kind does not hide the others.
                Err(error) => warn!(%error, "passing over an answer of rtnetlink"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends requests and awaits their acknowledgements; returns the first error.
    fn acknowledged(&mut self, requests: Vec<Request>) -> io::Result<()> {
        let ignored: Vec<_> = requests.iter().map(|request| request.ignore).collect();
        let requests = requests
            .into_iter()
            .map(|request| (request.message, request.flags | NLM_F_ACK));
        let first = self.send(requests)?;
        let mut waiting = ignored.len();
        let mut result = Ok(());
        while waiting > 0 {
            self.receive(|sequence, payload| {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let NetlinkPayload::Error(answer) = payload
                    && let Some(ignored) = ignored.get(index)
                {
                    waiting -= 1;
                    let errno = -answer.raw_code();
                    if errno != 0 && Some(errno) != *ignored && result.is_ok() {
                        result = Err(answer.to_io());
                    }
                }
            })?;
        }
        result
    }

    fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let asked = self.send([(request, NLM_F_DUMP)].into_iter())?;
        let mut result = None;
        while result.is_none() {
            self.receive(|sequence, payload| {
                if sequence != asked {
                    return;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        result = Some(Err(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => result = Some(Ok(())),
                    NetlinkPayload::Error(error) => result = Some(Err(error.to_io())),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
                }
            })?;
        }
        result.unwrap_or(Ok(()))
    }

    /// All interfaces of the network namespace.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump(request, |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.push(Link::from(message));
            }
        })?;
        Ok(links)
    }

    /// Gives an interface an IPv4 address of its own, if it has it not.
    pub(super) fn add_address(&mut self, ifindex: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.scope = AddressScope::Link;
        message.header.index = ifindex;
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
        ];
        let message = RouteNetlinkMessage::NewAddress(message);
        self.acknowledged(vec![Request::new(message, NLM_F_CREATE | NLM_F_REPLACE)])
    }

    /// All IPv4 addresses of the network namespace, with their interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr)>> {
        let mut addresses = Vec::new();
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        self.dump(RouteNetlinkMessage::GetAddress(request), |message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return;
            };
            let (mut local, mut other) = (None, None);
            for attribute in message.attributes {
                if let AddressAttribute::Local(IpAddr::V4(address)) = attribute {
                    local = Some(address);
                } else if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                    other = Some(address);
                }
            }
            // On a point-to-point interface, the other one is the peer's.
            addresses.extend(
                local
                    .or(other)
                    .map(|address| (message.header.index, address)),
            );
        })?;
        Ok(addresses)
    }

    /// Creates natmig's port: both ends with one MAC address, because the kernel addresses frames
    /// into an interface without ARP to that interface's own.
    pub(super) fn create_port(&mut self, near: &str, far: &str, mac: [u8; 6]) -> io::Result<()> {
        self.acknowledged(vec![port_request(near, far, mac)])?;
        // The kernel overlooks this in the request that creates an interface.
        let requests = [near, far].map(no_link_local_address);
        self.acknowledged(requests.into())
    }

    /// Removes an interface, and its peer if it has one.
    pub(super) fn remove_link(&mut self, ifindex: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelLink(link(ifindex));
        self.acknowledged(vec![Request::new(message, 0).ignoring(libc::ENODEV)])
    }

    /// Sets an interface's flags where the mask says so.
    pub(super) fn set_flags(&mut self, ifindex: u32, flags: i32, mask: i32) -> io::Result<()> {
        let mut message = link(ifindex);
        message.header.flags = LinkFlags::from_bits_retain(flags.cast_unsigned());
        message.header.change_mask = LinkFlags::from_bits_retain(mask.cast_unsigned());
        let message = RouteNetlinkMessage::NewLink(message);
        self.acknowledged(vec![Request::new(message, 0)])
    }

    /// Sets an interface's MTU.
    pub(super) fn set_mtu(&mut self, ifindex: u32, mtu: u32) -> io::Result<()> {
        let mut message = link(ifindex);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let message = RouteNetlinkMessage::NewLink(message);
        self.acknowledged(vec![Request::new(message, 0)])
    }

    /// The host routes of natmig's protocol number, with their interface.
    pub(super) fn routes(&mut self) -> io::Result<Vec<(Ipv4Addr, u32)>> {
        let mut routes = Vec::new();
        self.dump_routes(|message| {
            let header = &message.header;
            if header.destination_prefix_length != 32 || header.protocol != PROTOCOL {
                return;
            }
            let (mut destination, mut interface) = (None, None);
            for attribute in message.attributes {
                if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
                    destination = Some(address);
                } else if let RouteAttribute::Oif(ifindex) = attribute {
                    interface = Some(ifindex);
                }
            }
            routes.extend(destination.zip(interface));
        })?;
        Ok(routes)
    }

    /// Gateways of all IPv4 routes, with their interface.
    pub(super) fn gateways(&mut self) -> io::Result<Vec<(Ipv4Addr, u32)>> {
        let mut gateways = Vec::new();
        self.dump_routes(|message| {
            let mut interface = None;
            for attribute in &message.attributes {
                if let RouteAttribute::Oif(ifindex) = attribute {
                    interface = Some(*ifindex);
                } else if let RouteAttribute::MultiPath(hops) = attribute {
                    gateways.extend(hops.iter().filter_map(|hop| {
                        gateway(&hop.attributes).map(|gateway| (gateway, hop.interface_index))
                    }));
                }
            }
            gateways.extend(gateway(&message.attributes).zip(interface));
        })?;
        gateways.sort_unstable();
        gateways.dedup();
        Ok(gateways)
    }

    fn dump_routes(&mut self, mut each: impl FnMut(RouteMessage)) -> io::Result<()> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        self.dump(RouteNetlinkMessage::GetRoute(request), |message| {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                each(message);
            }
        })
    }

    /// The neighbours of natmig's protocol number.
    pub(super) fn neighbors(&mut self) -> io::Result<Vec<(Ipv4Addr, u32, [u8; 6])>> {
        let mut neighbors = Vec::new();
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        self.dump(RouteNetlinkMessage::GetNeighbour(request), |message| {
            let RouteNetlinkMessage::NewNeighbour(message) = message else {
                return;
            };
            if !message
                .attributes
                .contains(&NeighbourAttribute::Protocol(PROTOCOL))
            {
                return;
            }
            let (mut destination, mut mac) = (None, [0; 6]);
            for attribute in message.attributes {
                if let NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) = attribute
                {
                    destination = Some(address);
                } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
                    mac = bytes.try_into().unwrap_or_default();
                }
            }
            neighbors.extend(destination.map(|address| (address, message.header.ifindex, mac)));
        })?;
        Ok(neighbors)
    }

    /// Makes many changes; the first that the kernel refuses is the error, the others are made.
    pub(super) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut result = Ok(());
        for changes in changes.chunks(CHUNK) {
            let outcome = self.acknowledged(changes.iter().map(Request::from).collect());
            if result.is_ok() {
                result = outcome;
            }
        }
        result
    }
}

/// The gateway among the attributes of a route or of one of its next hops.
fn gateway(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })
}

/// A message about an interface that exists.
fn link(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
}

/// The request that creates the port.
fn port_request(near: &str, far: &str, mac: [u8; 6]) -> Request {
    let end = |name: &str| {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
        ];
        message
    };
    let mut message = end(near);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(far)))),
    ]));
    let message = RouteNetlinkMessage::NewLink(message);
    Request::new(message, NLM_F_CREATE | NLM_F_EXCL)
}

/// The request that has an interface come up without an IPv6 address.
fn no_link_local_address(name: &str) -> Request {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]),
    ];
    let message = RouteNetlinkMessage::NewLink(message);
    // A kernel without IPv6 gives it none anyway.
    Request::new(message, 0).ignoring(libc::EAFNOSUPPORT)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            ifindex: message.header.index,
            flags: message.header.flags.bits(),
            ..Self::default()
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name = name;
            } else if let LinkAttribute::Address(mac) = attribute {
                // Interfaces other than Ethernet have longer ones or none.
                link.mac = mac.try_into().unwrap_or_default();
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = mtu;
            } else if let LinkAttribute::Link(lower) = attribute {
                link.lower = Some(lower);
            } else if let LinkAttribute::LinkNetNsId(_) = attribute {
                link.lower_is_elsewhere = true;
            } else if let LinkAttribute::LinkInfo(details) = attribute {
                link.kind = details.into_iter().find_map(|detail| {
                    if let LinkInfo::Kind(kind) = detail {
                        Some(kind.to_string())
                    } else {
                        None
                    }
                });
            } else if let LinkAttribute::Xdp(details) = attribute {
                link.set_xdp(&details);
            }
        }
        link
    }
}

impl Link {
    fn set_xdp(&mut self, details: &[LinkXdp]) {
        for detail in details {
            if let LinkXdp::Attached(mode) = detail {
                self.xdp_generic = *mode == XdpAttached::SocketBuffer;
            } else if let LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) =
                detail
                && *id != 0
            {
                self.xdp = Some(*id);
            }
        }
    }
}
