//! Real etcd processes on loopback, for tests: one member or several, killed, stopped and started
//! again at will. They end with the test, also when it is killed.
//!
//! The program is `etcd` (Debian's `etcd-server`), or what `NATMIG_ETCD` names.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by several test programs, each of which uses a part"
)]

use std::{
    env,
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long members may take until they answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Lines of a member's log that a failed test shows.
const LOG_LINES: usize = 40;

/// Ports below those that the kernel gives out by itself.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// The program; `None`, loudly, where there is none and none is required.
pub fn program() -> Option<PathBuf> {
    let named = env::var_os("NATMIG_ETCD").map(PathBuf::from);
    let found = named.or_else(|| {
        env::split_paths(&env::var_os("PATH")?)
            .map(|directory| directory.join("etcd"))
            .find(|path| path.is_file())
    });
    if found.is_none() {
        assert!(
            env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "NATMIG_REQUIRE_ROOT=1, and this test needs etcd (Debian: etcd-server)"
        );
        eprintln!("SKIPPED: needs etcd (Debian: etcd-server), or NATMIG_ETCD=PROGRAM");
    }
    found
}

/// An address of this process's own, so that test programs do not meet.
pub fn address() -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Never 127.0.0.1, where others listen.
    format!("127.{}.{middle}.{low}", 0x80 | high)
}

/// One member.
#[derive(Debug)]
pub struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<Child>,
}

/// A cluster of members.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    directory: TempDir,
    members: Vec<Member>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    scheme: &'static str,
}

impl Etcd {
    /// Starts a cluster, and waits until it answers. `None` where there is no etcd.
    pub fn start(members: usize) -> Option<Self> {
        Self::start_with(members, "http", Vec::new())
    }

    /// As [`Self::start`], with further arguments, and the scheme of client URLs.
    pub fn start_with(
        members: usize,
        scheme: &'static str,
        arguments: Vec<String>,
    ) -> Option<Self> {
        let mut etcd = Self {
            program: program()?,
            directory: tempfile::tempdir().unwrap(),
            members: Vec::new(),
            arguments,
            environment: vec![("ETCD_UNSUPPORTED_ARCH".into(), env::consts::ARCH.into())],
            scheme,
        };
        for number in 0..members {
            let client = NEXT_PORT.fetch_add(2, Ordering::Relaxed);
            etcd.members.push(Member {
                name: format!("m{number}"),
                client,
                peer: client + 1,
                process: None,
            });
        }
        for number in 0..members {
            etcd.spawn(number);
        }
        etcd.wait();
        Some(etcd)
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len())
            .map(|number| self.endpoint(number))
            .collect()
    }

    /// Client URL of one member.
    pub fn endpoint(&self, number: usize) -> String {
        format!("{}://{}", self.scheme, self.client_address(number))
    }

    /// `ADDRESS:PORT` at which a member takes clients.
    pub fn client_address(&self, number: usize) -> String {
        format!("{}:{}", address(), self.members[number].client)
    }

    /// Process id of a member that runs.
    pub fn pid(&self, number: usize) -> u32 {
        self.members[number].process.as_ref().unwrap().id()
    }

    /// Kills a member with SIGKILL.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.members[number].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts a member again, with what it has on disk.
    pub fn restart(&mut self, number: usize) {
        self.spawn(number);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&mut self, number: usize) {
        let address = address();
        let scheme = self.scheme;
        let peers: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}=http://{address}:{}", member.name, member.peer))
            .collect();
        let member = &self.members[number];
        let client = format!("{scheme}://{address}:{}", member.client);
        let peer = format!("http://{address}:{}", member.peer);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{}.log", member.name)))
            .unwrap();
        let mut command = Command::new(&self.program);
        command
            .arg("--name")
            .arg(&member.name)
            .arg("--data-dir")
            .arg(self.path(&member.name))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        die_with_this_thread(&mut command);
        self.members[number].process = Some(command.spawn().unwrap());
    }

    /// Waits until every member that should run takes connections.
    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for number in 0..self.members.len() {
            let address = self.client_address(number);
            while TcpStream::connect(&address).is_err() {
                let process = self.members[number].process.as_mut().unwrap();
                assert!(
                    process.try_wait().unwrap().is_none() && Instant::now() < deadline,
                    "etcd does not start:\n{}",
                    self.log(number)
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// What a member logged.
    pub fn log(&self, number: usize) -> String {
        let name = format!("{}.log", self.members[number].name);
        std::fs::read_to_string(self.path(&name)).unwrap_or_default()
    }

    /// Where its members have their data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 0..self.members.len() {
                let log = self.log(number);
                let lines: Vec<_> = log.lines().collect();
                let last = lines.len().saturating_sub(LOG_LINES);
                eprintln!("etcd member {number}:\n{}", lines[last..].join("\n"));
            }
        }
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.kill().expect("a child that was not waited for");
                process.wait().expect("it ends");
            }
        }
    }
}

/// The process ends when this test program does, however that ends.
pub fn die_with_this_thread(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        if nix::unistd::getppid().as_raw() == i32::try_from(parent).unwrap_or_default() {
            Ok(())
        } else {
            Err(std::io::Error::other("the test program is gone already"))
        }
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(ask) };
}
