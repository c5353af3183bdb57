//! `natmig qmp-watch`.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Announced;
use crate::{
    causes::with_causes,
    cli::{
        client::{ClientArgs, Failure},
        daemon, output,
    },
    coordinator::Activation,
    hypervisor::{
        Way,
        guest::{Guest, Need, Side},
        qmp::{Event, MigrationStatus, Monitor, QmpError},
    },
    names::{SegmentName, VmName},
    rule::{MacAddress, TransactionId},
};

/// How long to wait before QEMU is looked for again.
const RECONNECT: Duration = Duration::from_millis(200);

/// How long to wait before the controller is asked again for what it did not do.
const RETRY: Duration = Duration::from_millis(500);

/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Announce a guest's migrations as its QEMU process tells of them
///
/// One watcher for each QEMU process, on the host where that runs, for hosts without libvirt. What
/// the process is, it says itself. One that waits for its guest (-incoming) is the destination: the
/// migration to this host's segment is announced at once, takes effect when the guest runs here, and
/// is aborted if it never does. One that sends its guest away is the source: it lets the migration
/// take effect when QEMU has sent everything, and aborts it if QEMU fails or is told to cancel.
/// A watcher at either end is enough; with one at both ends, whichever hears first acts, once.
///
/// Migrations that an orchestrator announced (`natmig migrate --activate manual`) are steered in the
/// same way. Those of groups are left to it.
///
/// It goes on when QEMU or the controller is away, and does what is still to be done when they are back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig qmp-watch --socket /run/vm/web1.qmp --segment rack2\n  \
    natmig qmp-watch --socket /run/vm/web1.qmp --segment rack1 --to rack2   # no watcher at rack2\n  \
    natmig qmp-watch --socket /run/vm/web1.qmp --segment rack2 --json\n\n\
    A monitor serves one client at a time, so QEMU needs one for the watcher alone:\n  \
    qemu-system-x86_64 ... -qmp unix:/run/vm/web1.qmp,server=on,wait=off\n\n\
    The log goes to standard error; NATMIG_LOG=debug shows more of it.")]
pub(crate) struct Args {
    /// QEMU's monitor (QMP)
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// The segment of this host
    #[arg(long, value_name = "SEGMENT")]
    segment: String,

    /// Announce migrations that leave this host as going to this segment; not needed if the
    /// destination has a watcher, or if an orchestrator announces them
    #[arg(long, value_name = "SEGMENT")]
    to: Option<String>,

    /// The VM's name in the inventory; without it the guest's MAC addresses tell, or else QEMU's -name
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,

    #[command(flatten)]
    client: ClientArgs,
}

/// What was seen or done: a line of JSON each.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Report {
    /// QEMU's monitor is connected.
    Connected { side: Option<Side> },
    /// QEMU has ended, or its monitor is gone.
    Disconnected,
    /// A migration of QEMU's got further.
    Migration { status: &'static str, at: u64 },
    /// The guest stopped running here.
    Stopped { at: u64 },
    /// The guest runs here.
    Resumed { at: u64 },
    /// Routers prepare, on our account or somebody else's.
    Announced {
        way: Way,
        migration: TransactionId,
        found: bool,
    },
    /// The migration takes effect.
    Activated { way: Way, migration: TransactionId },
    /// The migration was given up.
    Aborted {
        way: Way,
        migration: TransactionId,
        why: &'static str,
    },
    /// There was nothing to be done.
    NothingToDo { way: Way },
    /// It was not done; it is tried again while it is needed.
    Failed { problem: String },
}

/// A report with its time.
#[derive(Serialize)]
struct Timed<'a> {
    /// Nanoseconds since the Unix epoch.
    time: u64,
    #[serde(flatten)]
    report: &'a Report,
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    daemon::log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = daemon::Shutdown::new()?;
        let mut watcher = Watcher::new(args);
        daemon::ready();
        tokio::select! {
            outcome = watcher.run() => outcome?,
            () = shutdown.requested() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

struct Watcher<'a> {
    args: &'a Args,
    here: SegmentName,
    guest: Guest,
    /// By what the guest is known, once its QEMU was seen.
    macs: Vec<MacAddress>,
    name: Option<String>,
    /// Not to be said again.
    problem: Option<String>,
    retry: Instant,
}

impl<'a> Watcher<'a> {
    fn new(args: &'a Args) -> Self {
        Self {
            args,
            here: SegmentName::new(&args.segment),
            guest: Guest::default(),
            macs: Vec::new(),
            name: None,
            problem: None,
            retry: Instant::now(),
        }
    }

    /// Watches QEMU after QEMU. Returns only if standard output cannot be written.
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut waits = false;
        loop {
            match Monitor::connect(&self.args.socket).await {
                Ok(monitor) => {
                    waits = false;
                    let lost = self.attend(monitor).await?;
                    tracing::info!("{lost}");
                    self.report(&Report::Disconnected)?;
                }
                Err(error @ (QmpError::Connect { .. } | QmpError::Closed)) => {
                    if self.guest.side().is_some() {
                        self.guest.ended();
                    }
                    if !std::mem::replace(&mut waits, true) {
                        tracing::info!("waiting for QEMU: {error}");
                    }
                }
                Err(error) => self.fail(&error.to_string())?,
            }
            self.fulfil().await?;
            sleep(RECONNECT).await;
        }
    }

    /// Follows a QEMU process until its monitor is gone; says why it is.
    async fn attend(&mut self, mut monitor: Monitor) -> anyhow::Result<QmpError> {
        if let Err(error) = self.meet(&mut monitor).await {
            return Ok(error);
        }
        self.report(&Report::Connected {
            side: self.guest.side(),
        })?;
        loop {
            self.fulfil().await?;
            let retry = self.retry;
            let heard = tokio::select! {
                heard = monitor.event() => heard,
                () = sleep_until(retry), if self.guest.need().is_some() => continue,
            };
            match heard {
                Ok(heard) => {
                    self.report(&match heard.event {
                        Event::Resume => Report::Resumed { at: heard.at },
                        Event::Stop => Report::Stopped { at: heard.at },
                        Event::Migration(status) => Report::Migration {
                            status: match status {
                                MigrationStatus::Going => "going",
                                MigrationStatus::PostCopy => "post_copy",
                                MigrationStatus::Completed => "completed",
                                MigrationStatus::Ended => "ended",
                            },
                            at: heard.at,
                        },
                    })?;
                    let before = self.guest.need();
                    self.guest.hear(heard.event);
                    if self.guest.need() != before {
                        self.retry = Instant::now();
                    }
                }
                Err(error) => return Ok(error),
            }
        }
    }

    async fn meet(&mut self, monitor: &mut Monitor) -> Result<(), QmpError> {
        self.macs = monitor.macs().await?;
        self.name = monitor.name().await?;
        let status = monitor.status().await?;
        self.guest.meet(status);
        self.retry = Instant::now();
        Ok(())
    }

    /// Does what the guest's migration needs, or says why not and when to try again.
    async fn fulfil(&mut self) -> anyhow::Result<()> {
        let Some(need) = self.guest.need() else {
            return Ok(());
        };
        if Instant::now() < self.retry {
            return Ok(());
        }
        match timeout(PATIENCE, self.ask(need)).await {
            Ok(Ok(report)) => {
                self.guest.fulfilled();
                self.problem = None;
                return self.report(&report);
            }
            Ok(Err(failure)) => self.fail(&with_causes(anyhow::Error::from(failure).as_ref()))?,
            Err(_) => self.fail("the controller does not answer")?,
        }
        self.retry = Instant::now() + RETRY;
        Ok(())
    }

    async fn ask(&self, need: Need) -> Result<Report, Failure> {
        let client = &mut self.args.client.connect().await?;
        let vm = match &self.args.vm {
            Some(name) => VmName::new(name),
            None => super::find_vm(client, &self.macs, self.name.as_deref())
                .await?
                .ok_or_else(|| self.unknown())?,
        };
        let here = &self.here;
        let done = match need {
            Need::Announce(Way::Leaving) if self.args.to.is_none() => {
                super::undecided(client, &vm, Way::Leaving, here)
                    .await?
                    .map(|migration| Report::Announced {
                        way: Way::Leaving,
                        migration,
                        found: true,
                    })
            }
            Need::Announce(way) => {
                let to = match (way, &self.args.to) {
                    (Way::Leaving, Some(to)) => SegmentName::new(to),
                    (Way::Leaving | Way::Arriving, _) => here.clone(),
                };
                match super::announce(client, &vm, &to, Activation::Manual).await? {
                    Announced::NotNeeded => None,
                    Announced::Started(migration) => Some(Report::Announced {
                        way,
                        migration,
                        found: false,
                    }),
                    Announced::Found(migration) => Some(Report::Announced {
                        way,
                        migration,
                        found: true,
                    }),
                }
            }
            Need::Activate(way) => super::activate(client, &vm, way, here)
                .await?
                .map(|migration| Report::Activated { way, migration }),
            Need::Abort(way, why) => super::abort(client, &vm, way, here)
                .await?
                .map(|migration| Report::Aborted {
                    way,
                    migration,
                    why,
                }),
        };
        let (Need::Announce(way) | Need::Activate(way) | Need::Abort(way, _)) = need;
        Ok(done.unwrap_or(Report::NothingToDo { way }))
    }

    fn unknown(&self) -> Failure {
        let macs: Vec<_> = self.macs.iter().map(ToString::to_string).collect();
        Failure::Refused(format!(
            "no VM of the inventory has a MAC address of this guest ({}) or its name ({}); add it \
             with `natmig vm add`, or name it with --vm",
            macs.join(", "),
            self.name.as_deref().unwrap_or("none"),
        ))
    }

    /// Says what went wrong, once.
    fn fail(&mut self, problem: &str) -> anyhow::Result<()> {
        if self.problem.as_deref() == Some(problem) {
            return Ok(());
        }
        self.problem = Some(problem.to_owned());
        self.report(&Report::Failed {
            problem: problem.to_owned(),
        })
    }

    fn report(&self, report: &Report) -> anyhow::Result<()> {
        match report {
            Report::Failed { problem } => tracing::warn!("{problem}"),
            Report::Announced {
                way,
                migration,
                found,
            } => tracing::info!(%migration, %way, found, "announced"),
            Report::Activated { way, migration } => tracing::info!(%migration, %way, "activated"),
            Report::Aborted {
                way,
                migration,
                why,
            } => tracing::warn!(%migration, %way, why, "aborted"),
            Report::NothingToDo { way } => tracing::info!(
                %way,
                "nothing to do: no migration of this VM is undecided, or it is there already"
            ),
            Report::Connected { .. }
            | Report::Disconnected
            | Report::Migration { .. }
            | Report::Stopped { .. }
            | Report::Resumed { .. } => tracing::info!("{report:?}"),
        }
        if self.args.client.json {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let timed = Timed {
                time: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                report,
            };
            output::line(&serde_json::to_string(&timed)?)?;
        }
        Ok(())
    }
}
