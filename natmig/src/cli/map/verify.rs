//! `natmig map verify`: the router's tables beside what the controller believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    process::ExitCode,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    cli::{client::ClientArgs, output},
    coordinator::{Phase, RouterTable},
    proto::{self, v1},
    router::reader::{Fault, Reader, Snapshot},
    rule::{Rule, TransactionId},
};

/// Exit status where something differs.
const DIFFERENT: u8 = 10;

/// Looks before a difference counts: a migration under way changes both sides, but not at once.
const LOOKS: u32 = 3;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig map verify                                         # a controller on this machine\n  \
    natmig map verify --controller http://198.18.0.1:7400\n  \
    natmig map verify --router edge1 --json | jq .differences # under another name")]
pub(super) struct Args {
    /// The router's name in the topology, if it is not that of the configuration it was loaded with.
    #[arg(long, value_name = "NAME")]
    router: Option<String>,
}

/// Something in which router and controller differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Difference {
    /// The rules of an address.
    Rule {
        address: IpAddr,
        /// What the router does.
        router: Option<Rule>,
        /// What it should do.
        controller: Option<Rule>,
    },
    /// A transaction that the router holds, and that is over or unknown.
    Transaction {
        transaction: TransactionId,
        /// Where the migration stands, if it is remembered.
        controller: Option<Phase>,
    },
    /// A locator pool that only one side knows.
    Pool { pool: IpNet, router: bool },
}

#[derive(Serialize)]
struct Report {
    router: String,
    /// Addresses that the router has.
    addresses: usize,
    /// Transactions that it holds.
    held: BTreeSet<TransactionId>,
    differences: BTreeSet<Difference>,
    faults: Vec<Fault>,
}

pub(super) fn run(instance: &str, args: &Args, client: &ClientArgs) -> anyhow::Result<ExitCode> {
    let reader = Reader::open(instance)?;
    let router = args.router.clone().or(reader.summary()?.router);
    let Some(router) = router else {
        anyhow::bail!(
            "the instance was loaded without a name; say which router it is with --router"
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut report = look(&reader, &router, client, &runtime)?;
    for _ in 1..LOOKS {
        if report.differences.is_empty() && report.faults.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        let again = look(&reader, &router, client, &runtime)?;
        report = Report {
            differences: &again.differences & &report.differences,
            faults: again
                .faults
                .iter()
                .filter(|fault| report.faults.contains(fault))
                .cloned()
                .collect(),
            ..again
        };
    }
    print(&report, client.json)
}

/// Reads both sides and compares them.
fn look(
    reader: &Reader,
    router: &str,
    client: &ClientArgs,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Report> {
    let pools = reader.summary()?.pools;
    let Snapshot {
        rules,
        held,
        faults,
    } = reader.snapshot()?;
    let wanted = runtime.block_on(ask(client, router, &held))?;
    Ok(Report {
        router: router.to_owned(),
        addresses: rules.len(),
        differences: compare(&rules, &held, &pools, wanted),
        held,
        faults,
    })
}

async fn ask(
    client: &ClientArgs,
    router: &str,
    held: &BTreeSet<TransactionId>,
) -> anyhow::Result<RouterTable> {
    let request = v1::GetRouterTableRequest {
        name: router.to_owned(),
        held: held.iter().map(|id| id.0).collect(),
    };
    let refused = |status: tonic::Status| anyhow::anyhow!("{}", status.message());
    let mut client = client.connect().await?;
    let mut pieces = client
        .get_router_table(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut table = RouterTable::default();
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        proto::add_table_piece(&mut table, piece)?;
    }
    Ok(table)
}

fn compare(
    rules: &BTreeMap<IpAddr, Rule>,
    held: &BTreeSet<TransactionId>,
    pools: &[IpNet],
    mut wanted: RouterTable,
) -> BTreeSet<Difference> {
    for rule in wanted.rules.values_mut().chain(wanted.early.values_mut()) {
        // What is announced to a visitor is no part of the table.
        if let Rule::Local { gateway, .. } = rule {
            *gateway = None;
        }
    }
    let mut differences = BTreeSet::new();
    let addresses: BTreeSet<_> = rules.keys().chain(wanted.rules.keys()).collect();
    for address in addresses {
        let (ours, theirs) = (rules.get(address), wanted.rules.get(address));
        if ours != theirs && (ours.is_none() || ours != wanted.early.get(address)) {
            differences.insert(Difference::Rule {
                address: *address,
                router: ours.cloned(),
                controller: theirs.cloned(),
            });
        }
    }
    for id in held {
        let phase = wanted.phases.get(id).copied();
        if phase.is_none_or(|phase| phase.is_final() || past_fold(phase)) {
            differences.insert(Difference::Transaction {
                transaction: *id,
                controller: phase,
            });
        }
    }
    let covered = |pool: &IpNet, by: &[IpNet]| by.iter().any(|other| other.contains(pool));
    for pool in pools.iter().filter(|pool| !covered(pool, &wanted.pools)) {
        differences.insert(Difference::Pool {
            pool: *pool,
            router: true,
        });
    }
    for pool in wanted.pools.iter().filter(|pool| !covered(pool, pools)) {
        differences.insert(Difference::Pool {
            pool: *pool,
            router: false,
        });
    }
    differences
}

/// Whether a router that has taken part holds nothing of it any longer.
fn past_fold(phase: Phase) -> bool {
    match phase {
        Phase::Draining | Phase::Retiring | Phase::Done | Phase::Aborted => true,
        Phase::Preparing
        | Phase::Prepared
        | Phase::Committing
        | Phase::Committed
        | Phase::Folding
        | Phase::Aborting => false,
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<ExitCode> {
    let fine = report.differences.is_empty() && report.faults.is_empty();
    if json {
        output::json(report)?;
    } else {
        for difference in &report.differences {
            output::line(&describe(difference))?;
        }
        for fault in &report.faults {
            output::line(&format!(
                "{} (entry {}): {}",
                fault.address, fault.index, fault.problem
            ))?;
        }
        let held: Vec<String> = report.held.iter().map(ToString::to_string).collect();
        let held = if held.is_empty() {
            String::new()
        } else {
            format!("; it holds transactions {}", held.join(" "))
        };
        output::line(&if fine {
            format!(
                "{}: {} addresses, all as the controller believes{held}",
                report.router, report.addresses
            )
        } else {
            format!(
                "{}: {} addresses, {} differences, {} faults{held}; restart the agent to have them mended, \
                 and see its log",
                report.router,
                report.addresses,
                report.differences.len(),
                report.faults.len()
            )
        })?;
    }
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DIFFERENT)
    })
}

fn describe(difference: &Difference) -> String {
    let text = |rule: &Option<Rule>| {
        rule.as_ref()
            .map_or_else(|| "nothing".to_owned(), rule_text)
    };
    match difference {
        Difference::Rule {
            address,
            router,
            controller,
        } => format!(
            "{address}: the router has {}, it should have {}",
            text(router),
            text(controller)
        ),
        Difference::Transaction {
            transaction,
            controller: Some(phase),
        } => format!("transaction {transaction}: the router holds it, the migration is {phase}"),
        Difference::Transaction {
            transaction,
            controller: None,
        } => format!(
            "transaction {transaction}: the router holds it, the controller does not know it"
        ),
        Difference::Pool { pool, router: true } => {
            format!("locator pool {pool}: the router has it, the topology does not")
        }
        Difference::Pool {
            pool,
            router: false,
        } => format!("locator pool {pool}: the topology has it, the router does not"),
    }
}

fn rule_text(rule: &Rule) -> String {
    match rule {
        Rule::Absent => "nothing".to_owned(),
        Rule::Away { locator, home } => {
            let home = home.as_ref().map_or_else(String::new, |at| {
                format!(", at home in {} with {}", at.segment, at.mac)
            });
            format!("away at locator {locator}{home}")
        }
        Rule::Local { locator, at, .. } => {
            let locator =
                locator.map_or_else(String::new, |locator| format!(" with locator {locator}"));
            format!("local in {}, {}{locator}", at.segment, at.mac)
        }
        Rule::Deliver { identity, at } => {
            format!("deliver to {identity} in {}, {}", at.segment, at.mac)
        }
        Rule::Forward { identity, to } => format!("forward for {identity} to {to}"),
        Rule::Known { identity } => format!("locator of {identity}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn known(identity: &str) -> Rule {
        Rule::Known {
            identity: address(identity),
        }
    }

    #[test]
    fn differences_are_told_from_what_a_migration_explains() {
        let rules = [
            (address("10.1.3.128"), known("10.1.1.10")),
            (address("10.1.3.129"), known("10.1.1.11")),
            (address("10.1.3.130"), known("10.1.1.12")),
        ];
        let wanted = RouterTable {
            rules: [
                (address("10.1.3.128"), known("10.1.1.10")),
                (address("10.1.3.129"), known("10.1.1.99")),
                (address("10.1.3.131"), known("10.1.1.13")),
            ]
            .into(),
            // An early locator may be there or not.
            early: [
                (address("10.1.3.130"), known("10.1.1.12")),
                (address("10.1.3.132"), known("10.1.1.14")),
            ]
            .into(),
            phases: [
                (TransactionId(5), Phase::Committing),
                (TransactionId(6), Phase::Done),
            ]
            .into(),
            pools: vec!["10.1.3.128/25".parse().unwrap()],
        };
        let held = [5, 6, 7].map(TransactionId).into();
        let pools = ["10.1.3.128/26", "10.1.4.128/25"].map(|pool| pool.parse().unwrap());
        let found = compare(&rules.into(), &held, &pools, wanted);
        let texts: Vec<String> = found.iter().map(describe).collect();
        assert_eq!(
            texts,
            [
                "10.1.3.129: the router has locator of 10.1.1.11, it should have locator of 10.1.1.99",
                "10.1.3.131: the router has nothing, it should have locator of 10.1.1.13",
                "transaction 6: the router holds it, the migration is done",
                "transaction 7: the router holds it, the controller does not know it",
                "locator pool 10.1.3.128/25: the topology has it, the router does not",
                "locator pool 10.1.4.128/25: the router has it, the topology does not",
            ]
        );
    }

    #[test]
    fn an_announced_gateway_is_no_difference() {
        let local = |gateway: Option<&str>| Rule::Local {
            locator: None,
            at: crate::rule::Attachment {
                segment: "rack1".into(),
                mac: "02:00:00:00:00:10".parse().unwrap(),
            },
            gateway: gateway.map(address),
        };
        let wanted = RouterTable {
            rules: [(address("10.1.1.10"), local(Some("10.1.1.1")))].into(),
            ..RouterTable::default()
        };
        let rules = [(address("10.1.1.10"), local(None))].into();
        assert_eq!(
            compare(&rules, &BTreeSet::new(), &[], wanted),
            BTreeSet::new()
        );
    }
}
