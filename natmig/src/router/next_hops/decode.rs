//! What messages of rtnetlink mean for the mirror.

use std::net::IpAddr;

use natmig_common::Mac;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteProtocol, RouteType, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    paths::{Mark, Path, Paths, Route, RouteMtu},
    prefix::{Ip, Prefix},
    sets::Way,
};
use crate::router::netlink::PROTOCOL;

/// Tables of `include/uapi/linux/rtnetlink.h`.
const TABLE_DEFAULT: u32 = 253;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;

/// `RTAX_MTU`, a bit of `RTAX_LOCK`.
const LOCK_MTU: u32 = 1 << 2;

/// Message types that the library does not know, `include/uapi/linux/rtnetlink.h`.
const NEW_NETCONF: u16 = 80;
const DEL_NETCONF: u16 = 81;
const NEW_NEXTHOP: u16 = 104;
const DEL_NEXTHOP: u16 = 105;
/// Bytes of `struct nhmsg`, and its attribute `NHA_ID`.
const NEXTHOP_HEADER: usize = 8;
const NEXTHOP_ID: u16 = 1;

/// An interface as a message tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkEvent {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) carrier: bool,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
}

/// What happened in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A route is there; the flag says whether it took another one's place.
    Route(Route, bool),
    RouteGone(Route),
    /// A neighbour has this MAC address, or cannot be sent to; whether it is permanent.
    Neighbor(Way, Option<Mac>, bool),
    NeighborGone(Way),
    Link(LinkEvent),
    LinkGone(u32),
    /// An address went, and routes may have gone with it.
    AddressGone,
    Rules,
    /// Settings of an interface changed.
    Settings,
    Nexthop(u32),
    /// Something that has no influence on routes.
    Nothing,
}

/// What a message of a type that the library does not know means; `None` if it knows it.
pub(super) fn raw(message_type: u16, payload: &[u8]) -> Option<Event> {
    match message_type {
        NEW_NETCONF | DEL_NETCONF => Some(Event::Settings),
        NEW_NEXTHOP | DEL_NEXTHOP => Some(nexthop(payload).map_or(Event::Nothing, Event::Nexthop)),
        _ => None,
    }
}

/// The number of a nexthop object.
fn nexthop(payload: &[u8]) -> Option<u32> {
    let mut rest = payload.get(NEXTHOP_HEADER..)?;
    loop {
        let (header, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        if kind == NEXTHOP_ID {
            return Some(u32::from_ne_bytes(*rest.get(4..)?.first_chunk()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// What a message means.
pub(super) fn event(message: RouteNetlinkMessage) -> Event {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewLink, NewNeighbour, NewRule,
    };
    if let RouteNetlinkMessage::NewRoute(message) = message {
        route(&message).map_or(Event::Nothing, |route| Event::Route(route, false))
    } else if let DelRoute(message) = message {
        route(&message).map_or(Event::Nothing, Event::RouteGone)
    } else if let NewNeighbour(message) = message {
        neighbor(&message).map_or(Event::Nothing, |(way, mac)| {
            let permanent = message.header.state == NeighbourState::Permanent;
            Event::Neighbor(way, mac, permanent)
        })
    } else if let DelNeighbour(message) = message {
        neighbor(&message).map_or(Event::Nothing, |(way, _)| Event::NeighborGone(way))
    } else if let NewLink(message) = message {
        let family = message.header.interface_family;
        if family == AddressFamily::Unspec {
            Event::Link(link(message))
        } else if family == AddressFamily::Inet6 {
            Event::Settings
        } else {
            // A bridge's view of its ports.
            Event::Nothing
        }
    } else if let DelLink(message) = message {
        if message.header.interface_family == AddressFamily::Unspec {
            Event::LinkGone(message.header.index)
        } else {
            Event::Nothing
        }
    } else if let DelAddress(_) = message {
        Event::AddressGone
    } else if let NewRule(_) | DelRule(_) = message {
        Event::Rules
    } else {
        Event::Nothing
    }
}

/// What an IPv4 or IPv6 route says, unless it is not one that packets are forwarded by: natmig's
/// own host routes, or those of other tables.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let (family, full) = if header.address_family == AddressFamily::Inet {
        (Ip::V4, 32)
    } else if header.address_family == AddressFamily::Inet6 {
        (Ip::V6, 128)
    } else {
        return None;
    };
    if header.flags.contains(RouteFlags::Cloned)
        || (header.protocol == PROTOCOL && header.destination_prefix_length == full)
    {
        return None;
    }
    let mut parts = Parts {
        table: header.table.into(),
        plain: is_plain(header),
        ..Parts::default()
    };
    for attribute in &message.attributes {
        parts.take(attribute);
    }
    let local = match parts.table {
        TABLE_MAIN => false,
        TABLE_LOCAL => true,
        _ => return None,
    };
    let network = parts.destination.unwrap_or(match family {
        Ip::V4 => IpAddr::from([0; 4]),
        Ip::V6 => IpAddr::from([0; 16]),
    });
    let paths = parts.paths(family).filter(|_| !local);
    Some(Route {
        family,
        prefix: Prefix::of(network, header.destination_prefix_length),
        priority: parts.priority,
        mark: Mark {
            local,
            kind: header.kind.into(),
            tos: header.tos,
            source: header.source_prefix_length != 0,
            ifindex: if paths.is_some() { 0 } else { parts.ifindex },
        },
        paths,
        nexthop: parts.nexthop,
    })
}

/// Whether the header alone says nothing that only the kernel understands.
fn is_plain(header: &RouteHeader) -> bool {
    header.kind == RouteType::Unicast
        && header.tos == 0
        && header.source_prefix_length == 0
        // Router advertisements expire, and of several the kernel takes turns.
        && header.protocol != RouteProtocol::Ra
        && !header.flags.intersects(RouteFlags::Unresolved)
}

/// What the attributes of a route say.
#[derive(Default)]
struct Parts {
    table: u32,
    priority: u32,
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
    ifindex: u32,
    /// `None` in it: a way without a gateway, or with something else about it.
    ways: Vec<Option<Path>>,
    mtu: Option<u32>,
    locks: u32,
    nexthop: u32,
    plain: bool,
}

impl Parts {
    fn take(&mut self, attribute: &RouteAttribute) {
        if let RouteAttribute::Destination(destination) = attribute {
            self.destination = address(destination);
        } else if let Some(gateway) = gateway(attribute) {
            self.gateway = Some(gateway);
        } else if let RouteAttribute::Oif(ifindex) = attribute {
            self.ifindex = *ifindex;
        } else if let RouteAttribute::Priority(priority) = attribute {
            self.priority = *priority;
        } else if let RouteAttribute::Table(table) = attribute {
            self.table = *table;
        } else if let RouteAttribute::NhId(nexthop) = attribute {
            self.nexthop = *nexthop;
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            for metric in metrics {
                if let RouteMetric::Mtu(mtu) = metric {
                    self.mtu = Some(*mtu);
                } else if let RouteMetric::Lock(locks) = metric {
                    self.locks = *locks;
                }
            }
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            self.ways = hops
                .iter()
                .map(|hop| {
                    let known = |attribute: &RouteAttribute| {
                        gateway(attribute).is_some() || matters_not(attribute)
                    };
                    let gateway = hop.attributes.iter().find_map(gateway)?;
                    hop.attributes.iter().all(known).then_some(Path {
                        ifindex: hop.interface_index,
                        gateway,
                        weight: u16::from(hop.hops) + 1,
                    })
                })
                .collect();
        } else if let RouteAttribute::CacheInfo(info) = attribute {
            self.plain &= info.expires == 0;
        } else if !matters_not(attribute) {
            self.plain = false;
        }
    }

    /// The ways, if nothing but gateways is among them.
    fn paths(&self, family: Ip) -> Option<Paths> {
        if !self.plain {
            return None;
        }
        let mut paths = if self.ways.is_empty() {
            vec![Path {
                ifindex: self.ifindex,
                gateway: self.gateway?,
                weight: 1,
            }]
        } else {
            self.ways.iter().copied().collect::<Option<Vec<Path>>>()?
        };
        // Their order means nothing.
        paths.sort_unstable();
        let mtu = self.mtu.filter(|mtu| *mtu != 0).map(|bytes| RouteMtu {
            bytes,
            locked: self.locks & LOCK_MTU != 0,
        });
        let mtu = match family {
            Ip::V4 => mtu,
            // Without a lock, it is for packets of the router's own.
            Ip::V6 => mtu.filter(|mtu| mtu.locked),
        };
        // Each of several IPv6 ways has metrics of its own, of which the kernel tells one.
        let told = family == Ip::V4 || paths.len() == 1 || mtu.is_none();
        told.then_some(Paths { family, paths, mtu })
    }
}

/// Whether an attribute has no influence on where a forwarded packet goes.
fn matters_not(attribute: &RouteAttribute) -> bool {
    use RouteAttribute::{PrefSource, Preference, Realm};
    matches!(attribute, PrefSource(_) | Realm(_) | Preference(_))
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    if let RouteAttribute::Gateway(gateway) = attribute {
        address(gateway)
    } else if let RouteAttribute::Via(RouteVia::Inet(gateway)) = attribute {
        Some(IpAddr::V4(*gateway))
    } else if let RouteAttribute::Via(RouteVia::Inet6(gateway)) = attribute {
        Some(IpAddr::V6(*gateway))
    } else {
        None
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

/// A neighbour, and its MAC address if the kernel would send to it (`NUD_VALID`).
pub(super) fn neighbor(message: &NeighbourMessage) -> Option<(Way, Option<Mac>)> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut destination, mut mac) = (None, None);
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) = attribute {
            destination = Some(IpAddr::V4(*address));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) = attribute
        {
            destination = Some(IpAddr::V6(*address));
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            mac = Mac::try_from(bytes.as_slice()).ok();
        }
    }
    let valid = matches!(
        message.header.state,
        Permanent | Noarp | Reachable | Probe | Stale | Delay
    );
    let way = (message.header.ifindex, destination?);
    Some((way, mac.filter(|_| valid)))
}

/// An interface.
pub(super) fn link(message: LinkMessage) -> LinkEvent {
    let flags = message.header.flags;
    let mut link = LinkEvent {
        ifindex: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mac: Mac::default(),
        mtu: 0,
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::Address(mac) = attribute {
            link.mac = mac.try_into().unwrap_or_default();
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = mtu;
        }
    }
    link
}

/// Whether these are no more than the rules with which a network namespace begins: all look into
/// the tables of local addresses, the main one and the default one.
pub(super) fn rules_are_plain(rules: &[RuleMessage], family: Ip) -> bool {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for rule in rules {
        let header = &rule.header;
        let (mut priority, mut table) = (0, u32::from(header.table));
        let mut known = header.action == RuleAction::ToTable
            && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
            && header.flags.is_empty();
        for attribute in &rule.attributes {
            if let RuleAttribute::Priority(value) = attribute {
                priority = *value;
            } else if let RuleAttribute::Table(value) = attribute {
                table = *value;
            } else if let RuleAttribute::SuppressPrefixLen(value) = attribute {
                known &= *value == u32::MAX;
            } else if !matches!(attribute, RuleAttribute::Protocol(_)) {
                known = false;
            }
        }
        if !known {
            return false;
        }
        found.push((priority, table));
    }
    found.sort_unstable();
    match family {
        Ip::V4 => {
            found
                == [
                    (0, TABLE_LOCAL),
                    (32766, TABLE_MAIN),
                    (32767, TABLE_DEFAULT),
                ]
        }
        Ip::V6 => found == [(0, TABLE_LOCAL), (32766, TABLE_MAIN)],
    }
}
