//! What the figures were measured on.

use std::{fs, path::Path};

use serde::Serialize;

/// Facts about the machine that figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// CPUs that are online.
    pub cpus: usize,
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
    pub fn here() -> Self {
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
        Self {
            processor: field("model name"),
            cpus: online(),
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
        }
    }
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
