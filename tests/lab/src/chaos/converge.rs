//! Whether everything agrees at the end: migrations are over, every router's tables are what the
//! controller's inventory means, and every VM is where the inventory says.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use natmig::{
    coordinator::{MigrationView, RouterView, VmView},
    names::RouterName,
    planner::{self, Binding, Vm, VmState},
    router::reader::{EntryView, Reader},
    rule::Rule,
};
use tonic::Status;

use super::Stage;
use crate::run;

/// Everything agrees by then: old locators have drained and are retired.
const PATIENCE: Duration = Duration::from_mins(1);

/// What does not agree, router by router and VM by VM.
pub(super) fn check(stage: &Stage<'_>) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let waited = run::wait_for("agreement", PATIENCE, || {
        left = unfinished(stage).unwrap_or_else(|status| vec![format!("no controller: {status}")]);
        Ok(left.is_empty().then_some(()))
    });
    run::check_interrupted()?;
    if waited.is_err() {
        return Ok(left);
    }
    let vms = stage.api.vms()?;
    let mut wrong = places(stage, &vms);
    let topology = stage.api.topology()?;
    let states: Vec<VmState> = vms.iter().map(state).collect();
    for router in topology.routers.keys() {
        let expected = planner::table(&topology, &states, router);
        let found = entries(stage, router)?;
        let differences = differences(&expected, &found);
        if let Some(first) = differences.first() {
            wrong.push(format!(
                "{router}: {} differences of its tables, such as {first}",
                differences.len()
            ));
        }
    }
    Ok(wrong)
}

/// Routers and migrations that are not where they must end.
fn unfinished(stage: &Stage<'_>) -> Result<Vec<String>, Status> {
    let mut left = Vec::new();
    for RouterView {
        name,
        connected,
        in_sync,
        holds_back,
        problem,
        ..
    } in stage.api.routers()?
    {
        if !connected || !in_sync || !holds_back.is_empty() || problem.is_some() {
            left.push(format!(
                "{name}: connected {connected}, in sync {in_sync}, holds back {holds_back:?}, {}",
                problem.unwrap_or_default()
            ));
        }
    }
    for MigrationView {
        id,
        phase,
        waiting_for,
        ..
    } in stage.api.migrations()?
    {
        if !phase.is_final() {
            left.push(format!(
                "migration {id}: {phase}, waits for {waiting_for:?}"
            ));
        }
    }
    Ok(left)
}

/// VMs that are not where a success was reported, or not where they are plugged in.
fn places(stage: &Stage<'_>, vms: &[VmView]) -> Vec<String> {
    let lab = stage.lab();
    let counted = stage.counted();
    let mut wrong = Vec::new();
    for vm in vms {
        let known = vm.segment.as_str();
        let reported = counted.places.get(vm.name.as_str());
        if reported.is_some_and(|reported| reported != known) {
            wrong.push(format!(
                "{}: reported as moved to {reported:?}, in the inventory at {known}",
                vm.name
            ));
        }
        let plugged = lab.network.place(vm.name.as_str());
        if plugged != Some(known) {
            wrong.push(format!(
                "{}: plugged in at {plugged:?}, in the inventory at {known}",
                vm.name
            ));
        }
    }
    wrong
}

/// A VM of which nothing drains any longer.
fn state(vm: &VmView) -> VmState {
    let current = (vm.segment != vm.home).then(|| Binding {
        segment: vm.segment.clone(),
        locators: vm.locators,
    });
    VmState {
        vm: Vm {
            name: vm.name.clone(),
            identities: vm.identities,
            mac: vm.mac,
            home: vm.home.clone(),
        },
        current,
        draining: Vec::new(),
        returned: false,
    }
}

/// A router's entries, read from its pinned maps.
fn entries(stage: &Stage<'_>, router: &RouterName) -> Result<Vec<EntryView>> {
    let lab = stage.lab();
    let instance = lab.instance(router.as_str());
    lab.network.node(router.as_str())?.enter(|| {
        let reader = Reader::open(&instance).with_context(|| format!("tables of {router}"))?;
        Ok(reader.entries().collect())
    })
}

/// Addresses of which a router's entry is not what it should be, and how.
fn differences(expected: &BTreeMap<IpAddr, Rule>, found: &[EntryView]) -> Vec<String> {
    let found: BTreeMap<IpAddr, &EntryView> =
        found.iter().map(|entry| (entry.address, entry)).collect();
    let mut wrong = Vec::new();
    for (address, rule) in expected {
        let Some(entry) = found.get(address) else {
            wrong.push(format!("{address}: no entry, should be {rule:?}"));
            continue;
        };
        if entry.reference.is_some() {
            wrong.push(format!(
                "{address}: still in a transaction: {:?}",
                entry.reference
            ));
        }
        if shown(rule) != read(entry) {
            wrong.push(format!(
                "{address}: {:?}, should be {rule:?}",
                entry.current
            ));
        }
    }
    for (address, entry) in found {
        if !expected.contains_key(&address) {
            wrong.push(format!(
                "{address}: {:?}, should be no entry",
                entry.current
            ));
        }
    }
    wrong
}

/// What a version says: action, other address, where packets go on to, and the VM's place.
type Words = (String, Option<IpAddr>, Option<IpAddr>, Option<String>);

fn read(entry: &EntryView) -> Words {
    let version = &entry.current;
    let place = version.mac.as_ref().zip(version.segment.as_ref());
    (
        version.action.to_owned(),
        version.counterpart,
        version.forward.filter(|_| version.action == "forward"),
        place.map(|(mac, segment)| format!("{mac} {segment}")),
    )
}

fn shown(rule: &Rule) -> Words {
    let place = |at: &natmig::rule::Attachment| Some(format!("{} {}", at.mac, at.segment));
    let (action, counterpart, forward, at) = match rule {
        Rule::Absent => ("absent", None, None, None),
        Rule::Away { locator, home } => ("away", Some(*locator), None, home.as_ref()),
        Rule::Local { locator, at, .. } => ("local", *locator, None, Some(at)),
        Rule::Deliver { identity, at } => ("deliver", Some(*identity), None, Some(at)),
        Rule::Forward { identity, to } => ("forward", Some(*identity), Some(*to), None),
        Rule::Known { identity } => ("known", Some(*identity), None, None),
    };
    (action.to_owned(), counterpart, forward, at.and_then(place))
}
