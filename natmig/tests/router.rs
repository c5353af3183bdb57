//! One router on a real kernel: each test in a network namespace of its own, with an instance of its
//! own, removed when it ends.
//!
//! Needs root and a binary with the eBPF program; without them the tests say so and pass, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

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

use natmig::{
    config::RouterConfig,
    metrics::{Metrics as _, RouterMetrics},
    router::{
        Announcement, Heard, Router, RouterError, StartOptions, Started, bindings::BindingsError,
        reader::Reader,
    },
    rule::{Attachment, Change, Changes, MacAddress, Rule, TransactionId},
};
use natmig_common::{PackedTraffic, SlotState, SmallTraffic, binding_counter};
use nix::sched::{CloneFlags, unshare};

/// Whether the machine can run these tests; says it loudly if not.
fn able() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !natmig::router::has_program() {
        "a build with the eBPF program (cargo xtask build)"
    } else {
        return true;
    };
    assert!(
        env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "NATMIG_REQUIRE_ROOT=1, and this test needs {missing}"
    );
    eprintln!("SKIPPED: this test needs {missing}");
    false
}

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

/// `count` bindings, one per line.
fn lines(count: u32) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (identity, locator) = pair(number);
        writeln!(text, "{identity} {locator} away").unwrap();
    }
    text
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

#[test]
fn load_adopts_upgrades_and_unload_leaves_nothing() {
    in_place(|place| {
        let routes = run("ip route");
        let Started { mut router, report } = place.start();
        assert!(!report.adopted);
        assert!(
            report
                .interfaces
                .iter()
                .all(|interface| !interface.replaced)
        );
        assert!(
            report
                .interfaces
                .iter()
                .all(|interface| interface.mode == "native")
        );
        router.replace(&before()).unwrap();
        let program = || {
            Reader::open(&place.instance)
                .unwrap()
                .summary()
                .unwrap()
                .program
        };
        let first = program();
        drop(router);

        let Started { router, report } = place.start();
        assert!(report.adopted);
        assert_eq!(report.addresses, 2);
        assert!(report.interfaces.iter().all(|interface| interface.replaced));
        assert_eq!(router.table(), before());
        let second = program();
        assert!(first.is_some() && second.is_some() && first != second);
        drop(router);

        natmig::router::unload(&place.instance).unwrap();
        assert!(!place.pins().exists());
        assert_eq!(run("ip route"), routes);
        assert_eq!(run("nft list ruleset"), "");
        let links = run("ip -d link");
        assert!(
            !links.contains("xdp") && !links.contains("PROMISC"),
            "{links}"
        );
        assert_eq!(links.matches("veth ").count(), 4, "{links}");
        let error = natmig::router::unload(&place.instance).unwrap_err();
        assert!(matches!(error, RouterError::NotLoaded { .. }), "{error}");
    });
}

#[test]
fn foreign_programs_bridges_and_missing_interfaces_are_refused() {
    in_place(|place| {
        let Started { router, .. } = place.start();
        let error = Router::open(&place.instance).unwrap_err();
        assert!(matches!(error, RouterError::Locked { .. }), "{error}");
        drop(router);

        let other = Place::new(format!("{}-b", place.instance));
        let start = |config: &RouterConfig| {
            Router::start(config, &StartOptions::default())
                .map(drop)
                .unwrap_err()
        };
        let mut config = other.config();
        let error = start(&config);
        let RouterError::ForeignProgram {
            interface,
            id,
            name,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((interface.as_str(), name.as_str()), ("acc0", "natmig"));
        assert!(*id > 0);
        assert!(error.to_string().contains("bpftool"), "{error}");

        run("ip link add br0 type bridge");
        config.interfaces[0].name = "br0".to_owned();
        let error = start(&config);
        assert!(
            matches!(error, RouterError::UnsuitableInterface { .. }),
            "{error}"
        );
        config.interfaces[0].name = "nowhere0".to_owned();
        let error = start(&config);
        assert!(matches!(error, RouterError::NoInterface(_)), "{error}");
        assert!(!other.pins().exists());
    });
}

#[test]
fn maps_of_another_layout_are_refused() {
    in_place(|place| {
        drop(place.start());
        let data = aya::maps::MapData::from_pin(place.pins().join("maps/META")).unwrap();
        let map = aya::maps::Map::from_map_data(data).unwrap();
        let mut meta: aya::maps::Array<_, [u8; 64]> = map.try_into().unwrap();
        let good = meta.get(&0, 0).unwrap();
        let mut other = good;
        other[4] = 99;
        meta.set(0, other, 0).unwrap();
        let error = Router::start(&place.config(), &StartOptions::default())
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, RouterError::Abi { found: 99, .. }),
            "{error}"
        );
        let error = Reader::open(&place.instance).map(drop).unwrap_err();
        assert!(
            matches!(error, RouterError::Abi { found: 99, .. }),
            "{error}"
        );
        meta.set(0, good, 0).unwrap();
        drop(place.start());
    });
}

#[test]
fn a_transaction_is_invisible_until_its_commit_and_whole_from_then_on() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let digest = router.digest();

        router.prepare(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        assert_eq!(
            router.table(),
            before(),
            "the table is without what is pending"
        );
        assert_eq!(router.digest(), digest);
        let table = effective(&place.instance);
        assert_eq!(table[&IDENTITY], ("away", Some(OLD_LOCATOR)));
        assert_eq!(
            table[&NEW_LOCATOR],
            ("known", Some(IDENTITY)),
            "early is early"
        );
        assert!(!table.contains_key(&VISITOR));
        assert_eq!(router.held()[0].state, SlotState::Prepared);

        let mut different = changes();
        different.pending.pop();
        let error = router.prepare(MOVE, &different).unwrap_err();
        assert!(matches!(error, RouterError::DifferentChanges(_)), "{error}");
        let error = router.prepare(NEXT_MOVE, &different).unwrap_err();
        assert!(
            matches!(error, RouterError::Busy { holder: MOVE, .. }),
            "{error}"
        );
        let error = router.fold(MOVE).unwrap_err();
        assert!(matches!(error, RouterError::NotCommitted(_)), "{error}");

        let report = router.commit(MOVE).unwrap();
        let again = router.commit(MOVE).unwrap();
        assert_eq!(report.committed_at, again.committed_at);
        let table = effective(&place.instance);
        assert_eq!(table[&IDENTITY], ("away", Some(NEW_LOCATOR)));
        assert_eq!(table[&OLD_LOCATOR], ("forward", Some(IDENTITY)));
        assert_eq!(table[&VISITOR], ("local", Some(VISITOR_LOCATOR)));
        let error = router.abort(MOVE).unwrap_err();
        assert!(matches!(error, RouterError::AlreadyCommitted(_)), "{error}");

        router.fold(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        assert_eq!(router.table(), after());
        assert!(router.held().is_empty());
        router.retire(&[OLD_LOCATOR]).unwrap();
        router.retire(&[OLD_LOCATOR]).unwrap();
        assert!(!router.table().contains_key(&OLD_LOCATOR));
        let error = router.commit(MOVE).unwrap_err();
        assert!(
            matches!(error, RouterError::UnknownTransaction(_)),
            "{error}"
        );
    });
}

#[test]
fn metrics_say_what_the_router_holds_and_did() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let metrics = RouterMetrics::new(&place.instance, router.figures());
        let says = |line: &str| {
            let text = metrics.render().unwrap();
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in\n{text}"
            );
        };
        says("natmig_addresses{family=\"ipv4\"} 0");
        says("natmig_address_capacity{family=\"ipv4\"} 16384");
        says("natmig_next_hops_believed 0");
        says("natmig_trace_lost_events_total 0");
        says("natmig_guard_dropped_packets_total{rule=\"source\"} 0");
        router.replace(&before()).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 2");
        says("natmig_addresses{family=\"ipv6\"} 0");
        says("natmig_commits_total 1");
        router.prepare(MOVE, &changes()).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 5");
        says("natmig_transactions{phase=\"prepared\"} 1");
        says("natmig_transactions{phase=\"committed\"} 0");
        for _ in 0..2 {
            router.commit(MOVE).unwrap();
        }
        says("natmig_transactions{phase=\"committed\"} 1");
        says("natmig_commits_total 2");
        says("natmig_commit_grace_seconds_count 2");
        router.fold(MOVE).unwrap();
        router.retire(&[OLD_LOCATOR]).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 4");
        router.set_term(9).unwrap();
        says("natmig_term 9");
        run("ip link set acc0 name acc7");
        let text = metrics.render().unwrap();
        let counters = text.lines().filter(|line| {
            line.starts_with("natmig_packets_total{") && line.contains("interface=\"acc7\"")
        });
        assert_eq!(
            counters.count(),
            natmig_common::Counter::ALL.len(),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
        drop(router);
        natmig::router::unload(&place.instance).unwrap();
        let missing = RouterMetrics::new("test-of-nothing", std::sync::Arc::default());
        assert!(missing.render().unwrap_err().contains("not loaded"));
    });
}

#[test]
fn a_commit_is_announced_also_by_a_successor() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        assert_eq!(router.take_announcements().len(), 1);
        router.prepare(MOVE, &changes()).unwrap();
        drop(router);
        let mut router = Router::open(&place.instance).unwrap();
        router.commit(MOVE).unwrap();
        drop(router);
        // Nobody knows whether the predecessor announced it.
        let Started { mut router, .. } = place.start();
        let announcements = router.take_announcements();
        let mut announced: Vec<IpAddr> = announcements
            .iter()
            .map(|announcement| announcement.address)
            .collect();
        announced.sort();
        assert_eq!(announced, [IDENTITY, VISITOR_GATEWAY]);
        natmig::router::announce::send(&announcements).unwrap();
        assert!(router.take_announcements().is_empty());
    });
}

/// Sends RARP as QEMU does out of an interface's peer, in the name of the VM with this MAC address.
fn announce(interface: &str, mac: MacAddress) {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(mac.0);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    let announcement = Announcement {
        ifindex: nix::net::if_::if_nametoindex(interface).unwrap(),
        address: VISITOR,
        frame,
    };
    natmig::router::announce::send(&[announcement]).unwrap();
}

/// Who was heard, once somebody was.
fn heard(router: &Router) -> Vec<(TransactionId, MacAddress)> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let heard = router.heard().unwrap();
        if !heard.is_empty() || Instant::now() > deadline {
            return heard.iter().map(|heard| (heard.id, heard.mac)).collect();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_heard_is_kept_until_the_decision_whoever_dies() {
    in_place(|place| {
        let visitor = at(0x20).mac;
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        // An agent is killed before it prepared what it listens for already.
        router.await_announcements(MOVE, &changes()).unwrap();
        drop(router);
        let Started { mut router, .. } = place.start();
        // Nobody waits for it, and then nobody waits for it there, or for that one.
        announce("acc0-peer", visitor);
        assert_eq!(router.heard().unwrap(), []);
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        announce("fab0-peer", visitor);
        announce("acc0-peer", at(0x66).mac);
        assert_eq!(router.heard().unwrap(), []);
        drop(router);

        // It speaks while no agent runs; the successor is asked to prepare again.
        announce("acc0-peer", visitor);
        let Started { mut router, .. } = place.start();
        assert_eq!(heard(&router), [(MOVE, visitor)]);
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        assert_eq!(heard(&router), [(MOVE, visitor)], "it is not forgotten");
        let at = router.heard().unwrap()[0].at;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_nanos() - u128::from(at);
        assert!(age < Duration::from_mins(5).as_nanos(), "{age} ns ago");

        router.abort(MOVE).unwrap();
        router.settle().unwrap();
        assert_eq!(router.heard().unwrap(), []);
        router.await_announcements(NEXT_MOVE, &changes()).unwrap();
        router.prepare(NEXT_MOVE, &changes()).unwrap();
        assert_eq!(router.heard().unwrap(), [], "of the one before");
        announce("acc0-peer", visitor);
        assert_eq!(heard(&router), [(NEXT_MOVE, visitor)]);
        router.commit(NEXT_MOVE).unwrap();
        drop(router);
        // Killed before it cleared up.
        let Started { router, .. } = place.start();
        assert_eq!(router.heard().unwrap(), []);
    });
}

#[test]
fn vms_are_told_of_as_they_are_heard() {
    in_place(|place| {
        let visitor = at(0x20).mac;
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        let (tell, told) = mpsc::channel();
        let tell = move |heard: Vec<Heard>| tell.send(heard).is_ok();
        router.listen(Box::new(tell)).unwrap();
        announce("acc0-peer", visitor);
        let first = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(
            first
                .iter()
                .map(|heard| (heard.id, heard.mac))
                .collect::<Vec<_>>(),
            [(MOVE, visitor)]
        );
        // Whoever listens from here on is told too.
        let (tell, told) = mpsc::channel();
        let tell = move |heard: Vec<Heard>| tell.send(heard).is_ok();
        router.listen(Box::new(tell)).unwrap();
        let again = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(again[0].mac, visitor);
        drop(router);
        // The listener ended with it.
        while told.recv().is_ok() {}
    });
}

#[test]
fn an_abort_leaves_no_trace() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let seen = effective(&place.instance);
        for _ in 0..3 {
            router.prepare(MOVE, &changes()).unwrap();
            router.abort(MOVE).unwrap();
            router.abort(MOVE).unwrap();
            assert_eq!(router.table(), before());
            assert_eq!(effective(&place.instance), seen);
            assert_eq!(Reader::open(&place.instance).unwrap().entries().count(), 2);
        }
        // Nothing is written of changes that cannot be written whole.
        let mut wrong = changes();
        let nowhere = Attachment {
            segment: "rack9".into(),
            mac: MacAddress([2; 6]),
        };
        wrong.pending.push(change(
            Ipv4Addr::new(10, 9, 9, 9).into(),
            Rule::Local {
                locator: None,
                at: nowhere,
                gateway: None,
            },
        ));
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(
            matches!(error, RouterError::UnknownSegment { .. }),
            "{error}"
        );
        wrong.pending.pop();
        wrong.pending.push(change(IDENTITY, Rule::Absent));
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(matches!(error, RouterError::Twice { .. }), "{error}");
        wrong.pending.pop();
        wrong
            .early
            .push(change(OLD_LOCATOR, Rule::Known { identity: VISITOR }));
        wrong.pending.retain(|change| change.address != OLD_LOCATOR);
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(matches!(error, RouterError::InUse { .. }), "{error}");
        assert_eq!(effective(&place.instance), seen);
        assert!(router.held().is_empty());
    });
}

#[test]
fn the_kernels_routes_follow_the_transaction() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let routes = || run("ip route show proto 110");
        let neighbors = || run("ip neighbour show nud permanent");
        let promiscuous = || run("ip link show acc0").contains("PROMISC");
        assert!(!promiscuous());
        router.replace(&before()).unwrap();
        assert!(routes().contains("10.1.1.10 dev nm0-"), "{}", routes());
        assert!(promiscuous());
        router.prepare(MOVE, &changes()).unwrap();
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        router.commit(MOVE).unwrap();
        router.settle().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(neighbors().contains("10.1.2.20 dev acc0 lladdr 02:00:00:00:00:20"));
        router.fold(MOVE).unwrap();
        drop(router);
        // What somebody else broke is mended at the start.
        run("ip route del 10.1.2.20 dev acc0 proto 110");
        run("ip route add 10.1.3.3 dev acc0 proto 110");
        let Started { mut router, .. } = place.start();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(!routes().contains("10.1.3.3"), "{}", routes());
        // The kernel drops routes of a link that goes down.
        run("ip link set acc0 down");
        run("ip link set acc0 up");
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        router.refresh_interfaces().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(neighbors().contains("10.1.2.20 dev acc0 lladdr 02:00:00:00:00:20"));

        // A link that is down holds no transaction back.
        run("ip link set acc0 down");
        drop(router);
        let Started { mut router, report } = place.start();
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.contains("host routes"))
        );
        router.prepare(NEXT_MOVE, &Changes::default()).unwrap();
        router.commit(NEXT_MOVE).unwrap();
        router.fold(NEXT_MOVE).unwrap();
        run("ip link set acc0 up");
        router.refresh_interfaces().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());

        // The visitor leaves, the VM comes home.
        let to = Ipv4Addr::new(10, 1, 3, 9).into();
        let return_home = Changes {
            early: Vec::new(),
            pending: vec![
                change(VISITOR, Rule::Absent),
                change(
                    VISITOR_LOCATOR,
                    Rule::Forward {
                        identity: VISITOR,
                        to,
                    },
                ),
                change(IDENTITY, home()),
            ],
        };
        router.prepare(NEXT_MOVE, &return_home).unwrap();
        router.commit(NEXT_MOVE).unwrap();
        router.settle().unwrap();
        assert_eq!(routes(), "");
        assert!(!neighbors().contains("10.1.2.20"));
        router.fold(NEXT_MOVE).unwrap();
        assert!(
            promiscuous(),
            "a VM that has just returned is still looked after"
        );
        let all: Vec<IpAddr> = router.table().into_keys().collect();
        router.retire(&all).unwrap();
        assert!(router.table().is_empty());
        assert!(!promiscuous());
    });
}

#[test]
fn a_retirement_spares_a_vm_that_moves_again() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let return_home = Changes {
            early: Vec::new(),
            pending: vec![change(IDENTITY, home())],
        };
        router.prepare(MOVE, &return_home).unwrap();
        router.commit(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        let again = Changes {
            early: vec![change(NEW_LOCATOR, Rule::Known { identity: IDENTITY })],
            pending: vec![change(IDENTITY, away(NEW_LOCATOR))],
        };
        router.prepare(NEXT_MOVE, &again).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        router.commit(NEXT_MOVE).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        router.fold(NEXT_MOVE).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        assert_eq!(router.table()[&IDENTITY], away(NEW_LOCATOR));
        assert!(!router.table().contains_key(&OLD_LOCATOR));
    });
}

#[test]
fn a_table_is_replaced_around_what_a_transaction_holds() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        let (identity, locator) = pair(1);
        let other = BTreeMap::from([
            (
                identity,
                Rule::Away {
                    locator,
                    home: None,
                },
            ),
            (locator, Rule::Known { identity }),
        ]);
        let report = router.replace(&other).unwrap();
        assert_eq!((report.added, report.removed, report.held), (2, 0, 5));
        router.commit(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        let mut expected = after();
        expected.extend(other);
        assert_eq!(router.table(), expected);
    });
}

#[test]
fn a_group_of_a_thousand_vms_becomes_active_with_one_store() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let mut group = Changes::default();
        for (identity, locator) in (0..1000).map(pair) {
            group.early.push(change(locator, Rule::Known { identity }));
            group.pending.push(change(identity, away(locator)));
        }
        router.prepare(MOVE, &group).unwrap();
        let reader = Reader::open(&place.instance).unwrap();
        let phase = || {
            let held = reader.transactions();
            assert_eq!(held.len(), 1);
            held[0].phase
        };
        let active = || {
            reader
                .entries()
                .filter(|entry| entry.effective().action == "away")
                .count()
        };
        assert_eq!((phase(), active()), ("prepared", 0));
        let entries: Vec<_> = reader.entries().collect();
        let begun = std::time::Instant::now();
        let report = router.commit(MOVE).unwrap();
        let acknowledged = begun.elapsed();
        router.settle().unwrap();
        let settled = begun.elapsed();
        assert_eq!((phase(), active()), ("committed", 1000));
        // Nothing but the slot has changed.
        for (was, is) in entries.iter().zip(reader.entries()) {
            assert_eq!((&was.current, &was.pending), (&is.current, &is.pending));
        }
        eprintln!(
            "1000 VMs: grace period {:?}, acknowledged after {acknowledged:?}, 1000 host routes after {settled:?}",
            report.grace
        );
        assert_eq!(run("ip route show proto 110").lines().count(), 1000);
        router.fold(MOVE).unwrap();
        assert_eq!(router.table().len(), 2000);
    });
}

/// What the child of the tests of killed processes does, until it is killed.
#[test]
#[ignore = "no test of its own: the tests of killed processes run it in a process of its own"]
fn child() {
    let Ok(instance) = env::var("NATMIG_TEST_INSTANCE") else {
        return;
    };
    natmig::router::failpoint::arm(&env::var("NATMIG_TEST_FAILPOINT").unwrap());
    let mut router = Router::open(&instance).unwrap();
    for step in env::var("NATMIG_TEST_STEPS").unwrap().split(',') {
        match step {
            "prepare" => router.prepare(MOVE, &changes()).unwrap(),
            "commit" => drop(router.commit(MOVE).unwrap()),
            "abort" => router.abort(MOVE).unwrap(),
            "fold" => router.fold(MOVE).unwrap(),
            "replace" => drop(router.replace(&after()).unwrap()),
            "retire" => router.retire(&[OLD_LOCATOR]).unwrap(),
            "grow" => drop(router.replace(&dense(GROWN)).unwrap()),
            "shrink" => drop(router.replace(&dense(SPARSE)).unwrap()),
            "empty" => drop(router.replace(&BTreeMap::new()).unwrap()),
            other => panic!("no step {other}"),
        }
    }
}

/// Few enough addresses of a prefix to be in the index.
const SPARSE: u8 = 100;
/// Enough of them for a direct block.
const GROWN: u8 = 150;

/// Bindings whose identities and locators are in one prefix each, of both families.
fn dense(count: u8) -> BTreeMap<IpAddr, Rule> {
    let mut table = BTreeMap::new();
    for last in 0..count {
        let ipv4 = [
            Ipv4Addr::new(10, 2, 0, last),
            Ipv4Addr::new(100, 64, 0, last),
        ];
        let ipv6 = ["2001:db8:2::", "2001:db8:3::"].map(|prefix| {
            let prefix: Ipv6Addr = prefix.parse().unwrap();
            Ipv6Addr::from(u128::from(prefix) + u128::from(last))
        });
        for [identity, locator] in [ipv4.map(IpAddr::from), ipv6.map(IpAddr::from)] {
            let rule = Rule::Away {
                locator,
                home: None,
            };
            table.insert(identity, rule);
            table.insert(locator, Rule::Known { identity });
        }
    }
    table
}

fn assert_same(instance: &str, table: &BTreeMap<IpAddr, Rule>, case: &str) {
    let found = effective(instance);
    assert_eq!(found.len(), table.len(), "{case}");
    for (address, rule) in table {
        let (action, counterpart) = match rule {
            Rule::Away { locator, .. } => ("away", *locator),
            Rule::Known { identity } => ("known", *identity),
            other @ (Rule::Absent
            | Rule::Local { .. }
            | Rule::Deliver { .. }
            | Rule::Forward { .. }) => panic!("{other:?}"),
        };
        assert_eq!(
            found[address],
            (action, Some(counterpart)),
            "{case}: {address}"
        );
    }
}

/// Entries of direct blocks, as they lie in the table.
fn are_in_a_row(instance: &str) -> bool {
    let reader = Reader::open(instance).unwrap();
    reader.entries().all(|entry| {
        let last = match entry.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        entry.index % 256 == u32::from(last)
    })
}

#[test]
fn a_dense_prefix_gets_a_block_whoever_is_killed_at_it() {
    in_place(|place| {
        drop(place.start());
        // A chunk that was made stays until chunks are short.
        for point in ["chunk:filled", "chunk:placed"] {
            killed_at(place, "grow", point);
            let router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), BTreeMap::new(), "killed at {point}");
        }
        let mut router = Router::open(&place.instance).unwrap();
        router.replace(&dense(SPARSE)).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        assert!(are_in_a_row(&place.instance));
        router.replace(&BTreeMap::new()).unwrap();
        drop(router);
        let points = [
            "prefix:filled",
            "prefix:placed#2",
            "block:copied#1",
            "block:filled#1",
            "block:placed#1",
            "block:placed#3",
            "block:placed#4",
            "block:unindexed#1",
            "block:counted#1",
            "release:counters#1",
            "block:unindexed#2",
            "prepare:entries#2",
            "prepare:written",
        ];
        for point in points {
            let case = format!("killed at {point}");
            let before = if point.starts_with("prefix") {
                BTreeMap::new()
            } else {
                dense(SPARSE)
            };
            let mut router = Router::open(&place.instance).unwrap();
            router.replace(&before).unwrap();
            drop(router);
            if point.starts_with("prepare:entries") {
                // In blocks that are there already.
                let mut router = Router::open(&place.instance).unwrap();
                router.replace(&dense(GROWN)).unwrap();
                router.replace(&before).unwrap();
                drop(router);
            }
            killed_at(place, "grow", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert_same(&place.instance, &before, &case);
            assert_eq!(router.table(), before, "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            router.replace(&BTreeMap::new()).unwrap();
            assert_same(&place.instance, &BTreeMap::new(), &case);
        }
        for point in [
            "remove:absent",
            "remove:unindexed",
            "block:taken#1",
            "block:taken#2",
            "release:counters#1",
            "release:counters#2",
        ] {
            let case = format!("emptied, killed at {point}");
            let mut router = Router::open(&place.instance).unwrap();
            router.replace(&dense(GROWN)).unwrap();
            drop(router);
            killed_at(place, "empty", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert!(router.table().is_empty(), "{case}");
            assert_same(&place.instance, &BTreeMap::new(), &case);
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            assert!(are_in_a_row(&place.instance), "{case}");
            router.replace(&dense(SPARSE)).unwrap();
            assert_same(&place.instance, &dense(SPARSE), &case);
        }
    });
}

#[test]
fn blocks_make_way_when_their_room_is_needed() {
    in_place(|place| {
        let mut config = place.config();
        config.max_addresses = 1000;
        config.max_addresses_ipv6 = 1000;
        let Started { mut router, .. } = Router::start(&config, &StartOptions::default()).unwrap();
        // Two blocks of each family, with holes.
        router.replace(&dense(GROWN)).unwrap();
        assert!(are_in_a_row(&place.instance));
        let mut table = dense(GROWN);
        for number in 0..700_u32 {
            let identity = IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number * 256));
            let locator = IpAddr::from(Ipv4Addr::from(0x6441_0000 + number));
            table.insert(identity, Rule::Known { identity: locator });
        }
        router.replace(&table).unwrap();
        assert_same(&place.instance, &table, "a full table");
        drop(router);
        let router = Router::open(&place.instance).unwrap();
        assert_eq!(router.table(), table);
    });
}

#[test]
fn what_was_removed_rests_and_can_be_bound_again_at_once() {
    in_place(|place| {
        let mut config = place.config();
        // Two blocks of each family and no room beside them.
        config.max_addresses = 512;
        config.max_addresses_ipv6 = 512;
        let Started { mut router, .. } = Router::start(&config, &StartOptions::default()).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        for round in 0..5 {
            let case = format!("round {round}");
            // In blocks that stay.
            router.replace(&dense(SPARSE)).unwrap();
            let reader = Reader::open(&place.instance).unwrap();
            assert_eq!(reader.entries().count(), 4 * usize::from(SPARSE), "{case}");
            assert!(reader.snapshot().unwrap().faults.is_empty(), "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            // With their blocks.
            router.replace(&BTreeMap::new()).unwrap();
            assert_eq!(reader.entries().count(), 0, "{case}");
            assert!(reader.snapshot().unwrap().faults.is_empty(), "{case}");
            router.replace(&dense(GROWN)).unwrap();
            assert_same(&place.instance, &dense(GROWN), &case);
            assert!(are_in_a_row(&place.instance), "{case}");
        }
        drop(router);
        let router = Router::open(&place.instance).unwrap();
        assert_eq!(router.table(), dense(GROWN));
        assert_same(&place.instance, &dense(GROWN), "after the writer's end");
    });
}

#[test]
fn traffic_follows_an_entry_into_its_block_and_ends_with_it() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&dense(SPARSE)).unwrap();
        let traffic = |address: IpAddr| {
            let reader = Reader::open(&place.instance).unwrap();
            let entry = reader.entry(address).unwrap().unwrap();
            (entry.index, entry.traffic.unwrap())
        };
        let addresses: [IpAddr; 2] =
            ["10.2.0.7", "2001:db8:2::7"].map(|text| text.parse().unwrap());
        for (address, family) in addresses.into_iter().zip([4_u32, 6]) {
            let (index, before) = traffic(address);
            assert_eq!(before.packets_to, 0);
            let open = |name: &str| {
                let path = place.pins().join("maps").join(name);
                aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(path).unwrap()).unwrap()
            };
            let map = open(&format!("BINDING_COUNTERS_IPV{family}"));
            let mut counters: aya::maps::Array<_, u64> = map.try_into().unwrap();
            let capacity = counters.len() / 2;
            for (to, bytes) in [(true, 100), (false, 60)] {
                let place = binding_counter(0, capacity, index, to);
                let traffic = PackedTraffic::packet(bytes).0;
                counters.set(place, traffic, 0).unwrap();
            }
            let map = open("BINDING_TOTALS");
            let mut totals: aya::maps::HashMap<_, [u32; 2], [u64; 4]> = map.try_into().unwrap();
            totals
                .insert([index, family], [10, 1000, 20, 2000], 0)
                .unwrap();
        }
        router.replace(&dense(GROWN)).unwrap();
        for address in addresses {
            let (_, after) = traffic(address);
            assert_eq!((after.packets_to, after.bytes_to), (11, 1100));
            assert_eq!((after.packets_from, after.bytes_from), (21, 2060));
        }
        router.replace(&BTreeMap::new()).unwrap();
        router.replace(&dense(GROWN)).unwrap();
        for address in addresses {
            assert_eq!(traffic(address).1.packets_to, 0);
        }
    });
}

#[test]
fn locator_pools_are_kept_as_they_are_set() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let nets = |texts: &[&str]| -> Vec<ipnet::IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let cases: [&[&str]; 5] = [
            &[
                "10.1.1.128/25",
                "10.3.0.0/16",
                "100.64.0.0/10",
                "2001:db8:1::/80",
            ],
            &[
                "10.1.1.192/26",
                "10.3.7.0/24",
                "100.64.0.0/10",
                "2001:db8:1::/96",
            ],
            &[
                "10.1.1.0/24",
                "10.3.7.16/28",
                "2001:db8:1:0:8000::/65",
                "2001:db8:9::/64",
            ],
            &["10.3.0.0/16"],
            &[],
        ];
        for case in cases {
            router.set_pools(&nets(case)).unwrap();
            assert_eq!(router.pools(), nets(case));
            let summary = Reader::open(&place.instance).unwrap().summary().unwrap();
            assert_eq!(summary.pools, nets(case));
        }
        for case in [
            &["2001:db8::/48"][..],
            &["2001:db8::/80", "2001:db8::1:0:0:0/80"],
        ] {
            let error = router.set_pools(&nets(case)).unwrap_err();
            assert!(
                matches!(error, RouterError::UnsuitablePool { .. }),
                "{error}"
            );
        }
    });
}

/// What is said of a settled entry without looking at it depends on whether its address is in a pool.
#[test]
fn what_is_settled_follows_the_pools_and_keeps_its_traffic() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&dense(GROWN)).unwrap();
        let map = |name: &str| {
            let path = place.pins().join("maps").join(name);
            aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(path).unwrap()).unwrap()
        };
        let entry = |address: &str| {
            let reader = Reader::open(&place.instance).unwrap();
            reader.entry(address.parse().unwrap()).unwrap().unwrap()
        };
        let mut settled_ipv4: aya::maps::Array<_, [u32; 2]> =
            map("SETTLED_IPV4").try_into().unwrap();
        let settled_ipv6: aya::maps::Array<_, [u64; 3]> = map("SETTLED_IPV6").try_into().unwrap();
        let ipv4 = |settled: &aya::maps::Array<_, [u32; 2]>, address: &str| {
            let [counterpart, _] = settled.get(&entry(address).index, 0).unwrap();
            Ipv4Addr::from(counterpart.to_ne_bytes())
        };
        let ipv6 = |address: &str| {
            let [first, second, _] = settled_ipv6.get(&entry(address).index, 0).unwrap();
            let halves = [first, second].map(u64::to_ne_bytes);
            Ipv6Addr::from(<[u8; 16]>::try_from(halves.concat()).unwrap())
        };
        let none = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        let (identity, locator) = ("10.2.0.7", "100.64.0.7");
        let (identity_ipv6, locator_ipv6) = ("2001:db8:2::7", "2001:db8:3::7");

        assert_eq!(
            ipv4(&settled_ipv4, identity),
            locator.parse::<Ipv4Addr>().unwrap()
        );
        assert_eq!(
            ipv4(&settled_ipv4, locator),
            identity.parse::<Ipv4Addr>().unwrap()
        );
        assert_eq!(
            ipv6(identity_ipv6),
            locator_ipv6.parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            ipv6(locator_ipv6),
            none.1,
            "in no pool, so it must be looked at"
        );

        // As the program counts: to an identity, from a locator.
        for (address, bytes) in [(identity, 100), (locator, 60)] {
            let index = entry(address).index;
            let [counterpart, _] = settled_ipv4.get(&index, 0).unwrap();
            let traffic = SmallTraffic::packet(bytes).0;
            settled_ipv4.set(index, [counterpart, traffic], 0).unwrap();
        }
        let check_traffic = || {
            let to = entry(identity).traffic.unwrap();
            assert_eq!((to.packets_to, to.bytes_to, to.packets_from), (1, 100, 0));
            let from = entry(locator).traffic.unwrap();
            assert_eq!(
                (from.packets_from, from.bytes_from, from.packets_to),
                (1, 60, 0)
            );
        };
        check_traffic();

        let pools = ["10.1.1.128/25", "2001:db8:3::/64"].map(|pool| pool.parse().unwrap());
        router.set_pools(&pools).unwrap();
        assert_eq!(
            ipv4(&settled_ipv4, locator),
            none.0,
            "in no pool any longer"
        );
        assert_eq!(
            ipv6(locator_ipv6),
            identity_ipv6.parse::<Ipv6Addr>().unwrap()
        );
        check_traffic();
    });
}

fn killed_at(place: &Place, steps: &str, failpoint: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("NATMIG_TEST_INSTANCE", &place.instance)
        .env("NATMIG_TEST_STEPS", steps)
        .env("NATMIG_TEST_FAILPOINT", failpoint)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(9),
        "{steps} reaches {failpoint}: {text}"
    );
}

const PREPARE: [&str; 7] = [
    "prepare:claimed",
    "prepare:entries",
    "prepare:indexed",
    "prepare:pending#1",
    "prepare:pending#2",
    "prepare:written",
    "prepare:marked",
];

#[test]
fn a_killed_writer_leaves_what_its_successor_takes_up() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        drop(router);
        let seen_before = effective(&place.instance);
        let commit = ["commit:before", "commit:stored", "commit:acknowledged"];
        let fold = [
            "fold:marked",
            "fold:written",
            "fold:clearing#1",
            "fold:clearing#3",
            "fold:cleared",
            "close:freed",
        ];
        let abort = [
            "abort:marked",
            "abort:cleared",
            "remove:absent",
            "remove:unindexed",
            "close:freed",
        ];
        let cases = PREPARE
            .map(|point| ("prepare", point))
            .into_iter()
            .chain(commit.map(|point| ("prepare,commit", point)))
            .chain(fold.map(|point| ("prepare,commit,fold", point)))
            .chain(abort.map(|point| ("prepare,abort", point)));
        for (steps, point) in cases {
            killed_at(place, steps, point);
            let case = format!("{steps} killed at {point}");
            let mut router = Router::open(&place.instance).unwrap();
            let state = router.held().first().map(|held| held.state);
            let table = effective(&place.instance);
            match state {
                // A fold that was begun is finished by the successor.
                None if steps.ends_with("fold") => {
                    assert_eq!(router.table(), after(), "{case}");
                }
                None => {
                    assert!(!steps.contains("commit"), "{case}");
                    assert_eq!(table, seen_before, "{case}");
                    assert_eq!(router.table(), before(), "{case}");
                }
                Some(SlotState::Prepared) => {
                    assert_eq!(table[&IDENTITY], ("away", Some(OLD_LOCATOR)), "{case}");
                    assert!(!table.contains_key(&VISITOR), "{case}");
                }
                Some(SlotState::Committed) => {
                    assert_eq!(table[&IDENTITY], ("away", Some(NEW_LOCATOR)), "{case}");
                    assert_eq!(table[&OLD_LOCATOR], ("forward", Some(IDENTITY)), "{case}");
                    assert_eq!(table[&VISITOR], ("local", Some(VISITOR_LOCATOR)), "{case}");
                }
                Some(other) => panic!("{case}: {other:?}"),
            }
            // The controller sends again what it needs.
            if router.table() != after() {
                if state != Some(SlotState::Committed) {
                    router.prepare(MOVE, &changes()).unwrap();
                }
                router.commit(MOVE).unwrap();
                router.fold(MOVE).unwrap();
            }
            router.fold(MOVE).unwrap();
            assert_eq!(router.table(), after(), "{case}");
            assert!(router.held().is_empty(), "{case}");
            router.replace(&before()).unwrap();
            assert_eq!(effective(&place.instance), seen_before, "{case}");
            assert_eq!(
                Reader::open(&place.instance).unwrap().entries().count(),
                2,
                "{case}"
            );
        }
    });
}

#[test]
fn a_killed_table_change_is_whole_or_not_at_all() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        drop(router);
        for point in PREPARE.into_iter().chain(["commit:before"]) {
            killed_at(place, "replace", point);
            let router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), before(), "killed at {point}");
            assert!(router.held().is_empty(), "killed at {point}");
        }
        for point in [
            "commit:stored",
            "commit:acknowledged",
            "fold:written",
            "fold:clearing#2",
            "close:freed",
        ] {
            killed_at(place, "replace", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), after(), "killed at {point}");
            assert!(router.held().is_empty(), "killed at {point}");
            router.replace(&before()).unwrap();
        }
        for point in ["remove:absent", "remove:unindexed"] {
            killed_at(place, "retire", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert!(
                !router.table().contains_key(&OLD_LOCATOR),
                "killed at {point}"
            );
            router.replace(&before()).unwrap();
        }
    });
}

#[test]
fn a_file_of_bindings_is_one_transaction_and_a_wrong_one_changes_nothing() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let good = place.file(
            "good",
            "10.1.1.10 10.1.2.130 away home rack1 02:00:00:00:00:10\n\
             10.1.2.20 10.1.1.130 here rack1 02:00:00:00:00:20\n",
        );
        let mut quiet = |_: &'static str, _, _| {};
        let applied = router.apply_file(&good, false, &mut quiet).unwrap();
        assert_eq!((applied.bindings, applied.report.added), (2, 4));
        let table = router.table();
        for (name, text, line) in [
            ("short", "10.1.1.12 10.1.2.132 away\n10.1.1.11\n", 2),
            (
                "segment",
                "10.1.1.11 10.1.2.131 here rack9 02:00:00:00:00:11\n",
                1,
            ),
            (
                "twice",
                "10.1.1.11 10.1.2.131 away\n10.1.1.11 10.1.2.132 away\n",
                2,
            ),
        ] {
            let file = place.file(name, text);
            let error = router.apply_file(&file, false, &mut quiet).unwrap_err();
            let BindingsError::File(error) = error else {
                panic!("{error}")
            };
            assert_eq!((error.file, error.line), (file, line));
            assert!(!error.remedy.is_empty());
            assert_eq!(router.table(), table);
        }
        let merged = place.file("merged", "10.1.1.11 10.1.2.131 away\n");
        let applied = router.apply_file(&merged, true, &mut quiet).unwrap();
        assert_eq!((applied.report.added, applied.report.removed), (2, 0));
        assert_eq!(router.table().len(), 6);
        let applied = router.apply_file(&good, false, &mut quiet).unwrap();
        assert_eq!((applied.report.unchanged, applied.report.removed), (4, 2));
        assert_eq!(router.table(), table);
        // More than there is room for.
        let file = place.file("many", &lines(8200));
        let error = router.apply_file(&file, false, &mut quiet).unwrap_err();
        assert!(
            matches!(error, BindingsError::Router(RouterError::Full { .. })),
            "{error}"
        );
        assert_eq!(router.table(), table);
    });
}

/// `NATMIG_TEST_BINDINGS=1000000` makes it as many.
#[test]
fn many_bindings_become_active_through_the_command_line() {
    in_place(|place| {
        let wanted = env::var("NATMIG_TEST_BINDINGS").ok();
        let bindings: u32 = wanted.and_then(|text| text.parse().ok()).unwrap_or(20_000);
        let config = place.file("router.toml", &place.config_text(bindings * 2 + 64));
        let file = place.file("bindings", &lines(bindings));
        let natmig = env!("CARGO_BIN_EXE_natmig");
        run(&format!("{natmig} load --config {}", config.display()));
        let instance = &place.instance;
        let report = run(&format!(
            "{natmig} map apply {} --instance {instance} --json",
            file.display()
        ));
        eprintln!("{report}");
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["bindings"], bindings);
        assert_eq!(report["added"], bindings * 2);
        let got = run(&format!(
            "{natmig} map get 10.2.0.9 --instance {instance} --json"
        ));
        let got: serde_json::Value = serde_json::from_str(&got).unwrap();
        assert_eq!(got["current"]["counterpart"], "100.64.0.9");
        let unbound = Command::new(natmig)
            .args(["map", "get", "192.0.2.1", "--instance", instance])
            .output()
            .unwrap();
        assert!(!unbound.status.success());
        let stats = run(&format!("{natmig} stats --instance {instance} --json"));
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        assert_eq!(stats["interfaces"].as_array().map(Vec::len), Some(3));
        assert_eq!(stats["guard"].as_array().map(Vec::len), Some(8));
        run(&format!("{natmig} unload --instance {instance}"));
    });
}
