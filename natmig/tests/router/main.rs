//! One router on a real kernel: each test in a network namespace of its own, with an instance of its
//! own, removed when it ends.
//!
//! Needs root and a binary with the eBPF program; without them the tests say so and pass, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

#[path = "../support/able.rs"]
mod able;

mod announcements;
mod blocks;
mod files;
mod killed;
mod life;
mod transactions;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use able::able;
use natmig::{
    config::RouterConfig,
    metrics::{Metrics as _, RouterMetrics},
    router::{
        Announcement, Heard, Router, RouterError, StartOptions, Started, bindings::BindingsError,
        reader::Reader,
    },
    rule::{Attachment, Change, Changes, MacAddress, Rule, TransactionId},
};
use natmig_common::{
    Aligned, Entry, Family, Note, PackedTraffic, SlotState, Unbanked, binding_counter,
};
use nix::sched::{CloneFlags, unshare};

/// A network namespace with an access and a fabric interface, and an instance's name.
struct Place {
    instance: String,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(instance: String) -> Self {
        Self {
            instance,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn config_text(&self, max_addresses: u32) -> String {
        format!(
            "router = \"edge1\"\ninstance = \"{}\"\nmax_addresses = {max_addresses}\n\
             locator_pools = [\"10.1.1.128/25\", \"10.1.2.128/25\", \"100.64.0.0/10\"]\n\
             [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
             prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
             [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n",
            self.instance
        )
    }

    fn config(&self) -> RouterConfig {
        RouterConfig::parse(Path::new("test.toml"), &self.config_text(16384)).unwrap()
    }

    fn start(&self) -> Started {
        Router::start(&self.config(), &StartOptions::default()).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/natmig").join(&self.instance)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.pins().exists()
            && let Err(error) = natmig::router::unload(&self.instance)
        {
            eprintln!("{} is left behind: {error}", self.instance);
        }
        for extension in ["lock", "json"] {
            std::fs::remove_file(format!("/run/natmig/{}.{extension}", self.instance)).ok();
        }
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a test in a network namespace of its own.
fn in_place(test: impl FnOnce(&Place) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !able() {
        return;
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        for name in ["acc0", "fab0"] {
            run(&format!(
                "ip link add {name} type veth peer name {name}-peer"
            ));
            run(&format!("ip link set {name} up"));
            run(&format!("ip link set {name}-peer up"));
        }
        run("ip address add 10.1.1.1/24 dev acc0");
        run("ip address add 192.168.0.0/31 dev fab0");
        test(&Place::new(format!(
            "test-router-{}-{number}",
            std::process::id()
        )));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

const IDENTITY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 1, 10));
const VISITOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 20));
const OLD_LOCATOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 130));
const NEW_LOCATOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 131));
const VISITOR_LOCATOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 1, 130));
const VISITOR_GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 1));
const MOVE: TransactionId = TransactionId(7);
const NEXT_MOVE: TransactionId = TransactionId(8);

fn at(last: u8) -> Attachment {
    Attachment {
        segment: "rack1".into(),
        mac: MacAddress([2, 0, 0, 0, 0, last]),
    }
}

fn away(locator: IpAddr) -> Rule {
    Rule::Away {
        locator,
        home: Some(at(0x10)),
    }
}

fn change(address: IpAddr, rule: Rule) -> Change {
    Change { address, rule }
}

/// An identity of this segment is away, under its old locator.
fn before() -> BTreeMap<IpAddr, Rule> {
    BTreeMap::from([
        (IDENTITY, away(OLD_LOCATOR)),
        (OLD_LOCATOR, Rule::Known { identity: IDENTITY }),
    ])
}

/// It moves on, and another VM comes to this segment.
fn changes() -> Changes {
    let local = Rule::Local {
        locator: Some(VISITOR_LOCATOR),
        at: at(0x20),
        gateway: Some(VISITOR_GATEWAY),
    };
    Changes {
        early: vec![
            change(NEW_LOCATOR, Rule::Known { identity: IDENTITY }),
            change(
                VISITOR_LOCATOR,
                Rule::Deliver {
                    identity: VISITOR,
                    at: at(0x20),
                },
            ),
        ],
        pending: vec![
            change(IDENTITY, away(NEW_LOCATOR)),
            change(
                OLD_LOCATOR,
                Rule::Forward {
                    identity: IDENTITY,
                    to: NEW_LOCATOR,
                },
            ),
            change(VISITOR, local),
        ],
    }
}

fn after() -> BTreeMap<IpAddr, Rule> {
    let mut table = before();
    for change in changes().early.into_iter().chain(changes().pending) {
        let rule = match change.rule {
            Rule::Local { locator, at, .. } => Rule::Local {
                locator,
                at,
                gateway: None,
            },
            rule @ (Rule::Absent
            | Rule::Away { .. }
            | Rule::Deliver { .. }
            | Rule::Forward { .. }
            | Rule::Known { .. }) => rule,
        };
        table.insert(change.address, rule);
    }
    table
}

/// The VM returns home.
fn home() -> Rule {
    Rule::Local {
        locator: None,
        at: at(0x10),
        gateway: None,
    }
}

fn pair(number: u32) -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::from(0x0a02_0000 + number).into(),
        Ipv4Addr::from(0x6440_0000 + number).into(),
    )
}

/// What counts, as a packet sees it.
fn effective(instance: &str) -> BTreeMap<IpAddr, (&'static str, Option<IpAddr>)> {
    let reader = Reader::open(instance).unwrap();
    reader
        .entries()
        .map(|entry| {
            // The index leads to what the table holds.
            assert_eq!(
                reader.entry(entry.address).unwrap().unwrap().index,
                entry.index
            );
            (
                entry.address,
                (entry.effective().action, entry.effective().counterpart),
            )
        })
        .filter(|(_, (action, _))| *action != "absent")
        .collect()
}
