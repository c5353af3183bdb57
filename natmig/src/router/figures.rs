//! What a router's writer did, in numbers that other threads may read while it works.

use std::sync::atomic::{AtomicU32, Ordering};

use prometheus_client::metrics::{
    counter::Counter,
    histogram::{Histogram, exponential_buckets},
};

use super::{CommitReport, tables::Capacity};

/// Addresses of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 addresses.
    pub ipv4: u32,
    /// IPv6 addresses.
    pub ipv6: u32,
}

/// Figures of one router's writer, since it was started.
#[derive(Debug)]
pub struct Figures {
    /// Transactions that were committed.
    pub commits: Counter,
    /// Seconds from each commit until no packet was processed under the old state.
    pub grace: Histogram,
    ipv4: AtomicU32,
    ipv6: AtomicU32,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            commits: Counter::default(),
            // 1 µs to 0.26 s: the fast grace period gives up after 0.1 s.
            grace: Histogram::new(exponential_buckets(1e-6, 4.0, 10)),
            ipv4: AtomicU32::new(0),
            ipv6: AtomicU32::new(0),
        }
    }
}

impl Figures {
    /// Takes note of a commit, which an earlier call may have made.
    pub(super) fn committed(&self, report: &CommitReport) {
        if !report.grace.is_zero() {
            self.commits.inc();
            self.grace.observe(report.grace.as_secs_f64());
        }
    }

    /// Takes note of how many addresses the tables hold.
    pub(super) fn set_addresses(&self, used: Capacity) {
        self.ipv4.store(used.ipv4, Ordering::Relaxed);
        self.ipv6.store(used.ipv6, Ordering::Relaxed);
    }

    /// Addresses that the tables held after the last change.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            ipv4: self.ipv4.load(Ordering::Relaxed),
            ipv6: self.ipv6.load(Ordering::Relaxed),
        }
    }
}
