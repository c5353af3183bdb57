//! rtnetlink as this router needs it: links, addresses, host routes and neighbours of its own
//! protocol number, many changes per system call, and no runtime around it.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Protocol number of natmig's routes and neighbours (`RTPROT_*` above those that iproute2 names).
pub(super) const PROTOCOL: u8 = 110;

// Numbers from include/uapi/linux that libc lacks.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const XDP_ATTACHED_SKB: u8 = 2;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;
/// Linux 5.16 and later.
const NTF_EXT_MANAGED: u32 = 1;
const NESTED: u16 = 1 << 15;

/// Messages per system call: their answers fit a default receive buffer.
const CHUNK: usize = 100;

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

/// A request while it is written.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0);
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        let mut message = fill(self);
        let length = u16::try_from(message.0.len() - start).unwrap_or(u16::MAX);
        message.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message
    }

    /// `struct ifinfomsg`.
    fn interface(self, ifindex: u32, flags: u32, mask: u32) -> Self {
        self.bytes(&[0; 4])
            .bytes(&ifindex.to_ne_bytes())
            .bytes(&flags.to_ne_bytes())
            .bytes(&mask.to_ne_bytes())
    }

    /// `struct rtmsg` of a unicast host route, and its attributes.
    fn route(self, address: Ipv4Addr, ifindex: u32) -> Self {
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        self.bytes(&[
            family,
            32,
            0,
            0,
            libc::RT_TABLE_MAIN,
            PROTOCOL,
            libc::RT_SCOPE_LINK,
            libc::RTN_UNICAST,
        ])
        .bytes(&[0; 4])
        .attribute(libc::RTA_DST, &address.octets())
        .attribute(libc::RTA_OIF, &ifindex.to_ne_bytes())
    }

    /// `struct ndmsg`, and its attributes.
    fn neighbor(self, address: Ipv4Addr, ifindex: u32, state: u16) -> Self {
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        self.bytes(&[family, 0, 0, 0])
            .bytes(&ifindex.to_ne_bytes())
            .bytes(&state.to_ne_bytes())
            .bytes(&[0; 2])
            .attribute(libc::NDA_DST, &address.octets())
    }

    /// `struct ndmsg` of an interface's own table of MAC addresses, and its attributes.
    fn receive_filter(self, ifindex: u32, mac: [u8; 6]) -> Self {
        let family = u8::try_from(libc::AF_BRIDGE).unwrap_or(7);
        self.bytes(&[family, 0, 0, 0])
            .bytes(&ifindex.to_ne_bytes())
            .bytes(&libc::NUD_PERMANENT.to_ne_bytes())
            .bytes(&[libc::NTF_SELF, 0])
            .attribute(libc::NDA_LLADDR, &mac)
    }
}

fn request(change: &Change) -> (Message, Option<i32>) {
    let replace = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    match *change {
        Change::AddRoute {
            address,
            ifindex,
            source,
        } => {
            let message = Message::new(libc::RTM_NEWROUTE, replace).route(address, ifindex);
            let message = match source {
                Some(source) => message.attribute(libc::RTA_PREFSRC, &source.octets()),
                None => message,
            };
            (message, None)
        }
        // What is gone is gone.
        Change::RemoveRoute { address, ifindex } => (
            Message::new(libc::RTM_DELROUTE, libc::NLM_F_ACK).route(address, ifindex),
            Some(libc::ESRCH),
        ),
        Change::AddNeighbor {
            address,
            ifindex,
            mac,
        } => (
            Message::new(libc::RTM_NEWNEIGH, replace)
                .neighbor(address, ifindex, libc::NUD_PERMANENT)
                .attribute(libc::NDA_LLADDR, &mac)
                .attribute(NDA_PROTOCOL, &[PROTOCOL]),
            None,
        ),
        Change::RemoveNeighbor { address, ifindex } => (
            Message::new(libc::RTM_DELNEIGH, libc::NLM_F_ACK).neighbor(address, ifindex, 0),
            Some(libc::ENOENT),
        ),
        Change::KeepNeighbor { address, ifindex } => (
            Message::new(libc::RTM_NEWNEIGH, replace)
                .neighbor(address, ifindex, 0)
                .attribute(NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes()),
            // Not with a permanent entry, which needs no keeping.
            Some(libc::EINVAL),
        ),
        Change::TakeMac { ifindex, mac } => (
            Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_ACK | libc::NLM_F_CREATE)
                .receive_filter(ifindex, mac),
            Some(libc::EEXIST),
        ),
        Change::ReleaseMac { ifindex, mac } => (
            Message::new(libc::RTM_DELNEIGH, libc::NLM_F_ACK).receive_filter(ifindex, mac),
            Some(libc::ENOENT),
        ),
    }
}

/// Gateways of a route's next hops: `struct rtnexthop` and its attributes, one after the other.
fn next_hops(mut rest: &[u8], gateways: &mut Vec<(Ipv4Addr, u32)>) {
    const HEADER: usize = 8;
    while rest.len() >= HEADER {
        let length = usize::from(u16_at(rest, 0)).clamp(HEADER, rest.len());
        let ifindex = u32_at(rest, 4);
        attributes(&rest[HEADER..length], |kind, value| {
            if kind == libc::RTA_GATEWAY {
                gateways.extend(ipv4(value).map(|gateway| (gateway, ifindex)));
            }
        });
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: socket takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; 1 << 17],
        })
    }

    fn send(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for Message(mut message) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
            bytes.extend(message);
        }
        // SAFETY: `bytes` is valid for its length.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Calls `each` with kind and payload of every message of the next datagram.
    fn receive(&mut self, mut each: impl FnMut(u16, u32, &[u8])) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let received = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                self.buffer.as_mut_ptr().cast(),
                self.buffer.len(),
                0,
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let mut rest = &self.buffer[..received];
        while rest.len() >= 16 {
            let length = (u32_at(rest, 0) as usize).clamp(16, rest.len());
            each(u16_at(rest, 4), u32_at(rest, 8), &rest[16..length]);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    /// Sends requests that ask for acknowledgement; returns the first error.
    fn acknowledged(&mut self, messages: Vec<Message>, ignore: &[Option<i32>]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut waiting = messages.len();
        self.send(messages)?;
        let mut result = Ok(());
        while waiting > 0 {
            self.receive(|kind, sequence, payload| {
                if i32::from(kind) != libc::NLMSG_ERROR || payload.len() < 4 {
                    return;
                }
                waiting -= waiting.min(1);
                let errno = -u32_at(payload, 0).cast_signed();
                let ignored = ignore
                    .get(sequence.wrapping_sub(first) as usize)
                    .copied()
                    .flatten();
                if errno != 0 && Some(errno) != ignored && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(errno));
                }
            })?;
        }
        result
    }

    fn dump(&mut self, request: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(vec![request])?;
        let mut done = false;
        let mut result = Ok(());
        while !done {
            self.receive(|kind, _, payload| match i32::from(kind) {
                libc::NLMSG_DONE => done = true,
                libc::NLMSG_ERROR => {
                    done = true;
                    let errno = -u32_at(payload, 0).cast_signed();
                    if errno != 0 {
                        result = Err(io::Error::from_raw_os_error(errno));
                    }
                }
                _ => each(payload),
            })?;
        }
        result
    }

    /// All interfaces of the network namespace.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let request = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP).interface(0, 0, 0);
        self.dump(request, |payload| links.push(parse_link(payload)))?;
        Ok(links)
    }

    /// Gives an interface an IPv4 address of its own, if it has it not.
    pub(super) fn add_address(&mut self, ifindex: u32, address: Ipv4Addr) -> io::Result<()> {
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = Message::new(libc::RTM_NEWADDR, flags)
            .bytes(&[family, 32, 0, libc::RT_SCOPE_LINK])
            .bytes(&ifindex.to_ne_bytes())
            .attribute(libc::IFA_LOCAL, &address.octets())
            .attribute(libc::IFA_ADDRESS, &address.octets());
        self.acknowledged(vec![message], &[None])
    }

    /// All IPv4 addresses of the network namespace, with their interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr)>> {
        let mut addresses = Vec::new();
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        let request =
            Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP).bytes(&[family, 0, 0, 0, 0, 0, 0, 0]);
        self.dump(request, |payload| {
            if payload.len() < 8 {
                return;
            }
            let ifindex = u32_at(payload, 4);
            let mut found = [None, None];
            attributes(&payload[8..], |kind, value| {
                let slot = match kind {
                    libc::IFA_LOCAL => &mut found[0],
                    libc::IFA_ADDRESS => &mut found[1],
                    _ => return,
                };
                *slot = ipv4(value);
            });
            if let Some(address) = found[0].or(found[1]) {
                addresses.push((ifindex, address));
            }
        })?;
        Ok(addresses)
    }

    /// Creates natmig's port: both ends with one MAC address, because the kernel addresses frames
    /// into an interface without ARP to that interface's own.
    pub(super) fn create_port(&mut self, near: &str, far: &str, mac: [u8; 6]) -> io::Result<()> {
        match self.acknowledged(vec![port_message(near, far, mac, true)], &[]) {
            // A kernel without IPv6 gives the port no link-local addresses either.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                self.acknowledged(vec![port_message(near, far, mac, false)], &[])
            }
            other => other,
        }
    }

    /// Removes an interface, and its peer if it has one.
    pub(super) fn remove_link(&mut self, ifindex: u32) -> io::Result<()> {
        let message = Message::new(libc::RTM_DELLINK, libc::NLM_F_ACK).interface(ifindex, 0, 0);
        self.acknowledged(vec![message], &[Some(libc::ENODEV)])
    }

    /// Sets an interface's flags where the mask says so.
    pub(super) fn set_flags(&mut self, ifindex: u32, flags: i32, mask: i32) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK).interface(
            ifindex,
            flags.cast_unsigned(),
            mask.cast_unsigned(),
        );
        self.acknowledged(vec![message], &[])
    }

    /// Sets an interface's MTU.
    pub(super) fn set_mtu(&mut self, ifindex: u32, mtu: u32) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK)
            .interface(ifindex, 0, 0)
            .attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.acknowledged(vec![message], &[])
    }

    /// The host routes of natmig's protocol number, with their interface.
    pub(super) fn routes(&mut self) -> io::Result<Vec<(Ipv4Addr, u32)>> {
        let mut routes = Vec::new();
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        let request = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP)
            .bytes(&[family])
            .bytes(&[0; 11]);
        self.dump(request, |payload| {
            // `rtm_dst_len` and `rtm_protocol`.
            if payload.len() < 12 || payload[1] != 32 || payload[5] != PROTOCOL {
                return;
            }
            let (mut address, mut ifindex) = (None, None);
            attributes(&payload[12..], |kind, value| match kind {
                libc::RTA_DST => address = ipv4(value),
                libc::RTA_OIF if value.len() == 4 => ifindex = Some(u32_at(value, 0)),
                _ => {}
            });
            if let (Some(address), Some(ifindex)) = (address, ifindex) {
                routes.push((address, ifindex));
            }
        })?;
        Ok(routes)
    }

    /// Gateways of all IPv4 routes, with their interface.
    pub(super) fn gateways(&mut self) -> io::Result<Vec<(Ipv4Addr, u32)>> {
        let mut gateways = Vec::new();
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        let request = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP)
            .bytes(&[family])
            .bytes(&[0; 11]);
        self.dump(request, |payload| {
            if payload.len() < 12 {
                return;
            }
            let (mut gateway, mut ifindex) = (None, None);
            attributes(&payload[12..], |kind, value| match kind {
                libc::RTA_GATEWAY => gateway = ipv4(value),
                libc::RTA_OIF if value.len() == 4 => ifindex = Some(u32_at(value, 0)),
                libc::RTA_MULTIPATH => next_hops(value, &mut gateways),
                _ => {}
            });
            gateways.extend(gateway.zip(ifindex));
        })?;
        gateways.sort_unstable();
        gateways.dedup();
        Ok(gateways)
    }

    /// The neighbours of natmig's protocol number.
    pub(super) fn neighbors(&mut self) -> io::Result<Vec<(Ipv4Addr, u32, [u8; 6])>> {
        let mut neighbors = Vec::new();
        let family = u8::try_from(libc::AF_INET).unwrap_or(2);
        let request = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP)
            .bytes(&[family])
            .bytes(&[0; 11]);
        self.dump(request, |payload| {
            if payload.len() < 12 {
                return;
            }
            let ifindex = u32_at(payload, 4);
            let (mut address, mut mac, mut protocol) = (None, [0; 6], 0);
            attributes(&payload[12..], |kind, value| match kind {
                libc::NDA_DST => address = ipv4(value),
                libc::NDA_LLADDR if value.len() == 6 => mac.copy_from_slice(value),
                NDA_PROTOCOL if value.len() == 1 => protocol = value[0],
                _ => {}
            });
            if let Some(address) = address
                && protocol == PROTOCOL
            {
                neighbors.push((address, ifindex, mac));
            }
        })?;
        Ok(neighbors)
    }

    /// Makes many changes; the first that the kernel refuses is the error, the others are made.
    pub(super) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut result = Ok(());
        for changes in changes.chunks(CHUNK) {
            let (messages, ignore): (Vec<_>, Vec<_>) = changes.iter().map(request).unzip();
            let outcome = self.acknowledged(messages, &ignore);
            if result.is_ok() {
                result = outcome;
            }
        }
        result
    }
}

/// The request that creates the port, with or without a word about IPv6 addresses.
fn port_message(near: &str, far: &str, mac: [u8; 6], ipv6: bool) -> Message {
    let end = |message: Message, name: &str| {
        let message = message
            .text(libc::IFLA_IFNAME, name)
            .attribute(libc::IFLA_ADDRESS, &mac);
        if !ipv6 {
            return message;
        }
        message.nested(libc::IFLA_AF_SPEC, |message| {
            let family = u16::try_from(libc::AF_INET6).unwrap_or(10);
            message.nested(family, |message| {
                message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE])
            })
        })
    };
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let no_arp = libc::IFF_NOARP.cast_unsigned();
    let message = Message::new(libc::RTM_NEWLINK, flags).interface(0, no_arp, no_arp);
    end(message, near).nested(libc::IFLA_LINKINFO, |message| {
        message
            .text(IFLA_INFO_KIND, "veth")
            .nested(IFLA_INFO_DATA, |message| {
                message.nested(VETH_INFO_PEER, |message| {
                    end(message.interface(0, no_arp, no_arp), far)
                })
            })
    })
}

fn parse_link(payload: &[u8]) -> Link {
    let mut link = Link::default();
    if payload.len() < 16 {
        return link;
    }
    link.ifindex = u32_at(payload, 4);
    link.flags = u32_at(payload, 8);
    attributes(&payload[16..], |kind, value| match kind {
        libc::IFLA_IFNAME => link.name = text(value),
        libc::IFLA_ADDRESS if value.len() == 6 => link.mac.copy_from_slice(value),
        libc::IFLA_MTU if value.len() == 4 => link.mtu = u32_at(value, 0),
        libc::IFLA_LINK if value.len() == 4 => link.lower = Some(u32_at(value, 0)),
        libc::IFLA_LINK_NETNSID => link.lower_is_elsewhere = true,
        libc::IFLA_LINKINFO => attributes(value, |kind, value| {
            if kind == IFLA_INFO_KIND {
                link.kind = Some(text(value));
            }
        }),
        IFLA_XDP => attributes(value, |kind, value| match kind {
            IFLA_XDP_ATTACHED if value.len() == 1 => {
                link.xdp_generic = value[0] == XDP_ATTACHED_SKB;
            }
            IFLA_XDP_PROG_ID | IFLA_XDP_DRV_PROG_ID | IFLA_XDP_SKB_PROG_ID if value.len() == 4 => {
                link.xdp = Some(u32_at(value, 0)).filter(|id| *id != 0).or(link.xdp);
            }
            _ => {}
        }),
        _ => {}
    });
    link
}

/// Calls `each` with kind and value of every attribute.
fn attributes(mut bytes: &[u8], mut each: impl FnMut(u16, &[u8])) {
    while bytes.len() >= 4 {
        let length = (u16_at(bytes, 0) as usize).clamp(4, bytes.len());
        each(u16_at(bytes, 2) & 0x3fff, &bytes[4..length]);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut value = [0; 2];
    value.copy_from_slice(&bytes[at..at + 2]);
    u16::from_ne_bytes(value)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(value)
}
