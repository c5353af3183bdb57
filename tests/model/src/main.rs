//! `natmig-model`: explores scenarios as far as one wants. See `cargo xtask model --help`.

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use natmig_model::{
    flip, order,
    plant::Plant,
    run::{Found, Limits, explore},
    scenario,
};
use serde::Serialize;

/// Checks natmig's invariants in every state of small fabrics.
///
/// Without options: all scenarios, as CI does. Examples:
/// `cargo xtask model --more 1 --minutes 10`,
/// `cargo xtask model --plant "stale term accepted"`.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask model")]
struct Arguments {
    /// Only the scenarios whose name contains this.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Lets everything that may go wrong in a scenario happen this many times more often.
    #[arg(long, value_name = "N", default_value_t = 0)]
    more: u8,
    /// Only states that so many steps lead to.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    depth: usize,
    /// Stops a scenario after this time; then it is not complete.
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// Threads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Plants the bugs whose name contains this, and shows how each breaks an invariant; `all` for all.
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Prints one line of JSON per scenario.
    #[arg(long)]
    json: bool,
}

/// A line of output.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    states: usize,
    depth: usize,
    seconds: f64,
    complete: bool,
    violation: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let fine = match &arguments.plant {
        Some(name) => plant(&arguments, name),
        None => check(&arguments),
    };
    if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Explores scenarios as they are; whether nothing is broken.
fn check(arguments: &Arguments) -> bool {
    let mut fine = true;
    for scenario in scenario::all() {
        let wanted = arguments.scenario.as_ref();
        if wanted.is_some_and(|wanted| !scenario.name.contains(wanted.as_str())) {
            continue;
        }
        let name = scenario.name;
        let found = explore(scenario.deeper(arguments.more), None, limits(arguments));
        fine &= found.counterexample.is_none();
        report(arguments, name, &found);
    }
    fine
}

/// Plants bugs; whether each is found.
fn plant(arguments: &Arguments, name: &str) -> bool {
    let wanted = |other: &str| name == "all" || other.contains(name);
    let mut fine = true;
    for plant in Plant::ALL.into_iter().filter(|plant| wanted(plant.name())) {
        let Some(scenario) = scenario::of(plant) else {
            continue;
        };
        let found = explore(
            scenario.deeper(arguments.more),
            Some(plant),
            limits(arguments),
        );
        fine &= found.counterexample.is_some();
        report(arguments, plant.name(), &found);
    }
    for plant in flip::Plant::ALL
        .into_iter()
        .filter(|plant| wanted(plant.name()))
    {
        let found = flip::explore(1, 1, Some(plant));
        fine &= found.counterexample.is_some();
        tell(arguments, plant.name(), found.states, found.counterexample);
    }
    for plant in order::Plant::ALL
        .into_iter()
        .filter(|plant| wanted(plant.name()))
    {
        let found = order::explore(order::OrderModel {
            packets: 2,
            plant: Some(plant),
        });
        fine &= found.counterexample.is_some();
        tell(arguments, plant.name(), found.states, found.counterexample);
    }
    fine
}

fn limits(arguments: &Arguments) -> Limits {
    Limits {
        threads: arguments.threads,
        depth: arguments.depth,
        time: arguments
            .minutes
            .map(|minutes| Duration::from_secs_f64(60.0 * minutes)),
    }
}

fn report(arguments: &Arguments, name: &str, found: &Found) {
    let counterexample = found.counterexample.as_ref();
    if arguments.json {
        print(&Line {
            name,
            states: found.states,
            depth: found.depth,
            seconds: found.time.as_secs_f64(),
            complete: found.complete,
            violation: counterexample.map(|it| it.violation.to_string()),
        });
        return;
    }
    let complete = if found.complete { "all" } else { "the first" };
    println!(
        "{name}: {complete} {} states, {} steps deep, in {:.1} s",
        found.states,
        found.depth,
        found.time.as_secs_f64()
    );
    if let Some(counterexample) = counterexample {
        println!("{}", counterexample.text());
    }
}

/// As [`report`], for a model of one router.
fn tell(arguments: &Arguments, name: &str, states: usize, counterexample: Option<String>) {
    if arguments.json {
        print(&Line {
            name,
            states,
            depth: 0,
            seconds: 0.0,
            complete: counterexample.is_none(),
            violation: counterexample.and_then(|text| text.lines().last().map(str::to_owned)),
        });
        return;
    }
    println!(
        "{name}: {states} states\n{}",
        counterexample.unwrap_or_default()
    );
}

fn print(line: &Line<'_>) {
    match serde_json::to_string(line) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("natmig-model: {error}"),
    }
}
