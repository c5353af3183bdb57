//! The demonstration: a VM and a group move under live traffic, and nobody notices.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    Lab, Topology,
    capture::Captures,
    clock,
    report::{Listing, Observations, Step, span},
    run,
    topology::THREE_TIER,
    traffic::{self, Kind, Pair, Rates, Traffic},
};

/// How the demonstration is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Datagrams to be sent at least.
    pub packets: u64,
    /// How long a guest is between two racks.
    pub pause: Duration,
    /// Rates of all flows.
    pub rates: Rates,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            packets: 110_000,
            pause: Duration::from_millis(50),
            rates: Rates::default(),
        }
    }
}

/// What moves, in this order.
const PLAN: [(&str, &[(&str, &str)]); 12] = [
    ("a VM moves", &[("vm1", "rack2")]),
    ("it moves on", &[("vm1", "rack3")]),
    ("it comes home", &[("vm1", "rack1")]),
    ("a group moves", &[("web1", "rack3"), ("web2", "rack3")]),
    ("a VM moves to another pod", &[("vm1", "rack4")]),
    (
        "the group moves on, to where it is",
        &[("web1", "rack4"), ("web2", "rack4")],
    ),
    (
        "it moves on, into the group's other home",
        &[("vm1", "rack2")],
    ),
    (
        "the group comes home, to two racks",
        &[("web1", "rack1"), ("web2", "rack2")],
    ),
    ("it comes home", &[("vm1", "rack1")]),
    (
        "one of the group moves into the other's rack",
        &[("web1", "rack2")],
    ),
    (
        "both ends of a conversation move at once",
        &[("vm1", "rack3"), ("web1", "rack4")],
    ),
    ("both come home", &[("vm1", "rack1"), ("web1", "rack1")]),
];

/// Who talks to whom, and why.
const PAIRS: [(&str, &str, &str); 10] = [
    ("vm1", "outside", "outside"),
    ("vm1", "host1", "same segment"),
    ("vm1", "host3", "another segment"),
    ("vm1", "host2", "where it moves to"),
    ("vm1", "web1", "another VM"),
    ("web1", "outside", "outside"),
    ("web1", "host1", "same segment"),
    ("web1", "host4", "another segment"),
    ("web1", "host3", "where it moves to"),
    ("web1", "web2", "same group"),
];

/// The router whose tables are shown before and after.
const SHOWN: &str = "edge1";

/// Runs it; `say` gets a line for each thing that happens.
pub fn run(
    natmig: &Path,
    options: &Options,
    logs: &Path,
    say: &dyn Fn(&str),
) -> Result<Observations> {
    let began = clock::now();
    let topology = Topology::parse(THREE_TIER).context("the lab's own topology")?;
    say(&format!(
        "building the lab: {} routers, {} segments, {} VMs, {} hosts and the outside",
        topology.routers.len(),
        topology.segments.len(),
        topology.vms.len(),
        topology.hosts.len()
    ));
    let mut lab = Lab::start(topology, natmig)?;
    say(&format!(
        "controller and agents are up after {}",
        span(clock::now() - began)
    ));
    let observations = perform(&mut lab, options, say);
    lab.save_logs(logs)?;
    observations.inspect_err(|_| lab.print_logs())
}

fn perform(lab: &mut Lab, options: &Options, say: &dyn Fn(&str)) -> Result<Observations> {
    let pairs = PAIRS.map(|(vm, peer, relation)| Pair {
        vm: vm.into(),
        peer: peer.into(),
        relation: relation.into(),
    });
    let flows = traffic::flows(
        &lab.network,
        &pairs,
        &[Kind::Udp, Kind::Ping, Kind::Tcp, Kind::Http],
    )?;
    say(&format!(
        "starting {} flows between {} pairs, and captures at every endpoint",
        flows.len(),
        pairs.len()
    ));
    let captures = Captures::start(&lab.network, &flows)?;
    let traffic = Traffic::start(&lab.network, flows, options.rates)?;
    let mut listings = vec![listing(lab, "before any migration")?];
    let mut steps: Vec<Step> = Vec::new();
    for (index, (title, moves)) in PLAN.into_iter().enumerate() {
        let share = options.packets * (index as u64 + 1) / (PLAN.len() as u64 + 1);
        wait_sent(lab, &traffic, share)?;
        settle(lab, &steps, moves)?;
        let step = lab
            .migrate(title, moves, options.pause)
            .with_context(|| format!("migration {}: {title}", index + 1))?;
        say(&format!(
            "{:>2}. {title}: {}; pause {}, natmig gap {}, spread of {} commits {}",
            step.id,
            step.route(),
            span(step.replug() - step.unplug()),
            span(step.natmig_gap()),
            step.commits.len(),
            span(step.spread())
        ));
        steps.push(step);
        if index == 0 {
            listings.push(listing(lab, "while vm1 is away, its first move")?);
        }
    }
    wait_sent(lab, &traffic, options.packets)?;
    let records = traffic.finish(Duration::from_secs(5))?;
    let findings = captures.finish()?;
    for step in &mut steps {
        let deadline = Duration::from_secs(30);
        lab.client()?
            .wait(step.id, "over", deadline, crate::client::Migration::is_over)?;
        lab.observe(step)?;
    }
    listings.push(listing(lab, "after all came home")?);
    Ok(Observations {
        topology: lab.network.topology().clone(),
        records,
        findings,
        steps,
        listings,
    })
}

/// Lets traffic run until so many datagrams were sent.
fn wait_sent(lab: &mut Lab, traffic: &Traffic, packets: u64) -> Result<()> {
    run::wait_for("enough traffic", Duration::from_mins(2), || {
        lab.check()?;
        traffic.check()?;
        Ok((traffic.sent() >= packets).then_some(()))
    })
}

/// Waits until the VMs' last migrations are folded: only then may they move again.
fn settle(lab: &Lab, steps: &[Step], moves: &[(&str, &str)]) -> Result<()> {
    for (vm, _) in moves {
        let last = steps
            .iter()
            .rev()
            .find(|step| step.moves.iter().any(|m| m.vm == *vm));
        if let Some(step) = last {
            lab.client()?.wait(
                step.id,
                "folded",
                Duration::from_secs(30),
                crate::client::Migration::is_folded,
            )?;
        }
    }
    Ok(())
}

fn listing(lab: &Lab, when: &str) -> Result<Listing> {
    let text = format!(
        "$ natmig map list\n{}\n$ natmig map dump\n{}",
        lab.map(SHOWN, "list")?,
        lab.map(SHOWN, "dump")?
    );
    Ok(Listing {
        title: format!("Tables of {SHOWN}, {when}"),
        text,
    })
}
