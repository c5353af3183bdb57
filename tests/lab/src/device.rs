//! Settings of network devices that have no netlink word in `ip`: offloads, bridge ports, programs.
//!
//! All of them act in the calling thread's network namespace.

use anyhow::{Context as _, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

const ETHTOOL_SET_TX_CHECKSUM: u32 = 0x17;
const ETHTOOL_SET_TSO: u32 = 0x1f;
const ETHTOOL_SET_GSO: u32 = 0x24;

fn control() -> Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("control socket")
}

fn request(interface: &str) -> Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(
        interface.len() < request.ifr_name.len(),
        "{interface}: too long for an interface name"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn ethtool(interface: &str, command: u32, on: bool) -> Result<()> {
    let socket = control()?;
    let mut value = EthtoolValue {
        command,
        data: u32::from(on),
    };
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the request and the value it points to live until the call returns, and the kernel
    // writes no more than an `ethtool_value` for these commands.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
    nix::errno::Errno::result(result)
        .with_context(|| format!("ethtool {command:#x} on {interface}"))?;
    Ok(())
}

/// Makes every packet leave `interface` complete: no checksum and no segmentation left to hardware
/// that veth does not have, because XDP on the other side sees packets as they are.
pub fn complete_packets(interface: &str) -> Result<()> {
    ethtool(interface, ETHTOOL_SET_TX_CHECKSUM, false)?;
    ethtool(interface, ETHTOOL_SET_TSO, false)?;
    ethtool(interface, ETHTOOL_SET_GSO, false)
}

/// Calls bpf(2).
fn bpf<T>(command: libc::c_int, attributes: &T) -> std::io::Result<OwnedFd> {
    // SAFETY: the attributes live until the call returns and their length is their own; what they
    // point to lives as long, see the callers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let fd = i32::try_from(result).unwrap_or(-1);
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A program that passes every frame. Attached at one end of a veth pair, it lets that end receive
/// what XDP redirects into the other end or sends back from there.
///
/// GRO is not enough: veth wakes the receiver of `XDP_TX` only if it has a program.
#[derive(Debug)]
pub struct PassProgram(OwnedFd);

/// A program's attachment; it ends with this value.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
}

impl PassProgram {
    /// Loads it.
    pub fn load() -> Result<Self> {
        /// First fields of `union bpf_attr` for `BPF_PROG_LOAD`.
        #[repr(C)]
        struct Load {
            kind: u32,
            instructions: u32,
            code: u64,
            license: u64,
        }
        const BPF_PROG_LOAD: libc::c_int = 5;
        const BPF_PROG_TYPE_XDP: u32 = 6;
        // r0 = XDP_PASS; exit
        let code: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let license = c"Dual MIT/GPL";
        let load = Load {
            kind: BPF_PROG_TYPE_XDP,
            instructions: 2,
            code: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        Ok(Self(
            bpf(BPF_PROG_LOAD, &load).context("cannot load the pass program")?,
        ))
    }

    /// Attaches it to an interface of the calling thread's namespace.
    pub fn attach(&self, interface: &str) -> Result<Attachment> {
        /// First fields of `union bpf_attr` for `BPF_LINK_CREATE`.
        #[repr(C)]
        struct Link {
            program: u32,
            ifindex: u32,
            kind: u32,
            flags: u32,
        }
        const BPF_LINK_CREATE: libc::c_int = 28;
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_DRV_MODE: u32 = 4;
        let ifindex =
            if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let link = Link {
            program: u32::try_from(self.0.as_raw_fd())?,
            ifindex,
            kind: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        let link = bpf(BPF_LINK_CREATE, &link)
            .with_context(|| format!("cannot attach the pass program to {interface}"))?;
        Ok(Attachment { _link: link })
    }
}

fn port(bridge: &str, interface: &str, command: libc::c_ulong) -> Result<()> {
    let socket = control()?;
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = i32::try_from(index)?;
    // SAFETY: the request lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command as _, &mut request) };
    nix::errno::Errno::result(result)
        .with_context(|| format!("port {interface} of bridge {bridge}"))?;
    Ok(())
}

/// Makes `interface` a port of `bridge`; it forwards when this returns.
pub fn add_port(bridge: &str, interface: &str) -> Result<()> {
    const SIOCBRADDIF: libc::c_ulong = 0x89a2;
    port(bridge, interface, SIOCBRADDIF)
}

/// Takes `interface` out of `bridge`, which forgets every address it learned there.
pub fn remove_port(bridge: &str, interface: &str) -> Result<()> {
    const SIOCBRDELIF: libc::c_ulong = 0x89a3;
    port(bridge, interface, SIOCBRDELIF)
}
