//! What is explored: small fabrics, what operators ask for on them, and what may go wrong meanwhile.

use natmig::{
    coordinator::{Activation, MigrateRequest, Request, Unreachable},
    names::{SegmentName, VmName},
    rule::TransactionId,
};

use crate::{
    fabric::{Fabric, Pool},
    plant::Plant,
    state::Budget,
};

/// A fabric and what may happen on it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The core routers.
    pub cores: &'static [&'static str],
    /// The edge routers of each segment.
    pub edges: &'static [&'static [&'static str]],
    /// The home of each VM.
    pub homes: &'static [u8],
    /// The locators of each segment.
    pub pool: Pool,
    /// What operators asked for before, and is over.
    pub before: Vec<Request>,
    /// What operators ask for, each at any time after the one before it.
    pub requests: Vec<Request>,
    /// What may go wrong.
    pub budget: Budget,
    /// Steps from the beginning, at most, where all of them take too long; otherwise 0.
    pub depth: usize,
    /// What may go wrong besides in larger runs.
    pub larger: Budget,
    /// Whether commands of an earlier connection may arrive late.
    pub late_commands: bool,
    /// Whether messages of an earlier connection may reach the controller after a later one began.
    pub late_replies: bool,
    /// Bugs that must show here.
    pub plants: &'static [Plant],
}

impl Scenario {
    /// Its fabric.
    pub fn fabric(&self) -> Fabric {
        Fabric::new(self.cores, self.edges, self.homes, self.pool)
    }

    /// With more that may go wrong: all that may in larger runs, so many times.
    #[must_use]
    pub fn deeper(mut self, more: u8) -> Self {
        let Self { budget, larger, .. } = &mut self;
        for (left, larger) in [
            (&mut budget.breaks, larger.breaks),
            (&mut budget.reboots, larger.reboots),
            (&mut budget.crashes, larger.crashes),
            (&mut budget.elections, larger.elections),
            (&mut budget.deadlines, larger.deadlines),
            (&mut budget.strays, larger.strays),
        ] {
            *left = (*left).max(larger.saturating_mul(more));
        }
        if more > 0 {
            self.depth = 0;
        }
        self
    }
}

fn migrate(vm: &str, to: &str) -> Request {
    migrate_with(&[(vm, to)], Activation::Immediate, Unreachable::Wait)
}

fn migrate_with(
    moves: &[(&str, &str)],
    activation: Activation,
    unreachable: Unreachable,
) -> Request {
    Request::Migrate(MigrateRequest {
        moves: moves
            .iter()
            .map(|(vm, to)| (VmName::new(*vm), SegmentName::new(*to)))
            .collect(),
        activation,
        unreachable,
    })
}

/// Two racks with an edge router each, and a core router.
fn two_racks(name: &'static str) -> Scenario {
    Scenario {
        name,
        cores: &["core1"],
        edges: &[&["edge1"], &["edge2"]],
        homes: &[1],
        pool: Pool::One,
        before: Vec::new(),
        requests: vec![migrate("vm1", "rack2")],
        budget: Budget::default(),
        larger: Budget {
            breaks: 1,
            reboots: 1,
            crashes: 1,
            elections: 0,
            deadlines: 1,
            strays: 0,
            packets: 0,
        },
        depth: 0,
        late_commands: false,
        late_replies: false,
        plants: &[],
    }
}

/// All scenarios.
#[expect(clippy::too_many_lines, reason = "a list")]
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            budget: Budget {
                breaks: 1,
                deadlines: 1,
                ..Budget::default()
            },
            plants: &[
                Plant::CommitBeforePrepared,
                Plant::InverseRuleMissing,
                Plant::PendingForgotten,
                Plant::FoldBeforeCommitted,
            ],
            ..two_racks("lost connections")
        },
        Scenario {
            budget: Budget {
                crashes: 1,
                ..Budget::default()
            },
            plants: &[Plant::DecisionAfterCommit],
            ..two_racks("killed controller")
        },
        Scenario {
            budget: Budget {
                reboots: 1,
                deadlines: 1,
                ..Budget::default()
            },
            late_replies: true,
            plants: &[Plant::StaleReplyAccepted, Plant::EarlyLeftOut],
            ..two_racks("rebooted router")
        },
        Scenario {
            requests: vec![
                migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Wait),
                Request::Abort(TransactionId(1)),
            ],
            budget: Budget {
                crashes: 1,
                ..Budget::default()
            },
            plants: &[Plant::AbortNotDurable],
            ..two_racks("abort")
        },
        Scenario {
            requests: vec![migrate_with(
                &[("vm1", "rack2")],
                Activation::Immediate,
                Unreachable::Abort,
            )],
            budget: Budget {
                breaks: 1,
                deadlines: 1,
                ..Budget::default()
            },
            ..two_racks("abort of a silent router")
        },
        Scenario {
            before: vec![migrate("vm1", "rack2")],
            requests: vec![migrate("vm1", "rack1")],
            budget: Budget {
                reboots: 1,
                deadlines: 1,
                ..Budget::default()
            },
            plants: &[
                Plant::EdgeOrderSwapped,
                Plant::TransitAnchors,
                Plant::OutcomeNotTaken,
            ],
            ..two_racks("return home")
        },
        Scenario {
            homes: &[1, 1],
            before: vec![migrate("vm1", "rack2")],
            requests: vec![migrate("vm1", "rack1"), migrate("vm2", "rack2")],
            budget: Budget {
                deadlines: 1,
                ..Budget::default()
            },
            plants: &[Plant::LocatorReusedEarly, Plant::RetiredAfterOne],
            ..two_racks("a locator's second use")
        },
        Scenario {
            pool: Pool::Two,
            before: vec![migrate("vm1", "rack2")],
            requests: vec![migrate("vm1", "rack1"), migrate("vm1", "rack2")],
            budget: Budget {
                breaks: 1,
                ..Budget::default()
            },
            ..two_racks("away again")
        },
        Scenario {
            requests: vec![
                migrate_with(&[("vm1", "rack2")], Activation::Manual, Unreachable::Abort),
                Request::Abort(TransactionId(1)),
            ],
            budget: Budget {
                elections: 1,
                ..Budget::default()
            },
            larger: Budget {
                strays: 1,
                ..Budget::default()
            },
            depth: 16,
            late_commands: true,
            plants: &[Plant::StaleTermAccepted, Plant::StoreUnguarded],
            ..two_racks("two controllers")
        },
        Scenario {
            requests: vec![migrate_with(
                &[("vm1", "rack2")],
                Activation::OnAnnounce,
                Unreachable::Wait,
            )],
            budget: Budget {
                breaks: 1,
                ..Budget::default()
            },
            plants: &[Plant::AnnouncedOnce, Plant::AwaitedLate],
            ..two_racks("on announce")
        },
        Scenario {
            edges: &[&["edge1"], &["edge2"], &["edge3"]],
            before: vec![migrate("vm1", "rack2")],
            requests: vec![migrate("vm1", "rack3")],
            budget: Budget {
                packets: 1,
                ..Budget::default()
            },
            ..two_racks("move on with a packet under way")
        },
        Scenario {
            cores: &["core1", "core2"],
            before: vec![migrate("vm1", "rack2")],
            requests: vec![migrate("vm1", "rack1")],
            budget: Budget {
                packets: 1,
                ..Budget::default()
            },
            ..two_racks("return home with a packet under way")
        },
        Scenario {
            edges: &[&["edge1a", "edge1b"], &["edge2"]],
            budget: Budget {
                breaks: 1,
                ..Budget::default()
            },
            ..two_racks("pair of edge routers")
        },
        Scenario {
            homes: &[1, 2],
            pool: Pool::Two,
            requests: vec![migrate_with(
                &[("vm1", "rack2"), ("vm2", "rack1")],
                Activation::Immediate,
                Unreachable::Wait,
            )],
            budget: Budget {
                breaks: 1,
                ..Budget::default()
            },
            ..two_racks("group whose VMs change places")
        },
    ]
}

/// The scenario in which a bug must show.
pub fn of(plant: Plant) -> Option<Scenario> {
    all()
        .into_iter()
        .find(|scenario| scenario.plants.contains(&plant))
}
