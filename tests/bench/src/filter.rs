//! The kernel's own ways to translate: maps of nftables, without state and with.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    plan::Router,
    site::Site,
    traffic::{Area, Density, Family},
};

/// Puts the rules of a kernel router in place; how long that took, none for other routers.
pub fn fill(site: &Site, router: Router) -> Result<Duration> {
    let text = match router {
        Router::Stateless(Family::Ipv4, bindings) => rules(
            Family::Ipv4,
            bindings,
            "type filter hook prerouting priority raw; ip daddr set ip daddr map @locators",
        ),
        Router::Stateless(Family::Ipv6, bindings) => rules(
            Family::Ipv6,
            bindings,
            "type filter hook prerouting priority raw; ip6 daddr set ip6 daddr map @locators",
        ),
        Router::Tracked(bindings) => rules(
            Family::Ipv4,
            bindings,
            "type nat hook prerouting priority dstnat; dnat to ip daddr map @locators",
        ),
        Router::None
        | Router::Program(_)
        | Router::Classifier(_)
        | Router::Kernel
        | Router::Natmig(_)
        | Router::Core(_) => return Ok(Duration::ZERO),
    }?;
    let namespace = site.router()?;
    if matches!(router, Router::Tracked(_)) {
        // Entries must outlast the run, so that what is timed is finding them.
        namespace.sysctl(&[("net.netfilter.nf_conntrack_udp_timeout", "900")])?;
    }
    let start = Instant::now();
    let mut nft = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft (package nftables)")?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(text.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft: {}", said.trim());
    Ok(start.elapsed())
}

/// A table of nftables with the bindings in a map, and a chain that uses it.
fn rules(family: Family, bindings: u32, chain: &str) -> Result<String> {
    let (table, address) = match family {
        Family::Ipv4 => ("ip", "ipv4_addr"),
        Family::Ipv6 => ("ip6", "ipv6_addr"),
    };
    let mut text = format!(
        "table {table} bench {{\nmap locators {{ type {address} : {address}; size {bindings}; elements = {{"
    );
    let (identities, locators) = (
        Area::Identities(Density::Dense),
        Area::Locators(Density::Dense),
    );
    for number in 0..bindings {
        match family {
            Family::Ipv4 => write!(
                text,
                "{} : {},",
                identities.ipv4(number),
                locators.ipv4(number)
            ),
            Family::Ipv6 => write!(
                text,
                "{} : {},",
                identities.ipv6(number),
                locators.ipv6(number)
            ),
        }?;
    }
    write!(text, "}} }}\nchain translate {{\n{chain}\n}}\n}}\n")?;
    Ok(text)
}
