//! Settings of network devices that have no netlink word in `ip`: offloads and bridge ports.
//!
//! All of them act in the calling thread's network namespace.

use anyhow::{Context as _, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

const ETHTOOL_SET_TX_CHECKSUM: u32 = 0x17;
const ETHTOOL_SET_TSO: u32 = 0x1f;
const ETHTOOL_SET_GSO: u32 = 0x24;
const ETHTOOL_SET_GRO: u32 = 0x2c;

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

/// Lets `interface`, one end of a veth pair, receive what XDP redirects into the other end.
pub fn receive_redirected(interface: &str) -> Result<()> {
    // A veth takes redirected frames only with NAPI, which GRO turns on.
    ethtool(interface, ETHTOOL_SET_GRO, true)
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
