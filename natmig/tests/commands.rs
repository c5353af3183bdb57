//! The command line against a controller process that is killed and started again, with agents in
//! this process.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    fs,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use support::{Fabric, TOPOLOGY, all_in_sync, until};

const NATMIG: &str = env!("CARGO_BIN_EXE_natmig");

/// A controller process; killed when dropped.
struct Controller(Child);

impl Controller {
    fn start(fabric: &Fabric) -> Self {
        let config = fabric.path("controller.toml");
        fs::write(
            &config,
            format!(
                "socket = \"{}\"\nstore = \"{}\"\n",
                fabric.config().socket.display(),
                fabric.path("controller.redb").display()
            ),
        )
        .unwrap();
        let child = Command::new(NATMIG)
            .arg("controller")
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn run(fabric: &Fabric, args: &[&str]) -> Output {
    Command::new(NATMIG)
        .env(
            "NATMIG_CONTROLLER",
            format!("unix://{}", fabric.config().socket.display()),
        )
        .args(args)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(fabric: &Fabric, args: &[&str]) -> String {
    let output = run(fabric, args);
    assert!(
        output.status.success(),
        "natmig {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fail(fabric: &Fabric, code: i32, args: &[&str]) -> String {
    let output = run(fabric, args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "natmig {args:?}: {error}");
    error
}

async fn answers(fabric: &Fabric) {
    until("the controller answers", async || {
        let output = run(fabric, &["router", "list"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    })
    .await;
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
#[tokio::test(flavor = "multi_thread")]
async fn operator_moves_a_vm_while_the_controller_is_killed() {
    let mut fabric = Fabric::new();
    let error = fail(&fabric, 1, &["vm", "list"]);
    assert!(error.contains("natmig controller --config"), "{error}");

    let controller = Controller::start(&fabric);
    answers(&fabric).await;
    let file = fabric.path("fabric.toml");
    let file = file.to_str().unwrap();
    fs::write(file, TOPOLOGY).unwrap();
    succeed(&fabric, &["topology", "check", file]);
    succeed(&fabric, &["topology", "apply", file]);
    succeed(
        &fabric,
        &[
            "vm",
            "add",
            "vm1",
            "--identity",
            "10.1.1.10",
            "--mac",
            "02:00:00:00:00:10",
            "--segment",
            "rack1",
        ],
    );
    fabric.start_agents();
    all_in_sync(&mut fabric.client().await).await;

    let json = succeed(
        &fabric,
        &["migrate", "vm1", "--to", "rack2", "--wait", "--json"],
    );
    let view: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(view["id"], 1);
    assert_eq!(view["routers"].as_array().unwrap().len(), 4);
    assert!(view["routers"][0]["progress"]["at"].is_u64(), "{view}");
    fail(&fabric, 3, &["migrate", "vm1", "--to", "rack2", "--wait"]);
    fail(&fabric, 2, &["migrate", "vm1"]);

    // Killed with SIGKILL while it prepares: the command that waits outlives the controller.
    fabric.memory("core1").lock().unwrap().stuck = true;
    let waiting = Command::new(NATMIG)
        .env(
            "NATMIG_CONTROLLER",
            format!("unix://{}", fabric.config().socket.display()),
        )
        .args([
            "migrate",
            "vm1",
            "--to",
            "rack3",
            "--unreachable",
            "wait",
            "--wait",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the migration prepares", async || {
        let output = run(&fabric, &["migration", "show", "2"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{output:?}"))
        }
    })
    .await;
    // The command was answered before that; it has the answer when others have had theirs.
    for _ in 0..3 {
        answers(&fabric).await;
    }
    controller.kill();
    let controller = Controller::start(&fabric);
    answers(&fabric).await;
    fabric.memory("core1").lock().unwrap().stuck = false;
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(view["id"], 2);
    let shown = succeed(&fabric, &["vm", "show", "vm1", "--json"]);
    let vms: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(vms[0]["segment"], "rack3");

    // An agent is gone: aborted, or out of time.
    fabric.stop_agent("core1").await;
    let wait = ["--wait", "--timeout", "300ms", "--unreachable", "wait"];
    let busy_until_folded = until("the VM may move again", async || {
        let output = run(
            &fabric,
            &[&["migrate", "vm1", "--to", "rack1"][..], &wait].concat(),
        );
        match output.status.code() {
            Some(5) => Ok(String::from_utf8(output.stderr).unwrap()),
            code => Err(format!(
                "{code:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    })
    .await;
    assert!(
        busy_until_folded.contains("waiting for core1"),
        "{busy_until_folded}"
    );
    succeed(&fabric, &["migration", "abort", "3"]);
    succeed(&fabric, &["router", "drain", "core1"]);
    let json = succeed(
        &fabric,
        &["migrate", "vm1", "--to", "rack1", "--wait", "--json"],
    );
    let view: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(view["vms"][0]["to"]["locator"], Value::Null);
    drop(controller);
}

#[test]
fn malformed_files_are_refused_with_place_and_remedy() {
    let fabric = Fabric::new();
    let file = fabric.path("bad.toml");
    let file = file.to_str().unwrap();
    for (text, command) in [
        ("[[router]\n", &["topology", "check"][..]),
        ("drain = 5\n", &["topology", "check"]),
        ("[[vm]]\nname = 1\n", &["vm", "add", "--file"]),
        ("listen = 7\n", &["controller", "--check", "--config"]),
        ("router = 7\n", &["agent", "--check", "--config"]),
    ] {
        fs::write(file, text).unwrap();
        let error = fail(&fabric, 1, &[command, &[file]].concat());
        assert!(
            error.contains("bad.toml:1:") || error.contains("bad.toml:2:"),
            "{error}"
        );
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let fabric = Fabric::new();
    for command in [
        "agent",
        "controller",
        "topology",
        "vm",
        "migrate",
        "migration",
        "router",
        "pki",
        "audit",
    ] {
        let help = succeed(&fabric, &[command, "--help"]);
        assert!(help.contains("Examples:"), "{command}");
    }
}
