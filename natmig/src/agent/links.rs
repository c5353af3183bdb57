//! Notices when the kernel's interfaces or addresses change (a gateway address that VRRP moves
//! here, a MAC address, an MTU), so that the tables' view of them is read again.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// Multicast groups of `NETLINK_ROUTE`: links, and addresses.
const GROUPS: u32 =
    (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// Changes come in bursts; they are answered once, this long after the first.
const SETTLE: Duration = Duration::from_millis(20);

/// What has changed. Natmig itself switches promiscuous mode as visitors come and go, and reading all
/// again for that would hold up the commits of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changed {
    /// Nothing but promiscuous mode of links.
    Promiscuity,
    /// Something else, or it is not known what.
    Anything,
}

impl Changed {
    /// What netlink's messages tell of.
    fn of(messages: &[u8]) -> Self {
        let mut rest = messages;
        while !rest.is_empty() {
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else {
                return Self::Anything;
            };
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            let is_promiscuity = matches!(
                message.payload,
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                    if link.header.change_mask == LinkFlags::Promisc
            );
            if !is_promiscuity {
                return Self::Anything;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Self::Promiscuity
    }
}

/// A subscription to changes in this network namespace.
#[derive(Debug)]
pub(super) struct Links {
    socket: AsyncFd<OwnedFd>,
}

impl Links {
    pub(super) fn subscribe() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        // SAFETY: the descriptor is owned: it stays open, and is the same socket, until it is
        // dropped together with its registration.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// Returns after something changed.
    pub(super) async fn changed(&self) -> io::Result<Changed> {
        self.socket.readable().await?.retain_ready();
        tokio::time::sleep(SETTLE).await;
        let mut changed = Changed::Promiscuity;
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| take(socket.get_ref())) {
                Ok(taken) => changed = changed.max(taken?),
                // Nothing is left to read.
                Err(_would_block) => return Ok(changed),
            }
        }
    }
}

/// Takes messages: what changed.
fn take(socket: &OwnedFd) -> io::Result<Changed> {
    let mut buffer = [0; 8192];
    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(io::Error::from) {
        Ok(length) => Ok(buffer.get(..length).map_or(Changed::Anything, Changed::of)),
        // Some messages were lost, which says that there were changes.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Changed::Anything),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Changed::Promiscuity),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    /// What netlink says when these flags of a link have changed.
    fn message(changed: LinkFlags) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.header.change_mask = changed;
        let payload = RouteNetlinkMessage::NewLink(link).into();
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn promiscuous_mode_is_told_from_everything_else() {
        let promiscuous = message(LinkFlags::Promisc);
        let both = [promiscuous.clone(), promiscuous.clone()].concat();
        assert_eq!(Changed::of(&promiscuous), Changed::Promiscuity);
        assert_eq!(Changed::of(&both), Changed::Promiscuity);
        for other in [
            message(LinkFlags::empty()),
            message(LinkFlags::Up),
            message(LinkFlags::Promisc | LinkFlags::Up),
            vec![1, 2, 3],
            promiscuous[..promiscuous.len() - 4].to_vec(),
        ] {
            assert_eq!(Changed::of(&other), Changed::Anything, "{other:?}");
            let behind = [promiscuous.clone(), other].concat();
            assert_eq!(Changed::of(&behind), Changed::Anything, "{behind:?}");
        }
    }
}
