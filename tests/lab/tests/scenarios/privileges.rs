//! What natmig's daemons may do on a machine while they do all of their work: no more than that needs.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::Lab;

use crate::common::{PAUSE, ping, scenario, three_tier};

/// `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_PERFMON` and `CAP_BPF`, by their bits.
const AGENT: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

/// Demands that no thread of a daemon has a capability beyond these, and that none can get one.
fn has_no_more_than(lab: &mut Lab, daemon: &str, capabilities: u64) -> Result<()> {
    let tasks = PathBuf::from(format!("/proc/{}/task", lab.pid(daemon)?));
    let mut threads = 0;
    for task in fs::read_dir(&tasks)? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name}"))
        };
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(value(name)?, 16)?);
        for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let found = set(name)?;
            ensure!(found == capabilities, "{daemon}: {name} {found:x}");
        }
        for name in ["CapInh:", "CapAmb:"] {
            let found = set(name)?;
            ensure!(found & !capabilities == 0, "{daemon}: {name} {found:x}");
        }
        ensure!(value("NoNewPrivs:")? == "1", "{daemon} may gain privileges");
        threads += 1;
    }
    ensure!(threads > 1, "{daemon} has {threads} threads");
    Ok(())
}

fn look(lab: &mut Lab) -> Result<()> {
    has_no_more_than(lab, "controller", 0)?;
    for router in ["edge1", "edge2", "core1"] {
        has_no_more_than(lab, router, AGENT)?;
    }
    Ok(())
}

#[test]
fn daemons_work_with_the_capabilities_that_they_keep() {
    scenario(three_tier(), |lab| {
        look(lab)?;
        lab.migrate("away", &[("vm1", "rack2")], PAUSE)?;
        // An agent that takes up what its predecessor left, and one of a router that has just booted.
        lab.kill("edge1")?;
        lab.restart("edge1")?;
        lab.kill("edge2")?;
        lab.forget("edge2")?;
        lab.restart("edge2")?;
        lab.wait_connected()?;
        let address = lab.network.topology().vm("vm1").context("no vm1")?.address;
        ping(lab, "outside", &address.to_string())?;
        lab.migrate("home", &[("vm1", "rack1")], PAUSE)?;
        ping(lab, "outside", &address.to_string())?;
        look(lab)
    });
}
