//! The group of this machine's users that may use the Unix socket besides its owner.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::unistd::{Gid, Group};
use serde::Deserialize;

use super::peer::Standing;

/// Most groups that a process can be in: `NGROUPS_MAX` of Linux.
const MAX_GROUPS: usize = 65_536;

/// What members of the socket's group may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketRole {
    /// Look, and change nothing.
    #[default]
    ReadOnly,
    /// Everything that operators may.
    Operator,
}

/// A group, and what its members may do.
#[derive(Clone, Debug)]
pub(super) struct SocketGroup {
    gid: Gid,
    role: SocketRole,
}

impl SocketGroup {
    /// Looks a group up by its name.
    pub(super) fn find(name: &str, role: SocketRole) -> io::Result<Self> {
        let group = Group::from_name(name)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such group"))?;
        Ok(Self {
            gid: group.gid,
            role,
        })
    }

    pub(super) fn gid(&self) -> Gid {
        self.gid
    }

    pub(super) fn standing(&self) -> Standing {
        match self.role {
            SocketRole::ReadOnly => Standing::ReadOnly,
            SocketRole::Operator => Standing::Operator,
        }
    }

    /// Whether the process at the other end of a socket, whose effective group is `effective`, is a
    /// member.
    pub(super) fn has(&self, socket: BorrowedFd<'_>, effective: u32) -> io::Result<bool> {
        Ok(effective == self.gid.as_raw() || supplementary(socket)?.contains(&self.gid.as_raw()))
    }
}

/// Supplementary groups of the process at the other end, as of its `connect` (`SO_PEERGROUPS`,
/// unix(7)).
fn supplementary(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the buffer has the length that is given, and the kernel writes no more than that
        // and says how much it is.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if done == 0 {
            groups.truncate(length as usize / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= MAX_GROUPS {
            return Err(error);
        }
        groups.resize(MAX_GROUPS, 0);
    }
}
