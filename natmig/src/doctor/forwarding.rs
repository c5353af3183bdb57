//! Settings of the router as a whole.

use natmig_common::Role;

use super::{
    facts::Facts,
    finding::{Chapter, Finding, Subject},
    sysctl,
};

pub(super) fn router(facts: &Facts, findings: &mut Vec<Finding>) {
    let mut chapter = Chapter::new(Subject::Router, findings);
    let forwarding = &facts.forwarding;
    match forwarding.ip_forward {
        Some(0) => chapter.error(
            "ip_forward",
            "this machine forwards nothing (net.ipv4.ip_forward=0)",
            "neither the kernel nor natmig's look-ups of next hops forward a packet",
            sysctl::set("net.ipv4.ip_forward", 1),
        ),
        Some(_) => chapter.ok("ip_forward", "IPv4 is forwarded"),
        None => {}
    }
    match forwarding.ipv6_forwarding {
        Some(0) => chapter.note(
            "ipv6_forwarding",
            "IPv6 is not forwarded (net.ipv6.conf.all.forwarding=0)",
            "this router carries no IPv6, of migrated VMs or others",
            Some(sysctl::set("net.ipv6.conf.all.forwarding", 1)),
        ),
        Some(_) => chapter.ok("ipv6_forwarding", "IPv6 is forwarded"),
        None => {}
    }
    match &forwarding.nft {
        Some(version) => chapter.ok("nft", version.clone()),
        None => chapter.error(
            "nft",
            "`nft` cannot be run",
            "the guard against leaking locators cannot be installed, so natmig refuses to load",
            "apt install nftables",
        ),
    }
    neighbors(facts, &mut chapter);
}

/// Whether all hosts of the segments fit the kernel's table of neighbours.
fn neighbors(facts: &Facts, chapter: &mut Chapter<'_>) {
    /// More than any segment has hosts; keeps the advice sane for short prefixes.
    const MOST: u64 = 1 << 20;
    let Some(limit) = facts.forwarding.neighbor_limit else {
        return;
    };
    let hosts: u64 = facts
        .interfaces
        .iter()
        .filter(|interface| interface.role == Some(Role::Access))
        .filter_map(|interface| interface.prefix)
        .map(|prefix| 1_u64 << (32 - prefix.prefix_len()))
        .sum();
    if hosts <= u64::from(limit) {
        chapter.ok(
            "neighbor_limit",
            format!("room for {limit} neighbours, segments have {hosts} addresses"),
        );
        return;
    }
    let wanted = hosts.min(MOST).next_power_of_two();
    chapter.warning(
        "neighbor_limit",
        format!("room for {limit} neighbours (net.ipv4.neigh.default.gc_thresh3), segments have {hosts} addresses"),
        "hosts beyond that are unreachable while the table is full",
        format!(
            "sysctl -w net.ipv4.neigh.default.gc_thresh3={wanted} net.ipv4.neigh.default.gc_thresh2={} net.ipv4.neigh.default.gc_thresh1={}",
            wanted / 2,
            wanted / 4
        ),
    );
}
