//! Both address families: what neighbours learn, VMs of IPv6 alone, both families of a VM as one.

use std::time::Duration;

use anyhow::{Result, ensure};
use natmig_lab::{Lab, run::wait_for};

use crate::common::{all_kept, migrate, ping, run, scenario, three_tier, watch};

/// The gateway MAC address, which answers for VMs that are away.
const GATEWAY_MAC: &str = "02:6e:6d:00:00:01";

/// Waits until `node` knows `address` at `mac`.
fn knows(lab: &Lab, node: &str, address: &str, mac: &str) -> Result<()> {
    let mut said = String::new();
    let known = wait_for("the neighbour entry", Duration::from_secs(5), || {
        said = run(lab, node, "ip", &["neighbour", "show", "to", address])?;
        Ok(said.contains(&format!("lladdr {mac} ")).then_some(()))
    });
    known.map_err(|error| error.context(format!("{node} knows {said:?}, not {mac}")))
}

#[test]
fn neighbours_learn_where_an_identity_is() {
    scenario(three_tier(), |lab| {
        let vm = "02:00:0a:01:01:0a";
        // What they know before, they keep for minutes unless they are told.
        for (node, address) in [
            ("host1", "10.1.1.10"),
            ("host1", "2001:db8:1::10"),
            ("web1", "2001:db8:1::10"),
        ] {
            ping(lab, node, address)?;
            knows(lab, node, address, vm)?;
        }
        ping(lab, "vm1", "2001:db8:100::10")?;
        migrate(lab, &[("vm1", "rack2")])?;
        for node in ["host1", "web1"] {
            knows(lab, node, "2001:db8:1::10", GATEWAY_MAC)?;
        }
        knows(lab, "host1", "10.1.1.10", GATEWAY_MAC)?;
        // The visitor is told of its gateway, which is link-local.
        knows(lab, "vm1", "fe80::1", GATEWAY_MAC)?;
        let routes = run(lab, "vm1", "ip", &["-6", "route", "show", "default"])?;
        ensure!(routes.contains("via fe80::1"), "{routes}");
        migrate(lab, &[("vm1", "rack1")])?;
        for address in ["10.1.1.10", "2001:db8:1::10"] {
            knows(lab, "host1", address, vm)?;
        }
        ping(lab, "host1", "2001:db8:1::10")
    });
}

#[test]
fn a_visitor_finds_neighbours_it_has_forgotten() {
    scenario(three_tier(), |lab| {
        migrate(lab, &[("vm1", "rack2")])?;
        let forget = |lab: &Lab, node: &str| {
            let all = ["neighbour", "flush", "dev", "eth0", "nud", "all"];
            run(lab, node, "ip", &all).map(drop)
        };
        for peer in [
            "2001:db8:1::50",
            "2001:db8:1::11",
            "2001:db8:3::50",
            "10.1.1.50",
        ] {
            forget(lab, "vm1")?;
            ping(lab, "vm1", peer)?;
        }
        for host in ["host1", "web1", "host2"] {
            forget(lab, host)?;
            ping(lab, host, "2001:db8:1::10")?;
        }
        Ok(())
    });
}

/// Gives a VM other identities.
fn readd(lab: &Lab, identities: &[&str]) -> Result<()> {
    let client = lab.client()?;
    client.ask(&["vm", "remove", "vm1"])?;
    let mut arguments = vec!["vm", "add", "vm1", "--segment", "rack1"];
    arguments.extend(["--mac", "02:00:0a:01:01:0a"]);
    for identity in identities {
        arguments.extend(["--ip", identity]);
    }
    client.ask(&arguments).map(drop)
}

#[test]
fn a_vm_may_have_ipv6_alone() {
    scenario(three_tier(), |lab| {
        readd(lab, &["2001:db8:1::10"])?;
        for rack in ["rack2", "rack3", "rack1"] {
            migrate(lab, &[("vm1", rack)])?;
            for peer in ["outside", "host1", "host2", "host3"] {
                ping(lab, peer, "2001:db8:1::10")?;
            }
            let list = lab.map("edge1", "list")?;
            ensure!(!list.contains("10.1.1.10"), "{list}");
        }
        Ok(())
    });
}

#[test]
fn a_segment_without_a_family_of_the_vm_is_refused() {
    let mut topology = three_tier();
    let Some(rack4) = topology.segments.iter_mut().find(|it| it.name == "rack4") else {
        panic!("no rack4")
    };
    (rack4.prefix_ipv6, rack4.gateway_ipv6, rack4.pool_ipv6) = (None, None, None);
    for host in &mut topology.hosts {
        if host.segment == "rack4" {
            host.address_ipv6 = None;
        }
    }
    scenario(topology, |lab| {
        let Err(error) = lab.prepare(&[("vm1", "rack4")]) else {
            anyhow::bail!("a VM with IPv6 may go where there is none");
        };
        let said = format!("{error:#}");
        ensure!(said.contains("segment rack4 has no IPv6 prefix"), "{said}");
        readd(lab, &["10.1.1.10"])?;
        migrate(lab, &[("vm1", "rack4")])?;
        ping(lab, "host1", "10.1.1.10")
    });
}

#[test]
fn both_families_of_a_vm_move_in_one_transaction() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "host2")],
        )?;
        let mut steps = Vec::new();
        for rack in ["rack2", "rack3", "rack1"] {
            let moves = [("vm1", rack)];
            let mut step = lab.begin("both families", &moves)?;
            for router in ["edge1", "core1"] {
                let list = lab.map(router, "list")?;
                let transaction = format!(" {} prepared", step.id);
                for identity in ["10.1.1.10 ", "2001:db8:1::10 "] {
                    let is_in = |line: &str| line.contains(identity) && line.contains(&transaction);
                    ensure!(
                        list.lines().any(is_in),
                        "{router} has no {identity} in transaction {}:\n{list}",
                        step.id
                    );
                }
            }
            step.windows = lab.relocate(&moves, crate::common::PAUSE)?;
            lab.finish(&mut step)?;
            lab.client()?.wait(
                step.id,
                "folded",
                Duration::from_secs(20),
                natmig_lab::client::Migration::is_folded,
            )?;
            steps.push(step);
            watched.more(200)?;
        }
        all_kept(&watched.finish(lab, steps)?)
    });
}
