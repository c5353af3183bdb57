//! The run directory of a lab: who owns it, what it started, and clearing what a crash left.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal},
    unistd::Pid,
};

use crate::namespace::Namespace;

/// Every namespace of every lab begins with this.
const PREFIX: &str = "natmig-lab";
const ROOT: &str = "/run/natmig-lab";
const BPFFS: &str = "/sys/fs/bpf/natmig";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets an interrupt end the run in order, with everything cleaned up.
pub fn catch_interrupts() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { signal::sigaction(signal, &action) }.context("signal handler")?;
    }
    Ok(())
}

/// An error once the run was interrupted.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Polls until `done` has an answer; `what` says what was waited for in vain.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        check_interrupted()?;
        if let Some(answer) = done()? {
            return Ok(answer);
        }
        if start.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A lab's place on this machine, its own until it is dropped.
#[derive(Debug)]
pub struct Run {
    id: u32,
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Run {
    /// Takes the first free number and clears what crashed labs left.
    pub fn claim() -> Result<Self> {
        fs::create_dir_all(ROOT)
            .with_context(|| format!("cannot make {ROOT} (the lab needs root)"))?;
        clear_stale()?;
        for id in 1..1000 {
            if let Some(mut lock) = try_lock(id)? {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())?;
                let directory = Path::new(ROOT).join(id.to_string());
                fs::create_dir_all(&directory)?;
                return Ok(Self {
                    id,
                    directory,
                    _lock: lock,
                });
            }
        }
        bail!("a thousand labs are running already");
    }

    /// Prefix of its namespaces.
    pub fn prefix(&self) -> String {
        prefix(self.id)
    }

    /// Name of natmig's instance on a router: pins are shared by all namespaces.
    pub fn instance(&self, router: &str) -> String {
        format!("lab{}-{router}", self.id)
    }

    /// For logs, configurations and sockets.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes a process to be ended with the lab, also by the next lab after a crash.
    pub fn note_process(&self, pid: u32) -> Result<()> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("processes"))?;
        if let Some(started) = start_time(pid) {
            writeln!(file, "{pid} {started}")?;
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = clear(self.id) {
            eprintln!("natmig-lab: cleaning up: {error:#}");
        }
    }
}

fn prefix(id: u32) -> String {
    format!("{PREFIX}{id}-")
}

fn lock_path(id: u32) -> PathBuf {
    Path::new(ROOT).join(format!("{id}.lock"))
}

fn try_lock(id: u32) -> Result<Option<Flock<File>>> {
    let path = lock_path(id);
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EAGAIN)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Numbers of labs that left a lock file.
fn known() -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(ROOT)? {
        let name = entry?.file_name();
        if let Some(id) = name
            .to_str()
            .and_then(|name| name.strip_suffix(".lock")?.parse().ok())
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Clears what labs whose process is gone left behind.
pub fn clear_stale() -> Result<()> {
    if !Path::new(ROOT).exists() {
        return Ok(());
    }
    for id in known()? {
        let directory = Path::new(ROOT).join(id.to_string());
        if let Some(_lock) = try_lock(id)?
            && (directory.exists() || !Namespace::list(&prefix(id))?.is_empty())
        {
            eprintln!("natmig-lab: clearing what lab {id} left");
            clear(id)?;
        }
    }
    Ok(())
}

/// Asks running labs to end, waits for it, and clears what is left.
pub fn stop_all(deadline: Duration) -> Result<()> {
    if !Path::new(ROOT).exists() {
        return Ok(());
    }
    for id in known()? {
        if try_lock(id)?.is_none() {
            let mut owner = String::new();
            File::open(lock_path(id))?.read_to_string(&mut owner)?;
            let pid = owner
                .trim()
                .parse()
                .context("lock file without a process number")?;
            signal::kill(Pid::from_raw(pid), Signal::SIGTERM)
                .with_context(|| format!("lab {id}, process {pid}"))?;
            wait_for(&format!("end of lab {id}"), deadline, || try_lock(id))?;
        }
    }
    clear_stale()
}

/// Start time of a process in clock ticks: with its number, it names one process for ever.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

fn clear(id: u32) -> Result<()> {
    let directory = Path::new(ROOT).join(id.to_string());
    for line in fs::read_to_string(directory.join("processes"))
        .unwrap_or_default()
        .lines()
    {
        let Some((Ok(pid), Ok(started))) = line
            .split_once(' ')
            .map(|(pid, time)| (pid.parse::<u32>(), time.parse::<u64>()))
        else {
            continue;
        };
        if start_time(pid) == Some(started) {
            match signal::kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error).context("ending a daemon"),
            }
        }
    }
    Namespace::delete(&Namespace::list(&prefix(id))?)?;
    if let Ok(instances) = fs::read_dir(BPFFS) {
        for instance in instances {
            let instance = instance?;
            if instance
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(&format!("lab{id}-")))
            {
                fs::remove_dir_all(instance.path())?;
            }
        }
    }
    for state in ["/run/natmig", "/var/lib/natmig"] {
        let Ok(entries) = fs::read_dir(state) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            let ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(&format!("lab{id}-")));
            if ours && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if ours {
                fs::remove_file(entry.path())?;
            }
        }
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

/// Number and namespace prefix of a lab that runs.
pub fn running() -> Result<(u32, String)> {
    let ids = if Path::new(ROOT).exists() {
        known()?
    } else {
        Vec::new()
    };
    for id in ids {
        if try_lock(id)?.is_none() {
            return Ok((id, prefix(id)));
        }
    }
    bail!("no lab is running: bring one up with natmig-lab up");
}

/// Run directory of a lab.
pub fn directory(id: u32) -> PathBuf {
    Path::new(ROOT).join(id.to_string())
}
