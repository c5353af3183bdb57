//! Network namespaces: creation, deletion, and running code and programs inside.

use std::{
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name under `/run/netns`. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes it and brings its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        ip(None, &format!("netns add {name}\n"))?;
        let namespace = Self::open(name)?;
        ip(Some(&namespace), "link set lo up\n")?;
        namespace.sysctl(&[
            ("net.ipv6.conf.all.disable_ipv6", "1"),
            ("net.ipv6.conf.default.disable_ipv6", "1"),
        ])?;
        Ok(namespace)
    }

    /// Lets its interfaces have IPv6, from then on: at once and without questions to others (neither
    /// duplicate address detection nor router solicitations), and as static as IPv4.
    pub fn enable_ipv6(&self) -> Result<()> {
        for what in ["all", "default"] {
            let name = |setting: &str| format!("net.ipv6.conf.{what}.{setting}");
            let settings = [
                (name("accept_dad"), "0"),
                (name("dad_transmits"), "0"),
                (name("accept_ra"), "0"),
                (name("router_solicitations"), "0"),
                (name("keep_addr_on_down"), "1"),
                (name("disable_ipv6"), "0"),
            ];
            let settings: Vec<_> = settings
                .iter()
                .map(|(name, value)| (name.as_str(), *value))
                .collect();
            self.sysctl(&settings)?;
        }
        Ok(())
    }

    /// One that exists.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from(DIRECTORY).join(name);
        let file = File::open(&path)
            .with_context(|| format!("no network namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file: Arc::new(file),
        })
    }

    /// Names of all that begin with `prefix`.
    pub fn list(prefix: &str) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(DIRECTORY),
        };
        let names = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        Ok(names)
    }

    /// Takes the names away; each namespace goes when its last user is gone.
    pub fn delete(names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = names
            .iter()
            .map(|name| format!("netns delete {name}\n"))
            .collect();
        ip(None, &lines.concat())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into it.
    pub fn join(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", self.name))
    }

    /// Runs `inside` on a thread in this namespace: sockets that it makes belong to it for ever.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let outcome = thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.join()?;
                inside()
            });
            entered.join()
        });
        match outcome {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A program that will run in this namespace, with everything else (mounts too) as outside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = Arc::clone(&self.file);
        let mut command = Command::new(program);
        // SAFETY: the closure runs between fork and exec; it only makes one system call with a
        // descriptor that it owns, and allocates nothing.
        unsafe {
            command.pre_exec(move || setns(&*file, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        command
    }

    /// What `ip` prints in it.
    pub fn ask_ip(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command("ip")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ip (package iproute2)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip {} in {}: {}",
            arguments.join(" "),
            self.name,
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes kernel settings, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                // Interface names hold no dots in the lab.
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("cannot set {name}"))?;
            }
            Ok(())
        })
    }
}

/// Runs `ip -batch` with these lines, in a namespace or outside of all.
pub fn ip(namespace: Option<&Namespace>, lines: &str) -> Result<()> {
    run_batch(namespace, lines, false)
}

/// Like [`ip`], but goes on after lines that fail, for changes of what may be gone already.
pub fn ip_force(namespace: Option<&Namespace>, lines: &str) -> Result<()> {
    run_batch(namespace, lines, true)
}

fn run_batch(namespace: Option<&Namespace>, lines: &str, force: bool) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command =
        namespace.map_or_else(|| Command::new("ip"), |namespace| namespace.command("ip"));
    if force {
        command.arg("-force");
    }
    let place = namespace.map_or("the host", Namespace::name);
    feed(command.args(["-batch", "-"]), place, lines, force).context("ip (package iproute2)")
}

fn feed(command: &mut Command, place: &str, lines: &str, force: bool) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot be run")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() && !force {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("failed in {place}: {}\n{lines}", said.trim());
    }
    Ok(())
}
