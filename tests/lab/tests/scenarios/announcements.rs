//! Migrations that commit by themselves when their VMs are heard at their new places.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use natmig_lab::{Lab, client::Migration, network::vm_mac, run::wait_for};
use serde_json::Value;

use crate::common::{PAUSE, all_kept, scenario, three_tier, watch};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a router counted under this name, on all of its interfaces.
fn counted(lab: &Lab, router: &str, counter: &str) -> Result<u64> {
    let instance = lab.instance(router);
    let arguments = ["stats", "--instance", &instance, "--all", "--json"];
    let text = lab
        .client()?
        .ask_in(lab.network.node(router)?, &arguments)?;
    let stats: Value = serde_json::from_str(&text)?;
    let packets = stats["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|interface| interface["counters"].as_array())
        .flatten()
        .filter(|value| value["name"] == counter)
        .filter_map(|value| value["packets"].as_u64());
    Ok(packets.sum())
}

/// Nobody asks for the commit: the guest's RARP is enough, or its own traffic.
#[test]
fn a_migration_commits_when_its_vm_speaks() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "web1")],
        )?;
        let mut steps = Vec::new();
        for rack in ["rack2", "rack3", "rack1"] {
            watched.more(100)?;
            let moves = [("vm1", rack)];
            let mut step = lab.begin_on("on-announce", "on announce", &moves)?;
            step.windows = lab.relocate(&moves, PAUSE)?;
            let client = lab.client()?;
            client.wait(step.id, "folded", PATIENCE, Migration::is_folded)?;
            lab.observe(&mut step)?;
            steps.push(step);
        }
        watched.more(200)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}

/// Whoever pretends to be the VM only gets counted; and what the VM says while agents and controller
/// are dead is heard all the same.
#[test]
fn forged_announcements_change_nothing_and_an_early_one_is_not_lost() {
    scenario(three_tier(), |lab| {
        let address = lab.network.topology().vm("vm1").context("no vm1")?.address;
        let mac = vm_mac(address);
        let stranger = [2, 0, 0, 0, 0, 0x66];
        let moves = [("vm1", "rack2")];
        let id = lab.prepare_on("on-announce", &moves)?;
        let before = [
            counted(lab, "edge2", "announcement_forged")?,
            counted(lab, "edge2", "announcement_unexpected")?,
        ];
        // In its name from its new rack, in a name of its own from there, and as the VM from elsewhere.
        for _ in 0..50 {
            lab.network.announce("host2", "eth0", stranger, mac)?;
            lab.network.announce("host2", "eth0", stranger, stranger)?;
            lab.network.announce("host3", "eth0", mac, mac)?;
        }
        wait_for("forged announcements to be counted", PATIENCE, || {
            let forged = counted(lab, "edge2", "announcement_forged")? - before[0];
            let unexpected = counted(lab, "edge2", "announcement_unexpected")? - before[1];
            Ok((forged >= 50 && unexpected >= 50).then_some(()))
        })?;
        ensure!(
            counted(lab, "edge2", "vm_heard")? == 0,
            "edge2 heard a forger"
        );
        let migration = lab.client()?.migration(id)?;
        ensure!(migration.phase == "prepared", "it is {}", migration.phase);

        // Nobody is there to be told.
        lab.kill("edge2")?;
        lab.kill("controller")?;
        lab.relocate(&moves, PAUSE)?;
        lab.restart("controller")?;
        lab.restart("edge2")?;
        lab.wait_connected()?;
        lab.client()?
            .wait(id, "folded", PATIENCE, Migration::is_folded)?;
        crate::common::ping(lab, "outside", &address.to_string())
    });
}
