//! How long a migration takes, from its announcement to the last router's commit, in the lab of ten
//! routers: of one VM and of a group, on the embedded store and on etcd, each as an orchestrator asks
//! for it, through the API; and how long a queue of many takes.
//!
//! All routers run on this machine, so their clocks are one, and they share its CPUs: with ten
//! agents, a controller and two CPUs it takes longer than on machines of their own.

mod queue;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Lab, Topology,
    api::{Api, Watch},
    clock,
    lab::{Setup, Store, find_natmig},
    topology::THREE_TIER,
};
use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use natmig::{
    addresses::Addresses,
    coordinator::{Activation, MigrateRequest, MigrationView, Phase, Unreachable},
    names::{SegmentName, VmName},
    planner::Vm,
    rule::MacAddress,
};
use report::Report;

/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// VMs that move one at a time, in turn.
const SINGLES: usize = 20;

/// Measures how long migrations take in the lab of ten routers.
///
/// From the announcement, which is the call of the API, to the last router's commit; and the time
/// between the first and the last router's. VMs move, move on and return home, one migration
/// after the other: on the embedded store, then on etcd (three members, one controller). Then many
/// are asked for at once. Stores are in the report's directory, so on a real disk if that is.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench migration                   # tables\n  \
    cargo xtask bench migration --json | tail -1  # the last line is for programs")]
pub struct Arguments {
    /// Migrations of one VM.
    #[arg(long, value_name = "NUMBER", default_value_t = 240)]
    pub migrations: usize,
    /// Migrations of a group.
    #[arg(long, value_name = "NUMBER", default_value_t = 24)]
    pub group_migrations: usize,
    /// VMs of the group.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub group: u16,
    /// Migrations of one VM on etcd.
    #[arg(long, value_name = "NUMBER", default_value_t = 240)]
    pub etcd_migrations: usize,
    /// Migrations of one VM each that are asked for at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub queued: usize,
    /// VMs in the inventory meanwhile.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000,
          value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub inventory: u16,
    /// End with one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the tables and, while it runs, the controller's store go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub report: PathBuf,
}

/// One migration; times in milliseconds.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// From the announcement until it was durable and the caller told.
    announce: f64,
    /// From the request until every router was prepared.
    prepare: f64,
    /// From then until the first router's commit: the decision is stored meanwhile.
    decide: f64,
    /// From the first router's commit, or the last one's of the stage before, until the stage's last.
    stages: Vec<f64>,
    /// From the first router's commit to the last one's.
    spread: f64,
    /// From the announcement until the last router's commit.
    latency: f64,
    /// From the announcement until the caller was told of success.
    told: f64,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let natmig = find_natmig(std::env::var_os("NATMIG_BIN").map(PathBuf::from))?;
    fs::create_dir_all(&arguments.report)?;
    let mut report = Report::default();
    let scratch = std::path::absolute(arguments.report.join("migration-stores"))?;
    // What a run that crashed left.
    remove(&scratch)?;
    fs::create_dir_all(&scratch)?;
    let measured = measure(arguments, &natmig, &scratch, &mut report);
    remove(&scratch)?;
    measured?;
    let text = report.text()?;
    fs::write(arguments.report.join("migration.txt"), &text)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report.summary())?)?;
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn measure(
    arguments: &Arguments,
    natmig: &Path,
    scratch: &Path,
    report: &mut Report,
) -> Result<()> {
    let file = Store::File(Some(scratch.join("controller.redb")));
    with_lab(natmig, "the embedded store", file, |lab| {
        embedded(arguments, lab, report)
    })?;
    let etcd = Store::Etcd {
        members: 3,
        controllers: 1,
        directory: Some(scratch.to_owned()),
    };
    if arguments.etcd_migrations > 0 {
        with_lab(natmig, "etcd", etcd, |lab| {
            let api = lab.api(PATIENCE)?;
            let names = add_vms(&api, SINGLES)?;
            report.etcd = singles(&api, lab, &names, arguments.etcd_migrations)?;
            Ok(())
        })?;
    }
    Ok(())
}

fn with_lab(
    natmig: &Path,
    place: &str,
    store: Store,
    measure: impl FnOnce(&Lab) -> Result<()>,
) -> Result<()> {
    eprintln!("natmig-lab: building the lab, with {place}");
    let setup = Setup {
        store,
        max_addresses: 65536,
    };
    let mut lab = Lab::start_with(roomy()?, natmig, &setup)?;
    let measured = measure(&lab);
    measured
        .and_then(|()| lab.check())
        .inspect_err(|_| lab.print_logs())
}

/// Adds VMs to the inventory, all of them at home.
fn add_vms(api: &Api, number: usize) -> Result<Vec<VmName>> {
    let vms: Vec<Vm> = (0..number).map(vm).collect::<Result<_>>()?;
    for vms in vms.chunks(1000) {
        api.add_vms(vms)?;
    }
    Ok(vms.into_iter().map(|vm| vm.name).collect())
}

fn segments(lab: &Lab) -> Vec<SegmentName> {
    let segments = lab.network.topology().segments.iter();
    segments
        .map(|segment| SegmentName::new(&segment.name))
        .collect()
}

/// Migrations of one VM, one after the other. Every VM goes around all racks: away, on, and home.
fn singles(api: &Api, lab: &Lab, vms: &[VmName], migrations: usize) -> Result<Vec<Sample>> {
    eprintln!("natmig-lab: {migrations} migrations of one VM");
    let segments = segments(lab);
    let mut watch = api.watch()?;
    (0..migrations)
        .map(|round| {
            let to = &segments[(round / SINGLES + 1) % segments.len()];
            let number = round % SINGLES;
            migrate(api, &mut watch, &vms[number..=number], to)
        })
        .collect()
}

fn embedded(arguments: &Arguments, lab: &Lab, report: &mut Report) -> Result<()> {
    let api = lab.api(PATIENCE)?;
    let group = usize::from(arguments.group);
    let inventory = usize::from(arguments.inventory).max(SINGLES + group);
    let names = add_vms(&api, inventory)?;
    report.one = singles(&api, lab, &names, arguments.migrations)?;
    let members = &names[SINGLES..SINGLES + group];
    eprintln!(
        "natmig-lab: {} migrations of {group} VMs",
        arguments.group_migrations
    );
    let segments = segments(lab);
    let mut watch = api.watch()?;
    for round in 0..arguments.group_migrations {
        let to = &segments[(round + 1) % segments.len()];
        report.group.push(migrate(&api, &mut watch, members, to)?);
    }
    report.group_size = group;
    drop(watch);
    if arguments.queued > 0 {
        let queued = names.iter().rev().take(arguments.queued);
        let queue = queue::measure(lab, &api, queued, names.len(), &segments[1])?;
        report.queue = Some(queue);
    }
    Ok(())
}

/// One migration, until its VMs may move again.
fn migrate(api: &Api, watch: &mut Watch<'_>, vms: &[VmName], to: &SegmentName) -> Result<Sample> {
    let request = MigrateRequest {
        moves: vms.iter().map(|vm| (vm.clone(), to.clone())).collect(),
        activation: Activation::Immediate,
        unreachable: Unreachable::Abort,
    };
    let announced = clock::now();
    let id = api.start(&request)?.id;
    let durable = clock::now();
    let mut told = None;
    loop {
        let view = watch.next(PATIENCE)?;
        if view.id != id {
            continue;
        }
        if view.phase.is_success() {
            told.get_or_insert_with(clock::now);
        }
        match view.phase {
            Phase::Draining | Phase::Retiring | Phase::Done => {
                let told = told.context("success was never told")?;
                return sample(&view, announced, durable, told);
            }
            Phase::Aborting | Phase::Aborted => bail!(
                "migration {id} was aborted: {}",
                view.error.unwrap_or_default()
            ),
            Phase::Preparing
            | Phase::Prepared
            | Phase::Committing
            | Phase::Committed
            | Phase::Folding => {}
        }
    }
}

fn sample(view: &MigrationView, announced: u64, durable: u64, told: u64) -> Result<Sample> {
    let between = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let mut stages: BTreeMap<usize, u64> = BTreeMap::new();
    let mut first = u64::MAX;
    for router in &view.routers {
        let at = router.progress.committed_at();
        let at = at.with_context(|| format!("{} did not commit", router.router))?;
        first = first.min(at.0);
        let last = stages.entry(router.stage).or_default();
        *last = (*last).max(at.0);
    }
    let last = *stages.values().max().context("no router committed")?;
    let decided = view.times.iter().find(|time| time.phase == Phase::Prepared);
    let prepared = decided.context("it never was prepared")?.at.0;
    let requested = view.times.first().context("it never began")?.at.0;
    let begins = std::iter::once(first).chain(stages.values().copied());
    Ok(Sample {
        announce: between(announced, durable),
        prepare: between(requested, prepared),
        decide: between(prepared, first),
        stages: begins
            .zip(stages.values())
            .map(|(from, to)| between(from, *to))
            .collect(),
        spread: between(first, last),
        latency: between(announced, last),
        told: between(announced, told),
    })
}

/// The default lab without machines, with racks that have room for a large group.
fn roomy() -> Result<Topology> {
    let mut topology = Topology::parse(THREE_TIER)?;
    topology.vms.clear();
    topology.hosts.clear();
    for (index, segment) in (1..).zip(&mut topology.segments) {
        segment.prefix = Ipv4Net::new(Ipv4Addr::new(10, index, 0, 0), 16)?;
        segment.gateway = Ipv4Addr::new(10, index, 0, 1);
        segment.pool = Ipv4Net::new(Ipv4Addr::new(10, index, 128, 0), 17)?;
        let pool = Ipv6Addr::new(0x2001, 0xdb8, index.into(), 0, 0xf, 0, 0, 0);
        ensure!(
            segment.pool_ipv6 == Some(Ipv6Net::new(pool, 80)?),
            "the lab's racks have other IPv6 pools than expected"
        );
    }
    Ok(topology)
}

/// A VM of the first rack, with an identity of each family.
fn vm(index: usize) -> Result<Vm> {
    let number = u16::try_from(index)? + 10;
    let [high, low] = number.to_be_bytes();
    let ipv4 = IpAddr::from([10, 1, high, low]);
    let ipv6 = IpAddr::from([0x2001, 0xdb8, 1, 0, 1, 0, 0, number]);
    Ok(Vm {
        name: VmName::new(format!("vm{index}")),
        identities: Addresses::collect([ipv4, ipv6])?,
        mac: MacAddress([2, 0, 10, 1, high, low]),
        home: SegmentName::new("rack1"),
    })
}

#[cfg(test)]
mod tests {
    use natmig::{
        coordinator::{PhaseTime, Progress, RouterProgressView, Timestamp},
        names::RouterName,
        rule::TransactionId,
    };

    use super::*;

    fn router(name: &str, stage: usize, at: u64) -> RouterProgressView {
        RouterProgressView {
            router: RouterName::new(name),
            stage,
            progress: Progress::Folded {
                at: Some(Timestamp(at)),
                grace_ns: None,
            },
            needed: true,
            passed_over: false,
            error: None,
        }
    }

    #[test]
    fn a_sample_counts_from_the_announcement_to_the_last_commit() {
        let at = |phase, at| PhaseTime {
            phase,
            at: Timestamp(at),
        };
        let view = MigrationView {
            id: TransactionId(1),
            phase: Phase::Draining,
            vms: Vec::new(),
            activation: Activation::Immediate,
            unreachable: Unreachable::Abort,
            times: vec![
                at(Phase::Preparing, 2_000_000),
                at(Phase::Prepared, 7_000_000),
                at(Phase::Committing, 7_100_000),
            ],
            routers: vec![
                router("edge1", 1, 11_000_000),
                router("edge2", 0, 9_000_000),
                router("edge3", 0, 10_000_000),
                router("core1", 2, 12_500_000),
            ],
            waiting_for: Vec::new(),
            prepare_ns: None,
            commit_ns: None,
            commit_spread_ns: None,
            error: None,
        };
        let sample = sample(&view, 1_000_000, 4_000_000, 13_000_000).unwrap();
        assert_eq!(
            (sample.announce, sample.prepare, sample.decide),
            (3.0, 5.0, 2.0)
        );
        assert_eq!(format!("{:?}", sample.stages), "[1.0, 1.0, 1.5]");
        assert_eq!(
            (sample.spread, sample.latency, sample.told),
            (3.5, 11.5, 12.0)
        );
    }

    #[test]
    fn the_roomy_lab_is_a_valid_one() {
        let text = prefixes(&roomy().unwrap());
        assert_eq!(
            text,
            ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"]
        );
        let last = vm(9_999 + SINGLES).unwrap();
        assert_eq!(
            last.identities.to_string(),
            "10.1.39.45 2001:db8:1:0:1::272d"
        );
    }

    fn prefixes(topology: &Topology) -> Vec<String> {
        let segments = topology.segments.iter();
        segments.map(|segment| segment.prefix.to_string()).collect()
    }
}
