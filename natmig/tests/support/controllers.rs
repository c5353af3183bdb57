//! Several controllers on etcd, each a process of its own: killed, stopped and continued at will.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several test programs, each of which uses a part"
)]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use natmig::proto::{
    MESSAGE_LIMIT,
    v1::{self, control_service_client::ControlServiceClient},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use super::{
    Client,
    etcd::{Etcd, die_with_this_thread},
};

/// How long an election, or anything else that polls, may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The leader's lease.
pub const LEASE: &str = "2s";

/// The port of the next controller that a test of this process starts.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

#[derive(Debug)]
struct Instance {
    address: String,
    process: Option<Child>,
}

/// Controllers, and the etcd that they use.
#[derive(Debug)]
pub struct Controllers {
    pub etcd: Etcd,
    directory: TempDir,
    instances: Vec<Instance>,
}

impl Controllers {
    /// Starts them, and waits until one leads. `None` where there is no etcd.
    pub async fn start(controllers: usize, members: usize) -> Option<Self> {
        let mut started = Self {
            etcd: Etcd::start(members)?,
            directory: tempfile::tempdir().unwrap(),
            instances: Vec::new(),
        };
        for number in 0..controllers {
            // The address is this process's own, and the port, which the kernel gives to nobody by
            // itself, this controller's.
            let [_, high, middle, low] = std::process::id().to_be_bytes();
            let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
            let address = format!("127.{}.{middle}.{low}:{port}", 0x40 | (high & 0x3f));
            let config = format!(
                "name = \"c{number}\"\nlisten = \"{address}\"\ninsecure = true\nsocket = \"{}\"\n[etcd]\n\
                 endpoints = {:?}\nprefix = \"/natmig/test\"\nlease = \"{LEASE}\"\n",
                started.socket(number).display(),
                started.etcd.endpoints(),
            );
            fs::write(started.config(number), config).unwrap();
            started.instances.push(Instance {
                address,
                process: None,
            });
        }
        for number in 0..controllers {
            started.spawn(number);
        }
        started.leader().await;
        Some(started)
    }

    pub fn count(&self) -> usize {
        self.instances.len()
    }

    pub fn config(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("c{number}.toml"))
    }

    pub fn socket(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("c{number}.sock"))
    }

    /// URL of a controller.
    pub fn url(&self, number: usize) -> String {
        format!("http://{}", self.instances[number].address)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.count()).map(|number| self.url(number)).collect()
    }

    pub fn spawn(&mut self, number: usize) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("c{number}.log")))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_natmig"));
        command
            .args(["controller", "--config"])
            .arg(self.config(number))
            .env("NATMIG_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        die_with_this_thread(&mut command);
        self.instances[number].process = Some(command.spawn().unwrap());
    }

    /// What a controller logged.
    pub fn log(&self, number: usize) -> String {
        let path = self.directory.path().join(format!("c{number}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.instances[number].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGSTOP: from now on it answers nobody.
    pub fn stop(&self, number: usize) {
        let pid = self.pid(number);
        kill(pid, Signal::SIGSTOP).unwrap();
        // Until then some of its threads may run on.
        let state = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(state, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    }

    /// SIGCONT.
    pub fn resume(&self, number: usize) {
        kill(self.pid(number), Signal::SIGCONT).unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self, number: usize) {
        kill(self.pid(number), Signal::SIGTERM).unwrap();
    }

    fn pid(&self, number: usize) -> Pid {
        let process = self.instances[number].process.as_ref().unwrap();
        Pid::from_raw(process.id().try_into().unwrap())
    }

    /// What a controller says of itself.
    pub async fn status(&self, number: usize) -> Result<v1::GetControllerResponse, String> {
        let asked = async {
            let mut client = self.client_of(number).await?;
            let status = client.get_controller(v1::GetControllerRequest {}).await;
            Ok(status.map_err(|status| status.to_string())?.into_inner())
        };
        tokio::time::timeout(Duration::from_secs(1), asked)
            .await
            .map_err(|_| "no answer".to_owned())?
    }

    /// A connection to one controller, whether it leads or not.
    pub async fn client_of(&self, number: usize) -> Result<Client, String> {
        let channel = Endpoint::from_shared(self.url(number))
            .unwrap()
            .connect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(ControlServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT))
    }

    /// Waits until exactly one controller that answers leads, and says which.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut leaders = Vec::new();
            for number in 0..self.count() {
                if self.instances[number].process.is_some()
                    && self.status(number).await.is_ok_and(|status| status.leads)
                {
                    leaders.push(number);
                }
            }
            if let [leader] = leaders[..] {
                return leader;
            }
            assert!(
                Instant::now() < deadline,
                "leaders {leaders:?}\n{}",
                (0..self.count()).map(|n| self.log(n)).collect::<String>()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until no controller that answers leads.
    pub async fn nobody_leads(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut leads = false;
            for number in 0..self.count() {
                leads |= self.status(number).await.is_ok_and(|status| status.leads);
            }
            if !leads {
                return;
            }
            assert!(Instant::now() < deadline, "somebody still leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to the leader.
    pub async fn client(&self) -> Client {
        self.client_of(self.leader().await).await.unwrap()
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        for (number, instance) in self.instances.iter_mut().enumerate() {
            if let Some(mut process) = instance.process.take() {
                process.kill().ok();
                process.wait().ok();
            }
            if std::thread::panicking() {
                let path = self.directory.path().join(format!("c{number}.log"));
                eprintln!(
                    "controller c{number}:\n{}",
                    fs::read_to_string(path).unwrap_or_default()
                );
            }
        }
    }
}
