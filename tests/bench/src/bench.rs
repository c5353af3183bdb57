//! A run of the benchmarks, from the first namespace to the last table.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use natmig_lab::run::{Run, catch_interrupts};

use crate::{
    live::{self, Binaries, Place},
    machine::{self, Machine},
    micro,
    plan::{self, Extent, LanePlan},
    plot,
    programs::{Programs, hurry},
    progress::{self, Progress, say},
    report::Results,
    statistics::Samples,
};

/// Measures natmig: nanoseconds per step, packets per second beside other routers, changing tables.
///
/// Everything happens in network namespaces of its own; nothing is sent anywhere else. What comes out
/// of a router is verified before it is timed: addresses, checksums, TTL and MAC addresses of
/// thousands of frames.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "natmig-bench", bin_name = "cargo xtask bench")]
#[command(after_help = "Examples:\n  \
    cargo xtask bench --quick              # what the project's goals speak of, in two minutes\n  \
    cargo xtask bench --json | tail -1     # everything; the last line is for programs\n  \
    cargo xtask bench --lanes bare,natmig4 --rounds 21\n  \
    cargo xtask bench --only steps         # nanoseconds per step alone\n  \
    cargo xtask bench migration            # latency of migrations in the lab; see its --help\n\n\
The tables are also in target/bench, with a picture and all medians as JSON.")]
pub struct Arguments {
    /// Measure what the project's goals speak of, in about two minutes; everything takes several.
    #[arg(long, conflicts_with = "smoke")]
    pub quick: bool,
    /// Only check that everything builds, forwards what it must, and prints.
    #[arg(long)]
    pub smoke: bool,
    /// End with one line of JSON: the medians of what the project's goals speak of.
    #[arg(long)]
    pub json: bool,
    /// Measure only this.
    #[arg(long, value_name = "PART")]
    pub only: Option<Part>,
    /// Measure packets per second only of lanes whose keys contain one of these words.
    #[arg(long, value_delimiter = ',', value_name = "WORD,…")]
    pub lanes: Vec<String>,
    /// Rounds in which everything is measured in turn.
    #[arg(long, value_name = "NUMBER")]
    pub rounds: Option<usize>,
    /// Where tables, picture and medians go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub report: PathBuf,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Nanoseconds per step.
    Steps,
    /// Packets per second.
    Rates,
}

impl Arguments {
    fn extent(&self) -> Extent {
        if self.smoke {
            Extent::Smoke
        } else if self.quick {
            Extent::Quick
        } else {
            Extent::Full
        }
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    fn wants_lane(&self, lane: &LanePlan) -> bool {
        self.wants(Part::Rates)
            && (self.lanes.is_empty()
                || self
                    .lanes
                    .iter()
                    .any(|word| lane.key.contains(word.as_str())))
    }
}

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds.
    pub rounds: usize,
    /// Time of a lane before its sample.
    pub warm: Duration,
    /// Time of a lane's sample.
    pub time: Duration,
    /// Rounds of steps.
    pub step_rounds: usize,
    /// Time of a step's sample.
    pub step_time: Duration,
}

impl Pace {
    /// What an extent has time for.
    fn of(extent: Extent) -> Self {
        let (rounds, warm, time, step_rounds, step_time) = match extent {
            Extent::Smoke => (1, 20, 30, 1, 2),
            Extent::Quick => (7, 120, 200, 5, 10),
            Extent::Full => (9, 150, 250, 9, 20),
        };
        Self {
            rounds,
            warm: Duration::from_millis(warm),
            time: Duration::from_millis(time),
            step_rounds,
            step_time: Duration::from_millis(step_time),
        }
    }
}

/// Packets per second, in millions, by lane.
pub type Rates = BTreeMap<&'static str, Samples>;

/// Runs everything that the arguments ask for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let binaries = Binaries::find()?;
    let extent = arguments.extent();
    let mut pace = Pace::of(extent);
    if let Some(rounds) = arguments.rounds {
        pace.rounds = rounds;
        pace.step_rounds = rounds;
    }
    let cpus: Vec<usize> = (0..machine::online()).collect();
    catch_interrupts()?;
    live::catch_wakeups()?;
    progress::watch();
    let run = Run::claim()?;
    let mut programs = Programs::load(&binaries.object)?;

    let mut lanes = plan::lanes(extent);
    lanes.retain(|lane| arguments.wants_lane(lane));
    let mut results = Results {
        machine: Some(Machine::here()?),
        ..Results::default()
    };
    let mut places = Vec::new();
    for (number, site) in (0..).zip(plan::sites(extent)) {
        let steps = arguments.wants(Part::Steps) && site.key == "core";
        if steps || lanes.iter().any(|lane| lane.site == site.key) {
            places.push(live::build(&run, &mut programs, number, site)?);
        }
    }
    live::fill(
        &run,
        &binaries,
        &mut programs,
        &mut places,
        &mut results.changes,
        extent,
    )?;
    if arguments.wants(Part::Steps)
        && let Some(place) = places.iter().find(|place| place.plan.key == "core")
    {
        results.steps = micro::run(
            &mut programs,
            &binaries.core,
            &place.site,
            extent,
            pace.step_rounds,
            pace.step_time,
        )?;
    }
    verify(&mut programs, &places, &lanes)?;
    results.one = measure(&mut programs, &mut places, &lanes, &cpus[..1], &pace)?;
    if cpus.len() > 1 && extent == Extent::Full {
        let mut several = lanes.clone();
        several.retain(|lane| lane.all_cpus);
        results.all = measure(&mut programs, &mut places, &several, &cpus, &pace)?;
    }
    results.lanes = lanes;

    results.write(&arguments.report)?;
    plot::rates(
        &arguments.report.join("rates.svg"),
        &results.lanes,
        &results.one,
    )?;
    let mut out = std::io::stdout().lock();
    out.write_all(results.text().as_bytes())?;
    say(&format!(
        "{:.0} s; tables, picture and medians are in {}",
        start.elapsed().as_secs_f64(),
        arguments.report.display()
    ));
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&results.summary())?)?;
    }
    Ok(())
}

fn find<'a>(places: &'a [Place], lane: &LanePlan) -> Result<&'a Place> {
    places
        .iter()
        .find(|place| place.plan.key == lane.site)
        .with_context(|| format!("lane {} has no site", lane.key))
}

/// Looks at what comes out of all lanes.
fn verify(programs: &mut Programs, places: &[Place], lanes: &[LanePlan]) -> Result<()> {
    let progress = Progress::new("verifying", lanes.len());
    let mut frames = 0;
    for lane in lanes {
        progress.begin(lane.label);
        frames += live::verify(programs, find(places, lane)?, lane)?.frames;
        progress.advance();
    }
    drop(progress);
    if !lanes.is_empty() {
        say(&format!(
            "{frames} frames of {} lanes are as they must be",
            lanes.len()
        ));
    }
    Ok(())
}

/// Measures all lanes in turn, in rounds.
fn measure(
    programs: &mut Programs,
    places: &mut [Place],
    lanes: &[LanePlan],
    cpus: &[usize],
    pace: &Pace,
) -> Result<Rates> {
    let mut rates = Rates::new();
    let threads = std::thread::scope(|scope| {
        // On a thread of its own, whose priority ends with it.
        scope
            .spawn(|| -> Result<()> {
                hurry(2);
                let progress = Progress::new("packets per second", pace.rounds * lanes.len());
                for round in 0..pace.rounds {
                    for at in shuffled(lanes.len(), round) {
                        let lane = &lanes[at];
                        progress.begin(lane.label);
                        let place = find(places, lane)?;
                        let measure = if lane.traced {
                            live::traced_rate
                        } else {
                            live::rate
                        };
                        let rate =
                            measure(programs, place, &lane.traffic, cpus, pace.warm, pace.time)?;
                        ensure!(rate > 0.0, "{}: nothing arrives", lane.label);
                        rates.entry(lane.key).or_default().add(round, rate);
                        progress.advance();
                    }
                    for place in places.iter_mut() {
                        if let Some(instance) = &mut place.instance {
                            instance.check()?;
                        }
                    }
                }
                Ok(())
            })
            .join()
    });
    match threads {
        Ok(result) => result.map(|()| rates),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The numbers below `count` in an order that differs from round to round.
pub fn shuffled(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = round as u64 * 2 + 1;
    for last in (1..count).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}
