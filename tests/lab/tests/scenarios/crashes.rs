//! Daemons killed at every phase of a migration: it finishes, or nothing of it is left.

use std::time::Duration;

use anyhow::{Result, ensure};
use natmig_lab::{Lab, client::Migration, report::Step};

use crate::common::{PAUSE, all_kept, migrate, ping, scenario, three_tier, watch};

const PATIENCE: Duration = Duration::from_secs(30);

/// When the daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Prepared,
    Committing,
    Draining,
}

/// Kills a daemon and starts it again; connections settle.
fn crash(lab: &mut Lab, daemon: &str) -> Result<()> {
    lab.kill(daemon)?;
    lab.restart(daemon)?;
    lab.wait_connected()
}

/// A migration during which `daemon` dies.
fn migrate_through_crash(lab: &mut Lab, to: &str, daemon: &str, moment: Moment) -> Result<Step> {
    let moves = [("vm1", to)];
    let mut step = lab.begin("crash", &moves)?;
    let id = step.id.to_string();
    if moment == Moment::Prepared {
        crash(lab, daemon)?;
        lab.client()?
            .wait(step.id, "prepared again", PATIENCE, |migration| {
                migration.phase == "prepared"
            })?;
    }
    step.windows = lab.relocate(&moves, PAUSE)?;
    lab.client()?
        .ask(&["migration", "activate", &id, "--json"])?;
    if moment == Moment::Committing {
        crash(lab, daemon)?;
    }
    let folded = lab
        .client()?
        .wait(step.id, "folded", PATIENCE, Migration::is_folded)?;
    if moment == Moment::Draining {
        ensure!(
            folded.phase == "draining",
            "too late to kill anything while draining: {}",
            folded.phase
        );
        crash(lab, daemon)?;
    }
    lab.client()?.wait(step.id, "done", PATIENCE, |migration| {
        migration.phase == "done"
    })?;
    lab.observe(&mut step)?;
    Ok(step)
}

fn crashes_of(daemons: &[&str]) {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[
                ("vm1", "outside"),
                ("vm1", "host1"),
                ("vm1", "host2"),
                ("vm1", "web1"),
            ],
        )?;
        let mut steps = Vec::new();
        let mut racks = ["rack2", "rack3", "rack1"].into_iter().cycle();
        for daemon in daemons {
            for moment in [Moment::Prepared, Moment::Committing, Moment::Draining] {
                let Some(rack) = racks.next() else { continue };
                let step = migrate_through_crash(lab, rack, daemon, moment);
                steps.push(step.map_err(|error| {
                    error.context(format!(
                        "{daemon} killed when {moment:?}, on the way to {rack}"
                    ))
                })?);
                watched.more(200)?;
            }
        }
        all_kept(&watched.finish(lab, steps)?)
    });
}

#[test]
fn controller_dies_at_every_phase() {
    crashes_of(&["controller"]);
}

#[test]
fn agents_die_at_every_phase() {
    // The VM's home edge, a new or previous edge, a router that is neither.
    crashes_of(&["edge1", "edge2", "core1"]);
}

#[test]
fn aborted_migration_leaves_nothing() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "host2")],
        )?;
        let step = lab.begin("to be aborted", &[("vm1", "rack2")])?;
        watched.more(200)?;
        crash(lab, "controller")?;
        lab.client()?
            .ask(&["migration", "abort", &step.id.to_string()])?;
        lab.client()?
            .wait(step.id, "aborted", PATIENCE, |migration| {
                migration.phase == "aborted"
            })?;
        watched.more(200)?;
        for router in ["edge1", "edge2", "core1"] {
            let list = lab.map(router, "list")?;
            ensure!(
                !list.contains("10.1.1.10") && !list.contains("2001:db8:1::10"),
                "{router} still knows the VM:\n{list}"
            );
        }
        let again = migrate(lab, &[("vm1", "rack2")])?;
        watched.more(200)?;
        all_kept(&watched.finish(lab, vec![again])?)
    });
}

#[test]
fn traffic_flows_without_any_daemon() {
    scenario(three_tier(), |lab| {
        let watched = watch(lab, &[("vm1", "outside"), ("vm1", "host1")])?;
        let step = migrate(lab, &[("vm1", "rack4")])?;
        let routers: Vec<String> = lab
            .network
            .topology()
            .routers
            .iter()
            .map(|router| router.name.clone())
            .collect();
        lab.kill("controller")?;
        for router in &routers {
            lab.kill(router)?;
        }
        watched.more(300)?;
        ping(lab, "host3", "10.1.1.10")?;
        lab.restart("controller")?;
        for router in &routers {
            lab.restart(router)?;
        }
        lab.wait_connected()?;
        let home = migrate(lab, &[("vm1", "rack1")])?;
        watched.more(300)?;
        all_kept(&watched.finish(lab, vec![step, home])?)
    });
}
