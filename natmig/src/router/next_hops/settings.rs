//! Settings of the network namespace that decide what the kernel does with packets, beside its
//! tables.

use std::fs;

/// Whether the kernel forwards IPv4 and IPv6 packets that come in on an interface.
pub(super) fn forwards(interface: &str) -> [bool; 2] {
    ["ipv4", "ipv6"].map(|family| read(&format!("{family}/conf/{interface}/forwarding")) != 0)
}

/// The MTU of an interface for IPv6; 0 if it has no IPv6.
pub(super) fn mtu_ipv6(interface: &str) -> u32 {
    read(&format!("ipv6/conf/{interface}/mtu"))
}

/// Whether the kernel applies an MTU of a route to packets that it forwards.
pub(super) fn forwards_by_route_mtu() -> bool {
    read("ipv4/ip_forward_use_pmtu") != 0
}

/// A number below `/proc/sys/net`, 0 if there is none. The directory is that of the reading
/// thread's network namespace.
fn read(name: &str) -> u32 {
    fs::read_to_string(format!("/proc/sys/net/{name}"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
