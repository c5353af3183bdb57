//! The metrics of a controller: whether it leads, what the machine has to do if it does, and what it
//! did.
//!
//! Each scrape asks the core once, for numbers alone: it holds up migrations no longer than that takes.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    figures::Figures,
    role::{Role, Roles},
};
use crate::{
    coordinator::{Coordinator, Phase, Tally},
    metrics::{Metrics, gauge},
};

/// Phases in which something remains to be done; each is reported, also when nothing is in it.
const PHASES: [Phase; 9] = [
    Phase::Preparing,
    Phase::Prepared,
    Phase::Committing,
    Phase::Committed,
    Phase::Folding,
    Phase::Draining,
    Phase::Retiring,
    Phase::Aborting,
    Phase::Aborted,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByRouter {
    router: String,
    tier: String,
}

/// The metrics of one controller.
#[derive(Debug)]
pub(super) struct ControllerMetrics {
    pub(super) roles: Roles,
    pub(super) figures: Arc<Figures>,
}

impl ControllerMetrics {
    /// What is so at this moment. Only the leader knows of migrations and routers.
    fn state(&self, registry: &mut Registry) -> Result<(), String> {
        let (leads, term) = match self.roles.present() {
            Role::Leading(core) => {
                let term = core.term;
                // A scrape is answered on a thread that may wait.
                let tally = tokio::runtime::Handle::current()
                    .block_on(core.query(Coordinator::tally))
                    .map_err(|status| status.message().to_owned())?;
                migrations(registry, &tally);
                routers(registry, &tally);
                (1, term)
            }
            Role::StandingBy(leader) => (0, leader.map_or(0, |leader| leader.term)),
        };
        registry.register(
            "leads",
            "1 while this controller leads, 0 while it stands by",
            gauge(leads),
        );
        registry.register(
            "term",
            "Term of the leader, as far as this controller knows one",
            gauge(term),
        );
        Ok(())
    }

    /// What was done since the process began.
    fn history(&self, registry: &mut Registry) {
        let figures = &self.figures;
        registry.register(
            "migrations_decided",
            "Migrations by their outcome, from the durable decision on",
            figures.decided.clone(),
        );
        registry.register(
            "migration_seconds",
            "From the announcement of a migration until the last router had committed",
            figures.migration.clone(),
        );
        registry.register(
            "commit_seconds",
            "From the decision until the last router had committed",
            figures.commit.clone(),
        );
        registry.register(
            "commit_spread_seconds",
            "From the first router's commit to the last one's, by their clocks",
            figures.spread.clone(),
        );
        registry.register(
            "refused_commands",
            "Commands that agents did not carry out, by reason",
            figures.refused.clone(),
        );
        registry.register(
            "store_seconds",
            "Time that the store took, by what it was asked for",
            figures.store.clone(),
        );
        registry.register(
            "store_errors",
            "Times that the store did not do what it was asked for",
            figures.store_errors.clone(),
        );
    }
}

fn migrations(registry: &mut Registry, tally: &Tally) {
    let migrations = Family::<ByPhase, Gauge>::default();
    for phase in PHASES {
        let there = tally.migrations.get(&phase).copied().unwrap_or_default();
        let labels = ByPhase {
            phase: phase.as_str(),
        };
        migrations
            .get_or_create(&labels)
            .set(i64::try_from(there).unwrap_or(i64::MAX));
    }
    registry.register(
        "migrations",
        "Migrations with which something remains to be done, by phase",
        migrations,
    );
    registry.register(
        "migrations_under_way",
        "Migrations that are not folded, also those that wait",
        gauge(tally.under_way),
    );
    registry.register(
        "migration_capacity",
        "Migrations that there may be before they are folded; more are refused",
        gauge(tally.capacity),
    );
}

fn routers(registry: &mut Registry, tally: &Tally) {
    let connected = Family::<ByRouter, Gauge>::default();
    let in_sync = Family::<ByRouter, Gauge>::default();
    let drained = Family::<ByRouter, Gauge>::default();
    for router in &tally.routers {
        let labels = ByRouter {
            router: router.name.to_string(),
            tier: router.tier.to_string(),
        };
        for (family, is_so) in [
            (&connected, router.connected),
            (&in_sync, router.in_sync),
            (&drained, router.drained),
        ] {
            family.get_or_create(&labels).set(is_so.into());
        }
    }
    registry.register(
        "router_connected",
        "1 while the router's agent is connected",
        connected,
    );
    registry.register(
        "router_in_sync",
        "1 while the router is known to have the table that it should have",
        in_sync,
    );
    registry.register(
        "router_drained",
        "1 while the router is attested not forwarding",
        drained,
    );
}

impl Metrics for ControllerMetrics {
    fn render(&self) -> Result<String, String> {
        let mut registry = Registry::with_prefix("natmig");
        self.state(&mut registry)?;
        self.history(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).map_err(|error| error.to_string())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::store::Leader;

    fn standing_by(leader: Option<Leader>) -> String {
        let (_role, present) = watch::channel(Role::StandingBy(leader));
        let metrics = ControllerMetrics {
            roles: Roles::new("c1".to_owned(), present),
            figures: Arc::default(),
        };
        metrics.render().unwrap()
    }

    #[test]
    fn a_controller_that_stands_by_says_nothing_of_what_only_the_leader_knows() {
        let leader = Leader {
            term: 7,
            ..Leader::default()
        };
        for (leader, term) in [(Some(leader), "natmig_term 7"), (None, "natmig_term 0")] {
            let text = standing_by(leader);
            let has = |line: &str| text.lines().any(|found| found == line);
            assert!(has("natmig_leads 0") && has(term), "{text}");
            assert!(
                has("natmig_migrations_decided_total{outcome=\"committed\"} 0"),
                "{text}"
            );
            for of_the_leader in [
                "natmig_migrations{",
                "natmig_migration_capacity",
                "natmig_router_",
            ] {
                assert!(!text.contains(of_the_leader), "{text}");
            }
        }
    }
}
