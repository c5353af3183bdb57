//! The generic netlink family `netdev`, which says what a driver can do with XDP (Linux 6.3,
//! include/uapi/linux/netdev.h).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::doctor::facts::XdpFeatures;

const FAMILY: &[u8] = b"netdev\0";
/// `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const GET_DEVICE: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;

/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;

pub(super) struct Netdev {
    fd: OwnedFd,
    family: u16,
}

impl Netdev {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: socket takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_GENERIC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut netdev = Self {
            fd,
            family: u16::try_from(libc::GENL_ID_CTRL).unwrap_or(16),
        };
        let id = netdev.ask(GET_FAMILY, FAMILY_NAME, FAMILY, FAMILY_ID)?;
        netdev.family = <[u8; 2]>::try_from(id.as_slice())
            .map(u16::from_ne_bytes)
            .map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(netdev)
    }

    /// What an interface's driver can do with XDP.
    pub(super) fn xdp_features(&mut self, ifindex: u32) -> Option<XdpFeatures> {
        let bits = self
            .ask(GET_DEVICE, IFINDEX, &ifindex.to_ne_bytes(), XDP_FEATURES)
            .ok()?;
        let bits = <[u8; 8]>::try_from(bits.as_slice()).ok()?;
        Some(XdpFeatures(u64::from_ne_bytes(bits)))
    }

    /// Sends a command with one attribute; returns one attribute of the answer.
    fn ask(&mut self, command: u8, kind: u16, value: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
        let request = request(self.family, command, kind, value);
        // SAFETY: `request` is valid for its length.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = vec![0_u8; 1 << 14];
        // SAFETY: the buffer is valid for its length.
        let received = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                answer.as_mut_ptr().cast(),
                answer.len(),
                0,
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        find(&answer[..received], wanted)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let flags = u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1);
    let mut bytes = vec![0; 4];
    bytes.extend(family.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(u16::try_from(value.len() + 4).unwrap_or(0).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// An attribute of an answer; `None` if the answer is an error.
fn find(answer: &[u8], wanted: u16) -> Option<&[u8]> {
    let number = |bytes: &[u8]| <[u8; 2]>::try_from(bytes).ok().map(u16::from_ne_bytes);
    let message = answer.get(4..6).and_then(number)?;
    if i32::from(message) == libc::NLMSG_ERROR {
        return None;
    }
    let mut rest = answer.get(HEADERS..)?;
    loop {
        let length = usize::from(rest.get(..2).and_then(number)?);
        let kind = rest.get(2..4).and_then(number)?;
        if kind & 0x3fff == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_is_found_behind_others() {
        let mut answer = request(20, GET_DEVICE, IFINDEX, &[7, 0, 0, 0]);
        answer.extend([12, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0].map(u8::from));
        if cfg!(target_endian = "little") {
            assert_eq!(
                find(&answer, XDP_FEATURES),
                Some(&[1, 0, 0, 0, 0, 0, 0, 0][..])
            );
        }
        assert_eq!(find(&answer, 9), None);
        assert_eq!(find(&answer[..10], IFINDEX), None);
    }
}
