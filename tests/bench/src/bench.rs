//! A run of the benchmarks, from the first namespace to the last table.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use natmig_lab::run::{Run, catch_interrupts};

use crate::{
    live::{self, Binaries, Place},
    machine::{self, Machine},
    plan::{self, Extent, LanePlan},
    programs::{Programs, hurry},
    statistics::Samples,
};

/// Options of the benchmarks.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "natmig-bench", bin_name = "cargo xtask bench")]
pub struct Arguments {
    /// Measures what the project's goals speak of, in about a minute.
    #[arg(long, conflicts_with = "smoke")]
    pub quick: bool,
    /// Only checks that everything builds, forwards what it must, and prints.
    #[arg(long)]
    pub smoke: bool,
    /// Ends with one line of JSON: the medians of the ratios that the project's goals speak of.
    #[arg(long)]
    pub json: bool,
    /// Measures only lanes whose keys contain one of these words.
    #[arg(long, value_delimiter = ',', value_name = "WORD,…")]
    pub lanes: Vec<String>,
    /// Rounds in which all lanes are measured in turn.
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Where the report and the plot go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub report: PathBuf,
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
}

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds.
    pub rounds: usize,
    /// Time before a sample.
    pub warm: Duration,
    /// Time of a sample.
    pub time: Duration,
}

impl Pace {
    /// What an extent has time for.
    pub fn of(extent: Extent) -> Self {
        let (rounds, warm, time) = match extent {
            Extent::Smoke => (1, 20, 30),
            Extent::Quick => (7, 120, 200),
            Extent::Full => (9, 150, 250),
        };
        Self {
            rounds,
            warm: Duration::from_millis(warm),
            time: Duration::from_millis(time),
        }
    }
}

/// Packets per second, in millions, by lane.
pub type Rates = BTreeMap<&'static str, Samples>;

/// Runs everything that the arguments ask for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let binaries = Binaries::find()?;
    let extent = arguments.extent();
    let cpus = machine::online();
    let machine = Machine::here();
    catch_interrupts()?;
    live::catch_wakeups()?;
    let run = Run::claim()?;
    let mut programs = Programs::load(&binaries.object)?;
    let wanted = |lane: &LanePlan| {
        arguments.lanes.is_empty()
            || arguments
                .lanes
                .iter()
                .any(|word| lane.key.contains(word.as_str()))
    };
    let mut lanes = plan::lanes(extent);
    lanes.retain(wanted);
    let mut sites = plan::sites(extent);
    sites.retain(|site| lanes.iter().any(|lane| lane.site == site.key));
    say("building routers");
    let mut places = Vec::new();
    for (number, site) in (0..).zip(sites) {
        places.push(live::build(&run, &mut programs, number, site)?);
    }
    live::fill(&run, &binaries, &mut programs, &mut places)?;

    let place = |places: &[Place], key: &str| {
        places
            .iter()
            .position(|place| place.plan.key == key)
            .with_context(|| format!("no site {key}"))
    };
    say("looking at what comes out of them");
    for lane in &lanes {
        let at = place(&places, lane.site)?;
        let verified = live::verify(&mut programs, &places[at], lane)?;
        say(&format!(
            "{}: {} frames as they must be",
            lane.key, verified.frames
        ));
    }
    let mut pace = Pace::of(extent);
    pace.rounds = arguments.rounds.unwrap_or(pace.rounds);
    let mut rates = Rates::new();
    let bar = progress("packets per second", pace.rounds * lanes.len());
    hurry(2);
    for round in 0..pace.rounds {
        for at in shuffled(lanes.len(), round) {
            let lane = &lanes[at];
            bar.set_message(lane.label);
            let place = &places[place(&places, lane.site)?];
            let rate = live::rate(
                &mut programs,
                place,
                &lane.traffic,
                &[0],
                pace.warm,
                pace.time,
            )?;
            rates.entry(lane.key).or_default().add(round, rate);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let bare = rates.get("bare").cloned().unwrap_or_default();
    for lane in &lanes {
        let Some(samples) = rates.get(lane.key) else {
            continue;
        };
        let rate = samples.middle().context("no samples")?;
        let ratio = samples.per(&bare).middle();
        println!(
            "{:55} {:7.3} [{:.3}-{:.3}]  {:.3}",
            lane.label,
            rate.median,
            rate.low,
            rate.high,
            ratio.map_or(0.0, |r| r.median)
        );
    }
    let _ = (machine, cpus);
    Ok(())
}

/// Says what happens, on standard error.
pub fn say(text: &str) {
    eprintln!("natmig-bench: {text}");
}

/// A bar that shows how far a long step has come.
pub fn progress(what: &'static str, steps: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        say(what);
    }
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{prefix:20} {wide_bar} {percent:>3} % {msg:40}")
    {
        bar.set_style(style);
    }
    bar.with_prefix(what)
}

/// The numbers below `count` in an order that differs from round to round.
fn shuffled(count: usize, round: usize) -> Vec<usize> {
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

/// Seconds since `start`, for people.
pub fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}
