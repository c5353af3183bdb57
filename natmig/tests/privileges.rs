//! What a running controller is left with, and who may use its socket: needs root, to be somebody
//! else.
//!
//! Without root these tests are skipped with a message, or fail if `NATMIG_REQUIRE_ROOT=1`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use support::until;
use tempfile::TempDir;

/// Neither this user nor these groups need an entry anywhere, but the socket's group has a name.
const USER: u32 = 61_234;
const OTHER_GROUP: u32 = 61_235;

/// Whether these tests can run.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(
            env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "NATMIG_REQUIRE_ROOT=1, and this test needs root"
        );
        eprintln!("SKIPPED: this test needs root");
    }
    root
}

struct Controller {
    directory: TempDir,
    child: Child,
}

impl Controller {
    async fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| directory.path().join(name);
        // A copy that everybody may run, wherever the build is.
        fs::copy(env!("CARGO_BIN_EXE_natmig"), path("natmig")).unwrap();
        fs::set_permissions(path("natmig"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "socket = \"{}\"\nstore = \"{}\"\n{more}",
            path("controller.sock").display(),
            path("controller.redb").display()
        );
        fs::write(path("controller.toml"), config).unwrap();
        let child = Command::new(path("natmig"))
            .arg("controller")
            .arg("--config")
            .arg(path("controller.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut controller = Self { directory, child };
        until("the controller to answer", async || {
            assert_eq!(controller.child.try_wait().unwrap(), None);
            let output = controller.list(0, 0, &[]);
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        })
        .await;
        controller
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn natmig(&self, uid: u32, gid: u32, groups: &[u32], arguments: &[&str]) -> Output {
        let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
        if groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            command.args(["--groups", &groups.join(",")]);
        }
        command
            .arg(self.path("natmig"))
            .args(arguments)
            .env(
                "NATMIG_CONTROLLER",
                format!("unix://{}", self.path("controller.sock").display()),
            )
            .output()
            .unwrap()
    }

    fn list(&self, uid: u32, gid: u32, groups: &[u32]) -> Output {
        self.natmig(uid, gid, groups, &["router", "list"])
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The capability sets of every thread of a process, and whether it may gain privileges.
fn statuses(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).unwrap();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let wanted = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
            let lines: Vec<_> = status.lines().filter(wanted).collect();
            lines.join("\n")
        })
        .collect()
}

#[tokio::test]
async fn controller_keeps_no_capability() {
    if !is_root() {
        return;
    }
    let controller = Controller::start("").await;
    let statuses = statuses(controller.child.id());
    assert!(statuses.len() > 2, "only {} threads", statuses.len());
    for status in statuses {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let none = format!("{set}:\t0000000000000000");
            assert!(status.contains(&none), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
}

#[tokio::test]
async fn socket_is_for_its_group_and_each_may_what_it_may() {
    if !is_root() {
        return;
    }
    // A group that is everywhere, and of which nobody is a member.
    let group = nix::unistd::Group::from_name("nogroup").unwrap().unwrap();
    let gid = group.gid.as_raw();
    for (role, operates) in [("read-only", false), ("operator", true)] {
        let controller = Controller::start(&format!(
            "socket_group = \"nogroup\"\nsocket_role = {role:?}\n"
        ))
        .await;
        let socket = fs::metadata(controller.path("controller.sock")).unwrap();
        assert_eq!(socket.permissions().mode() & 0o777, 0o660);
        for (gid, groups) in [(gid, vec![]), (OTHER_GROUP, vec![gid])] {
            let looked = controller.list(USER, gid, &groups);
            assert!(looked.status.success(), "{looked:?}");
            let drain = ["router", "drain", "edge1"];
            let drained = controller.natmig(USER, gid, &groups, &drain);
            let error = String::from_utf8_lossy(&drained.stderr).into_owned();
            assert!(!drained.status.success());
            let message = if operates {
                "there is no router edge1"
            } else {
                "needs the role operator"
            };
            assert!(error.contains(message), "{error}");
        }
        // Nobody else, not even if the file system lets it.
        let stranger = controller.list(USER, OTHER_GROUP, &[]);
        let error = String::from_utf8_lossy(&stranger.stderr).into_owned();
        assert!(error.contains("ermission denied"), "{error}");
        let everybody = fs::Permissions::from_mode(0o666);
        fs::set_permissions(controller.path("controller.sock"), everybody).unwrap();
        let stranger = controller.list(USER, OTHER_GROUP, &[]);
        let error = String::from_utf8_lossy(&stranger.stderr).into_owned();
        assert!(error.contains("socket_group"), "{error}");

        let audit = controller.natmig(0, 0, &[], &["audit", "list", "--json"]);
        let audit: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
        let drain = audit.as_array().unwrap().iter().find(|record| {
            record["call"] == "DrainRouter" && record["who"]["uid"] == u64::from(USER)
        });
        let drain = drain.unwrap();
        assert!(drain["who"]["pid"].as_i64().unwrap() > 0, "{drain}");
        let outcome = if operates { "refused" } else { "denied" };
        assert_eq!(drain["outcome"], outcome);
    }
}
