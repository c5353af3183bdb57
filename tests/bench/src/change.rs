//! What changing natmig's tables costs: time and memory.

use std::time::Duration;

use serde::Serialize;

use crate::{
    plan::Tables,
    statistics::{Samples, quantile},
    traffic::{Density, Family},
};

/// A file of bindings that was applied as one transaction.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// Key of the site.
    pub site: &'static str,
    /// The bindings' family.
    pub family: Family,
    /// How their addresses lie.
    pub density: Density,
    /// Their number.
    pub bindings: u32,
    /// Whether visitors were among them, which are announced afterwards.
    pub visitors: bool,
    /// Seconds of the whole command.
    pub seconds: f64,
    /// Seconds until the transaction was committed, by the command's own clock.
    pub inner_seconds: f64,
    /// Largest memory of the command, in bytes.
    pub peak_bytes: u64,
    /// Bytes of the family's tables and of those that families share, by binding.
    pub bytes_per_binding: f64,
}

/// How long single updates took.
#[derive(Clone, Debug, Serialize)]
pub struct Updates {
    /// What was updated.
    pub label: String,
    /// Number of updates.
    pub count: usize,
    /// Half of them took less, in microseconds.
    pub p50_us: f64,
    /// All but one in a hundred took less.
    pub p99_us: f64,
    /// All but one in a thousand took less.
    pub p999_us: f64,
}

impl Updates {
    /// From the times of all updates.
    pub fn new(label: impl Into<String>, times: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            label: label.into(),
            count: sorted.len(),
            p50_us: quantile(&sorted, 0.5)?,
            p99_us: quantile(&sorted, 0.99)?,
            p999_us: quantile(&sorted, 0.999)?,
        })
    }
}

/// Everything that was learned of changes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Changes {
    /// Files that were applied.
    pub loads: Vec<Load>,
    /// Seconds that nftables took for its map, by number of elements.
    pub nft: Vec<(u32, f64)>,
    /// Updates.
    pub updates: Vec<Updates>,
}

impl Changes {
    /// Loads of as many bindings as there can be, without visitors.
    pub fn million(&self, family: Family, density: Density) -> impl Iterator<Item = &Load> {
        self.loads.iter().filter(move |load| {
            load.bindings == natmig_bench_ebpf::BINDINGS
                && load.family == family
                && load.density == density
                && !load.visitors
        })
    }

    /// Median seconds of those loads.
    pub fn million_seconds(&self, family: Family, density: Density) -> Option<f64> {
        let samples: Samples = self
            .million(family, density)
            .map(|load| load.seconds)
            .collect();
        Some(samples.middle()?.median)
    }

    /// Bytes per binding of the first of those loads that is counted by binding.
    pub fn million_bytes(&self, family: Family, density: Density) -> Option<f64> {
        let load = self.million(family, density).next()?;
        Some(load.bytes_per_binding)
    }

    /// Notes a load.
    pub fn add(
        &mut self,
        site: &'static str,
        family: Family,
        tables: &Tables,
        applied: &crate::instance::Applied,
        bytes: u64,
    ) {
        self.loads.push(Load {
            site,
            family,
            density: tables.density,
            bindings: tables.bindings,
            visitors: tables.visitors,
            seconds: applied.whole_seconds,
            inner_seconds: applied.seconds,
            peak_bytes: applied.process_peak_bytes,
            bytes_per_binding: bytes as f64 / f64::from(tables.bindings),
        });
    }
}
