//! Changes of the kernel's state, and the requests that make them.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
};

use super::PROTOCOL;

/// A change of the kernel's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::router) enum Change {
    AddRoute {
        address: IpAddr,
        ifindex: u32,
        /// The address that the kernel's own packets get.
        source: Option<IpAddr>,
    },
    RemoveRoute {
        address: IpAddr,
        ifindex: u32,
    },
    AddNeighbor {
        address: IpAddr,
        ifindex: u32,
        mac: [u8; 6],
    },
    RemoveNeighbor {
        address: IpAddr,
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
    /// Has the kernel keep a neighbour resolved, whether it uses it itself or not. The neighbour is
    /// not permanent from then on.
    KeepNeighbor {
        address: IpAddr,
        ifindex: u32,
    },
    /// Ends that; the neighbour is like any other from then on.
    LetGoNeighbor {
        address: IpAddr,
        ifindex: u32,
    },
}

/// A request that is acknowledged.
pub(super) struct Request {
    pub(super) message: RouteNetlinkMessage,
    /// `NLM_F_*` beyond those that every request has.
    pub(super) flags: u16,
    /// The error that means what was asked for is so already.
    pub(super) ignore: Option<i32>,
}

impl Request {
    pub(super) fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self {
            message,
            flags,
            ignore: None,
        }
    }

    pub(super) fn ignoring(self, errno: i32) -> Self {
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
                let source = source.map(route_address);
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
                message.attributes.extend([
                    NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
                    NeighbourAttribute::Protocol(PROTOCOL),
                ]);
                Self::new(NewNeighbour(message), replace)
            }
            Change::LetGoNeighbor { address, ifindex } => {
                let mut message = neighbor(address, ifindex);
                // Changes the flags of an entry that is there, and nothing else about it.
                message.header.flags = NeighbourFlags::Use;
                Self::new(NewNeighbour(message), NLM_F_REPLACE).ignoring(libc::ENOENT)
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

pub(super) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Length of the prefix that is one address.
pub(super) const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// A unicast host route of natmig's.
fn host_route(address: IpAddr, ifindex: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(address),
        destination_prefix_length: full_length(address),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: PROTOCOL,
        scope: match address {
            IpAddr::V4(_) => RouteScope::Link,
            IpAddr::V6(_) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(route_address(address)),
        RouteAttribute::Oif(ifindex),
    ];
    message
}

fn neighbor(address: IpAddr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    })];
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
