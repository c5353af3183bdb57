//! `natmig migration`.

use std::{process::ExitCode, time::Duration};

use super::{
    client::{self, ClientArgs},
    migrate, progress,
};
use crate::{
    coordinator::{
        Activation, MigrationView, MoveView, Phase, PlaceView, Progress, RouterProgressView,
        Timestamp,
    },
    names::RouterName,
    proto::v1,
    rule::TransactionId,
};

/// Follow and steer migrations
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig migration list\n  \
    natmig migration show 17\n  \
    natmig migration activate 17 --wait\n  \
    natmig migration wait 17 --timeout 10m\n  \
    natmig migration abort 17\n  \
    natmig migration watch --json   # one line for each change of any migration")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List migrations, unfinished and remembered ones
    List,
    /// Show a migration, router by router
    Show {
        /// The migration's number
        id: u64,
    },
    /// Wait until a migration is committed
    Wait {
        /// The migration's number
        id: u64,

        /// How long to wait
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = migrate::duration)]
        timeout: Duration,
    },
    /// Let a migration commit without waiting for an announcement
    Activate {
        /// The migration's number
        id: u64,

        /// Wait until it is committed
        #[arg(long)]
        wait: bool,

        /// How long to wait
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = migrate::duration)]
        timeout: Duration,
    },
    /// Abort a migration whose commit is not decided
    Abort {
        /// The migration's number
        id: u64,
    },
    /// Print each change of a migration, or of all
    Watch {
        /// The migration's number; without it all are followed
        id: Option<u64>,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = &args.client;
    let json = options.json;
    options.run(async move |mut client| {
        match args.command {
            Command::List => {
                let answer = client.list_migrations(v1::ListMigrationsRequest {}).await?;
                let views = answer
                    .into_inner()
                    .migrations
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<Vec<MigrationView>, _>>()?;
                print_list(&views, json)?;
            }
            Command::Show { id } => {
                let answer = client.get_migration(v1::GetMigrationRequest { id }).await?;
                let view = client::migration(answer.into_inner().migration)?;
                print_whole(&view, json)?;
            }
            Command::Wait { id, timeout } => {
                let id = TransactionId(id);
                let goal = progress::Goal::Success;
                let view = progress::wait(options, client, id, goal, timeout).await?;
                print_outcome(&view, json)?;
            }
            Command::Activate { id, wait, timeout } => {
                let request = v1::ActivateMigrationRequest { id };
                let answer = client.activate_migration(request).await?;
                let mut view = client::migration(answer.into_inner().migration)?;
                if wait {
                    view = progress::wait(
                        options,
                        client,
                        TransactionId(id),
                        progress::Goal::Success,
                        timeout,
                    )
                    .await?;
                }
                print_outcome(&view, json)?;
            }
            Command::Abort { id } => {
                let request = v1::AbortMigrationRequest { id };
                let answer = client.abort_migration(request).await?;
                let view = client::migration(answer.into_inner().migration)?;
                print_outcome(&view, json)?;
            }
            Command::Watch { id } => {
                let request = v1::WatchMigrationsRequest {
                    id: id.unwrap_or_default(),
                };
                let mut updates = client.watch_migrations(request).await?.into_inner();
                while let Some(update) = updates.message().await? {
                    let view = client::migration(update.migration)?;
                    if json {
                        println!(
                            "{}",
                            serde_json::to_string(&view).map_err(anyhow::Error::from)?
                        );
                    } else {
                        println!("{}", line(&view));
                    }
                }
            }
        }
        Ok(())
    })
}

fn milliseconds(nanoseconds: u64) -> String {
    format!(
        "{:.3} ms",
        Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
    )
}

fn microseconds(nanoseconds: u64) -> String {
    format!(
        "{:.1} µs",
        Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
    )
}

/// The VMs that the decision waits to hear at their new places: the first few of them.
fn unheard(view: &MigrationView) -> Vec<String> {
    const SHOWN: usize = 3;
    let undecided = matches!(view.phase, Phase::Preparing | Phase::Prepared);
    if !undecided || view.activation != Activation::OnAnnounce {
        return Vec::new();
    }
    let mut unheard = view.vms.iter().filter(|vm| vm.heard.is_none());
    let mut names: Vec<_> = unheard
        .by_ref()
        .take(SHOWN)
        .map(|vm| vm.vm.to_string())
        .collect();
    match unheard.count() {
        0 => {}
        more => names.push(format!("and {more} more")),
    }
    names
}

/// Where and when a VM was heard at its new place.
fn heard(vm: &MoveView, start: Option<Timestamp>) -> String {
    let Some(heard) = &vm.heard else {
        return "no".to_owned();
    };
    start.map_or_else(
        || format!("by {}", heard.router),
        |start| {
            format!(
                "by {} after {}",
                heard.router,
                milliseconds(heard.at.since(start))
            )
        },
    )
}

/// A migration in one line.
fn line(view: &MigrationView) -> String {
    let what = match &view.vms[..] {
        [vm] => format!("{} {} -> {}", vm.vm, vm.from.segment, vm.to.segment),
        vms => format!("{} VMs", vms.len()),
    };
    let mut parts = vec![format!("migration {}  {}  {what}", view.id, view.phase)];
    if !view.waiting_for.is_empty() {
        let names: Vec<_> = view.waiting_for.iter().map(RouterName::as_str).collect();
        parts.push(format!("waiting for {}", names.join(" ")));
    }
    let unheard = unheard(view);
    if !unheard.is_empty() {
        parts.push(format!("not heard yet: {}", unheard.join(" ")));
    }
    if let Some(error) = &view.error {
        parts.push(format!("({error})"));
    }
    parts.join("  ")
}

fn print_list(views: &[MigrationView], json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(&views);
    }
    let mut table = client::table(&[
        "migration",
        "phase",
        "started",
        "VMs",
        "to",
        "commit",
        "spread",
        "remarks",
    ]);
    for view in views {
        let mut segments: Vec<_> = view.vms.iter().map(|vm| vm.to.segment.as_str()).collect();
        segments.sort_unstable();
        segments.dedup();
        let vms = match &view.vms[..] {
            [vm] => vm.vm.to_string(),
            vms => format!("{} VMs", vms.len()),
        };
        table.add_row([
            view.id.to_string(),
            view.phase.to_string(),
            view.times
                .first()
                .map_or_else(String::new, |time| format!("{} ago", client::age(time.at))),
            vms,
            segments.join(" "),
            client::or_dash(view.commit_ns.map(milliseconds)),
            client::or_dash(view.commit_spread_ns.map(microseconds)),
            view.error.clone().unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// What became of a migration, in few lines.
pub(super) fn print_outcome(view: &MigrationView, json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(view);
    }
    println!("{}", line(view));
    let mut times = Vec::new();
    for (name, value) in [
        ("prepare", view.prepare_ns.map(milliseconds)),
        ("commit", view.commit_ns.map(milliseconds)),
        ("spread", view.commit_spread_ns.map(microseconds)),
    ] {
        if let Some(value) = value {
            times.push(format!("{name} {value}"));
        }
    }
    if !times.is_empty() {
        println!("{}", times.join(", "));
    }
    Ok(())
}

fn place(place: &PlaceView) -> String {
    if place.locators.is_empty() {
        format!("{} (home)", place.segment)
    } else {
        format!("{} as {}", place.segment, place.locators)
    }
}

fn progress(router: &RouterProgressView) -> &'static str {
    match router.progress {
        Progress::Waiting => "waiting",
        Progress::Prepared => "prepared",
        Progress::Committed { .. } => "committed",
        Progress::Folded { .. } => "folded",
        Progress::Retired { .. } => "retired",
        Progress::Aborted => "aborted",
    }
}

fn print_whole(view: &MigrationView, json: bool) -> anyhow::Result<()> {
    print_outcome(view, json)?;
    if json {
        return Ok(());
    }
    let start = view.times.first().map(|time| time.at);
    let awaits = view.activation == Activation::OnAnnounce;
    let mut columns = vec!["VM", "identities", "from", "to"];
    columns.extend(awaits.then_some("heard"));
    let mut table = client::table(&columns);
    for vm in &view.vms {
        let mut row = vec![
            vm.vm.to_string(),
            vm.identities.to_string(),
            place(&vm.from),
            place(&vm.to),
        ];
        row.extend(awaits.then(|| heard(vm, start)));
        table.add_row(row);
    }
    println!("\n{table}");
    if let Some(first) = view.times.first() {
        let mut table = client::table(&["phase", "after"]);
        for time in &view.times {
            table.add_row([
                time.phase.to_string(),
                milliseconds(time.at.since(first.at)),
            ]);
        }
        println!("\n{table}");
    }
    let first: Option<Timestamp> = view
        .routers
        .iter()
        .filter_map(|router| router.progress.committed_at())
        .min();
    let mut table = client::table(&[
        "router",
        "stage",
        "progress",
        "commit after first",
        "grace",
        "remarks",
    ]);
    for router in &view.routers {
        let mut remarks = Vec::new();
        if !router.needed {
            remarks.push("drained".to_owned());
        }
        if router.passed_over {
            remarks.push("was silent and passed over".to_owned());
        }
        remarks.extend(router.error.clone());
        let after = router
            .progress
            .committed_at()
            .zip(first)
            .map(|(at, first)| microseconds(at.since(first)));
        table.add_row([
            router.router.to_string(),
            router.stage.to_string(),
            progress(router).to_owned(),
            client::or_dash(after),
            client::or_dash(router.progress.grace_ns().map(microseconds)),
            remarks.join("; "),
        ]);
    }
    println!("\n{table}");
    Ok(())
}
