//! Notices when the kernel's interfaces or addresses change (a gateway address that VRRP moves
//! here, a MAC address, an MTU), so that the tables' view of them is read again.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// Multicast groups of `NETLINK_ROUTE`: links, and addresses.
const GROUPS: u32 =
    (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// Changes come in bursts; they are answered once, this long after the first.
const SETTLE: Duration = Duration::from_millis(20);

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
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.socket.readable().await?.retain_ready();
        tokio::time::sleep(SETTLE).await;
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| drain(socket.get_ref())) {
                Ok(drained) => drained?,
                // Nothing is left to read.
                Err(_would_block) => return Ok(()),
            }
        }
    }
}

/// Takes messages without looking at them: whatever changed, all is read again.
fn drain(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; 8192];
    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(io::Error::from) {
        Ok(_) => Ok(()),
        // Some messages were lost, which says that there were changes.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    }
}
