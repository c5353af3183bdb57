//! The metrics of a router: what its pinned maps say, and what its writer did.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Metrics, gauge};
use crate::router::{Figures, RouterError, reader::Reader, tracer};

/// The metrics of an instance.
///
/// They are read from the pinned maps at each scrape, as `natmig stats` reads them.
#[derive(Debug)]
pub struct RouterMetrics {
    instance: String,
    figures: Arc<Figures>,
    /// Kept between scrapes: opening it maps all tables into memory.
    reader: Mutex<Option<Reader>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Packets {
    interface: String,
    role: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByRule {
    rule: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByFamily {
    family: &'static str,
}

/// Phases of a transaction on a router; each is reported, also when there is none in it.
const PHASES: [&str; 4] = ["preparing", "prepared", "committed", "folding"];

impl RouterMetrics {
    /// Those of an instance that is loaded, in the network namespace of the calling process.
    pub fn new(instance: &str, figures: Arc<Figures>) -> Self {
        Self {
            instance: instance.to_owned(),
            figures,
            reader: Mutex::new(None),
        }
    }

    fn collect(&self, reader: &Reader) -> Result<Registry, RouterError> {
        let mut registry = Registry::with_prefix("natmig");
        traffic(&mut registry, reader)?;
        self.tables(&mut registry, reader)?;
        let believed = gauge(u64::from(reader.believes_next_hops()));
        registry.register(
            "next_hops_believed",
            "1 while the program takes next hops from natmig's own table, 0 while it asks the kernel for every packet",
            believed,
        );
        let lost = Counter::<u64>::default();
        lost.inc_by(tracer::lost_events(&self.instance)?);
        registry.register(
            "trace_lost_events",
            "Events that the last trace lost because its buffer was full",
            lost,
        );
        registry.register(
            "commits",
            "Transactions that this process committed",
            self.figures.commits.clone(),
        );
        registry.register(
            "commit_grace_seconds",
            "From a commit until no packet was any longer processed under the old state",
            self.figures.grace.clone(),
        );
        Ok(registry)
    }

    /// Addresses, transactions, memory.
    fn tables(&self, registry: &mut Registry, reader: &Reader) -> Result<(), RouterError> {
        let summary = reader.summary()?;
        let addresses = Family::<ByFamily, Gauge>::default();
        let capacity = Family::<ByFamily, Gauge>::default();
        let held = self.figures.addresses();
        for (family, used, room) in [
            ("ipv4", held.ipv4, summary.capacity),
            ("ipv6", held.ipv6, summary.capacity_ipv6),
        ] {
            let labels = ByFamily { family };
            addresses.get_or_create(&labels).set(i64::from(used));
            capacity.get_or_create(&labels).set(i64::from(room));
        }
        registry.register(
            "addresses",
            "Identities and locators in the tables",
            addresses,
        );
        registry.register(
            "address_capacity",
            "Identities and locators that the tables have room for",
            capacity,
        );
        let transactions = Family::<ByPhase, Gauge>::default();
        for phase in PHASES {
            drop(transactions.get_or_create(&ByPhase { phase }));
        }
        for transaction in reader.transactions() {
            let phase = transaction.phase;
            transactions.get_or_create(&ByPhase { phase }).inc();
        }
        registry.register(
            "transactions",
            "Transactions that the router holds, by phase",
            transactions,
        );
        registry.register(
            "term",
            "Highest term of a controller that the router has seen",
            gauge(summary.term),
        );
        registry.register(
            "map_memory_bytes",
            "Kernel memory of the instance's maps",
            gauge(summary.map_bytes),
        );
        Ok(())
    }
}

/// Counters by interface, and the guard's.
fn traffic(registry: &mut Registry, reader: &Reader) -> Result<(), RouterError> {
    let packets = Family::<Packets, Counter>::default();
    let bytes = Family::<Packets, Counter>::default();
    for interface in reader.interfaces()? {
        for counter in &interface.counters {
            let labels = Packets {
                interface: interface.interface.clone(),
                role: interface.role,
                verdict: counter.class,
                reason: counter.name,
            };
            bytes.get_or_create(&labels).inc_by(counter.bytes);
            packets.get_or_create(&labels).inc_by(counter.packets);
        }
    }
    registry.register(
        "packets",
        "Packets by the interface that they arrived on, by verdict and reason; `step` counts what was done to packets beside their verdict",
        packets,
    );
    registry.register("bytes", "Bytes of the packets of natmig_packets", bytes);
    let guard = Family::<ByRule, Counter>::default();
    for counter in reader.guard()? {
        let labels = ByRule { rule: counter.name };
        guard.get_or_create(&labels).inc_by(counter.packets);
    }
    registry.register(
        "guard_dropped_packets",
        "Packets with a locator that the guard kept from leaving the fabric",
        guard,
    );
    Ok(())
}

impl Metrics for RouterMetrics {
    fn render(&self) -> Result<String, String> {
        let text = || -> Result<String, RouterError> {
            let mut kept = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            let mut reader = match kept.take() {
                Some(reader) => reader,
                None => Reader::open(&self.instance)?,
            };
            reader.refresh_names()?;
            let registry = self.collect(&reader)?;
            // After an error the next scrape opens everything again.
            *kept = Some(reader);
            let mut text = String::new();
            encode(&mut text, &registry).map_err(|error| {
                RouterError::system("write metrics")(std::io::Error::other(error))
            })?;
            Ok(text)
        };
        text().map_err(|error| error.to_string())
    }
}
