//! Network interfaces as rtnetlink tells of them, and requests about them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, VlanProtocol, XdpAttached,
    },
};

use super::change::Request;

/// A network interface.
#[derive(Clone, Debug, Default)]
pub(in crate::router) struct Link {
    pub(in crate::router) ifindex: u32,
    pub(in crate::router) name: String,
    pub(in crate::router) mac: [u8; 6],
    pub(in crate::router) mtu: u32,
    pub(in crate::router) flags: u32,
    /// The kind of a virtual interface, such as `veth`, `bridge`, `vlan`.
    pub(in crate::router) kind: Option<String>,
    /// The interface that this one is on top of, in this namespace or another.
    pub(in crate::router) lower: Option<u32>,
    /// Whether that one is in another network namespace, so that its index means nothing here.
    pub(in crate::router) lower_is_elsewhere: bool,
    /// The VLAN identifier of an 802.1Q interface.
    pub(in crate::router) vlan: Option<u16>,
    /// Id of the XDP program that runs on it.
    pub(in crate::router) xdp: Option<u32>,
    /// Whether that runs in generic mode.
    pub(in crate::router) xdp_generic: bool,
}

/// A message about an interface that exists.
pub(super) fn link(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
}

/// The request that creates the port.
pub(super) fn port_request(near: &str, far: &str, mac: [u8; 6]) -> Request {
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
pub(super) fn no_link_local_address(name: &str) -> Request {
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
                link.set_kind(details);
            } else if let LinkAttribute::Xdp(details) = attribute {
                link.set_xdp(&details);
            }
        }
        link
    }
}

impl Link {
    const PROMISCUOUS: u32 = libc::IFF_PROMISC.cast_unsigned();

    /// Whether somebody has switched promiscuous mode on.
    pub(in crate::router) fn is_promiscuous(&self) -> bool {
        self.flags & Self::PROMISCUOUS != 0
    }

    /// Takes note that it is switched.
    pub(in crate::router) fn set_promiscuous(&mut self, on: bool) {
        self.flags &= !Self::PROMISCUOUS;
        if on {
            self.flags |= Self::PROMISCUOUS;
        }
    }

    fn set_kind(&mut self, details: Vec<LinkInfo>) {
        for detail in details {
            if let LinkInfo::Kind(kind) = detail {
                self.kind = Some(kind.to_string());
            } else if let LinkInfo::Data(InfoData::Vlan(details)) = detail {
                let is_service = details.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
                self.vlan = details.into_iter().find_map(|detail| {
                    if let InfoVlan::Id(id) = detail {
                        (!is_service).then_some(id)
                    } else {
                        None
                    }
                });
            }
        }
    }

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
