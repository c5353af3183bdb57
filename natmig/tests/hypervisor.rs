//! What hypervisors say becomes migrations: `natmig qmp-watch` on a scripted monitor and `natmig
//! libvirt-hook` as libvirt calls it, against a controller in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use natmig::{
    coordinator::{MigrationView, Phase},
    proto::v1,
};
use serde_json::{Value, json};
use support::{Client, Fabric, RunningController, reach, speak, start, start_request, vms};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    process::{Child, ChildStdout, Command},
};

const NATMIG: &str = env!("CARGO_BIN_EXE_natmig");

/// Nothing here takes a tenth of it, but machines are busy.
const PATIENCE: Duration = Duration::from_mins(1);

fn natmig(fabric: &Fabric, arguments: &[&str]) -> Command {
    let mut command = Command::new(NATMIG);
    command
        .args(arguments)
        .env(
            "NATMIG_CONTROLLER",
            format!("unix://{}", fabric.config().socket.display()),
        )
        .kill_on_drop(true);
    command
}

async fn migrations(client: &mut Client) -> Vec<MigrationView> {
    let answer = client.list_migrations(v1::ListMigrationsRequest {}).await;
    let views = answer.unwrap().into_inner().migrations.into_iter();
    views.map(|view| view.try_into().unwrap()).collect()
}

async fn segment(client: &mut Client, vm: &str) -> String {
    let vms = vms(client).await;
    let vm = vms
        .into_iter()
        .find(|it| it.vm.as_ref().unwrap().name == vm);
    vm.unwrap().place.unwrap().segment
}

/// Where a QEMU process would listen.
struct Monitor {
    path: PathBuf,
    listener: UnixListener,
}

/// A scripted QEMU process with a client at its monitor.
struct Qemu {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    fn new(fabric: &Fabric) -> Self {
        let path = fabric.path("vm.qmp");
        std::fs::remove_file(&path).ok();
        Self {
            listener: UnixListener::bind(&path).unwrap(),
            path,
        }
    }

    async fn accept(&self) -> UnixStream {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept());
        accepted.await.expect("a client").unwrap().0
    }

    /// Greets the client and answers it until it knows the state of the guest.
    async fn meet(&self, run: &str, migration: Value) -> Qemu {
        let (reader, writer) = self.accept().await.into_split();
        let mut qemu = Qemu {
            lines: BufReader::new(reader).lines(),
            writer,
        };
        qemu.say(&json!({ "QMP": { "version": {}, "capabilities": ["oob"] } }))
            .await;
        loop {
            let line = qemu.lines.next_line().await.unwrap().expect("a command");
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let path = command["arguments"]["path"].as_str().unwrap_or_default();
            let id = &command["id"];
            let answer = match (name.as_str(), path) {
                ("qmp_capabilities" | "migrate-set-capabilities", _) => json!({}),
                ("qom-list", "/machine/peripheral") => json!([
                    { "name": "type", "type": "string" },
                    { "name": "net0", "type": "child<virtio-net-pci>" },
                    { "name": "disk0", "type": "child<virtio-blk-pci>" },
                ]),
                ("qom-list", _) => json!([]),
                ("qom-get", "/machine/peripheral/net0") => json!("02:00:00:00:00:0a"),
                ("qom-get", _) => {
                    let error = json!({ "class": "GenericError", "desc": "no such property" });
                    qemu.say(&json!({ "error": error, "id": id })).await;
                    continue;
                }
                ("query-name", _) => json!({ "name": "guest7" }),
                ("query-status", _) => json!({ "status": run, "running": run == "running" }),
                ("query-migrate", _) => migration.clone(),
                other => panic!("{other:?}"),
            };
            // An event between question and answer is not lost.
            qemu.event("NIC_RX_FILTER_CHANGED", json!({})).await;
            qemu.say(&json!({ "return": answer, "id": id })).await;
            if name == "query-migrate" {
                return qemu;
            }
        }
    }
}

impl Qemu {
    async fn say(&mut self, message: &Value) {
        let line = format!("{message}\r\n");
        self.writer.write_all(line.as_bytes()).await.unwrap();
    }

    async fn event(&mut self, name: &str, data: Value) {
        let timestamp = json!({ "seconds": 1_700_000_000, "microseconds": 1 });
        self.say(&json!({ "event": name, "data": data, "timestamp": timestamp }))
            .await;
    }

    async fn migration(&mut self, status: &str) {
        self.event("MIGRATION", json!({ "status": status })).await;
    }
}

/// `natmig qmp-watch --json`.
struct Watcher {
    _child: Child,
    reports: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    fn start(fabric: &Fabric, monitor: &Monitor, arguments: &[&str]) -> Self {
        let socket = monitor.path.to_str().unwrap();
        let mut child = natmig(fabric, &["qmp-watch", "--json", "--socket", socket])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reports = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            _child: child,
            reports,
        }
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.reports.next_line());
        let line = line.await.expect("a report").unwrap();
        serde_json::from_str(&line.expect("the watcher runs")).unwrap()
    }

    /// The next report of this kind; none of `never` comes before.
    async fn until(&mut self, event: &str, never: &[&str]) -> Value {
        loop {
            let report = self.next().await;
            let kind = report["event"].as_str().unwrap();
            assert!(!never.contains(&kind), "{report} before {event}");
            if kind == event {
                return report;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_prepares_and_activates_once_when_its_guest_runs() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let monitor = Monitor::new(&fabric);
    let mut watcher = Watcher::start(&fabric, &monitor, &["--segment", "rack2"]);
    let mut qemu = monitor
        .meet("inmigrate", json!({ "status": "setup" }))
        .await;
    let announced = watcher.until("announced", &["failed"]).await;
    let id = announced["migration"].as_u64().unwrap();
    assert_eq!(announced["found"], false);
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;

    qemu.migration("active").await;
    watcher.until("migration", &["activated"]).await;
    assert_eq!(migrations(&mut client).await[0].phase, Phase::Prepared);
    qemu.event("RESUME", json!({})).await;
    let resumed = watcher.until("resumed", &["activated"]).await;
    assert_eq!(resumed["at"], 1_700_000_000_000_001_000_u64);
    let activated = watcher.until("activated", &["failed"]).await;
    assert_eq!(activated["migration"], id);
    reach(&mut client, id, Phase::is_final).await;
    assert_eq!(segment(&mut client, "vm1").await, "rack2");

    // The guest is paused and goes on; the next migration, which an orchestrator announced, is to
    // take effect when it has left, not because it runs here.
    let mut next = start_request(&["vm1"], "rack3");
    next.activation = v1::Activation::Manual.into();
    let next = start(&mut client, next).await;
    qemu.migration("completed").await;
    qemu.event("STOP", json!({})).await;
    qemu.event("RESUME", json!({})).await;
    // A watcher that starts anew does not take it for its own either.
    drop(watcher);
    drop(qemu);
    let mut watcher = Watcher::start(&fabric, &monitor, &["--segment", "rack2"]);
    let mut qemu = monitor
        .meet("running", json!({ "status": "completed" }))
        .await;
    watcher.until("nothing_to_do", &["activated"]).await;
    reach(&mut client, next, |phase| phase == Phase::Prepared).await;
    qemu.migration("active").await;
    let found = watcher.until("announced", &["activated"]).await;
    assert_eq!(
        (&found["found"], &found["migration"]),
        (&json!(true), &json!(next))
    );
    qemu.migration("completed").await;
    watcher.until("activated", &["failed"]).await;
    reach(&mut client, next, Phase::is_final).await;
    assert_eq!(segment(&mut client, "vm1").await, "rack3");
    assert_eq!(migrations(&mut client).await.len(), 2);
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_announces_aborts_and_activates() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let monitor = Monitor::new(&fabric);
    let arguments = ["--segment", "rack1", "--to", "rack2", "--vm", "vm1"];
    let mut watcher = Watcher::start(&fabric, &monitor, &arguments);
    let mut qemu = monitor.meet("running", json!({})).await;
    for (last, report, place) in [
        ("failed", "aborted", "rack1"),
        ("cancelled", "aborted", "rack1"),
        ("completed", "activated", "rack2"),
    ] {
        qemu.migration("setup").await;
        qemu.migration("active").await;
        let announced = watcher.until("announced", &["failed", "aborted"]).await;
        let id = announced["migration"].as_u64().unwrap();
        qemu.migration("cancelling").await;
        qemu.event("STOP", json!({})).await;
        qemu.migration(last).await;
        watcher.until(report, &["failed"]).await;
        reach(&mut client, id, Phase::is_final).await;
        assert_eq!(segment(&mut client, "vm1").await, place);
    }
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_broken_connections_are_survived() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let monitor = Monitor::new(&fabric);
    let mut watcher = Watcher::start(&fabric, &monitor, &["--segment", "rack2"]);
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "{\"QMP\": {}}\n\x00\x01\n",
        "[]\n",
    ] {
        let mut stream = monitor.accept().await;
        stream.write_all(garbage.as_bytes()).await.unwrap();
        let failed = watcher.until("failed", &["connected"]).await;
        let problem = failed["problem"].as_str().unwrap();
        assert!(problem.contains("does not speak QMP"), "{problem}");
    }
    // Ends in the middle of a line, and without a word.
    let mut stream = monitor.accept().await;
    stream.write_all(b"{\"QMP\": {").await.unwrap();
    drop(stream);
    drop(monitor.accept().await);

    let mut qemu = monitor
        .meet("inmigrate", json!({ "status": "setup" }))
        .await;
    let id = watcher.until("announced", &[]).await["migration"]
        .as_u64()
        .unwrap();
    // Garbage after a good beginning, and the same process is met again.
    qemu.writer.write_all(b"\"event\"\n").await.unwrap();
    let qemu = monitor
        .meet("inmigrate", json!({ "status": "active" }))
        .await;
    watcher.until("connected", &["aborted", "activated"]).await;
    let phase = migrations(&mut client).await[0].phase;
    assert!(
        matches!(phase, Phase::Preparing | Phase::Prepared),
        "{phase}"
    );

    // QEMU ends before its guest ran.
    std::fs::remove_file(&monitor.path).unwrap();
    drop((qemu, monitor));
    let aborted = watcher.until("aborted", &["activated"]).await;
    assert_eq!(aborted["migration"], id);
    reach(&mut client, id, |phase| phase == Phase::Aborted).await;
    assert_eq!(segment(&mut client, "vm1").await, "rack1");

    // The next process at the same place.
    let monitor = Monitor::new(&fabric);
    let mut qemu = monitor.meet("inmigrate", json!({})).await;
    let id = watcher.until("announced", &["failed"]).await["migration"]
        .as_u64()
        .unwrap();
    qemu.event("RESUME", json!({})).await;
    watcher.until("activated", &["failed"]).await;
    reach(&mut client, id, Phase::is_success).await;
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_away_is_told_later() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let monitor = Monitor::new(&fabric);
    let mut watcher = Watcher::start(&fabric, &monitor, &["--segment", "rack2"]);
    let mut qemu = monitor.meet("inmigrate", json!({})).await;
    let id = watcher.until("announced", &[]).await["migration"]
        .as_u64()
        .unwrap();
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    drop(client);
    controller.stop().await;
    std::fs::remove_file(fabric.config().socket).ok();
    qemu.event("RESUME", json!({})).await;
    let failed = watcher.until("failed", &["activated"]).await;
    assert!(
        failed["problem"].as_str().unwrap().contains("controller"),
        "{failed}"
    );
    let controller = fabric.controller().await;
    watcher.until("activated", &[]).await;
    let mut client = fabric.client().await;
    reach(&mut client, id, Phase::is_success).await;
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_left_to_whoever_announced_it() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let mut group = start_request(&["vm1", "vm2"], "rack2");
    group.activation = v1::Activation::Manual.into();
    let id = start(&mut client, group).await;
    let monitor = Monitor::new(&fabric);
    let mut watcher = Watcher::start(&fabric, &monitor, &["--segment", "rack2"]);
    let mut qemu = monitor.meet("inmigrate", json!({})).await;
    let found = watcher.until("announced", &["failed"]).await;
    assert_eq!(
        (&found["found"], &found["migration"]),
        (&json!(true), &json!(id))
    );
    qemu.event("RESUME", json!({})).await;
    let failed = watcher.until("failed", &["activated"]).await;
    assert!(
        failed["problem"]
            .as_str()
            .unwrap()
            .contains("moves 2 VMs as one"),
        "{failed}"
    );
    let view = reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    assert_eq!(view.vms.len(), 2);
    fabric.finish(controller).await;
}

/// A domain as libvirt 9 describes it to a hook.
fn xml(name: &str, mac: &str) -> String {
    format!(
        "<domain type='kvm'>\n  <name>{name}</name>\n  \
         <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>\n  <memory unit='KiB'>1048576</memory>\n  \
         <devices>\n    <emulator>/usr/bin/qemu-system-x86_64</emulator>\n    \
         <interface type='bridge'>\n      <mac address='{mac}'/>\n      <source bridge='br0'/>\n      \
         <model type='virtio'/>\n    </interface>\n  </devices>\n</domain>\n"
    )
}

/// Calls the hook as libvirt does.
async fn hook(fabric: &Fabric, options: &[&str], call: &[&str], xml: &str) -> Output {
    let mut child = natmig(fabric, &["libvirt-hook"])
        .args(options)
        .arg("--")
        .args(call)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // A call with nothing to do ends without reading.
    input.write_all(xml.as_bytes()).await.ok();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    assert!(
        output.stdout.is_empty(),
        "output would replace the domain: {output:?}"
    );
    output
}

async fn call(fabric: &Fabric, segment: &str, call: &[&str]) {
    // A domain may have another name than the VM: its MAC address tells.
    let xml = xml(GUEST, MAC);
    let output = hook(fabric, &["--segment", segment], call, &xml).await;
    assert!(output.status.success(), "{call:?}: {output:?}");
}

async fn phase(client: &mut Client) -> Phase {
    migrations(client).await.last().unwrap().phase
}

async fn ready() -> (Fabric, RunningController, Client) {
    Fabric::ready().await
}

const GUEST: &str = "instance-00000007";
const MAC: &str = "02:00:00:00:00:0a";

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_migrates_a_guest() {
    let (fabric, controller, mut client) = ready().await;
    call(&fabric, "rack2", &[GUEST, "migrate", "begin", "-"]).await;
    assert_eq!(phase(&mut client).await, Phase::Prepared);
    for operation in ["prepare", "start", "started"] {
        call(&fabric, "rack2", &[GUEST, operation, "begin", "-"]).await;
    }
    call(&fabric, "rack1", &[GUEST, "stopped", "end", "-"]).await;
    assert_eq!(phase(&mut client).await, Phase::Prepared);
    call(&fabric, "rack1", &[GUEST, "release", "end", "migrated"]).await;
    reach(&mut client, 1, Phase::is_final).await;
    assert_eq!(segment(&mut client, "vm1").await, "rack2");
    // Back, with a libvirt that gives no reasons: the guest may as well have been destroyed, until it
    // is heard. Then within the segment, which is none of natmig's.
    call(&fabric, "rack1", &[GUEST, "migrate", "begin", "-"]).await;
    call(&fabric, "rack2", &[GUEST, "release", "end", "-"]).await;
    assert_eq!(phase(&mut client).await, Phase::Prepared);
    speak(&fabric.memory("edge1"), MAC.parse().unwrap(), 1);
    reach(&mut client, 2, Phase::is_final).await;
    assert_eq!(segment(&mut client, "vm1").await, "rack1");
    call(&fabric, "rack1", &[GUEST, "migrate", "begin", "-"]).await;
    call(&fabric, "rack1", &[GUEST, "release", "end", "migrated"]).await;
    assert_eq!(migrations(&mut client).await.len(), 2);
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_gives_a_migration_up() {
    let (fabric, controller, mut client) = ready().await;
    for (host, reason) in [
        ("rack2", "failed"),
        ("rack2", "-"),
        ("rack2", "destroyed"),
        ("rack1", "crashed"),
        ("rack1", "shutdown"),
    ] {
        call(&fabric, "rack2", &[GUEST, "migrate", "begin", "-"]).await;
        assert_eq!(phase(&mut client).await, Phase::Prepared);
        call(&fabric, host, &[GUEST, "release", "end", reason]).await;
        let id = migrations(&mut client).await.last().unwrap().id;
        reach(&mut client, id.0, |phase| phase == Phase::Aborted).await;
    }
    assert_eq!(segment(&mut client, "vm1").await, "rack1");
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_cancels_the_guests_migration_unless_told_otherwise() {
    let (fabric, controller, mut client) = ready().await;
    let begin = [GUEST, "migrate", "begin", "-"];
    let guest = xml(GUEST, "02:00:00:00:00:0a");
    let nowhere = ["--segment", "nowhere"];
    let output = hook(&fabric, &nowhere, &begin, &guest).await;
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("nowhere"),
        "{output:?}"
    );
    let proceed = ["--segment", "nowhere", "--on-failure", "proceed"];
    let output = hook(&fabric, &proceed, &begin, &guest).await;
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("nowhere"),
        "{output:?}"
    );

    // What is no domain is refused; libvirt's daemon itself cannot be asked.
    let output = hook(&fabric, &["--segment", "rack2"], &begin, "<domain>").await;
    assert!(!output.status.success());

    // A router does not prepare in time: nothing of the migration is left.
    fabric.memory("core1").lock().unwrap().stuck = true;
    let hurried = ["--segment", "rack2", "--timeout", "50ms"];
    let output = hook(&fabric, &hurried, &begin, &guest).await;
    assert!(!output.status.success(), "{output:?}");
    fabric.memory("core1").lock().unwrap().stuck = false;
    let id = migrations(&mut client).await.last().unwrap().id;
    reach(&mut client, id.0, |phase| phase == Phase::Aborted).await;

    // A guest that natmig does not know is none of its business.
    let stranger = xml("stranger", "52:54:00:00:00:01");
    let output = hook(
        &fabric,
        &["--segment", "rack2"],
        &["stranger", "migrate", "begin", "-"],
        &stranger,
    )
    .await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(migrations(&mut client).await.len(), 1);
    fabric.finish(controller).await;
}

#[tokio::test]
async fn no_other_operation_can_fail_a_guest() {
    // No controller runs.
    let fabric = Fabric::new();
    for operation in [
        "prepare",
        "start",
        "started",
        "reconnect",
        "attach",
        "restore",
    ] {
        let call = [GUEST, operation, "begin", "-"];
        let output = hook(&fabric, &["--segment", "rack2"], &call, "no XML").await;
        assert!(output.status.success(), "{operation}: {output:?}");
    }
    let begin = [GUEST, "migrate", "begin", "-"];
    let output = hook(
        &fabric,
        &["--segment", "rack2"],
        &begin,
        &xml(GUEST, "02:00:00:00:00:0a"),
    )
    .await;
    assert!(!output.status.success());
}
