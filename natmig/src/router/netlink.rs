//! rtnetlink as this router needs it: links, addresses, host routes and neighbours of its own
//! protocol number, many changes per system call, and no runtime around it.

mod change;
mod link;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    thread,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteVia},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::warn;

pub(super) use self::{change::Change, link::Link};
use self::{
    change::{Request, full_length},
    link::{link, no_link_local_address, port_request},
};

/// Protocol number of natmig's routes and neighbours (`RTPROT_*` above those that iproute2 names).
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(110);

/// Requests per system call: their answers fit a default receive buffer, and the kernel is soon done.
const CHUNK: usize = 32;

/// Bytes of the receive buffer: more than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 1 << 17;

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

    /// All addresses of the network namespace, with their interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut addresses = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(request, |message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return;
            };
            let (mut local, mut other) = (None, None);
            for attribute in message.attributes {
                if let AddressAttribute::Local(address) = attribute {
                    local = Some(address);
                } else if let AddressAttribute::Address(address) = attribute {
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
    pub(super) fn routes(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut routes = Vec::new();
        self.dump_routes(|message| {
            if message.header.protocol != PROTOCOL {
                return;
            }
            let (mut destination, mut interface) = (None, None);
            for attribute in &message.attributes {
                if let RouteAttribute::Destination(address) = attribute {
                    destination = route_address(address);
                } else if let RouteAttribute::Oif(ifindex) = attribute {
                    interface = Some(*ifindex);
                }
            }
            let length = message.header.destination_prefix_length;
            let destination = destination.filter(|address| length == full_length(*address));
            routes.extend(destination.zip(interface));
        })?;
        Ok(routes)
    }

    /// Gateways of all routes, with their interface.
    pub(super) fn gateways(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
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
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            self.dump(RouteNetlinkMessage::GetRoute(request), |message| {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    each(message);
                }
            })?;
        }
        Ok(())
    }

    /// The permanent neighbours that natmig made, with interface and MAC address.
    pub(super) fn neighbors(&mut self) -> io::Result<Vec<(IpAddr, u32, [u8; 6])>> {
        let mut neighbors = Vec::new();
        self.dump_neighbors(|message| {
            if message.header.state == NeighbourState::Permanent {
                let mac = message.attributes.iter().find_map(|attribute| {
                    if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
                        bytes.as_slice().try_into().ok()
                    } else {
                        None
                    }
                });
                let found = |address| (address, message.header.ifindex, mac.unwrap_or_default());
                neighbors.extend(destination(message).map(found));
            }
        })?;
        Ok(neighbors)
    }

    /// All neighbours that are permanent, whoever made them.
    pub(super) fn permanent_neighbors(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut permanent = Vec::new();
        self.dump_all_neighbors(|message| {
            if message.header.state == NeighbourState::Permanent {
                let found = |address| (address, message.header.ifindex);
                permanent.extend(destination(message).map(found));
            }
        })?;
        Ok(permanent)
    }

    /// The neighbours that the kernel keeps resolved because natmig told it to, with interface.
    pub(super) fn kept_neighbors(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut kept = Vec::new();
        self.dump_neighbors(|message| {
            let managed = |attribute: &NeighbourAttribute| {
                if let NeighbourAttribute::ExtFlags(flags) = attribute {
                    flags.contains(NeighbourExtFlags::Managed)
                } else {
                    false
                }
            };
            if message.attributes.iter().any(managed) {
                kept.extend(destination(message).map(|address| (address, message.header.ifindex)));
            }
        })?;
        Ok(kept)
    }

    /// Calls `each` with the neighbours of natmig's protocol number.
    fn dump_neighbors(&mut self, mut each: impl FnMut(&NeighbourMessage)) -> io::Result<()> {
        let protocol = NeighbourAttribute::Protocol(PROTOCOL);
        self.dump_all_neighbors(|message| {
            if message.attributes.contains(&protocol) {
                each(message);
            }
        })
    }

    fn dump_all_neighbors(&mut self, mut each: impl FnMut(&NeighbourMessage)) -> io::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            self.dump(RouteNetlinkMessage::GetNeighbour(request), |message| {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    each(&message);
                }
            })?;
        }
        Ok(())
    }

    /// Makes many changes; the first that the kernel refuses is the error, the others are made.
    ///
    /// Gives way in between: what a group changes takes milliseconds, and commits of other routers or
    /// transactions may wait for this CPU.
    pub(super) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut result = Ok(());
        for changes in changes.chunks(CHUNK) {
            let outcome = self.acknowledged(changes.iter().map(Request::from).collect());
            if result.is_ok() {
                result = outcome;
            }
            thread::yield_now();
        }
        result
    }
}

/// The gateway among the attributes of a route or of one of its next hops.
fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(address) = attribute {
            route_address(address)
        } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
            Some(IpAddr::V6(*address))
        } else {
            None
        }
    })
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

/// The address of a neighbour.
fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) = attribute {
            Some(IpAddr::V4(*address))
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) = attribute
        {
            Some(IpAddr::V6(*address))
        } else {
            None
        }
    })
}
