//! A large group migrates as one.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use natmig_lab::{Lab, Topology, client::Migration, topology::THREE_TIER};

use crate::common::{ping, scenario};

const SIZE: usize = 1000;

/// The default topology with racks that have room for a thousand.
fn roomy() -> Topology {
    let mut text = THREE_TIER.to_owned();
    for (from, to) in [
        ("10.1.1.0/24", "10.1.0.0/21"),
        ("10.1.2.0/24", "10.1.8.0/21"),
        ("10.1.3.0/24", "10.1.16.0/21"),
        ("10.1.4.0/24", "10.1.24.0/21"),
    ] {
        text = text.replace(from, to);
    }
    for (from, to) in [
        ("10.1.1.128/25", "10.1.4.0/22"),
        ("10.1.2.128/25", "10.1.12.0/22"),
        ("10.1.3.128/25", "10.1.20.0/22"),
        ("10.1.4.128/25", "10.1.28.0/22"),
    ] {
        text = text.replace(from, to);
    }
    for (from, to) in [
        ("10.1.2.", "10.1.8."),
        ("10.1.3.", "10.1.16."),
        ("10.1.4.", "10.1.24."),
    ] {
        for last in ["1\"", "11\"", "50\""] {
            text = text.replace(&format!("{from}{last}"), &format!("{to}{last}"));
        }
    }
    Topology::parse(&text).unwrap()
}

#[test]
fn thousand_vms_become_active_with_one_store_on_each_router() {
    scenario(roomy(), |lab| {
        // The group's guests are bindings only, but for vm1, which is real.
        let mut inventory = String::new();
        let mut names = vec!["vm1".to_owned()];
        for index in 0..SIZE - 1 {
            let (high, low) = (index / 250, index % 250);
            let name = format!("g{index}");
            writeln!(
                inventory,
                "[[vm]]\nname = {name:?}\nip = [\"10.1.{high}.{}\", \"2001:db8:1::1:{index}\"]\nmac = \"02:01:00:00:{high:02x}:{low:02x}\"\nsegment = \"rack1\"",
                low + 3
            )?;
            names.push(name);
        }
        let inventory = inventory
            .replace("10.1.1.10\"", "10.1.3.254\"")
            .replace("10.1.1.11\"", "10.1.3.253\"")
            .replace("10.1.1.50\"", "10.1.3.252\"");
        let file = lab.directory().join("group.toml");
        std::fs::write(&file, inventory)?;
        let client = lab.client()?.clone();
        client.ask(&["vm", "add", "--file", file.to_str().context("UTF-8")?])?;
        ping(lab, "outside", "10.1.1.10")?;
        let moves: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "rack3")).collect();
        let id = lab.prepare(&moves)?;
        lab.relocate(&[("vm1", "rack3")], crate::common::PAUSE)?;
        client.ask(&["migration", "activate", &id.to_string(), "--wait"])?;
        let reach = |lab: &Lab, peer: &str| {
            ping(lab, peer, "10.1.1.10")?;
            ping(lab, peer, "2001:db8:1::10")
        };
        for peer in ["outside", "host1", "host2", "host3"] {
            reach(lab, peer)?;
        }
        let migration = client.wait(
            id,
            "folded",
            std::time::Duration::from_secs(30),
            Migration::is_folded,
        )?;
        // The kernel's own routes follow behind the commit, before the fold.
        reach(lab, "edge1")?;
        let commits = migration.commits();
        ensure!(commits.len() == 10, "commits of {} routers", commits.len());
        let spread = commits
            .values()
            .max()
            .zip(commits.values().min())
            .map(|(last, first)| last - first);
        println!(
            "{SIZE} VMs: commits of all routers within {:?} µs",
            spread.map(|spread| spread / 1000)
        );
        for router in ["edge1", "edge3", "core1"] {
            let list = lab.map(router, "list")?;
            for prefix in ["10.1.", "2001:db8:1::"] {
                let lines = list.lines().filter(|line| line.contains(prefix)).count();
                ensure!(
                    lines >= SIZE,
                    "{router} lists {lines} addresses in {prefix}"
                );
            }
        }
        Ok(())
    });
}
