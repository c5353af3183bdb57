//! Chaos: random migrations under traffic, while daemons die and stop, links are cut and routers lose
//! their power; and at the end everything must have been delivered, and everything must agree.
//!
//! [`schedule`] plans all of it from a seed. One thread for each lane of migrations and each track of
//! faults does what is planned; the rest of the lab's traffic and captures go on as in the
//! demonstration. Then everything is healed, `converge` compares every router's tables with what
//! the controller's inventory means, and `verdict` charges every packet.

mod converge;
mod counters;
pub mod fault;
mod journal;
pub mod lane;
pub mod schedule;
mod verdict;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use self::verdict::{Summary, Verdict};
use self::{
    fault::{Claims, Healing},
    journal::Journal,
    lane::Outcome,
    schedule::{ControlPlane, Schedule},
};
use crate::{
    Lab, Topology,
    account::Window,
    api::Api,
    capture::Captures,
    lab::{Setup, Store},
    run,
    topology::{THREE_TIER, Vm},
    traffic::{self, Kind, Pair, Rates, Traffic},
};

/// A call of the API that is not answered by then is made again.
const CALL: Duration = Duration::from_secs(2);

/// Datagrams that must arrive once everything is healed.
const AFTERWARDS: u64 = 3000;

/// Who talks to whom, and why.
const PAIRS: [(&str, &str, &str); 9] = [
    ("vm1", "outside", "outside"),
    ("vm1", "host1", "its home segment"),
    ("vm1", "host3", "another segment"),
    ("vm1", "web1", "another VM"),
    ("web1", "web2", "same group"),
    ("web1", "host4", "another segment"),
    ("web2", "outside", "outside"),
    ("db1", "vm1", "another VM"),
    ("db1", "host2", "another segment"),
];

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is planned follows from it.
    pub seed: u64,
    /// How long migrations and faults go on.
    pub length: Duration,
    /// Where the log of the run, and of the daemons, goes.
    pub report: PathBuf,
    /// Where controllers keep their state.
    pub store: Store,
    /// Rates of all flows.
    pub rates: Rates,
}

/// What is counted while it happens.
#[derive(Debug, Default)]
struct Counted {
    migrations: BTreeMap<Outcome, u64>,
    faults: BTreeMap<&'static str, u64>,
    /// When VMs could not be reached.
    windows: Vec<Window>,
    /// What natmig added to the guests' own pauses, in nanoseconds.
    gaps: Vec<u64>,
    healings: Vec<Healing>,
    /// Where the last migration that was reported as success brought each VM.
    places: BTreeMap<String, String>,
    /// What went wrong beside packets.
    problems: Vec<String>,
}

/// What lanes and tracks share.
struct Stage<'a> {
    lab: Mutex<&'a mut Lab>,
    api: Api,
    journal: Journal,
    claims: Claims,
    counted: Mutex<Counted>,
    begun: Instant,
    /// How long migrations and faults go on.
    length: Duration,
    /// Somebody failed: nothing more begins.
    ending: AtomicBool,
}

impl<'a> Stage<'a> {
    fn lab(&self) -> MutexGuard<'_, &'a mut Lab> {
        self.lab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed) || run::check_interrupted().is_err()
    }

    /// Waits for a time of the run; false if the run ends before.
    fn wait_until(&self, at: Duration) -> bool {
        self.sleep(at.saturating_sub(self.begun.elapsed()));
        !self.is_ending()
    }

    /// Lets time pass, as planned; less if the run ends.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_ending() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Notes a failure, and ends the run.
    fn fail(&self, problem: String) {
        self.journal.note(format!("PROBLEM {problem}"));
        self.counted().problems.push(problem);
        self.ending.store(true, Ordering::Relaxed);
    }
}

/// The default lab, with one more VM.
pub fn topology() -> Result<Topology> {
    let mut topology = Topology::parse(THREE_TIER).context("the lab's own topology")?;
    topology.vms.push(Vm {
        name: "db1".to_owned(),
        segment: "rack3".to_owned(),
        address: [10, 1, 3, 10].into(),
        address_ipv6: Some([0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10].into()),
        group: None,
    });
    Ok(topology)
}

/// Makes a run; `say` gets a line for each thing that people should know while it goes on.
pub fn run(natmig: &Path, options: &Options, say: &dyn Fn(&str)) -> Result<Verdict> {
    fs::create_dir_all(&options.report)?;
    let topology = topology()?;
    let setup = Setup {
        store: options.store.clone(),
        ..Setup::default()
    };
    let mut lab = Lab::start_with(topology, natmig, &setup)?;
    lab.network.trust_neighbors()?;
    lab.network.retry_soon()?;
    let names = lab.control_plane().into_iter().map(str::to_owned);
    let (etcd, controllers) = names.partition(|name| name.starts_with("etcd"));
    let control_plane = ControlPlane { controllers, etcd };
    let schedule = Schedule::new(
        options.seed,
        options.length,
        lab.network.topology(),
        &control_plane,
    );
    let log = options.report.join("run.log");
    say(&format!(
        "seed {}: {} migrations and {} faults are planned for {:?}; the log is {}",
        options.seed,
        schedule
            .lanes
            .iter()
            .map(|lane| lane.migrations.len())
            .sum::<usize>(),
        schedule
            .tracks
            .iter()
            .map(|track| track.faults.len())
            .sum::<usize>(),
        options.length,
        log.display()
    ));
    let verdict = perform(&mut lab, options, &schedule, &log, say);
    lab.save_logs(&options.report.join("logs"))?;
    verdict.inspect_err(|_| lab.print_logs())
}

fn perform(
    lab: &mut Lab,
    options: &Options,
    schedule: &Schedule,
    log: &Path,
    say: &dyn Fn(&str),
) -> Result<Verdict> {
    let pairs = PAIRS.map(|(vm, peer, relation)| Pair {
        vm: vm.into(),
        peer: peer.into(),
        relation: relation.into(),
    });
    let flows = traffic::flows(&lab.network, &pairs, &[Kind::Udp, Kind::Ping, Kind::Tcp])?;
    let captures = Captures::start(&lab.network, &flows)?;
    let traffic = Traffic::start(&lab.network, flows, options.rates)?;
    let routers = lab.network.topology().routers.clone();
    let stage = Stage {
        api: lab.api(CALL)?,
        lab: Mutex::new(lab),
        journal: Journal::begin(log)?,
        claims: Claims::new(routers.iter().map(|router| router.name.as_str())),
        counted: Mutex::default(),
        begun: Instant::now(),
        length: options.length,
        ending: AtomicBool::new(false),
    };
    stage
        .journal
        .note(format!("seed {}, {:?}", options.seed, options.length));
    say(&format!(
        "{} flows are heard; it begins",
        traffic.flows().len()
    ));
    let watched: Vec<(String, String)> = {
        let lab = stage.lab();
        let instance = |name: &String| (name.clone(), lab.instance(name));
        routers
            .iter()
            .map(|router| instance(&router.name))
            .collect()
    };
    let counters = options.report.join("counters.log");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| counters::watch(&watched, &counters, &over));
        play(&stage, schedule, &traffic, say);
        over.store(true, Ordering::Relaxed);
        match watch.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => stage.fail(format!("the routers' counters: {error:#}")),
            Err(_) => stage.fail("the watch of the routers' counters panicked".to_owned()),
        }
    });
    run::check_interrupted()?;
    stage.journal.note("everything is healed; all must agree");
    let unconverged = converge::check(&stage)?;
    for problem in &unconverged {
        stage.journal.note(format!("UNCONVERGED {problem}"));
    }
    let until = traffic.sent() + AFTERWARDS;
    run::wait_for("more traffic", Duration::from_mins(2), || {
        Ok((traffic.sent() >= until).then_some(()))
    })?;
    stage.journal.note("the traffic ends");
    let records = traffic.finish(Duration::from_secs(5))?;
    let findings = captures.finish()?;
    let Stage {
        journal, counted, ..
    } = stage;
    let counted = counted.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Verdict {
        records,
        findings,
        counted,
        unconverged,
        journal,
    })
}

/// Does all that is planned, then heals everything.
fn play(stage: &Stage<'_>, schedule: &Schedule, traffic: &Traffic, say: &dyn Fn(&str)) {
    thread::scope(|scope| {
        let mut playing = Vec::new();
        for lane in &schedule.lanes {
            playing.push(scope.spawn(move || {
                if let Err(error) = lane::play(stage, lane) {
                    stage.fail(format!("{}: {error:#}", lane.vms.join(", ")));
                }
            }));
        }
        for track in &schedule.tracks {
            playing.push(scope.spawn(move || {
                if let Err(error) = fault::play(stage, track) {
                    stage.fail(format!("faults of the {}: {error:#}", track.name));
                }
            }));
        }
        let mut said = Instant::now();
        while !playing.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(100));
            if stage.is_ending() {
                continue;
            }
            let broken = stage.lab().check().and_then(|()| traffic.check());
            if let Err(error) = broken {
                stage.fail(format!("{error:#}"));
            }
            if said.elapsed() > Duration::from_secs(30) {
                said = Instant::now();
                let counted = stage.counted();
                say(&format!(
                    "{:.0} s: {} migrations, {} faults, {} packets",
                    stage.begun.elapsed().as_secs_f64(),
                    counted.migrations.values().sum::<u64>(),
                    counted.faults.values().sum::<u64>(),
                    traffic.sent()
                ));
            }
        }
    });
    if let Err(error) = heal(stage) {
        stage.fail(format!("healing: {error:#}"));
    }
}

/// Heals what a run that ended early left broken.
fn heal(stage: &Stage<'_>) -> Result<()> {
    let mut lab = stage.lab();
    lab.revive()?;
    let routers = lab.network.topology().routers.clone();
    for router in &routers {
        lab.network.set_management(&router.name, true)?;
    }
    lab.network.restore_all()
}
