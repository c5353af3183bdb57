//! Controller and agents in one process, with tables in memory: what a migration goes through, and
//! what survives the death of either side.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    net::SocketAddr,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use natmig::{
    controller::{self, ControllerConfig},
    coordinator::{Config, Phase, StoreOp, Stored},
    proto::v1,
    rule::{MacAddress, Rule},
    store::{FileStore, Leadership, Store, StoreError},
};
use support::{
    Client, CrashingStore, Fabric, Memory, ROUTERS, RunningController, all_in_sync, reach, set_up,
    speak, start, start_request, until, vm, vms,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn vm_moves_moves_on_and_returns() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    for segment in ["rack2", "rack3", "rack1"] {
        let begun = Instant::now();
        let id = start(&mut client, start_request(&["vm1"], segment)).await;
        let view = reach(&mut client, id, Phase::is_success).await;
        println!(
            "to {segment}: committed after {:?}, prepare {:?}, commit {:?}, spread {:?}",
            begun.elapsed(),
            view.prepare_ns.map(Duration::from_nanos),
            view.commit_ns.map(Duration::from_nanos),
            view.commit_spread_ns.map(Duration::from_nanos),
        );
        assert!(
            view.routers
                .iter()
                .all(|router| router.progress.committed_at().is_some())
        );
        reach(&mut client, id, Phase::is_final).await;
        fabric.tables_agree(&vms(&mut client).await).unwrap();
    }
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_operators_come_over_tcp() {
    let mut fabric = Fabric::new();
    let config = ControllerConfig {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        insecure: true,
        ..fabric.config()
    };
    let store = Box::new(fabric.store());
    let controller = controller::start_with(&config, store, support::times())
        .await
        .unwrap();
    let endpoint = format!("http://{}", controller.address().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(controller.run(async {
        stopped.await.ok();
    }));
    for router in ROUTERS {
        fabric.start_agent_at(router, &endpoint);
    }
    let mut client = v1::control_service_client::ControlServiceClient::connect(endpoint)
        .await
        .unwrap();
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    let id = start(&mut client, start_request(&["vm1", "vm2"], "rack2")).await;
    let view = reach(&mut client, id, Phase::is_success).await;
    println!("over TCP: {:?}", view.commit_ns.map(Duration::from_nanos));
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn group_of_a_thousand_fits() {
    let mut fabric = Fabric::new();
    let controller = fabric.controller().await;
    fabric.start_agents();
    let mut client = fabric.client().await;
    let text = support::TOPOLOGY
        .replace("10.1.1.0/24", "10.1.0.0/20")
        .replace("10.1.1.1\"", "10.1.0.1\"")
        .replace("10.1.1.128/25", "10.1.15.0/24")
        .replace("10.1.2", "10.2.0")
        .replace("10.2.0.0/24", "10.2.0.0/16")
        .replace("10.2.0.128/25", "10.2.128.0/17")
        .replace("10.1.3", "10.3.0");
    let file = "large.toml".to_owned();
    client
        .apply_topology(v1::ApplyTopologyRequest { text, file })
        .await
        .unwrap();
    let group: Vec<v1::Vm> = (0..1000_u16)
        .map(|number| {
            let [high, low] = (number + 256).to_be_bytes();
            v1::Vm {
                name: format!("vm{number}"),
                identities: vec![vec![10, 1, high, low]],
                mac: vec![2, 0, 0, 0, high, low],
                home: "rack1".to_owned(),
            }
        })
        .collect();
    client
        .add_vms(v1::AddVmsRequest { vms: group.clone() })
        .await
        .unwrap();
    all_in_sync(&mut client).await;
    let names: Vec<&str> = group.iter().map(|vm| vm.name.as_str()).collect();
    let begun = Instant::now();
    let id = start(&mut client, start_request(&names, "rack2")).await;
    let view = reach(&mut client, id, Phase::is_success).await;
    println!(
        "1000 VMs committed after {:?}, commit {:?}",
        begun.elapsed(),
        view.commit_ns.map(Duration::from_nanos)
    );
    reach(&mut client, id, Phase::is_final).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

/// A store that takes until it is let go for every change, while it is held.
struct HeldStore {
    inner: FileStore,
    hold: Arc<Hold>,
}

#[derive(Default)]
struct Hold {
    held: AtomicBool,
    /// A change waits.
    waiting: AtomicBool,
}

impl Store for HeldStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.inner.load()
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        while self.hold.held.load(Ordering::SeqCst) {
            self.hold.waiting.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner.apply(ops)
    }

    fn begin_term(&mut self, at_least: u64) -> Result<u64, StoreError> {
        self.inner.begin_term(at_least)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        self.inner.confirm()
    }

    fn leadership(&self) -> Leadership {
        self.inner.leadership()
    }
}

/// Once the decision is durable, all routers commit, stage by stage, while the store is busy with
/// something else; success is told when the store has done that.
#[tokio::test(flavor = "multi_thread")]
async fn commits_do_not_wait_for_what_else_is_stored() {
    let mut fabric = Fabric::new();
    let hold = Arc::new(Hold::default());
    let store = HeldStore {
        inner: fabric.store(),
        hold: Arc::clone(&hold),
    };
    let controller = fabric.controller_with(Box::new(store)).await;
    fabric.start_agents();
    let mut client = fabric.client().await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;

    let memories: Vec<_> = ROUTERS.map(|router| fabric.memory(router)).into();
    for memory in &memories {
        memory.lock().unwrap().stuck_at = Some("commit");
    }
    let id = start(&mut client, start_request(&["vm1"], "rack2")).await;
    until("it is decided", async || {
        let waits = |memory: &Arc<Mutex<Memory>>| {
            memory.lock().unwrap().waiting.as_deref() == Some("commit")
        };
        let decided = memories.iter().any(waits);
        decided.then_some(()).ok_or_else(String::new)
    })
    .await;
    hold.held.store(true, Ordering::SeqCst);
    let adding = tokio::spawn({
        let mut client = client.clone();
        async move {
            let vms = vec![vm("vm4", 13)];
            client.add_vms(v1::AddVmsRequest { vms }).await
        }
    });
    until("the store is busy", async || {
        let waiting = hold.waiting.load(Ordering::SeqCst);
        waiting.then_some(()).ok_or_else(String::new)
    })
    .await;
    for memory in &memories {
        memory.lock().unwrap().stuck_at = None;
    }
    until("all routers have committed", async || {
        let committed = |memory: &Arc<Mutex<Memory>>| {
            let held = memory.lock().unwrap();
            let mut held = held.held.values();
            held.any(|(_, committed)| committed.is_some())
        };
        let count = memories.iter().filter(|memory| committed(memory)).count();
        (count == ROUTERS.len())
            .then_some(())
            .ok_or_else(|| format!("{count} have"))
    })
    .await;
    assert!(
        !adding.is_finished(),
        "what is not durable was acknowledged"
    );

    hold.held.store(false, Ordering::SeqCst);
    adding.await.unwrap().unwrap();
    reach(&mut client, id, Phase::is_final).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

/// The controller dies at each change of its store, before and after it is durable, and is started
/// again: what was under way ends whole, one way or the other.
#[tokio::test(flavor = "multi_thread")]
async fn controller_killed_at_every_store_finishes_or_aborts() {
    let mut seen = std::collections::BTreeSet::new();
    for durable in [false, true] {
        let mut deaths = 0;
        loop {
            let (mut fabric, controller, client) = Fabric::ready().await;
            drop(client);
            controller.stop().await;
            let crashing = CrashingStore {
                inner: fabric.store(),
                remaining: deaths,
                durable,
            };
            let controller = fabric.controller_with(Box::new(crashing)).await;
            let mut client = fabric.client().await;
            all_in_sync(&mut client).await;
            let started = client
                .start_migration(start_request(&["vm1", "vm2"], "rack2"))
                .await;
            let outcome = until("the controller dies or the migration ends", async || {
                if controller.task.is_finished() {
                    return Ok(None);
                }
                let views = client
                    .list_migrations(v1::ListMigrationsRequest {})
                    .await
                    .map(|answer| answer.into_inner().migrations)
                    .unwrap_or_default();
                match views.first().map(v1::Migration::phase) {
                    Some(v1::Phase::Done) => Ok(Some(())),
                    phase => Err(format!("{phase:?}")),
                }
            })
            .await;
            if outcome.is_some() {
                fabric.finish(controller).await;
                break;
            }
            assert!(controller.task.await.unwrap().is_err());
            if deaths % 2 == 1 {
                // An agent dies as well, and comes back with what its tables hold.
                fabric.stop_agent("edge2").await;
                fabric.start_agent("edge2");
            }
            let controller = fabric.controller().await;
            let mut client = fabric.client().await;
            let phase = until("the migration ends", async || {
                let views = client
                    .list_migrations(v1::ListMigrationsRequest {})
                    .await
                    .unwrap()
                    .into_inner()
                    .migrations;
                match views.first().map(v1::Migration::phase) {
                    None => Ok(None),
                    Some(phase @ (v1::Phase::Done | v1::Phase::Aborted)) => Ok(Some(phase)),
                    phase => Err(format!("{phase:?}")),
                }
            })
            .await;
            assert!(
                started.is_err() || phase.is_some(),
                "an acknowledged migration was lost"
            );
            let known = vms(&mut client).await;
            let segments: Vec<_> = known
                .iter()
                .map(|vm| vm.place.clone().unwrap().segment)
                .collect();
            let expected = if phase == Some(v1::Phase::Done) {
                ["rack2", "rack2", "rack1"]
            } else {
                ["rack1"; 3]
            };
            assert_eq!(segments, expected, "after {phase:?}");
            until("tables agree", async || fabric.tables_agree(&known)).await;
            seen.insert(format!("{phase:?}"));
            fabric.finish(controller).await;
            deaths += 1;
        }
        assert!(deaths >= 4, "the migration passed through {deaths} stores");
    }
    assert!(seen.contains("Some(Done)"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_restarts_in_doubt_is_told_the_outcome() {
    let (mut fabric, controller, mut client) = Fabric::ready().await;
    let mut request = start_request(&["vm1"], "rack2");
    request.activation = v1::Activation::Manual.into();
    let id = start(&mut client, request).await;
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    for router in ROUTERS {
        fabric.stop_agent(router).await;
    }
    assert_eq!(fabric.memory("edge2").lock().unwrap().held.len(), 1);
    fabric.start_agents();
    all_in_sync(&mut client).await;
    client
        .activate_migration(v1::ActivateMigrationRequest { id })
        .await
        .unwrap();
    reach(&mut client, id, Phase::is_final).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_that_is_heard_while_agents_or_controller_are_away_commits_its_migration() {
    let (mut fabric, mut controller, mut client) = Fabric::ready().await;
    let mac = MacAddress(vm("vm1", 10).mac.try_into().unwrap());
    for (number, segment) in (1_u64..).zip(["rack2", "rack3", "rack1"]) {
        let edge = segment.replace("rack", "edge");
        let mut request = start_request(&["vm1"], segment);
        request.activation = v1::Activation::OnAnnounce.into();
        let id = start(&mut client, request).await;
        reach(&mut client, id, |phase| phase == Phase::Prepared).await;
        for router in ROUTERS.iter().filter(|router| **router != edge) {
            // It speaks where nobody waits for it.
            speak(&fabric.memory(router), mac, number);
        }
        match segment {
            "rack2" => speak(&fabric.memory(&edge), mac, number),
            "rack3" => {
                fabric.stop_agent(&edge).await;
                speak(&fabric.memory(&edge), mac, number);
                fabric.start_agent(&edge);
            }
            _ => {
                controller.stop().await;
                speak(&fabric.memory(&edge), mac, number);
                controller = fabric.controller().await;
                client = fabric.client().await;
            }
        }
        let view = reach(&mut client, id, Phase::is_success).await;
        let heard = view.vms[0].heard.clone().unwrap();
        assert_eq!((heard.router.as_str(), heard.at.0), (&*edge, number));
        reach(&mut client, id, Phase::is_final).await;
        assert!(fabric.memory(&edge).lock().unwrap().awaited.is_empty());
    }
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_router_is_passed_over_and_caught_up() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let mut request = start_request(&["vm1"], "rack2");
    request.activation = v1::Activation::Manual.into();
    let id = start(&mut client, request).await;
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    fabric.memory("core1").lock().unwrap().stuck = true;
    client
        .activate_migration(v1::ActivateMigrationRequest { id })
        .await
        .unwrap();
    let view = reach(&mut client, id, Phase::is_success).await;
    let core = view
        .routers
        .iter()
        .find(|router| router.router.as_str() == "core1")
        .unwrap();
    assert!(core.passed_over, "{core:?}");
    assert_eq!(view.phase, Phase::Committed);
    fabric.memory("core1").lock().unwrap().stuck = false;
    reach(&mut client, id, Phase::is_final).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn router_that_does_not_answer_aborts_the_migration() {
    let (mut fabric, controller, mut client) = Fabric::ready().await;
    fabric.stop_agent("edge3").await;
    let id = start(&mut client, start_request(&["vm1"], "rack2")).await;
    let view = reach(&mut client, id, Phase::is_final).await;
    assert_eq!(view.phase, Phase::Aborted);
    assert!(view.error.unwrap().contains("edge3"));
    fabric.start_agent("edge3");
    all_in_sync(&mut client).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();

    // Attested not forwarding, it is not needed.
    fabric.stop_agent("edge3").await;
    client
        .drain_router(v1::DrainRouterRequest {
            name: "edge3".to_owned(),
        })
        .await
        .unwrap();
    let id = start(&mut client, start_request(&["vm1"], "rack2")).await;
    assert!(
        reach(&mut client, id, Phase::is_settled)
            .await
            .phase
            .is_success()
    );
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_change_nothing_and_say_why() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    let mut request = start_request(&["vm1"], "rack2");
    request.activation = v1::Activation::Manual.into();
    let id = start(&mut client, request.clone()).await;

    let busy = client.start_migration(request).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("busy"), "{busy}");
    let unknown = client
        .start_migration(start_request(&["vm9"], "rack2"))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let many: Vec<v1::Vm> = (20..26)
        .map(|last| vm(&format!("vm{last}"), last))
        .collect();
    client
        .add_vms(v1::AddVmsRequest { vms: many.clone() })
        .await
        .unwrap();
    let names: Vec<&str> = many.iter().map(|vm| vm.name.as_str()).collect();
    let exhausted = client
        .start_migration(start_request(&names, "rack3"))
        .await
        .unwrap_err();
    assert_eq!(exhausted.code(), Code::FailedPrecondition);
    assert!(exhausted.message().contains("exhausted"), "{exhausted}");
    let nothing = client
        .start_migration(start_request(&[], "rack3"))
        .await
        .unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let mut garbage = vm("vm99", 99);
    garbage.mac = vec![1, 2, 3];
    let garbage = client
        .add_vms(v1::AddVmsRequest { vms: vec![garbage] })
        .await
        .unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument);
    assert!(garbage.message().contains("vm.mac"), "{garbage}");
    let topology = client
        .apply_topology(v1::ApplyTopologyRequest {
            text: "[[router]]\nname = 3\n".to_owned(),
            file: "bad.toml".to_owned(),
        })
        .await
        .unwrap_err();
    assert!(topology.message().contains("bad.toml:2:8"), "{topology}");

    client
        .abort_migration(v1::AbortMigrationRequest { id })
        .await
        .unwrap();
    let view = reach(&mut client, id, Phase::is_final).await;
    assert_eq!(view.phase, Phase::Aborted);
    let again = client
        .abort_migration(v1::AbortMigrationRequest { id: 777 })
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    fabric.finish(controller).await;
}

/// The command line on the fabric's controller.
fn natmig(fabric: &Fabric, arguments: &[&str]) -> Output {
    let socket = fabric.config().socket;
    Command::new(env!("CARGO_BIN_EXE_natmig"))
        .env("NATMIG_CONTROLLER", format!("unix://{}", socket.display()))
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_too_many_is_refused_until_another_one_is_done() {
    let mut fabric = Fabric::new();
    let two = Config {
        under_way: 2,
        ..support::times()
    };
    let store = Box::new(fabric.store());
    let controller = fabric.controller_that_keeps(store, two).await;
    fabric.start_agents();
    let mut client = fabric.client().await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    let mut under_way = Vec::new();
    for vm in ["vm1", "vm2"] {
        let mut request = start_request(&[vm], "rack2");
        request.activation = v1::Activation::Manual.into();
        let id = start(&mut client, request).await;
        reach(&mut client, id, |phase| phase == Phase::Prepared).await;
        under_way.push(id);
    }
    let migrations = async |client: &mut Client| {
        let all = client.list_migrations(v1::ListMigrationsRequest {}).await;
        all.unwrap().into_inner().migrations
    };
    let (before, known) = (migrations(&mut client).await, vms(&mut client).await);

    let refusal = client
        .start_migration(start_request(&["vm3"], "rack2"))
        .await
        .unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    let third = ["migrate", "vm3", "--to", "rack2", "--wait", "--json"];
    for arguments in [&third[..5], &third] {
        let output = natmig(&fabric, arguments);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, format!("natmig: {}\n", refusal.message()));
        for part in ["2 migrations are under way", "try again", "migration list"] {
            assert!(error.contains(part), "{error}");
        }
    }
    assert_eq!(migrations(&mut client).await, before);
    assert_eq!(vms(&mut client).await, known);

    // One is done, and there is room for one.
    let activate = async |client: &mut Client, id: u64| {
        let request = v1::ActivateMigrationRequest { id };
        client.activate_migration(request).await.unwrap();
        reach(client, id, Phase::is_final).await
    };
    let view = activate(&mut client, under_way[0]).await;
    assert_eq!(view.phase, Phase::Done);
    let output = natmig(&fabric, &third);
    assert!(output.status.success(), "{output:?}");
    let started: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = started["id"].as_u64().unwrap();
    // The refused ones have taken no number.
    assert_eq!(id, under_way[1] + 1);
    reach(&mut client, id, Phase::is_final).await;
    let view = activate(&mut client, under_way[1]).await;
    assert_eq!(view.phase, Phase::Done);
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn router_that_refuses_to_prepare_aborts_the_migration() {
    let (fabric, controller, mut client) = Fabric::ready().await;
    fabric.memory("edge2").lock().unwrap().refuses = true;
    let id = start(&mut client, start_request(&["vm1"], "rack2")).await;
    let view = reach(&mut client, id, Phase::is_final).await;
    assert_eq!(view.phase, Phase::Aborted);
    assert!(view.error.unwrap().contains("slots"));
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn router_with_a_foreign_table_is_repaired() {
    let mut fabric = Fabric::new();
    fabric.memory("core1").lock().unwrap().table.insert(
        [10, 9, 9, 9].into(),
        Rule::Known {
            identity: [10, 9, 9, 1].into(),
        },
    );
    let controller = fabric.controller().await;
    fabric.start_agents();
    let mut client = fabric.client().await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    fabric.tables_agree(&vms(&mut client).await).unwrap();
    assert!(!fabric.memory("core1").lock().unwrap().pools.is_empty());
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_of_a_lower_term_is_refused() {
    let (mut fabric, controller, mut client) = Fabric::ready().await;
    fabric.stop_agent("edge1").await;
    let future = u64::MAX / 2;
    let commands = {
        let memory = fabric.memory("edge1");
        let mut memory = memory.lock().unwrap();
        memory.term = future;
        memory.reports = 0;
        memory.log.len()
    };
    fabric.start_agent("edge1");
    // The agent reports anew only when the session before was refused and ended.
    until("the controller to be refused twice", async || {
        let reports = fabric.memory("edge1").lock().unwrap().reports;
        if reports > 2 {
            Ok(())
        } else {
            Err(format!("{reports} reports"))
        }
    })
    .await;
    let routers = client
        .list_routers(v1::ListRoutersRequest {})
        .await
        .unwrap()
        .into_inner();
    let edge1 = routers
        .routers
        .iter()
        .find(|router| router.name == "edge1")
        .unwrap();
    assert!(!edge1.in_sync);
    {
        let memory = fabric.memory("edge1");
        let memory = memory.lock().unwrap();
        assert_eq!(memory.term, future);
        assert_eq!(memory.log.len(), commands, "{:?}", memory.log);
    }
    fabric.finish(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_controller_on_the_same_store_is_refused() {
    let (fabric, controller, _client) = Fabric::ready().await;
    let mut config = fabric.config();
    let error = controller::start(&config).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another controller listens on this socket"),
        "{error}"
    );
    config.socket.set_extension("second");
    let error = controller::start(&config).await.unwrap_err();
    assert!(
        error.to_string().contains("in use by another controller"),
        "{error}"
    );
    fabric.finish(controller).await;
}

/// An error unless the metrics have all of these lines.
async fn metrics_say(address: SocketAddr, lines: &[&str]) -> Result<(), String> {
    let mut scraper = TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: controller\r\n\r\n";
    scraper.write_all(request).await.unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in lines {
        if !text.lines().any(|found| found == *line) {
            return Err(format!("no `{line}` in\n{text}"));
        }
    }
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_the_controller_has_to_do_and_did() {
    let mut fabric = Fabric::new();
    let config = ControllerConfig {
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        ..fabric.config()
    };
    let times = Config {
        under_way: 7,
        ..support::times()
    };
    let store = Box::new(fabric.store());
    let controller = controller::start_with(&config, store, times).await.unwrap();
    let address = controller.metrics_address().unwrap();
    let controller = RunningController::of(controller);
    let second = ControllerConfig {
        socket: fabric.path("second.sock"),
        metrics: Some(address),
        ..fabric.config()
    };
    let error = controller::start(&second).await.unwrap_err().to_string();
    assert!(error.contains("set metrics = "), "{error}");

    let mut client = fabric.client().await;
    let status = client.get_controller(v1::GetControllerRequest {}).await;
    let term = status.unwrap().into_inner().term;
    let lines = [
        "natmig_leads 1",
        &format!("natmig_term {term}"),
        "natmig_migrations{phase=\"preparing\"} 0",
        "natmig_migrations_under_way 0",
        "natmig_migration_capacity 7",
        "natmig_migrations_decided_total{outcome=\"committed\"} 0",
        "natmig_refused_commands_total{reason=\"fenced\"} 0",
        "natmig_store_seconds_count{operation=\"begin_term\"} 1",
        "natmig_store_seconds_count{operation=\"load\"} 1",
        "natmig_store_seconds_count{operation=\"apply\"} 0",
        "natmig_store_errors_total 0",
    ];
    metrics_say(address, &lines).await.unwrap();

    fabric.start_agents();
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    let mut request = start_request(&["vm1"], "rack2");
    request.activation = v1::Activation::Manual.into();
    let id = start(&mut client, request).await;
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    let lines = [
        "natmig_migrations{phase=\"prepared\"} 1",
        "natmig_migrations{phase=\"committed\"} 0",
        "natmig_migrations_under_way 1",
        "natmig_migrations_decided_total{outcome=\"committed\"} 0",
        "natmig_router_connected{router=\"edge1\",tier=\"edge\"} 1",
        "natmig_router_in_sync{router=\"core1\",tier=\"core\"} 1",
        "natmig_router_drained{router=\"core1\",tier=\"core\"} 0",
    ];
    metrics_say(address, &lines).await.unwrap();

    // A router is passed over: success, but not everywhere.
    fabric.memory("core1").lock().unwrap().stuck = true;
    client
        .activate_migration(v1::ActivateMigrationRequest { id })
        .await
        .unwrap();
    let view = reach(&mut client, id, Phase::is_success).await;
    assert_eq!(view.phase, Phase::Committed);
    let lines = [
        "natmig_migrations{phase=\"prepared\"} 0",
        "natmig_migrations{phase=\"committed\"} 1",
        "natmig_migrations_under_way 1",
        "natmig_migrations_decided_total{outcome=\"committed\"} 1",
        "natmig_migration_seconds_count{activation=\"manual\"} 0",
        "natmig_commit_seconds_count 0",
        "natmig_router_connected{router=\"core1\",tier=\"core\"} 1",
        "natmig_router_in_sync{router=\"core1\",tier=\"core\"} 0",
        "natmig_router_in_sync{router=\"edge1\",tier=\"edge\"} 1",
    ];
    metrics_say(address, &lines).await.unwrap();
    fabric.memory("core1").lock().unwrap().stuck = false;
    reach(&mut client, id, Phase::is_final).await;
    let lines = [
        "natmig_migrations{phase=\"committed\"} 0",
        "natmig_migrations_under_way 0",
        "natmig_migrations_decided_total{outcome=\"committed\"} 1",
        "natmig_migrations_decided_total{outcome=\"aborted\"} 0",
        "natmig_migration_seconds_count{activation=\"manual\"} 1",
        "natmig_migration_seconds_count{activation=\"immediate\"} 0",
        "natmig_commit_seconds_count 1",
        "natmig_commit_spread_seconds_count 1",
        "natmig_router_in_sync{router=\"core1\",tier=\"core\"} 1",
        "natmig_refused_commands_total{reason=\"failed\"} 0",
    ];
    metrics_say(address, &lines).await.unwrap();

    fabric.memory("edge2").lock().unwrap().refuses = true;
    let id = start(&mut client, start_request(&["vm2"], "rack2")).await;
    let view = reach(&mut client, id, Phase::is_final).await;
    assert_eq!(view.phase, Phase::Aborted);
    fabric.stop_agent("edge3").await;
    let name = "edge3".to_owned();
    let drain = client.drain_router(v1::DrainRouterRequest { name }).await;
    drain.unwrap();
    let lines = [
        "natmig_migrations{phase=\"aborted\"} 0",
        "natmig_migrations_decided_total{outcome=\"committed\"} 1",
        "natmig_migrations_decided_total{outcome=\"aborted\"} 1",
        "natmig_migration_seconds_count{activation=\"immediate\"} 0",
        "natmig_commit_seconds_count 1",
        "natmig_refused_commands_total{reason=\"failed\"} 1",
        "natmig_router_connected{router=\"edge3\",tier=\"edge\"} 0",
        "natmig_router_in_sync{router=\"edge3\",tier=\"edge\"} 0",
        "natmig_router_drained{router=\"edge3\",tier=\"edge\"} 1",
    ];
    // The controller notices by itself that the agent is gone.
    until("metrics say so", async || {
        metrics_say(address, &lines).await
    })
    .await;
    fabric.finish(controller).await;
}
