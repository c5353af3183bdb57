//! What the figures were measured on.

use std::{
    fs,
    hint::black_box,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;

use crate::{
    programs::{hurry, pin},
    statistics::Samples,
};

/// Facts about the machine that figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// How many times the work of one CPU all of them do at once, of a loop that needs no memory.
    pub cpus_together: f64,
    /// Clock of the first CPU in MHz, as the kernel says it.
    pub clock_mhz: String,
    /// Largest cache.
    pub cache: String,
    /// Kernel release.
    pub kernel: String,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// What the hypervisor flag says.
    pub virtual_machine: bool,
    /// The clock that timestamps come from.
    pub clock_source: String,
    /// Whether eBPF programs are compiled, and hardened.
    pub bpf_jit: String,
    /// Mitigations of processor faults that are in force.
    pub mitigations: Vec<String>,
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

impl Machine {
    /// This machine.
    pub fn here() -> Result<Self> {
        let processors = read("/proc/cpuinfo");
        let field = |name: &str| {
            processors
                .lines()
                .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory: f64 = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0.0);
        let cache = (0..5)
            .rev()
            .map(|level| {
                read(format!(
                    "/sys/devices/system/cpu/cpu0/cache/index{level}/size"
                ))
            })
            .find(|size| !size.is_empty());
        Ok(Self {
            processor: field("model name"),
            cpus: online(),
            cpus_together: together()?,
            clock_mhz: field("cpu MHz"),
            cache: cache.unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease"),
            memory_gib: memory / f64::from(1 << 20),
            virtual_machine: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            bpf_jit: format!(
                "jit {}, hardening {}",
                read("/proc/sys/net/core/bpf_jit_enable"),
                read("/proc/sys/net/core/bpf_jit_harden")
            ),
            mitigations: mitigations(),
        })
    }
}

/// How many times the work of the first CPU all CPUs do at once: CPUs of a virtual machine may be threads of
/// one core, or share it with others'.
fn together() -> Result<f64> {
    // On a thread of its own, whose priority ends with it: beside the workers, not behind them.
    let timed = thread::scope(|scope| {
        let timing = scope.spawn(|| {
            hurry(2);
            let rounds = (0..5).map(|_| Ok(work(online())? / work(1)?));
            rounds.collect::<Result<Vec<f64>>>()
        });
        timing.join()
    });
    let ratios = timed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let ratios: Samples = ratios.into_iter().collect();
    Ok(ratios.middle().map_or(0.0, |middle| middle.median))
}

/// Work that the first CPUs do at once in a short time.
fn work(cpus: usize) -> Result<f64> {
    const TIME: Duration = Duration::from_millis(20);
    let (begin, stop) = (Barrier::new(cpus + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let (begin, stop) = (&begin, &stop);
        let workers: Vec<_> = (0..cpus)
            .map(|cpu| {
                scope.spawn(move || {
                    let pinned = pin(cpu);
                    hurry(1);
                    begin.wait();
                    let (mut rounds, mut value) = (0_u32, 1_u64);
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..1000 {
                            value = black_box(value.wrapping_mul(6_364_136_223_846_793_005));
                        }
                        rounds += 1;
                    }
                    pinned.map(|()| f64::from(rounds))
                })
            })
            .collect();
        begin.wait();
        thread::sleep(TIME);
        stop.store(true, Ordering::Relaxed);
        let mut sum = 0.0;
        for worker in workers {
            match worker.join() {
                Ok(rounds) => sum += rounds?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(sum)
    })
}

/// Number of CPUs that are online.
pub fn online() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn mitigations() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let state = read(entry.path());
            let name = entry.file_name().into_string().ok()?;
            (state != "Not affected").then(|| format!("{name}: {state}"))
        })
        .collect();
    found.sort();
    found
}
