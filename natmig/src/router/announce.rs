//! Announcements: ARP messages that tell a segment where an identity is, sent from the router's own
//! interfaces (RFC 826, RFC 5227 section 3).

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use natmig_common::Action;

use super::{RouterError, version::Decoded};

/// When, after the commit, an announcement is sent. Linux ignores one that comes within `locktime`
/// (1 s) of the last change of a neighbour entry, so it is repeated.
pub const SCHEDULE: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1100),
    Duration::from_millis(2500),
];

const BROADCAST: [u8; 6] = [0xff; 6];

/// An ARP message to be sent on an access interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The access interface.
    pub ifindex: u32,
    /// The address that is announced: an identity, or a visitor's gateway.
    pub address: IpAddr,
    /// The whole Ethernet frame.
    pub frame: [u8; 42],
}

impl Announcement {
    fn new(ifindex: u32, address: Ipv4Addr, to: [u8; 6], from: [u8; 6], mac: [u8; 6]) -> Self {
        let mut frame = [0; 42];
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        // ARP; Ethernet and IPv4 with their address lengths; a request.
        frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&address.octets());
        frame[38..42].copy_from_slice(&address.octets());
        Self {
            ifindex,
            address: address.into(),
            frame,
        }
    }

    /// What a committed version of an identity is announced with.
    pub(super) fn of(
        identity: IpAddr,
        version: &Decoded,
        gateway_mac: [u8; 6],
        interface_mac: [u8; 6],
    ) -> Option<Self> {
        let ifindex = version.ifindex;
        let IpAddr::V4(identity) = identity else {
            return None;
        };
        if version.is_home() {
            // To the home segment: this router answers for the identity.
            return Some(Self::new(
                ifindex,
                identity,
                BROADCAST,
                gateway_mac,
                gateway_mac,
            ));
        }
        if version.action != Action::Local {
            return None;
        }
        if !version.is_visitor() {
            // To the home segment: the VM is back.
            return Some(Self::new(
                ifindex,
                identity,
                BROADCAST,
                interface_mac,
                version.mac,
            ));
        }
        // To the visitor: this router is its gateway.
        match version.forward {
            Some(IpAddr::V4(gateway)) => Some(Self::new(
                ifindex,
                gateway,
                version.mac,
                gateway_mac,
                gateway_mac,
            )),
            Some(IpAddr::V6(_)) | None => None,
        }
    }
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
    for announcement in announcements {
        let outcome = send_one(&socket, announcement).map_err(RouterError::system(format!(
            "announce {} on interface {}",
            announcement.address, announcement.ifindex
        )));
        if result.is_ok() {
            result = outcome;
        }
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
    use natmig_common::FLAG_HOME_EDGE;

    use super::*;

    #[test]
    fn away_identity_is_announced_with_the_gateway_mac() {
        let identity = Ipv4Addr::new(10, 1, 1, 10);
        let gateway_mac = [2, 0x6e, 0x6d, 0, 0, 1];
        let version = Decoded {
            action: Action::Away,
            flags: FLAG_HOME_EDGE,
            ifindex: 3,
            ..Decoded::ABSENT
        };
        let announcement =
            Announcement::of(identity.into(), &version, gateway_mac, [9; 6]).unwrap();
        assert_eq!(announcement.frame[..6], BROADCAST);
        assert_eq!(announcement.frame[22..28], gateway_mac);
        assert_eq!(announcement.frame[28..32], announcement.frame[38..42]);
    }
}
