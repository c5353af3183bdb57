//! The kernel beside XDP: what routers send themselves, what traceroute shows, old neighbour caches.

use std::time::Duration;

use anyhow::{Result, ensure};
use natmig_lab::{Lab, Topology, capture::Captures, run::wait_for, topology::Endpoint};

use crate::common::{all_kept, migrate, ping, run, scenario, three_tier, watch};

#[test]
fn routers_reach_a_migrated_vm() {
    scenario(three_tier(), |lab| {
        migrate(lab, &[("vm1", "rack2")])?;
        let captures = Captures::start(&lab.network, &[])?;
        // Home edge, current edge, and routers that are neither.
        for router in ["edge1", "edge2", "edge3", "agg1", "core2"] {
            ping(lab, router, "10.1.1.10")?;
            ping(lab, router, "2001:db8:1::10")?;
        }
        // Gateways: its own at home, and that of the segment where it is.
        for gateway in ["10.1.1.1", "10.1.2.1", "2001:db8:1::1", "2001:db8:2::1"] {
            ping(lab, "vm1", gateway)?;
        }
        for rack in ["rack3", "rack1"] {
            migrate(lab, &[("vm1", rack)])?;
            for router in ["edge1", "edge2", "edge3"] {
                ping(lab, router, "10.1.1.10")?;
                ping(lab, router, "2001:db8:1::10")?;
            }
        }
        ensure!(captures.finish()?.leaked == 0);
        Ok(())
    });
}

/// Whether the kernel of the visited router sends to `identity` on the visited segment.
fn is_sent_there(lab: &Lab, identity: &str) -> Result<bool> {
    let route = run(lab, "edge3", "ip", &["route", "get", identity])?;
    Ok(route.contains(" dev rack3 "))
}

/// From the commit on a VM that returns is unbound where it was, and what is sent to it is the kernel's
/// there: a host route that is still in place would lead to the segment that it has left, and would have
/// the kernel tell the segment's hosts to send there by themselves.
#[test]
fn kernels_give_a_visitor_up_when_its_departure_is_prepared() {
    scenario(three_tier(), |lab| {
        let identities = ["10.1.1.10", "2001:db8:1::10"];
        migrate(lab, &[("vm1", "rack3")])?;
        for there in [true, false] {
            let step = if there {
                None
            } else {
                Some(lab.begin("home again", &[("vm1", "rack1")])?)
            };
            for identity in identities {
                ensure!(is_sent_there(lab, identity)? == there, "{identity}");
                for node in ["edge3", "host3", "host1"] {
                    ping(lab, node, identity)?;
                }
            }
            if let Some(step) = step {
                let abort = ["migration", "abort", &step.id.to_string()];
                lab.client()?.ask(&abort)?;
            }
        }
        for identity in identities {
            wait_for("the host route", Duration::from_secs(5), || {
                Ok(is_sent_there(lab, identity)?.then_some(()))
            })?;
            ping(lab, "edge3", identity)?;
        }
        migrate(lab, &[("vm1", "rack1")])?;
        for identity in identities {
            ensure!(!is_sent_there(lab, identity)?, "{identity}");
            ping(lab, "host3", identity)?;
        }
        Ok(())
    });
}

/// The router sends a packet back to the segment that it came from, and tells the sender of a shorter way.
/// A host that believed that would go on sending there when the VM has moved.
#[test]
fn hosts_are_not_told_of_shorter_ways() {
    scenario(three_tier(), |lab| {
        let web1 = "2001:db8:1::11";
        let add = ["-6", "route", "add", web1, "via", "fe80::1", "dev", "eth0"];
        run(lab, "host1", "ip", &add)?;
        ping(lab, "host1", web1)?;
        let rules = run(lab, "edge1", "nft", &["list", "ruleset"])?;
        let redirects = rules
            .lines()
            .find_map(|line| line.split_once("nd-redirect counter packets "))
            .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
        ensure!(redirects.is_some_and(|redirects| redirects > 0), "{rules}");
        let route = run(lab, "host1", "ip", &["-6", "route", "get", web1])?;
        ensure!(route.contains("via fe80::1 "), "{route}");
        Ok(())
    });
}

/// Addresses of an endpoint, IPv4 first.
fn addresses(lab: &Lab, name: &str) -> Vec<String> {
    let endpoint = lab.network.topology().endpoint(name);
    let addresses = endpoint.iter().flat_map(Endpoint::addresses);
    addresses.map(|address| address.to_string()).collect()
}

fn traceroute(lab: &Lab, from: &str, to: &str, method: &str) -> Result<()> {
    let text = run(
        lab,
        from,
        "traceroute",
        &["-n", "-q", "1", "-w", "2", "-m", "12", method, to],
    )?;
    let last = text.lines().last().unwrap_or_default().to_owned();
    ensure!(
        last.contains(&format!(" {to} ")),
        "{from} → {to} {method} did not arrive:\n{text}"
    );
    for word in text.split_whitespace() {
        if let Ok(address) = word.parse::<std::net::IpAddr>() {
            let pools = lab.network.pools();
            ensure!(
                !pools.iter().any(|pool| pool.contains(&address)),
                "{from} → {to} {method} shows a locator:\n{text}"
            );
        }
    }
    Ok(())
}

#[test]
fn traceroute_shows_no_locator_in_any_direction() {
    scenario(three_tier(), |lab| {
        migrate(lab, &[("vm1", "rack2")])?;
        migrate(lab, &[("web1", "rack3"), ("web2", "rack3")])?;
        let captures = Captures::start(&lab.network, &[])?;
        for peer in ["outside", "host1", "host2", "host3", "host4", "web1"] {
            for (vm, address) in ["10.1.1.10", "2001:db8:1::10"]
                .into_iter()
                .zip(addresses(lab, peer))
            {
                for method in ["-U", "-I"] {
                    traceroute(lab, peer, vm, method)?;
                    traceroute(lab, "vm1", &address, method)?;
                }
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
        Ok(())
    });
}

/// Makes what `node` knows of its neighbours permanent, as if nothing could ever correct it.
fn never_forget(lab: &Lab, node: &str, neighbours: &[(&str, String)]) -> Result<()> {
    for (address, mac) in neighbours {
        run(
            lab,
            node,
            "ip",
            &[
                "neighbour",
                "replace",
                address,
                "lladdr",
                mac,
                "dev",
                "eth0",
                "nud",
                "permanent",
            ],
        )?;
    }
    Ok(())
}

#[test]
fn old_neighbour_entries_do_no_harm() {
    scenario(three_tier(), |lab| {
        let mac = |name: &str| {
            lab.network
                .topology()
                .address(name)
                .map(Topology::mac)
                .unwrap_or_default()
        };
        let gateway = run(lab, "edge1", "cat", &["/proc/net/arp"])
            .map(|_| ())
            .and_then(|()| run(lab, "edge1", "ip", &["-o", "link", "show", "dev", "rack1"]))?;
        let gateway = gateway
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        let (vm1, web1, host1) = (mac("vm1"), mac("web1"), mac("host1"));
        never_forget(
            lab,
            "vm1",
            &[
                ("10.1.1.1", gateway.clone()),
                ("10.1.1.50", host1.clone()),
                ("10.1.1.11", web1.clone()),
                ("fe80::1", gateway),
                ("2001:db8:1::50", host1),
                ("2001:db8:1::11", web1),
            ],
        )?;
        for node in ["host1", "web1"] {
            let both = [("10.1.1.10", vm1.clone()), ("2001:db8:1::10", vm1.clone())];
            never_forget(lab, node, &both)?;
        }
        let watched = watch(
            lab,
            &[
                ("vm1", "outside"),
                ("vm1", "host1"),
                ("vm1", "web1"),
                ("vm1", "host3"),
            ],
        )?;
        let mut steps = Vec::new();
        for rack in ["rack2", "rack3", "rack1"] {
            watched.more(300)?;
            steps.push(migrate(lab, &[("vm1", rack)])?);
        }
        watched.more(600)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}
