//! Announcements: messages that tell a segment where an identity is, sent from the router's own
//! interfaces: gratuitous ARP (RFC 826, RFC 5227 section 3) and unsolicited neighbour advertisements
//! (RFC 4861 section 7.2.6).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use natmig_common::{Action, Interface};

use super::{RouterError, version::Decoded};

/// When, after the commit, an announcement is sent. Linux ignores one that comes within `locktime`
/// (1 s) of the last change of a neighbour entry, so it is repeated.
pub const SCHEDULE: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1100),
    Duration::from_millis(2500),
];

/// Announcements between which other threads may go first.
const CHUNK: usize = 32;

const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Flags of a neighbour advertisement.
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;

/// An ARP message or a neighbour advertisement to be sent on an access interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The access interface.
    pub ifindex: u32,
    /// The address that is announced: an identity, or a visitor's gateway.
    pub address: IpAddr,
    /// The whole Ethernet frame.
    pub frame: Vec<u8>,
}

/// Who is told.
#[derive(Clone, Copy, Debug)]
enum Audience {
    /// All of the segment.
    Segment,
    /// A visitor, by its MAC address and the identity that is of the announced address' family.
    Visitor([u8; 6], IpAddr),
}

impl Announcement {
    /// `address` is at `mac`; the frame comes from `from`.
    fn new(ifindex: u32, address: IpAddr, audience: Audience, from: [u8; 6], mac: [u8; 6]) -> Self {
        let frame = match address {
            IpAddr::V4(address) => gratuitous_arp(address, audience, from, mac),
            IpAddr::V6(address) => unsolicited_advertisement(address, audience, from, mac),
        };
        Self {
            ifindex,
            address,
            frame,
        }
    }

    /// What a committed version of an identity is announced with on the interface.
    ///
    /// The gateway's MAC address is announced by the owner of the gateway's address alone: switches
    /// would send frames for it to another router otherwise, which leaves them alone.
    pub(super) fn of(
        identity: IpAddr,
        version: &Decoded,
        gateway_mac: [u8; 6],
        interface: &Interface,
    ) -> Option<Self> {
        let ifindex = version.ifindex;
        let owner = interface.owns_gateway();
        if version.is_home() {
            // To the home segment: this router answers for the identity.
            return owner.then(|| {
                Self::new(
                    ifindex,
                    identity,
                    Audience::Segment,
                    gateway_mac,
                    gateway_mac,
                )
            });
        }
        if version.action != Action::Local {
            return None;
        }
        if !version.is_visitor() {
            // To the home segment: the VM is back.
            return Some(Self::new(
                ifindex,
                identity,
                Audience::Segment,
                interface.mac,
                version.mac,
            ));
        }
        // To the visitor: this router is its gateway.
        let gateway = version.forward.filter(|_| owner)?;
        let audience = Audience::Visitor(version.mac, identity);
        Some(Self::new(
            ifindex,
            gateway,
            audience,
            gateway_mac,
            gateway_mac,
        ))
    }
}

/// An ARP request whose sender is its target.
fn gratuitous_arp(address: Ipv4Addr, audience: Audience, from: [u8; 6], mac: [u8; 6]) -> Vec<u8> {
    let to = match audience {
        Audience::Segment => BROADCAST,
        Audience::Visitor(mac, _) => mac,
    };
    let mut frame = Vec::with_capacity(42);
    frame.extend(to);
    frame.extend(from);
    // ARP; Ethernet and IPv4 with their address lengths; a request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// A neighbour advertisement that nobody asked for. A gateway's says that it is a router: a host
/// drops it from its default routers otherwise (RFC 4861 section 7.2.5).
fn unsolicited_advertisement(
    address: Ipv6Addr,
    audience: Audience,
    from: [u8; 6],
    mac: [u8; 6],
) -> Vec<u8> {
    let (to_mac, to, flags) = match audience {
        Audience::Visitor(mac, IpAddr::V6(identity)) => (mac, identity, ROUTER | OVERRIDE),
        // A visitor without an IPv6 identity has no IPv6 gateway.
        Audience::Visitor(mac, IpAddr::V4(_)) => (mac, ALL_NODES, ROUTER | OVERRIDE),
        Audience::Segment => (ALL_NODES_MAC, ALL_NODES, OVERRIDE),
    };
    // Type 136; flags; target; the option "target link-layer address", 8 bytes long.
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let checksum = icmpv6_checksum(address, to, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + 40 + message.len());
    frame.extend(to_mac);
    frame.extend(from);
    // IPv6; 32 bytes of ICMPv6; hop limit 255, without which nobody believes it.
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(address.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// The checksum of an `ICMPv6` message whose checksum field is zero (RFC 8200 section 8.1).
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let word = |bytes: &[u8]| {
        let low = bytes.get(1).copied().unwrap_or(0);
        u64::from(bytes[0]) << 8 | u64::from(low)
    };
    let addresses = [source.octets(), destination.octets()].concat();
    let sum: u64 = addresses.chunks(2).chain(message.chunks(2)).map(word).sum();
    let mut sum = sum + u64::try_from(message.len()).unwrap_or(0) + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Sends announcements once, in the network namespace of the calling thread.
pub fn send(announcements: &[Announcement]) -> Result<(), RouterError> {
    if announcements.is_empty() {
        return Ok(());
    }
    // SAFETY: socket takes no pointers. Protocol 0: the socket only sends.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(RouterError::system("open a packet socket")(
            io::Error::last_os_error(),
        ));
    }
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut result = Ok(());
    for announcements in announcements.chunks(CHUNK) {
        for announcement in announcements {
            let outcome = send_one(&socket, announcement).map_err(|error| {
                let (address, ifindex) = (announcement.address, announcement.ifindex);
                RouterError::system(format!("announce {address} on interface {ifindex}"))(error)
            });
            if result.is_ok() {
                result = outcome;
            }
        }
        // A group's take milliseconds, and commits of other routers or transactions may wait for
        // this CPU.
        thread::yield_now();
    }
    result
}

fn send_one(socket: &OwnedFd, announcement: &Announcement) -> io::Result<()> {
    // SAFETY: all zero is a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(17);
    to.sll_ifindex = announcement.ifindex.cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&announcement.frame[..6]);
    let length = u32::try_from(size_of_val(&to)).unwrap_or(0);
    // SAFETY: frame and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            announcement.frame.as_ptr().cast(),
            announcement.frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use natmig_common::{FLAG_GATEWAY_OWNER, FLAG_HOME_EDGE};

    use super::*;

    const GATEWAY_MAC: [u8; 6] = [2, 0x6e, 0x6d, 0, 0, 1];

    fn announced(identity: IpAddr, version: &Decoded) -> Option<Announcement> {
        let owner = Interface {
            flags: FLAG_GATEWAY_OWNER,
            mac: [9; 6],
            ..Interface::default()
        };
        assert_eq!(
            Announcement::of(identity, version, GATEWAY_MAC, &Interface::default()),
            None,
            "by a router without the gateway's address"
        );
        Announcement::of(identity, version, GATEWAY_MAC, &owner)
    }

    #[test]
    fn away_identity_is_announced_with_the_gateway_mac() {
        let identity = Ipv4Addr::new(10, 1, 1, 10).into();
        let version = Decoded {
            action: Action::Away,
            flags: FLAG_HOME_EDGE,
            ifindex: 3,
            ..Decoded::ABSENT
        };
        let announcement = announced(identity, &version).unwrap();
        assert_eq!(announcement.frame.len(), 42);
        assert_eq!(announcement.frame[..6], BROADCAST);
        assert_eq!(announcement.frame[22..28], GATEWAY_MAC);
        assert_eq!(announcement.frame[28..32], announcement.frame[38..42]);
    }

    #[test]
    fn away_ipv6_identity_is_advertised_to_all_nodes() {
        let identity: Ipv6Addr = "2001:db8:1::10".parse().unwrap();
        let version = Decoded {
            action: Action::Away,
            flags: FLAG_HOME_EDGE,
            ifindex: 3,
            ..Decoded::ABSENT
        };
        let announcement = announced(identity.into(), &version).unwrap();
        let frame = &announcement.frame;
        assert_eq!(frame.len(), 86);
        assert_eq!(frame[..6], ALL_NODES_MAC);
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[58], OVERRIDE);
        assert_eq!(frame[62..78], identity.octets());
        assert_eq!(frame[80..86], GATEWAY_MAC);
        // A message with its checksum in place sums up to nothing.
        assert_eq!(icmpv6_checksum(identity, ALL_NODES, &frame[54..]), 0);
    }

    #[test]
    fn a_visitors_link_local_gateway_is_advertised_as_a_router() {
        let identity: Ipv6Addr = "2001:db8:1::10".parse().unwrap();
        let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
        let version = Decoded {
            action: Action::Local,
            counterpart: "2001:db8:2::f:1".parse().ok(),
            forward: Some(gateway.into()),
            mac: [2, 0, 0, 0, 0, 7],
            ..Decoded::ABSENT
        };
        let announcement = announced(identity.into(), &version).unwrap();
        let frame = &announcement.frame;
        assert_eq!(announcement.address, IpAddr::V6(gateway));
        assert_eq!(frame[..6], version.mac);
        assert_eq!(frame[38..54], identity.octets());
        assert_eq!(frame[58], ROUTER | OVERRIDE);
        assert_eq!(icmpv6_checksum(gateway, identity, &frame[54..]), 0);
    }
}
