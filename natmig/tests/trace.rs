//! Tracing on a real kernel, in a network namespace of its own.
//!
//! Needs root and a binary with the eBPF program; without them the test says so and passes, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

use std::{
    env,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use natmig::{
    config::RouterConfig,
    router::{Router, RouterError, StartOptions, reader::Reader, tracer::Tracer},
};
use natmig_common::{Counter, TraceAddress, TraceEvent, TraceFilter, TracePrefix};
use nix::sched::{CloneFlags, unshare};

/// Whether the machine can run this test; says it loudly if not.
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

fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Removes the instance when the test ends.
struct Loaded(String);

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = natmig::router::unload(&self.0) {
            eprintln!("{} is left behind: {error}", self.0);
        }
        for extension in ["lock", "json", "trace.lock"] {
            std::fs::remove_file(format!("/run/natmig/{}.{extension}", self.0)).ok();
        }
    }
}

const HOST: [u8; 4] = [10, 1, 1, 20];
const VM: [u8; 4] = [10, 1, 1, 10];

/// Sends packets to the VM, as fast as can be; nobody answers.
fn ping(count: u32) {
    let command = format!("ping -q -I acc0-peer -c {count} -l {count} -W 1 10.1.1.10");
    Command::new("sh").args(["-c", &command]).output().unwrap();
}

/// All events that are there, of the host's packets.
fn events(tracer: &mut Tracer) -> Vec<TraceEvent> {
    let until = Instant::now() + Duration::from_millis(100);
    let mut events = Vec::new();
    while Instant::now() < until {
        let waited = tracer.wait(Duration::from_millis(50)).unwrap();
        assert_ne!(waited, natmig::router::tracer::Waited::Unloaded);
        while let Some(event) = tracer.next_event() {
            events.push(event);
        }
    }
    events.retain(|event| {
        event.before.source == TraceAddress::ipv4(HOST)
            && event.before.destination == TraceAddress::ipv4(VM)
    });
    events
}

fn trace(instance: &str) {
    shell("ip link add acc0 type veth peer name acc0-peer");
    shell("ip link add fab0 type veth peer name fab0-peer");
    for name in ["acc0", "acc0-peer", "fab0", "fab0-peer"] {
        shell(&format!("ip link set {name} up"));
    }
    shell("ip address add 10.1.1.20/24 dev acc0-peer");
    shell(
        "ip neigh add 10.1.1.10 lladdr $(ip -br link show acc0 | awk '{ print $3 }') dev acc0-peer",
    );
    let text = format!(
        "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = 1024\n\
         locator_pools = [\"10.1.3.128/25\"]\n\
         [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
         [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n"
    );
    let config = RouterConfig::parse(Path::new("router.toml"), &text).unwrap();
    drop(Router::start(&config, &StartOptions::default()).unwrap());
    let _loaded = Loaded(instance.to_owned());

    let mut tracer = Tracer::start(instance, &TraceFilter::ALL).unwrap();
    let second = Tracer::start(instance, &TraceFilter::ALL).map(drop);
    assert!(
        matches!(second, Err(RouterError::Traced { .. })),
        "{second:?}"
    );
    ping(3);
    let seen = events(&mut tracer);
    assert_eq!(seen.len(), 3);
    for event in seen {
        assert_eq!(event.length_before, 98);
        assert_eq!(event.bytes_before().len(), 98);
        let counter = Counter::from_raw(event.counter).unwrap();
        assert_ne!(event.counters & TraceFilter::bit(counter), 0);
    }
    drop(tracer);

    // What is not traced is not in the next trace.
    ping(3);
    let mut filter = TraceFilter {
        prefix_count: 1,
        snap: 60,
        ..TraceFilter::ALL
    };
    let mask = TraceAddress::ipv6([0xff; 16]);
    let address = TraceAddress::ipv4([10, 1, 1, 11]);
    filter.prefixes[0] = TracePrefix { address, mask };
    let mut tracer = Tracer::start(instance, &filter).unwrap();
    ping(3);
    assert_eq!(events(&mut tracer).len(), 0);
    drop(tracer);
    filter.prefixes[0].address = TraceAddress::ipv4(VM);
    let mut tracer = Tracer::start(instance, &filter).unwrap();
    ping(3);
    let seen = events(&mut tracer);
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|event| event.bytes_before().len() == 60));
    drop(tracer);

    // More than the buffer holds.
    let mut tracer = Tracer::start(instance, &TraceFilter::ALL).unwrap();
    ping(2500);
    tracer.stop().unwrap();
    let lost = tracer.lost();
    assert!(lost > 0);
    let counted: u64 = Reader::open(instance)
        .unwrap()
        .interfaces()
        .unwrap()
        .iter()
        .flat_map(|interface| &interface.counters)
        .filter(|counter| counter.name == Counter::TraceLost.name())
        .map(|counter| counter.packets)
        .sum();
    assert_eq!(counted, lost);
    let seen = events(&mut tracer).len();
    assert!(seen > 1000, "{seen}");
}

#[test]
fn packets_are_traced_as_the_filter_says() {
    if !able() {
        return;
    }
    let result = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        trace(&format!("test-trace-{}", std::process::id()));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
