//! Several controllers on etcd, as processes: whatever dies, one leads, and what was begun is finished
//! once and whole.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use natmig::{
    coordinator::Phase,
    proto::{StandingBy, v1},
};
use support::{
    Client, Fabric, ROUTERS, all_in_sync, controllers::Controllers, set_up, start, start_request,
    until, vms,
};
use tonic::Code;

/// Agents that know all controllers, a topology and three VMs.
async fn ready(controllers: &Controllers) -> Fabric {
    let mut fabric = Fabric::new();
    for router in ROUTERS {
        fabric.start_agent_of(router, controllers.urls());
    }
    let mut client = controllers.client().await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    fabric
}

async fn phase(client: &mut Client, id: u64) -> Result<Phase, String> {
    let answer = client
        .get_migration(v1::GetMigrationRequest { id })
        .await
        .map_err(|status| status.to_string())?;
    let view: natmig::coordinator::MigrationView = answer
        .into_inner()
        .migration
        .unwrap()
        .try_into()
        .map_err(|error: natmig::proto::Malformed| error.to_string())?;
    Ok(view.phase)
}

async fn reach(client: &mut Client, id: u64, goal: impl Fn(Phase) -> bool) -> Phase {
    until("the migration gets there", async || {
        let phase = phase(client, id).await?;
        if goal(phase) {
            Ok(phase)
        } else {
            Err(phase.to_string())
        }
    })
    .await
}

/// Where a migration stands when its leader is killed.
struct Case {
    name: &'static str,
    /// The command that does not get through meanwhile, and to which routers.
    stuck: Option<(&'static str, &'static [&'static str])>,
    to: &'static str,
}

const CASES: [Case; 6] = [
    Case {
        name: "prepare sent",
        stuck: Some(("prepare", &["edge2", "core1"])),
        to: "rack2",
    },
    Case {
        name: "all prepared",
        stuck: None,
        to: "rack3",
    },
    Case {
        name: "decided",
        stuck: Some(("commit", &ROUTERS)),
        to: "rack2",
    },
    Case {
        name: "mid commit",
        stuck: Some(("commit", &["core1"])),
        to: "rack3",
    },
    Case {
        name: "fold",
        stuck: Some(("fold", &["edge3"])),
        to: "rack2",
    },
    Case {
        name: "retire",
        stuck: Some(("retire", &["edge3"])),
        to: "rack1",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn successor_finishes_what_a_killed_leader_has_begun() {
    let Some(mut controllers) = Controllers::start(3, 1).await else {
        return;
    };
    let fabric = ready(&controllers).await;
    for case in CASES {
        let leader = controllers.leader().await;
        let mut client = controllers.client_of(leader).await.unwrap();
        all_in_sync(&mut client).await;
        if let Some((command, routers)) = case.stuck {
            for router in routers {
                fabric.memory(router).lock().unwrap().stuck_at = Some(command);
            }
        }
        let mut request = start_request(&["vm1", "vm2"], case.to);
        request.unreachable = v1::UnreachablePolicy::Wait.into();
        if case.stuck.is_none() {
            request.activation = v1::Activation::Manual.into();
        }
        let id = start(&mut client, request).await;
        if let Some((command, routers)) = case.stuck {
            // Where all are stuck, the first stage alone gets the command.
            until("the command arrives", async || {
                let arrived = routers.iter().any(|router| {
                    fabric.memory(router).lock().unwrap().waiting.as_deref() == Some(command)
                });
                arrived.then_some(()).ok_or_else(|| "not yet".to_owned())
            })
            .await;
        } else {
            reach(&mut client, id, |phase| phase == Phase::Prepared).await;
        }
        let killed = Instant::now();
        controllers.kill(leader);
        for router in ROUTERS {
            fabric.memory(router).lock().unwrap().stuck_at = None;
        }
        let successor = controllers.leader().await;
        let elected = killed.elapsed();
        assert_ne!(successor, leader);
        let mut client = controllers.client_of(successor).await.unwrap();
        if case.stuck.is_none() {
            client
                .activate_migration(v1::ActivateMigrationRequest { id })
                .await
                .unwrap();
        }
        reach(&mut client, id, Phase::is_success).await;
        let committed = killed.elapsed();
        let end = reach(&mut client, id, Phase::is_final).await;
        println!(
            "{:13} elected after {elected:?}, committed after {committed:?}, finished after {:?}",
            case.name,
            killed.elapsed()
        );
        assert_eq!(end, Phase::Done, "{}", case.name);
        let known = vms(&mut client).await;
        let places: Vec<_> = known
            .iter()
            .map(|vm| vm.place.clone().unwrap().segment)
            .collect();
        assert_eq!(places, [case.to, case.to, "rack1"], "{}", case.name);
        until("tables agree", async || fabric.tables_agree(&known)).await;
        controllers.spawn(leader);
    }
}

/// The leader is stopped for longer than its lease, with a migration prepared, one router that hears
/// of no other controller, and a request to commit in its socket. Its successor aborts.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_leader_changes_no_outcome() {
    let Some(controllers) = Controllers::start(2, 1).await else {
        return;
    };
    let leader = controllers.leader().await;
    let mut fabric = Fabric::new();
    for router in ["edge1", "edge2", "core1"] {
        fabric.start_agent_of(router, controllers.urls());
    }
    fabric.start_agent_at("edge3", &controllers.url(leader));
    let mut client = controllers.client_of(leader).await.unwrap();
    set_up(&mut client).await;
    all_in_sync(&mut client).await;
    let mut request = start_request(&["vm1"], "rack3");
    request.activation = v1::Activation::Manual.into();
    let id = start(&mut client, request).await;
    reach(&mut client, id, |phase| phase == Phase::Prepared).await;
    let old_term = controllers.status(leader).await.unwrap().term;

    controllers.stop(leader);
    let activation = tokio::spawn(async move {
        client
            .activate_migration(v1::ActivateMigrationRequest { id })
            .await
    });
    let successor = controllers.leader().await;
    assert_ne!(successor, leader);
    let mut client = controllers.client_of(successor).await.unwrap();
    assert!(controllers.status(successor).await.unwrap().term > old_term);
    client
        .abort_migration(v1::AbortMigrationRequest { id })
        .await
        .unwrap();
    // The edge on which the VM would arrive has to answer first.
    reach(&mut client, id, |phase| phase == Phase::Aborting).await;
    assert_eq!(fabric.memory("edge3").lock().unwrap().term, old_term);

    controllers.resume(leader);
    let refused = activation.await.unwrap().unwrap_err();
    assert!(
        matches!(refused.code(), Code::Unavailable | Code::Unknown),
        "{refused}"
    );
    // The old leader sends the last router to its successor.
    all_in_sync(&mut client).await;
    let end = reach(&mut client, id, Phase::is_final).await;
    assert_eq!(end, Phase::Aborted);
    for router in ROUTERS {
        let memory = fabric.memory(router);
        let memory = memory.lock().unwrap();
        assert!(memory.term > old_term, "{router}");
        assert!(!memory.log.contains(&"commit".to_owned()), "{router}");
    }
    let known = vms(&mut client).await;
    until("tables agree", async || fabric.tables_agree(&known)).await;
    assert!(!controllers.status(leader).await.unwrap().leads);
    // All is well: the next migration goes through.
    let id = start(&mut client, start_request(&["vm1"], "rack3")).await;
    reach(&mut client, id, Phase::is_success).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_members_die_and_return() {
    let Some(mut controllers) = Controllers::start(2, 3).await else {
        return;
    };
    let fabric = ready(&controllers).await;
    controllers.etcd.kill(0);
    let mut client = controllers.client().await;
    let id = start(&mut client, start_request(&["vm1"], "rack2")).await;
    reach(&mut client, id, Phase::is_success).await;

    controllers.etcd.kill(1);
    let begun = Instant::now();
    // A change without a majority is neither made nor forgotten: whoever asked is told that it is not
    // known.
    let mut client = controllers.client().await;
    let unknown = client
        .start_migration(start_request(&["vm2"], "rack2"))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    controllers.nobody_leads().await;
    println!("nobody leads {:?} after the majority died", begun.elapsed());
    let commits = |router: &str| {
        let memory = fabric.memory(router);
        let memory = memory.lock().unwrap();
        memory.log.iter().filter(|what| *what == "commit").count()
    };
    assert_eq!(commits("edge2"), 1);

    controllers.etcd.restart(1);
    let begun = Instant::now();
    let mut client = controllers.client().await;
    println!("somebody leads {:?} after it returned", begun.elapsed());
    all_in_sync(&mut client).await;
    let id = start(&mut client, start_request(&["vm3"], "rack2")).await;
    reach(&mut client, id, Phase::is_final).await;
    until("all is over", async || {
        let views = client
            .list_migrations(v1::ListMigrationsRequest {})
            .await
            .map_err(|status| status.to_string())?
            .into_inner()
            .migrations;
        let over =
            |view: &v1::Migration| matches!(view.phase(), v1::Phase::Done | v1::Phase::Aborted);
        if views.iter().all(over) {
            Ok(())
        } else {
            Err(format!("{views:?}"))
        }
    })
    .await;
    let known = vms(&mut client).await;
    until("tables agree", async || fabric.tables_agree(&known)).await;
}

fn natmig(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_natmig"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_a_standby_finds_the_leader() {
    let Some(mut controllers) = Controllers::start(2, 1).await else {
        return;
    };
    let leader = controllers.leader().await;
    let standby = 1 - leader;
    until("the standby knows the leader", async || {
        let status = controllers.status(standby).await?;
        if status.leader == format!("c{leader}") && status.leader_address == controllers.url(leader)
        {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let refused = controllers
        .client_of(standby)
        .await
        .unwrap()
        .list_vms(v1::ListVmsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        StandingBy::of(&refused).unwrap().leader,
        Some(controllers.url(leader))
    );

    // Agents that know the standby alone.
    let mut fabric = Fabric::new();
    for router in ROUTERS {
        fabric.start_agent_at(router, &controllers.url(standby));
    }
    let mut client = controllers.client().await;
    set_up(&mut client).await;
    all_in_sync(&mut client).await;

    let (ok, out, err) = natmig(&[
        "vm",
        "list",
        "--json",
        "--controller",
        &controllers.url(standby),
    ]);
    assert!(ok && out.contains("vm3"), "{out}{err}");
    let socket = format!("unix://{}", controllers.socket(standby).display());
    let (ok, out, err) = natmig(&["controller", "status", "--json", "--controller", &socket]);
    assert!(ok, "{err}");
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["role"], "standing_by");
    assert_eq!(rows[0]["leader"], format!("c{leader}"));
    assert_eq!(rows[1]["role"], "leading");
    assert_eq!(rows[1]["controller"], controllers.url(leader));
    assert_eq!(rows[0]["term"], rows[1]["term"]);

    // While they lead, the store is nobody else's.
    let config = controllers.config(leader);
    let export = controllers.config(leader).with_file_name("export.json");
    let arguments = [
        "store",
        "export",
        export.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
    ];
    let (ok, _, err) = natmig(&arguments);
    assert!(!ok && err.contains("leads; stop the controllers"), "{err}");
    assert!(!export.exists());

    // One that dies is not asked: several addresses, with commas.
    controllers.kill(leader);
    let both = controllers.urls().join(",");
    let (ok, out, err) = natmig(&["vm", "list", "--json", "--controller", &both]);
    assert!(ok && out.contains("vm3"), "{out}{err}");
    assert_eq!(controllers.leader().await, standby);

    // Its successor has the audit log that it kept.
    let (ok, out, err) = natmig(&["audit", "list", "--json", "--controller", &both]);
    assert!(ok, "{err}");
    let records: serde_json::Value = serde_json::from_str(&out).unwrap();
    let calls: Vec<_> = records
        .as_array()
        .unwrap()
        .iter()
        .map(|record| (record["call"].as_str(), record["outcome"].as_str()))
        .collect();
    assert!(
        calls.contains(&(Some("AddVms"), Some("done"))),
        "{records:#}"
    );

    // Nor is the leader's end an error: it resigns, and what it had is exported.
    controllers.terminate(standby);
    until("the store is free", async || {
        let (ok, _, err) = natmig(&arguments);
        if ok { Ok(()) } else { Err(err) }
    })
    .await;
    let text = std::fs::read_to_string(&export).unwrap();
    assert!(text.contains("vm3"), "{text}");
    tokio::time::timeout(Duration::from_secs(30), async {
        for agent in std::mem::take(&mut fabric.agents).into_values() {
            agent.stop().await;
        }
    })
    .await
    .unwrap();
}
