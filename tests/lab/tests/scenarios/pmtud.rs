//! Path MTU discovery with a small link on the locator's path, to and from the VM.

use anyhow::{Result, ensure};
use natmig_lab::{Lab, Topology, capture::Captures, topology::Endpoint};

use crate::common::{all_kept, migrate, run, scenario, three_tier, watch};

/// The default topology with small links between some routers.
fn small(links: &[([&str; 2], u32)]) -> Topology {
    let mut topology = three_tier();
    for (between, mtu) in links {
        let link = topology
            .fabric
            .iter_mut()
            .find(|link| link.between == *between)
            .unwrap();
        link.mtu = *mtu;
    }
    topology
}

/// Sends packets that are too large and must not be fragmented until the sender knows the path's MTU.
fn discover(lab: &Lab, from: &str, to: &str, mtu: u32) -> Result<()> {
    let ipv6 = to.contains(':');
    // Headers of IP and ICMP.
    let headers = if ipv6 { 48 } else { 28 };
    let (size, fits) = ((1500 - headers).to_string(), (mtu - headers).to_string());
    let mut known = String::new();
    let mut text = String::new();
    for _ in 0..5 {
        // Fails: that is what it is for.
        let too_large = ["-n", "-c", "1", "-W", "1", "-M", "do", "-s", &size, to];
        if let Err(error) = run(lab, from, "ping", &too_large) {
            text = error.to_string();
        }
        known = run(lab, from, "ip", &["route", "get", to])?;
        if known.contains(&format!("mtu {mtu}")) {
            let small = [
                "-n", "-c", "2", "-i", "0.1", "-W", "1", "-M", "do", "-s", &fits, to,
            ];
            run(lab, from, "ping", &small)?;
            return Ok(());
        }
    }
    anyhow::bail!("{from} did not learn an MTU of {mtu} to {to}: {known}{text}")
}

/// `beside`: the small links are on all of the VM's paths.
fn scenario_with(links: &[([&str; 2], u32)], mtu: u32, beside: bool) {
    scenario(small(links), |lab| {
        // Of several equal next hops, Linux notes the MTU of an IPv6 path at one that it may not take.
        lab.network.cut_link("core2", "outside")?;
        migrate(lab, &[("vm1", "rack2")])?;
        let captures = Captures::start(&lab.network, &[])?;
        for peer in ["host3", "outside"] {
            let endpoint = lab.network.topology().endpoint(peer);
            let addresses = endpoint.iter().flat_map(Endpoint::addresses);
            for (vm, address) in ["10.1.1.10", "2001:db8:1::10"].into_iter().zip(addresses) {
                discover(lab, peer, vm, mtu)?;
                discover(lab, "vm1", &address.to_string(), mtu)?;
            }
        }
        let findings = captures.finish()?;
        ensure!(
            findings.leaked == 0,
            "{:#?}",
            findings
                .leaks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        );
        // TCP finds it out by itself; IPv4 datagrams are fragmented on their way, IPv6 ones by
        // senders who know the path.
        if beside {
            discover(lab, "host1", "2001:db8:1::10", mtu)?;
            discover(lab, "vm1", "2001:db8:1::50", mtu)?;
        }
        let watched = watch(
            lab,
            &[("vm1", "host3"), ("vm1", "outside"), ("vm1", "host1")],
        )?;
        watched.more(500)?;
        all_kept(&watched.finish(lab, Vec::new())?)
    });
}

#[test]
fn small_links_beside_the_vm() {
    scenario_with(
        &[(["agg1", "edge2"], 1400), (["agg2", "edge2"], 1400)],
        1400,
        true,
    );
}

#[test]
fn small_links_in_the_core() {
    let links: Vec<([&str; 2], u32)> = [
        ["core1", "agg1"],
        ["core1", "agg2"],
        ["core2", "agg1"],
        ["core2", "agg2"],
    ]
    .map(|link| (link, 1300))
    .to_vec();
    scenario_with(&links, 1300, false);
}
