//! Many migrations that are asked for at once: how long until all are in effect, and what it costs
//! the daemons.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use natmig::{
    coordinator::{Activation, MigrateRequest, Phase, Unreachable},
    names::{SegmentName, VmName},
};

use super::PATIENCE;
use crate::{Lab, api::Api, clock, run};

/// How often it is looked whether all are in effect.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a queue of migrations took.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// Migrations.
    pub(super) migrations: usize,
    /// VMs of the inventory.
    pub(super) inventory: usize,
    /// From the first request until the last migration was accepted, durably.
    pub(super) accepted: Duration,
    /// From the first request until every migration was in effect.
    pub(super) finished: Duration,
    /// What daemons used.
    pub(super) daemons: Vec<Used>,
}

/// What a daemon used.
#[derive(Clone, Debug)]
pub(super) struct Used {
    /// Its name.
    pub(super) name: String,
    /// Memory before it, in bytes.
    pub(super) before: u64,
    /// The most memory that it ever had, in bytes.
    pub(super) peak: u64,
    /// Processor time.
    pub(super) cpu: Duration,
}

/// Processor time of a process, from its beginning.
fn cpu(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or_default())
        .sum();
    // USER_HZ is 100 on every architecture that natmig is built for.
    Ok(Duration::from_millis(ticks * 10))
}

/// Memory of a process in bytes: at present, and at most.
fn memory(process: u32) -> Result<[u64; 2]> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024)
    };
    let present = field("VmRSS:").context("VmRSS")?;
    Ok([present, field("VmHWM:").context("VmHWM")?])
}

/// Asks for a migration of each of the VMs, all at once.
pub(super) fn measure<'a>(
    lab: &Lab,
    api: &Api,
    vms: impl Iterator<Item = &'a VmName>,
    inventory: usize,
    to: &SegmentName,
) -> Result<Queue> {
    let requests: Vec<MigrateRequest> = vms
        .map(|vm| MigrateRequest {
            moves: vec![(vm.clone(), to.clone())],
            activation: Activation::Immediate,
            unreachable: Unreachable::Abort,
        })
        .collect();
    eprintln!(
        "natmig-lab: {} migrations at once, {inventory} VMs known",
        requests.len()
    );
    let routers = lab.network.topology().routers.iter();
    let routers = routers.map(|router| router.name.clone());
    let names: Vec<String> = std::iter::once("controller".to_owned())
        .chain(routers)
        .collect();
    let mut before = Vec::new();
    for name in &names {
        let process = lab.process(name).context("a daemon does not run")?;
        before.push((process, memory(process)?[0], cpu(process)?));
    }
    let announced = clock::now();
    let begun = Instant::now();
    let started = api.start_all(&requests)?;
    let accepted = begun.elapsed();
    let mut views = Vec::new();
    run::wait_for("every migration", PATIENCE, || {
        // The controller has more to do than to answer this.
        thread::sleep(LOOK_AGAIN);
        views = api.migrations()?;
        views.retain(|view| started.contains(&view.id));
        let aborted = views.iter().find(|view| view.phase == Phase::Aborted);
        ensure!(aborted.is_none(), "aborted: {aborted:?}");
        let is_over = |phase| matches!(phase, Phase::Draining | Phase::Retiring | Phase::Done);
        let over = views.iter().filter(|view| is_over(view.phase)).count();
        Ok((over == started.len()).then_some(()))
    })?;
    let folding = views
        .iter()
        .flat_map(|view| &view.times)
        .filter(|time| time.phase == Phase::Folding);
    let last = folding.map(|time| time.at.0).max();
    let last = last.context("no migration was folded")?;
    let finished = Duration::from_nanos(last.saturating_sub(announced));
    let mut daemons = Vec::new();
    for (name, (process, resident, used)) in names.into_iter().zip(before) {
        daemons.push(Used {
            name,
            before: resident,
            peak: memory(process)?[1],
            cpu: cpu(process)?.saturating_sub(used),
        });
    }
    Ok(Queue {
        migrations: requests.len(),
        inventory,
        accepted,
        finished,
        daemons,
    })
}
