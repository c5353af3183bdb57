//! `natmig store`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

use super::client;
use crate::{
    audit::{Asked, AuditLog, AuditOutcome, AuditRecord, Caller},
    controller::{ControllerConfig, StorePlace},
    coordinator::Timestamp,
    store::{Candidate, Dump, FileStore, Lease, Store},
};

/// Move what the controller stores
///
/// Between the embedded store and etcd, or to a file that is kept. No controller may run on the store
/// meanwhile; routers forward all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, from an embedded store to etcd:\n  \
    natmig store export fabric.json --config /etc/natmig/embedded.toml\n  \
    natmig store import fabric.json --config /etc/natmig/controller.toml")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write everything that the store holds to a file
    Export(FileArgs),
    /// Put everything that was exported into a store
    ///
    /// Refused if the store holds anything, or the file was changed or is another version's.
    Import(FileArgs),
}

/// What both need.
#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The file that is written or read
    file: PathBuf,

    /// The controller's configuration, which says where the store is
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/natmig/controller.toml"
    )]
    config: PathBuf,

    /// Overwrite the file, or replace what the store holds
    #[arg(long)]
    force: bool,

    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// A store that nobody else uses meanwhile.
struct Alone {
    store: Box<dyn Store>,
    lease: Option<Lease>,
}

impl Alone {
    async fn open(place: &StorePlace, existing: bool) -> anyhow::Result<Self> {
        match place {
            StorePlace::File(path) => {
                if existing {
                    fs::metadata(path)
                        .with_context(|| format!("{}: there is no store", path.display()))?;
                }
                Ok(Self {
                    store: Box::new(FileStore::open(path)?),
                    lease: None,
                })
            }
            StorePlace::Etcd(etcd) => {
                let candidate = Candidate::new(etcd, "natmig store", "no controller")?;
                let store = candidate.lead_unless_led().await?;
                let lease = Some(store.lease());
                Ok(Self {
                    store: Box::new(store),
                    lease,
                })
            }
        }
    }

    async fn close(self) {
        drop(self.store);
        if let Some(lease) = self.lease {
            lease.revoke().await;
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &args.command {
            Command::Export(args) => export(args).await,
            Command::Import(args) => import(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn export(args: &FileArgs) -> anyhow::Result<()> {
    let place = ControllerConfig::read(&args.config)?.place();
    if !args.force && args.file.exists() {
        anyhow::bail!(
            "{}: exists; name another file, or overwrite it with --force",
            args.file.display()
        );
    }
    let mut alone = Alone::open(&place, true).await?;
    let dump = Dump::of(alone.store.as_mut());
    alone.close().await;
    let dump = dump?;
    write(&args.file, &dump.to_text()?).with_context(|| args.file.display().to_string())?;
    report(args, "exported", &dump)
}

async fn import(args: &FileArgs) -> anyhow::Result<()> {
    let place = ControllerConfig::read(&args.config)?.place();
    let name = || args.file.display().to_string();
    let text = fs::read_to_string(&args.file).with_context(name)?;
    let mut dump = Dump::parse(&text).with_context(name)?;
    dump.stored.audit.push(record(&args.file, &dump));
    let mut alone = Alone::open(&place, false).await?;
    let imported = dump.import(alone.store.as_mut(), args.force);
    alone.close().await;
    imported?;
    report(args, "imported", &dump)
}

/// What the audit log says of an import, which no controller sees.
fn record(file: &Path, dump: &Dump) -> AuditRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let uid = nix::unistd::getuid().as_raw();
    AuditRecord {
        id: AuditLog::new(dump.stored.audit.clone()).next_id(),
        at: Timestamp(0).after(now.unwrap_or_default()),
        asked: Asked {
            who: Caller {
                name: format!("local user {uid}"),
                address: None,
                certificate: None,
                uid: Some(uid),
                pid: Some(nix::unistd::getpid().as_raw()),
            },
            call: "ImportStore".to_owned(),
            what: file.display().to_string(),
        },
        outcome: AuditOutcome::Done(None),
    }
}

fn report(args: &FileArgs, done: &str, dump: &Dump) -> anyhow::Result<()> {
    let what = format!(
        "{} ({} VMs, {} migrations)",
        args.file.display(),
        dump.stored.vms.len(),
        dump.stored.migrations.len()
    );
    client::print_done(args.json, done, &what)
}

/// Writes a file, whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut file = fs::File::create(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)
}
