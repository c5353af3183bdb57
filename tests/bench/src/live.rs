//! Packets per second: generators send live frames through a router into a sink that counts them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use natmig_bench_ebpf::Generator;
use natmig_common::Counter;
use natmig_lab::run::{Run, check_interrupted, wait_for};
use nix::{
    sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal},
    unistd::{Pid, getpid, gettid},
};

use crate::{
    change::Changes,
    core::Core,
    filter,
    instance::{self, Instance},
    machine,
    plan::{Extent, LanePlan, Router, SitePlan},
    programs::{Programs, hurry, insist, pin},
    progress::Progress,
    site::{self, Site},
    traffic::{Family, Traffic, VISITORS},
    update,
    verify::{Expectation, Verified, template},
};

/// A site with its router in place.
pub struct Place {
    /// What it was built from.
    pub plan: SitePlan,
    /// Its namespaces.
    pub site: Site,
    /// natmig, where it is the router.
    pub instance: Option<Instance>,
    /// natmig's program, where it is the router alone.
    pub core: Option<Core>,
}

/// What the generators of a lane send.
pub fn generator(site: &Site, traffic: &Traffic, seed: u64) -> Generator {
    let ([destination, source], _) = site.macs(traffic.direction);
    let words = |mac: [u8; 6]| [0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]]));
    let (from, to) = traffic.sent;
    let visitors = from.side().second == 1;
    Generator {
        state: 0x2545_f491_4f6c_dd1d ^ (seed << 32),
        count: traffic.flows,
        stride: traffic.stride,
        second_count: if visitors { VISITORS } else { 1 },
        ifindex: site.sender(traffic.direction).1,
        destination: to.side_for(traffic.family),
        source: from.side_for(traffic.family),
        destination_mac: words(destination),
        source_mac: words(source),
        _pad: [0; 4],
    }
}

/// Lets a signal end a system call of a generator, and does nothing else.
pub fn catch_wakeups() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { signal::sigaction(Signal::SIGUSR1, &action) }.context("signal handler")?;
    Ok(())
}

/// Sends on the given CPUs while `meanwhile` runs, which begins when all of them send: before its first
/// frame a generator waits for a grace period of the kernel's, and for generators on other CPUs.
pub fn while_sending<T>(
    programs: &mut Programs,
    site: &Site,
    traffic: &Traffic,
    cpus: &[usize],
    meanwhile: impl FnOnce(&Programs) -> Result<T>,
) -> Result<T> {
    let mut generators = Vec::new();
    for cpu in cpus {
        let generator = generator(site, traffic, *cpu as u64 + 1);
        programs.set_generator(*cpu, generator)?;
        generators.push((*cpu, generator));
    }
    let programs = &*programs;
    let (name, frame) = match traffic.family {
        Family::Ipv4 => ("generate_ipv4", template(Family::Ipv4)),
        Family::Ipv6 => ("generate_ipv6", template(Family::Ipv6)),
    };
    let (namespace, _) = site.sender(traffic.direction);
    let stop = AtomicBool::new(false);
    let running: Mutex<Vec<Pid>> = Mutex::default();
    thread::scope(|scope| {
        let senders: Vec<_> = cpus
            .iter()
            .map(|cpu| {
                let (frame, stop, running) = (&frame, &stop, &running);
                scope.spawn(move || -> Result<()> {
                    namespace.join()?;
                    pin(*cpu)?;
                    // A real-time thread on every CPU would starve the daemons.
                    if cpus.len() == 1 {
                        hurry(1);
                    } else {
                        insist();
                    }
                    if let Ok(mut running) = running.lock() {
                        running.push(gettid());
                    }
                    // One call sends until a signal ends it: making its pages is slow.
                    let start = Instant::now();
                    while !stop.load(Ordering::Acquire) && start.elapsed() < LONGEST {
                        programs.generate(name, frame)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let all_begun = wait_for("generators to begin", LONGEST_START, || {
            let ended = senders.iter().any(ScopedJoinHandle::is_finished);
            let mut begun = true;
            for (cpu, generator) in &generators {
                begun &= programs.has_begun(*cpu, generator)?;
            }
            Ok((begun || ended).then_some(()))
        });
        let result = all_begun.and_then(|()| meanwhile(programs));
        stop.store(true, Ordering::Release);
        for sender in senders {
            while !sender.is_finished() {
                if let Ok(running) = running.lock() {
                    for thread in running.iter() {
                        wake(*thread);
                    }
                }
                thread::sleep(Duration::from_micros(200));
            }
            match sender.join() {
                Ok(sent) => sent?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result
    })
}

/// Ends the system call that a thread of this process is in. Another one may have ended already.
fn wake(thread: Pid) {
    // SAFETY: the call has no preconditions; this process handles the signal.
    let refused = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            getpid().as_raw(),
            thread.as_raw(),
            libc::SIGUSR1,
        )
    };
    if refused != 0 {
        thread::yield_now();
    }
}

/// Senders end by themselves after this time, whatever becomes of the thread that is to stop them.
const LONGEST: Duration = Duration::from_secs(5);
/// Generators that have not sent anything after this time never will.
const LONGEST_START: Duration = Duration::from_mins(1);

/// Frames of a lane that are looked at, at least.
const ENOUGH: u64 = 4000;

/// Times that are looked, a millisecond and more apart, for packets to arrive. Looks are counted, since the
/// clock goes on while a virtual machine stands still.
const LOOKS: u32 = 2000;

/// Waits until a lane's sink has seen that many more packets, but no longer than it may take.
fn wait_for_arrivals(programs: &Programs, lane: u32, packets: u64) -> Result<()> {
    let before = programs.arrived(lane)?;
    for _ in 0..LOOKS {
        check_interrupted()?;
        if programs.arrived(lane)? >= before + packets {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Packets per second, in millions, of a lane whose packets natmig traces, one in a thousand.
pub fn traced_rate(
    programs: &mut Programs,
    place: &Place,
    traffic: &Traffic,
    cpus: &[usize],
    warm: Duration,
    time: Duration,
) -> Result<f64> {
    let instance = place.instance.as_ref().context("only natmig traces")?;
    let tracer = instance.trace(&place.site)?;
    let rate = rate(programs, place, traffic, cpus, warm, time);
    tracer.stop()?;
    rate
}

/// Packets per second, in millions, of a lane.
pub fn rate(
    programs: &mut Programs,
    place: &Place,
    traffic: &Traffic,
    cpus: &[usize],
    warm: Duration,
    time: Duration,
) -> Result<f64> {
    check_interrupted()?;
    let lane = place.site.lane;
    while_sending(programs, &place.site, traffic, cpus, |programs| {
        wait_for_arrivals(programs, lane, 1)?;
        thread::sleep(warm);
        let (before, start) = (programs.arrived(lane)?, Instant::now());
        thread::sleep(time);
        let (after, end) = (programs.arrived(lane)?, Instant::now());
        Ok((after - before) as f64 / (end - start).as_secs_f64() / 1e6)
    })
}

/// Looks at what comes out of a lane.
pub fn verify(programs: &mut Programs, place: &Place, plan: &LanePlan) -> Result<Verified> {
    check_interrupted()?;
    let traffic = &plan.traffic;
    let (sent, arriving) = place.site.macs(traffic.direction);
    let expectation = Expectation {
        traffic: *traffic,
        // What is no hop leaves the frame as it is.
        macs: if traffic.hops == 0 { sent } else { arriving },
    };
    programs.captured();
    programs.set_capture(true)?;
    let before = programs.arrived(place.site.lane)?;
    while_sending(programs, &place.site, traffic, &[0], |programs| {
        wait_for_arrivals(programs, place.site.lane, ENOUGH)
    })?;
    let arrived = programs.arrived(place.site.lane)? - before;
    programs.set_capture(false)?;
    let mut frames = programs.captured();
    frames.retain(|frame| frame.lane == place.site.lane);
    let verified = expectation
        .check(&frames)
        .with_context(|| format!("{}: what comes out is wrong", plan.label))?;
    ensure!(
        verified.frames >= ENOUGH as usize / 2
            && verified.flows >= 500.min(traffic.flows as usize / 2),
        "{}: only {} frames of {} flows came out, {arrived} were counted",
        plan.label,
        verified.frames,
        verified.flows
    );
    if let Some(instance) = &place.instance {
        check_natmig(programs, place, plan, instance)?;
    }
    Ok(verified)
}

/// natmig must have handled the packets itself, by its own routes.
fn check_natmig(
    programs: &mut Programs,
    place: &Place,
    plan: &LanePlan,
    instance: &Instance,
) -> Result<()> {
    // An agent that has just begun asks the kernel until it knows all routes.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) && asks_kernel(programs, place, plan, instance)?
    {
        thread::sleep(Duration::from_millis(50));
    }
    let before = (
        instance.counted(Counter::Translated)? + instance.counted(Counter::Forwarded)?,
        instance.counted(Counter::PassUnbound)?,
        instance.counted(Counter::FibAsked)?,
        programs.arrived(place.site.lane)?,
    );
    while_sending(programs, &place.site, &plan.traffic, &[0], |programs| {
        wait_for_arrivals(programs, place.site.lane, ENOUGH)
    })?;
    let sent =
        instance.counted(Counter::Translated)? + instance.counted(Counter::Forwarded)? - before.0;
    let passed = instance.counted(Counter::PassUnbound)? - before.1;
    let asked = instance.counted(Counter::FibAsked)? - before.2;
    let arrived = programs.arrived(place.site.lane)? - before.3;
    let by_kernel = plan.key.starts_with("missed");
    let handled = if by_kernel { passed } else { sent };
    if handled * 10 < arrived * 9 {
        bail!(
            "{}: {arrived} packets arrived, natmig sent {sent} and passed {passed}",
            plan.label
        );
    }
    if asked * 10 > arrived {
        eprintln!(
            "natmig-bench: {}: natmig asked the kernel's routing table for {asked} of {arrived} packets",
            plan.label
        );
    }
    Ok(())
}

/// Whether natmig asks the kernel's routing table about packets of a lane.
fn asks_kernel(
    programs: &mut Programs,
    place: &Place,
    plan: &LanePlan,
    instance: &Instance,
) -> Result<bool> {
    let before = instance.counted(Counter::FibAsked)?;
    while_sending(programs, &place.site, &plan.traffic, &[0], |programs| {
        wait_for_arrivals(programs, place.site.lane, 500)
    })?;
    Ok(instance.counted(Counter::FibAsked)? > before + 100)
}

/// Builds a site's namespaces and everything in them that takes no time.
pub fn build(run: &Run, programs: &mut Programs, lane: u32, plan: SitePlan) -> Result<Place> {
    let site = Site::build(run, lane, plan.router != Router::None, plan.queues)?;
    site.attach_sinks(programs)?;
    if let Some(router) = &site.router {
        let (inner, outer) = (natmig_bench_ebpf::IN + lane, natmig_bench_ebpf::OUT + lane);
        match plan.router {
            Router::Program(name) => router.enter(|| {
                programs.attach(name, "in")?;
                programs.add_device(inner)?;
                programs.add_device(outer)
            })?,
            Router::Classifier(name) => {
                site::poll_without_program(router)?;
                router.enter(|| programs.attach_classifier(name, "in"))?;
            }
            Router::Kernel | Router::Stateless(..) | Router::Tracked(_) => {
                site::poll_without_program(router)?;
            }
            Router::None | Router::Natmig(_) | Router::Core(_) => {}
        }
    }
    Ok(Place {
        plan,
        site,
        instance: None,
        core: None,
    })
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// natmig.
    pub natmig: PathBuf,
    /// The object of the benchmarks' own programs.
    pub object: PathBuf,
    /// natmig's object.
    pub core: PathBuf,
}

impl Binaries {
    /// From the environment, as `cargo xtask bench` sets it.
    pub fn find() -> Result<Self> {
        let path = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
        };
        let found = Self {
            natmig: path("NATMIG_BIN")?,
            object: path("NATMIG_BENCH_OBJECT")?,
            core: path("NATMIG_EBPF_OBJECT")?,
        };
        for file in [&found.natmig, &found.object, &found.core] {
            let exists = Path::is_file(file);
            ensure!(exists, "{} does not exist", file.display());
        }
        Ok(found)
    }
}

/// Fills the tables of all routers, and starts natmig's agents.
pub fn fill(
    run: &Run,
    binaries: &Binaries,
    programs: &mut Programs,
    places: &mut [Place],
    changes: &mut Changes,
    extent: Extent,
) -> Result<()> {
    let cpus: Vec<usize> = (0..machine::online()).collect();
    let updates = match extent {
        Extent::Smoke => 10,
        // Each is changed and changed back, and each of these ends with a grace period of the kernel's.
        Extent::Quick | Extent::Full => 500,
    };
    programs.fill(Family::Ipv4)?;
    programs.fill(Family::Ipv6)?;
    let progress = Progress::new("filling tables", places.len());
    for place in places {
        check_interrupted()?;
        progress.begin(place.plan.key);
        match place.plan.router {
            router @ (Router::Stateless(_, elements) | Router::Tracked(elements)) => {
                let time = filter::fill(&place.site, router)?;
                changes.nft.push((elements, time.as_secs_f64()));
            }
            Router::Core(settings) => {
                let mut core = Core::load(&binaries.core, &place.site, settings)?;
                place.site.router()?.enter(|| core.attach())?;
                place.core = Some(core);
            }
            Router::Natmig(tables) => {
                let key = place.plan.key;
                let mut natmig = Instance::load(run, &binaries.natmig, &place.site, key, &tables)?;
                for family in [Family::Ipv4, Family::Ipv6] {
                    let path = site::file(run, &instance::bindings_name(family, &tables));
                    if !path.exists() {
                        instance::write_bindings(&path, family, &tables)?;
                    }
                    let merge = family == Family::Ipv6;
                    let applied = natmig.apply(&place.site, &path, merge)?;
                    let bytes = instance::bytes_of(family, &natmig.memory()?)?;
                    changes.add(key, family, &tables, &applied, bytes);
                }
                let updated = match extent {
                    Extent::Smoke => true,
                    Extent::Quick => key == "natmig",
                    Extent::Full => key == "natmig" || key == "natmig-sparse",
                };
                if updated {
                    let site = &place.site;
                    changes.updates.extend(update::run(
                        programs, site, &natmig, &tables, &cpus, updates,
                    )?);
                }
                natmig.start_agent(run, &place.site)?;
                place.instance = Some(natmig);
            }
            Router::None | Router::Program(_) | Router::Classifier(_) | Router::Kernel => {}
        }
        progress.advance();
    }
    Ok(())
}
