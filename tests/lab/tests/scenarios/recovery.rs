//! Routers that come back with less than they had, or with something else, and how that is found.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::{Lab, run};
use serde_json::Value;

use crate::common::{PAUSE, all_kept, migrate, scenario, three_tier, watch};

const PATIENCE: Duration = Duration::from_mins(1);

/// What `natmig map verify` says of a router: its exit status, and the report.
fn verify(lab: &Lab, router: &str) -> Result<(Option<i32>, Value)> {
    let instance = lab.instance(router);
    let node = lab.network.node(router)?;
    let output = lab
        .client()?
        .attempt_in(node, &["map", "verify", "--instance", &instance, "--json"])?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "natmig map verify on {router}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok((output.status.code(), report))
}

fn all_agree(lab: &Lab) -> Result<()> {
    for router in &lab.network.topology().routers {
        let (status, report) = verify(lab, &router.name)?;
        ensure!(status == Some(0), "{}: {report:#}", router.name);
    }
    Ok(())
}

#[test]
fn a_foreign_binding_is_found_and_mended_alone() {
    scenario(three_tier(), |lab| {
        let watched = watch(lab, &[("vm1", "outside"), ("vm1", "host2")])?;
        let step = migrate(lab, &[("vm1", "rack4"), ("web1", "rack3")])?;
        all_agree(lab)?;
        lab.kill("core1")?;
        let file = lab.directory().join("foreign.txt");
        fs::write(&file, "10.1.2.99 10.1.3.199 away\n")?;
        let file = file.to_str().context("a path that is no text")?;
        let instance = lab.instance("core1");
        let node = lab.network.node("core1")?;
        lab.client()?.ask_in(
            node,
            &["map", "apply", file, "--merge", "--instance", &instance],
        )?;
        let (status, report) = verify(lab, "core1")?;
        ensure!(status == Some(10), "{report:#}");
        let addresses: Vec<_> = report["differences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|difference| difference["address"].as_str())
            .collect();
        ensure!(addresses == ["10.1.2.99", "10.1.3.199"], "{report:#}");
        lab.restart("core1")?;
        lab.wait_connected()?;
        run::wait_for("core1 to agree", PATIENCE, || {
            Ok((verify(lab, "core1")?.0 == Some(0)).then_some(()))
        })?;
        let log = fs::read_to_string(lab.log("core1")?)?;
        let parts = log
            .lines()
            .rfind(|line| line.contains("taking over a table"))
            .context("no table was taken over")?;
        ensure!(parts.contains("2 of 1024 parts"), "{parts}");
        all_kept(&watched.finish(lab, vec![step])?)
    });
}

#[test]
fn a_rebooted_router_takes_its_table_before_it_forwards() {
    scenario(three_tier(), |lab| {
        // Nothing is sent meanwhile: veth drops what is redirected to a router without a program.
        migrate(lab, &[("vm1", "rack4")])?;
        lab.kill("controller")?;
        lab.kill("agg1")?;
        lab.forget("agg1")?;
        lab.restart("agg1")?;
        // Without a controller there is no table, so nothing is attached.
        let log = lab.log("agg1")?;
        run::wait_for("agg1 to wait for its table", PATIENCE, || {
            let log = fs::read_to_string(&log)?;
            Ok(log
                .contains("attached when the controller has filled its table")
                .then_some(()))
        })?;
        let attached = lab.interfaces("agg1")?;
        ensure!(
            !attached.is_empty() && attached.values().all(|runs| !runs),
            "attached without a table: {attached:?}"
        );
        lab.restart("controller")?;
        lab.wait_connected()?;
        all_agree(lab)?;
        let watched = watch(lab, &[("vm1", "outside"), ("vm1", "host2")])?;
        let step = migrate(lab, &[("vm1", "rack1")])?;
        watched.more(200)?;
        run::wait_for("the routers to agree", PATIENCE, || {
            Ok(all_agree(lab).is_ok().then_some(()))
        })?;
        all_kept(&watched.finish(lab, vec![step])?)
    });
}

#[test]
fn a_router_that_missed_migrations_is_brought_up_to_date() {
    scenario(three_tier(), |lab| {
        let watched = watch(lab, &[("vm1", "outside"), ("vm1", "host1")])?;
        // Two long silences with a migration in each: before the decision a router is needed, so it
        // goes when everything is prepared.
        let mut steps = Vec::new();
        for to in ["rack3", "rack1"] {
            let moves = [("vm1", to)];
            let mut step = lab.begin("missed by core2", &moves)?;
            lab.pause("core2")?;
            step.windows = lab.relocate(&moves, PAUSE)?;
            lab.client()?
                .ask(&["migration", "activate", &step.id.to_string(), "--json"])?;
            lab.client()?
                .wait(step.id, "committed", PATIENCE, |migration| {
                    migration.phase == "committed"
                })?;
            watched.more(300)?;
            lab.resume("core2")?;
            lab.wait_connected()?;
            lab.client()?.wait(step.id, "done", PATIENCE, |migration| {
                migration.phase == "done"
            })?;
            lab.observe(&mut step)?;
            steps.push(step);
        }
        all_agree(lab)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}
