//! Nanoseconds of single steps and of natmig's whole program, by `BPF_PROG_TEST_RUN`.
//!
//! Every sample runs over one of several working sets: traffic over 1, 1,000, … of the bindings,
//! spread over a table that always holds a million. What writing the packet costs is measured in the
//! same round and subtracted.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use natmig_bench_ebpf::BINDINGS;
use natmig_lab::run::check_interrupted;
use nix::time::{ClockId, clock_gettime};

use crate::{
    bench::shuffled,
    core::{Core, Settings},
    live,
    plan::Extent,
    programs::{Programs, hurry, pin},
    progress::Progress,
    site::Site,
    statistics::Samples,
    traffic::{Density, Direction, Family, Traffic},
    verify::template,
};

/// Working sets.
pub const SETS: [u32; 4] = [1, 1000, 100_000, BINDINGS];

/// `XDP_PASS`, `XDP_TX` and `XDP_REDIRECT`.
const PASS: u32 = 2;
const DONE: u32 = 3;
const REDIRECT: u32 = 4;

/// What is timed.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its name in machine-readable results.
    pub key: &'static str,
    /// What it is, for people.
    pub label: &'static str,
    /// The program that is run.
    program: &'static str,
    /// Key of the step that is subtracted.
    pub base: &'static str,
    /// What is sent.
    traffic: Traffic,
    /// natmig's settings, if it is natmig that is called.
    natmig: Option<Settings>,
    /// Whether the packet comes in on an interface that natmig does not know.
    unknown: bool,
    /// The verdict that must come of it.
    verdict: u32,
    /// Whether its time depends on the working set.
    pub sets: bool,
    /// The least extent in which it is timed.
    from: Extent,
}

const IPV4: Traffic = Traffic::destination_hit(Family::Ipv4, Density::Dense, BINDINGS);
const IPV6: Traffic = Traffic::destination_hit(Family::Ipv6, Density::Dense, BINDINGS);

const fn step(
    key: &'static str,
    label: &'static str,
    program: &'static str,
    base: &'static str,
    traffic: Traffic,
) -> Step {
    Step {
        key,
        label,
        program,
        base,
        traffic,
        natmig: None,
        unknown: false,
        verdict: DONE,
        sets: true,
        from: Extent::Smoke,
    }
}

const fn fixed(step: Step) -> Step {
    Step {
        sets: false,
        ..step
    }
}

const fn natmig(
    key: &'static str,
    label: &'static str,
    traffic: Traffic,
    settings: Settings,
) -> Step {
    let (program, base) = match traffic.family {
        Family::Ipv4 => ("step_subject_ipv4", "call"),
        Family::Ipv6 => ("step_subject_ipv6", "call6"),
    };
    Step {
        natmig: Some(settings),
        verdict: REDIRECT,
        ..step(key, label, program, base, traffic)
    }
}

const fn passing(step: Step) -> Step {
    Step {
        verdict: PASS,
        ..step
    }
}

const fn unknown(step: Step) -> Step {
    Step {
        unknown: true,
        sets: false,
        ..passing(step)
    }
}

const fn in_full(step: Step) -> Step {
    Step {
        from: Extent::Full,
        ..step
    }
}

const ALL: Settings = Settings::ALL;
const UNCOUNTED: Settings = Settings {
    counted: false,
    ..ALL
};
const ASKING: Settings = Settings {
    own_routes: false,
    ..ALL
};
const HASHED: Settings = Settings {
    blocks: false,
    ..ALL
};
const BOUND: Settings = Settings {
    forward_all: false,
    ..ALL
};
const SOURCE4: Traffic = Traffic::source_hit(Family::Ipv4, Density::Dense, BINDINGS);
const SOURCE6: Traffic = Traffic::source_hit(Family::Ipv6, Density::Dense, BINDINGS);
const UNTOUCHED4: Traffic = Traffic::untouched(Family::Ipv4);
const UNTOUCHED6: Traffic = Traffic::untouched(Family::Ipv6);

/// Everything that is timed. A step's base comes before it.
#[rustfmt::skip]
pub const STEPS: &[Step] = &[
    fixed(step("empty", "nothing", "step_empty", "", IPV4)),
    fixed(step("write", "writing the packet, IPv4", "step_ipv4", "empty", IPV4)),
    fixed(step("write6", "writing the packet, IPv6", "step_ipv6", "empty", IPV6)),
    fixed(step("call", "call of another program", "step_call", "write", IPV4)),
    fixed(step("call6", "call of another program, IPv6", "step_call_ipv6", "write6", IPV6)),
    fixed(step("parse", "parse headers", "step_parse", "write", IPV4)),
    fixed(step("counter", "counter of this CPU", "step_counter", "write", IPV4)),
    fixed(step("fib", "kernel's routing table, IPv4", "step_fib", "write", IPV4)),
    fixed(step("fib6", "kernel's routing table, IPv6", "step_fib_ipv6", "write6", IPV6)),
    fixed(step("redirect", "redirect", "step_redirect", "write", IPV4)),
    step("hash_hit", "hash look-up, 4 bytes, hit", "step_hash_hit", "write", IPV4),
    step("hash_miss", "hash look-up, 4 bytes, miss", "step_hash_miss", "write", IPV4),
    step("hash_hit6", "hash look-up, 16 bytes, hit", "step_hash_hit_ipv6", "write6", IPV6),
    step("line", "a cache line of an array", "step_line", "write", IPV4),
    step("binding_counter", "counter by binding, apart", "step_binding_counter", "write", IPV4),
    step("hash_nat", "least NAT: 2 hash look-ups", "step_hash_nat", "write", IPV4),
    step("hash_nat6", "least NAT, IPv6", "step_hash_nat_ipv6", "write6", IPV6),
    step("hash_nat_fib", "least NAT + routing table", "step_hash_nat_fib", "write", IPV4),
    unknown(natmig("n_unknown", "natmig: unknown interface", IPV4, ALL)),
    passing(natmig("n_pass4", "natmig: IPv4 unbound, to the kernel", UNTOUCHED4, BOUND)),
    natmig("n_untouched4", "natmig: IPv4 unbound, forwarded", UNTOUCHED4, ALL),
    natmig("n_hit4", "natmig: IPv4 destination", IPV4, ALL),
    natmig("n_hit4_uncounted", "… not counted by binding", IPV4, UNCOUNTED),
    natmig("n_hit4_fib", "… kernel's routes", IPV4, ASKING),
    in_full(natmig("n_hit4_hash", "… found by hash", IPV4, HASHED)),
    natmig("n_source4", "natmig: IPv4 source, kernel's routes", SOURCE4, ALL),
    passing(natmig("n_pass6", "natmig: IPv6 unbound, to the kernel", UNTOUCHED6, BOUND)),
    natmig("n_hit6", "natmig: IPv6 destination", IPV6, ALL),
    natmig("n_hit6_uncounted", "… not counted by binding", IPV6, UNCOUNTED),
    natmig("n_hit6_fib", "… kernel's routes", IPV6, ASKING),
    in_full(natmig("n_hit6_hash", "… found by hash", IPV6, HASHED)),
    natmig("n_source6", "natmig: IPv6 source, kernel's routes", SOURCE6, ALL),
];

/// Nanoseconds of all steps above their bases, by step and working set; steps that do not depend on
/// the set have the first alone.
pub type Nanoseconds = BTreeMap<(&'static str, u32), Samples>;

/// Something to run and to time.
struct Case {
    step: &'static Step,
    set: u32,
    core: Option<usize>,
    repeat: u32,
}

/// Times all steps of an extent on the router of a site, in rounds.
pub fn run(
    programs: &mut Programs,
    object: &Path,
    site: &Site,
    extent: Extent,
    rounds: usize,
    time: Duration,
) -> Result<Nanoseconds> {
    let mut settings: Vec<Settings> = Vec::new();
    let mut cases = Vec::new();
    for step in STEPS.iter().filter(|step| step.from <= extent) {
        let core = step.natmig.map(|wanted| {
            settings
                .iter()
                .position(|settings| *settings == wanted)
                .unwrap_or_else(|| {
                    settings.push(wanted);
                    settings.len() - 1
                })
        });
        let sets = if step.sets { &SETS[..] } else { &SETS[..1] };
        for set in sets {
            cases.push(Case {
                step,
                set: *set,
                core,
                repeat: 0,
            });
        }
    }
    let mut cores = Vec::new();
    let progress = Progress::new("tables for steps", settings.len());
    for settings in settings {
        progress.begin(&format!("{settings:?}"));
        cores.push(Core::load(object, site, settings)?);
        progress.advance();
    }
    drop(progress);
    site.router()?
        .enter(|| time_all(programs, &mut cores, site, &mut cases, rounds, time))
}

fn time_all(
    programs: &mut Programs,
    cores: &mut [Core],
    site: &Site,
    cases: &mut [Case],
    rounds: usize,
    time: Duration,
) -> Result<Nanoseconds> {
    pin(0)?;
    hurry(1);
    // Once, to find out how many repetitions take the time of a sample.
    for case in cases.iter_mut() {
        case.repeat = 5_000;
        let nanoseconds = sample(programs, cores, site, case)?;
        case.repeat = (time.as_nanos() as f64 / nanoseconds.max(1.0)) as u32;
    }
    let mut raw = Nanoseconds::new();
    let progress = Progress::new("nanoseconds per step", rounds * cases.len());
    for round in 0..rounds {
        for at in shuffled(cases.len(), round) {
            check_interrupted()?;
            let case = &cases[at];
            progress.begin(case.step.label);
            let nanoseconds = sample(programs, cores, site, case)?;
            raw.entry((case.step.key, case.set))
                .or_default()
                .add(round, nanoseconds);
            progress.advance();
        }
    }
    drop(progress);
    Ok(cases
        .iter()
        .filter_map(|case| {
            let key = (case.step.key, case.set);
            let samples = raw.get(&key)?;
            let above = match raw.get(&(case.step.base, SETS[0])) {
                Some(base) => samples.above(base),
                None => samples.clone(),
            };
            Some((key, above))
        })
        .collect())
}

/// Nanoseconds of a repetition.
fn sample(programs: &mut Programs, cores: &mut [Core], site: &Site, case: &Case) -> Result<f64> {
    let step = case.step;
    let traffic = Traffic {
        flows: case.set,
        ..step.traffic
    }
    .spread(BINDINGS);
    programs.set_generator(0, live::generator(site, &traffic, 7))?;
    let subject = match case.core {
        Some(core) => Some(&*cores[core].program()?),
        None => None,
    };
    programs.set_subject(subject)?;
    let ingress = match traffic.direction {
        _ if step.unknown => None,
        direction @ (Direction::Inwards | Direction::Outwards) => Some(site.ingress(direction)),
    };
    let packet = template(traffic.family);
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let start = clock()?;
    let ran = programs
        .run(step.program, &packet, ingress, case.repeat)
        .with_context(|| step.label)?;
    let spent = clock()?.saturating_sub(start);
    ensure!(
        ran.verdict == step.verdict,
        "{}: the verdict is {}, not {}",
        step.label,
        ran.verdict,
        step.verdict
    );
    Ok(spent.as_nanos() as f64 / f64::from(case.repeat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_come_first() {
        for (at, step) in STEPS.iter().enumerate() {
            let base = STEPS[..at].iter().any(|other| other.key == step.base);
            assert!(base || step.base.is_empty(), "{}", step.key);
        }
    }
}
