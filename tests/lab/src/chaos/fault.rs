//! Faults: makes each, keeps it for its time, and heals it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    Stage,
    schedule::{Fault, Track, What},
};
use crate::{Lab, clock, run};

/// How long routing may go on losing packets once all routes are rewritten: until routers whose
/// agents are dead or stopped no longer believe their own next hops, but ask the kernel.
const HEALING: Duration = Duration::from_millis(1500);

/// A rebooted router has its table by then, with whatever else goes wrong meanwhile.
const BOOT: Duration = Duration::from_mins(1);

/// When packets may be lost because the fabric had changed, in nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Healing {
    /// When the change began.
    pub from: u64,
    /// When everything must arrive again.
    pub to: u64,
}

/// Which routers a fault has got hold of: nothing else happens to them meanwhile.
#[derive(Debug)]
pub(super) struct Claims(BTreeMap<String, Mutex<()>>);

impl Claims {
    pub(super) fn new<'a>(routers: impl Iterator<Item = &'a str>) -> Self {
        Self(
            routers
                .map(|name| (name.to_owned(), Mutex::default()))
                .collect(),
        )
    }

    fn claim(&self, router: Option<&str>) -> Option<MutexGuard<'_, ()>> {
        let lock = self.0.get(router?)?;
        Some(lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes the faults of a track, one after the other.
pub(super) fn play(stage: &Stage<'_>, track: &Track) -> Result<()> {
    for fault in &track.faults {
        let claim = stage.claims.claim(fault.what.router());
        if !stage.wait_until(fault.at) {
            return Ok(());
        }
        make(stage, fault).with_context(|| format!("while making a fault: {}", fault.what))?;
        drop(claim);
    }
    Ok(())
}

fn make(stage: &Stage<'_>, fault: &Fault) -> Result<()> {
    let what = &fault.what;
    stage
        .journal
        .note(format!("FAULT {what}, for {:?}", fault.lasts));
    *stage.counted().faults.entry(what.kind()).or_default() += 1;
    match what {
        What::KillAgent(name) | What::KillController(name) | What::KillEtcd(name) => {
            dead(stage, name, fault.lasts)?;
        }
        What::StopAgent(name) | What::StopController(name) | What::StopEtcd(name) => {
            stopped(stage, name, fault.lasts)?;
        }
        What::CutManagement(router) => {
            stage.lab().network.set_management(router, false)?;
            stage.sleep(fault.lasts);
            stage.lab().network.set_management(router, true)?;
        }
        What::CutFabric(a, b) => {
            rerouting(stage, |lab| lab.network.cut_link(a, b))?;
            stage.sleep(fault.lasts);
            rerouting(stage, |lab| lab.network.restore_link(a, b))?;
        }
        What::Reboot(router) => reboot(stage, router, fault.lasts)?,
    }
    stage.journal.note(format!("healed: {what}"));
    Ok(())
}

fn dead(stage: &Stage<'_>, name: &str, lasts: Duration) -> Result<()> {
    stage.lab().kill(name)?;
    stage.sleep(lasts);
    stage.lab().restart(name)
}

fn stopped(stage: &Stage<'_>, name: &str, lasts: Duration) -> Result<()> {
    stage.lab().pause(name)?;
    stage.sleep(lasts);
    stage.lab().resume(name)
}

/// Notes the time in which packets may be lost by what `change` does to the fabric.
fn rerouting(stage: &Stage<'_>, change: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let mut lab = stage.lab();
    let from = clock::now();
    let changed = change(&mut lab);
    let to = clock::now() + HEALING.as_nanos() as u64;
    stage.counted().healings.push(Healing { from, to });
    stage.journal.note("routes are rewritten");
    changed
}

/// The router comes back as one that boots does: with its table first, then with its links.
fn reboot(stage: &Stage<'_>, router: &str, lasts: Duration) -> Result<()> {
    rerouting(stage, |lab| {
        lab.kill(router)?;
        lab.network.isolate(router)
    })?;
    stage.lab().forget(router)?;
    stage.sleep(lasts);
    stage.lab().restart(router)?;
    run::wait_for(&format!("the table of {router}"), BOOT, || {
        // The controller may be away at this moment.
        let routers = stage.api.routers().unwrap_or_default();
        let has_table = routers
            .iter()
            .any(|view| view.name.as_str() == router && view.connected && view.in_sync);
        // It attaches when it has its table, a moment later.
        let is_ready = has_table && stage.lab().is_attached(router)?;
        Ok(is_ready.then_some(()))
    })?;
    stage.journal.note(format!("{router} has its table"));
    rerouting(stage, |lab| lab.network.rejoin(router))
}
