//! Migrations as an orchestrator makes them, through whatever goes wrong meanwhile: it asks again
//! when the controller does not answer, finds out what became of what it asked for, and moves the
//! guests back when a migration was aborted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use natmig::{
    coordinator::{Activation, MigrateRequest, MigrationView, Phase, Unreachable},
    names::{SegmentName, VmName},
    rule::TransactionId,
};
use tonic::{Code, Status};

use super::{
    Stage,
    schedule::{How, Lane, Planned, To},
};
use crate::{account::Window, api::is_answer, run};

/// Every migration goes on by then: all faults heal before.
const PATIENCE: Duration = Duration::from_secs(90);

/// Migrations that a fault has held up follow each other with a pause: a connection whose VM moves all
/// the time never gets a packet through.
const REST: Duration = Duration::from_millis(300);

/// Pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// What became of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It is in effect.
    Success,
    /// It was aborted as planned.
    AbortedAsPlanned,
    /// It was aborted because a router could not be reached; its guests had not moved.
    Aborted,
    /// It was aborted after its guests had moved; they went back.
    RolledBack,
    /// It was refused.
    Refused,
}

impl Outcome {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::AbortedAsPlanned => "aborted as planned",
            Self::Aborted => "aborted for a fault, before the guests moved",
            Self::RolledBack => "aborted for a fault, guests moved back",
            Self::Refused => "refused",
        }
    }
}

/// A VM's way.
#[derive(Clone, Debug)]
struct Way {
    vm: String,
    from: String,
    to: String,
}

/// VMs that move together, and how far they have come.
struct Mover<'s, 'l> {
    stage: &'s Stage<'l>,
    /// The last migration of these VMs.
    last: TransactionId,
}

/// Makes the migrations of a lane, one after the other.
pub(super) fn play(stage: &Stage<'_>, lane: &Lane) -> Result<()> {
    let mut mover = Mover {
        stage,
        last: TransactionId(0),
    };
    for planned in &lane.migrations {
        // What others held up until all faults are over shows nothing any more.
        if !stage.wait_until(planned.at) || stage.begun.elapsed() > stage.length {
            break;
        }
        if stage.begun.elapsed() > planned.at + REST {
            stage.sleep(REST);
        }
        let ways = mover.ways(lane, planned)?;
        let route: Vec<String> = ways
            .iter()
            .map(|way| format!("{} {} → {}", way.vm, way.from, way.to))
            .collect();
        let route = route.join(", ");
        let waits = if planned.waits { ", waits" } else { "" };
        stage
            .journal
            .note(format!("migrate {route} ({:?}{waits})", planned.how));
        let outcome = mover
            .migrate(planned, &ways)
            .with_context(|| format!("migration {}: {route}", mover.last))?;
        stage.journal.note(format!(
            "migration {}: {route}: {}",
            mover.last,
            outcome.as_str()
        ));
        *stage.counted().migrations.entry(outcome).or_default() += 1;
    }
    Ok(())
}

impl Mover<'_, '_> {
    fn ways(&self, lane: &Lane, planned: &Planned) -> Result<Vec<Way>> {
        let lab = self.stage.lab();
        let topology = lab.network.topology();
        let racks: Vec<&str> = topology
            .segments
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        let ways = lane.vms.iter().zip(&planned.to).map(|(vm, to)| {
            let from = lab
                .network
                .place(vm)
                .context("a VM is plugged in nowhere")?;
            let home = &topology.vm(vm).context("checked when planned")?.segment;
            let at = racks.iter().position(|rack| *rack == from);
            let at = at.context("a rack is not in the topology")?;
            let to = match to {
                To::Home if home != from => home.as_str(),
                To::Home => racks[(at + 1) % racks.len()],
                To::Ahead(racks_further) => racks[(at + racks_further) % racks.len()],
            };
            Ok(Way {
                vm: vm.clone(),
                from: from.to_owned(),
                to: to.to_owned(),
            })
        });
        ways.collect()
    }

    fn migrate(&mut self, planned: &Planned, ways: &[Way]) -> Result<Outcome> {
        if planned.how == How::Immediate {
            let mut windows = self.unplug(ways)?;
            self.stage.sleep(planned.pause);
            let Some(id) = self.announce(planned, ways)? else {
                self.plug(ways, from, &mut windows)?;
                self.stage.counted().windows.extend(windows);
                return Ok(Outcome::Refused);
            };
            let settled = self.follow(id, |view| view.phase.is_settled())?;
            let is_success = settled.phase.is_success();
            let place: fn(&Way) -> &String = if is_success { to } else { from };
            self.plug(ways, place, &mut windows)?;
            return self.conclude(id, ways, windows);
        }
        let Some(id) = self.announce(planned, ways)? else {
            return Ok(Outcome::Refused);
        };
        let is_prepared = |view: &MigrationView| view.phase == Phase::Prepared;
        let view = self.follow(id, |view| is_prepared(view) || view.phase.is_settled())?;
        if planned.how == How::Abort && is_prepared(&view) {
            self.stage.sleep(planned.pause);
            Self::insist(|| self.stage.api.abort(id))?;
            let view = self.follow(id, |view| view.phase.is_settled())?;
            ensure!(
                view.phase == Phase::Aborted,
                "it was aborted before it was activated, and is {}",
                view.phase
            );
            return Ok(Outcome::AbortedAsPlanned);
        }
        if !is_prepared(&view) {
            ensure!(
                view.phase == Phase::Aborted,
                "it was not activated, and is {}",
                view.phase
            );
            return Ok(Outcome::Aborted);
        }
        let mut windows = self.unplug(ways)?;
        self.stage.sleep(planned.pause);
        self.plug(ways, to, &mut windows)?;
        if planned.how == How::Manual && Self::insist(|| self.stage.api.activate(id))?.is_none() {
            self.stage
                .journal
                .note(format!("migration {id}: too late to activate"));
        }
        let settled = self.follow(id, |view| view.phase.is_settled())?;
        if settled.phase == Phase::Aborted {
            let moved = windows.clone();
            for way in ways {
                self.stage.lab().network.unplug(&way.vm)?;
            }
            self.plug(ways, from, &mut windows)?;
            for (window, moved) in windows.iter_mut().zip(moved) {
                window.unplug = moved.unplug;
            }
        }
        self.conclude(id, ways, windows)
    }

    /// Once the VMs may move again: notes when they could not be reached.
    fn conclude(
        &self,
        id: TransactionId,
        ways: &[Way],
        mut windows: Vec<Window>,
    ) -> Result<Outcome> {
        let over = self.follow(id, |view| {
            matches!(
                view.phase,
                Phase::Draining | Phase::Retiring | Phase::Done | Phase::Aborted
            )
        })?;
        if over.phase == Phase::Aborted {
            self.stage.counted().windows.extend(windows);
            return Ok(Outcome::RolledBack);
        }
        for (window, way) in windows.iter_mut().zip(ways) {
            window.anchors = self.anchored(&over, way)?;
        }
        let gaps = windows.iter().map(Window::natmig_gap);
        let mut counted = self.stage.counted();
        counted.gaps.extend(gaps);
        counted.windows.extend(windows);
        for way in ways {
            counted.places.insert(way.vm.clone(), way.to.clone());
        }
        Ok(Outcome::Success)
    }

    /// When the VM's home edges and the edges that it left had committed.
    fn anchored(&self, view: &MigrationView, way: &Way) -> Result<u64> {
        let lab = self.stage.lab();
        let topology = lab.network.topology();
        let home = topology.vm(&way.vm).map(|vm| vm.segment.as_str());
        let segments = [home, Some(way.from.as_str())];
        let segments = segments.into_iter().flatten();
        let anchors = segments
            .filter_map(|name| topology.segment(name))
            .flat_map(|segment| &segment.routers);
        // Of a router that lost its tables and took the outcome with a whole one it is only known
        // that it had it when folding began.
        let folding = view.times.iter().find(|time| time.phase == Phase::Folding);
        let folding = folding.context("it is over and never was folded")?.at.0;
        let commits = anchors.map(|anchor| {
            let router = view.routers.iter().find(|it| it.router.as_str() == anchor);
            let at = router.and_then(|router| router.progress.committed_at());
            at.map_or(folding, |at| at.0)
        });
        commits.max().context("a VM without anchors")
    }

    fn unplug(&self, ways: &[Way]) -> Result<Vec<Window>> {
        let windows = ways.iter().map(|way| {
            Ok(Window {
                vm: way.vm.clone(),
                unplug: self.stage.lab().network.unplug(&way.vm)?,
                replug: 0,
                anchors: 0,
            })
        });
        windows.collect()
    }

    fn plug(&self, ways: &[Way], place: fn(&Way) -> &String, windows: &mut [Window]) -> Result<()> {
        for (way, window) in ways.iter().zip(windows) {
            window.replug = self.stage.lab().network.plug(&way.vm, place(way))?;
        }
        Ok(())
    }

    /// Asks for the migration; `None` if it is refused. When the answer is lost, looks for it before
    /// it asks again: nobody else moves these VMs.
    fn announce(&mut self, planned: &Planned, ways: &[Way]) -> Result<Option<TransactionId>> {
        let moves = ways.iter();
        let moves = moves.map(|way| (VmName::new(&way.vm), SegmentName::new(&way.to)));
        let request = MigrateRequest {
            moves: moves.collect(),
            activation: match planned.how {
                How::Immediate => Activation::Immediate,
                How::Manual | How::Abort => Activation::Manual,
                How::OnAnnounce => Activation::OnAnnounce,
            },
            unreachable: if planned.waits {
                Unreachable::Wait
            } else {
                Unreachable::Abort
            },
        };
        let begun = Instant::now();
        let mut lost = false;
        loop {
            run::check_interrupted()?;
            let asked = if lost { self.find(ways)? } else { None };
            let answer = match asked {
                Some(id) => Ok(id),
                None => self.stage.api.start(&request).map(|view| view.id),
            };
            match answer {
                Ok(id) => {
                    self.last = id;
                    return Ok(Some(id));
                }
                Err(status) if is_answer(&status) => {
                    self.stage
                        .journal
                        .note(format!("refused: {}", status.message()));
                    return Ok(None);
                }
                Err(status) => {
                    lost = true;
                    ensure!(begun.elapsed() < PATIENCE, "no controller: {status}");
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }

    /// The migration of these VMs after the last one that is known.
    fn find(&self, ways: &[Way]) -> Result<Option<TransactionId>> {
        let begun = Instant::now();
        loop {
            run::check_interrupted()?;
            match self.stage.api.migrations() {
                Ok(migrations) => {
                    let is_ours = |view: &&MigrationView| {
                        view.id > self.last
                            && view.vms.iter().any(|vm| vm.vm.as_str() == ways[0].vm)
                    };
                    return Ok(migrations.iter().rfind(is_ours).map(|view| view.id));
                }
                Err(status) => ensure!(begun.elapsed() < PATIENCE, "no controller: {status}"),
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Asks until there is an answer; `None` if it is refused.
    fn insist(ask: impl Fn() -> Result<MigrationView, Status>) -> Result<Option<MigrationView>> {
        let begun = Instant::now();
        loop {
            run::check_interrupted()?;
            match ask() {
                Ok(view) => return Ok(Some(view)),
                Err(status) if is_answer(&status) => return Ok(None),
                Err(status) => ensure!(begun.elapsed() < PATIENCE, "no controller: {status}"),
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Waits until a migration is as it should be.
    fn follow(
        &self,
        id: TransactionId,
        done: impl Fn(&MigrationView) -> bool,
    ) -> Result<MigrationView> {
        let begun = Instant::now();
        let mut last = None;
        loop {
            run::check_interrupted()?;
            match self.stage.api.migration(id) {
                Ok(view) if done(&view) => return Ok(view),
                Ok(view) => last = Some(view),
                Err(status) if status.code() == Code::NotFound => {
                    bail!("the controller has forgotten it")
                }
                Err(_) => {}
            }
            if begun.elapsed() > PATIENCE {
                let stands = last.map(|view| (view.phase, view.waiting_for));
                bail!("it goes on no longer: {stands:?}");
            }
            std::thread::sleep(AGAIN);
        }
    }
}

fn from(way: &Way) -> &String {
    &way.from
}

fn to(way: &Way) -> &String {
    &way.to
}
