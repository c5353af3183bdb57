//! `natmig libvirt-hook`.
//!
//! libvirt calls the hook as `qemu GUEST OPERATION SUB-OPERATION EXTRA` with the domain's XML on
//! standard input (<https://libvirt.org/hooks.html>). What matters here:
//!
//! - A hook's output replaces the domain's XML; no output leaves it as it is, so nothing is printed.
//! - `started` of an incoming guest comes *before* its memory: its processors stand still, and no
//!   operation tells when they run. The source's `release` is the first that comes after it: seconds
//!   later, when its QEMU has ended, and after post-copy when all memory has followed. QEMU announces
//!   the guest the moment it runs, so the new edge routers listen for it.
//! - `release` has a reason only since libvirt 10.5. Without one, a guest that was migrated is not
//!   told from one that ended while it was, or long after a destination failed that calls no hook
//!   then (before it has made the guest): only being heard lets those migrations take effect.
//! - A failing `reconnect` kills the guest, a failing `prepare`, `start` or `started` its start. natmig
//!   has nothing to do then, and succeeds without asking anybody.

use std::{
    io::{IsTerminal as _, Read as _, stdin},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

use super::Announced;
use crate::{
    cli::{
        client::{Client, ClientArgs, Failure},
        migrate, progress,
    },
    coordinator::Activation,
    hypervisor::{Way, domain::Domain},
    names::{SegmentName, VmName},
};

/// Announce migrations as libvirt's qemu hook
///
/// Prepares a migration when libvirt on this host expects a guest (migrate). It takes effect when the
/// guest is heard here, as with `natmig migrate --activate on-announce`, at the latest when libvirt on
/// the source has released it (release, reason migrated), and is aborted when the guest ends before
/// it got here. Guests that are not in natmig's inventory, and those that stay in their segment,
/// are left alone. A refusal of natmig's makes libvirt cancel the guest's migration before it begins;
/// nothing that comes later can fail a guest.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Installation: the executable file /etc/libvirt/hooks/qemu.d/natmig on every host,\n\
    with the host's own segment, then a restart of libvirt's daemon:\n  \
    #!/bin/sh\n  \
    exec natmig libvirt-hook --segment rack2 --controller https://198.18.0.1:7400 -- \"$@\"\n\
    libvirt passes none of its environment but PATH, so variables are set in the file.\n\n\
    Examples, as libvirt calls it:\n  \
    natmig libvirt-hook --segment rack2 -- web1 migrate begin - < web1.xml\n  \
    natmig libvirt-hook --segment rack1 -- web1 release end migrated < web1.xml\n\n\
    Exit codes: 0 done, or nothing to do; others as of `natmig migrate`"
)]
pub(crate) struct Args {
    /// The segment of this host
    #[arg(long, value_name = "SEGMENT")]
    segment: String,

    /// What a migration means that natmig cannot prepare
    #[arg(long, value_enum, default_value_t = OnFailure::Cancel)]
    on_failure: OnFailure,

    /// How long routers may take to prepare; libvirt waits as long
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = migrate::duration)]
    timeout: Duration,

    /// The guest's name
    guest: String,

    /// What happens to it
    operation: String,

    /// Whether that begins or ends
    sub_operation: String,

    /// More about it: why a guest stopped
    #[arg(default_value = "-")]
    extra: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OnFailure {
    /// libvirt cancels the guest's migration
    Cancel,
    /// The guest migrates, and is not reachable before natmig is told by other means
    Proceed,
}

/// What natmig has to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// A guest is about to come: prepare.
    Prepare,
    /// A guest was migrated from here.
    Activate,
    /// A guest ended here, and was not migrated.
    Abort,
    /// A guest ended here, and may have been migrated.
    AbortArrival,
}

impl Task {
    fn of(operation: &str, sub_operation: &str, extra: &str) -> Option<Self> {
        match (operation, sub_operation) {
            ("migrate", "begin") => Some(Self::Prepare),
            ("release", "end") => Some(match extra {
                "migrated" => Self::Activate,
                // Before libvirt 10.5 no reason is given.
                "-" => Self::AbortArrival,
                _ => Self::Abort,
            }),
            _ => None,
        }
    }
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(task) = Task::of(&args.operation, &args.sub_operation, &args.extra) else {
        return Ok(ExitCode::SUCCESS);
    };
    let options = &args.client;
    let outcome = domain().and_then(|domain| {
        options.run(async move |mut client| {
            let name = domain
                .as_ref()
                .map_or(args.guest.as_str(), |domain| &domain.name);
            let macs = domain.as_ref().map_or(&[][..], |domain| &domain.macs);
            let Some(vm) = super::find_vm(&mut client, macs, Some(name)).await? else {
                return Ok(());
            };
            let here = SegmentName::new(&args.segment);
            match task {
                Task::Prepare => prepare(args, client, &vm, &here).await,
                Task::Activate => left(&mut client, &vm, &here).await,
                Task::Abort => {
                    for way in [Way::Arriving, Way::Leaving] {
                        super::abort(&mut client, &vm, way, &here).await?;
                    }
                    Ok(())
                }
                Task::AbortArrival => {
                    super::abort(&mut client, &vm, Way::Arriving, &here).await?;
                    Ok(())
                }
            }
        })
    });
    match outcome {
        Ok(code) if code != ExitCode::SUCCESS && proceeds(args, task) => Ok(ExitCode::SUCCESS),
        Err(error) if proceeds(args, task) => {
            eprintln!("natmig: {error:#}");
            Ok(ExitCode::SUCCESS)
        }
        other => other,
    }
}

fn proceeds(args: &Args, task: Task) -> bool {
    task == Task::Prepare && args.on_failure == OnFailure::Proceed
}

/// The domain that libvirt describes on standard input; nothing, if a person calls by hand.
fn domain() -> anyhow::Result<Option<Domain>> {
    let mut input = stdin();
    if input.is_terminal() {
        return Ok(None);
    }
    let mut xml = String::new();
    input
        .read_to_string(&mut xml)
        .context("cannot read the domain's XML from standard input")?;
    if xml.trim().is_empty() {
        return Ok(None);
    }
    Ok(Some(Domain::parse(&xml)?))
}

/// Announces the migration and waits until every router is prepared; leaves none behind that is not.
async fn prepare(
    args: &Args,
    mut client: Client,
    vm: &VmName,
    here: &SegmentName,
) -> Result<(), Failure> {
    let announced = super::announce(&mut client, vm, here, Activation::OnAnnounce).await?;
    let (id, started) = match announced {
        Announced::NotNeeded => return Ok(()),
        Announced::Started(id) => (id, true),
        Announced::Found(id) => (id, false),
    };
    let waited = progress::wait(
        &args.client,
        client.clone(),
        id,
        progress::Goal::Prepared,
        args.timeout,
    )
    .await;
    if waited.is_err() && started && args.on_failure == OnFailure::Cancel {
        super::abort(&mut client, vm, Way::Arriving, here).await?;
    }
    waited.map(drop)
}

/// The guest is no longer here. Where it was expected, it did not come; where it was, it left.
async fn left(client: &mut Client, vm: &VmName, here: &SegmentName) -> Result<(), Failure> {
    if super::abort(client, vm, Way::Arriving, here)
        .await?
        .is_none()
    {
        super::activate(client, vm, Way::Leaving, here).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_migrations_is_acted_upon() {
        for (operation, sub_operation, extra, task) in [
            ("migrate", "begin", "-", Some(Task::Prepare)),
            ("release", "end", "migrated", Some(Task::Activate)),
            ("release", "end", "-", Some(Task::AbortArrival)),
            ("release", "end", "crashed", Some(Task::Abort)),
            ("release", "end", "failed", Some(Task::Abort)),
            ("prepare", "begin", "-", None),
            ("start", "begin", "-", None),
            ("started", "begin", "-", None),
            ("stopped", "end", "-", None),
            ("reconnect", "begin", "-", None),
            ("attach", "begin", "-", None),
            ("restore", "begin", "-", None),
            ("dream", "begin", "-", None),
        ] {
            assert_eq!(
                Task::of(operation, sub_operation, extra),
                task,
                "{operation} {extra}"
            );
        }
    }
}
