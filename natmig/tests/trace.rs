//! Tracing on a real kernel, in a network namespace of its own.
//!
//! Needs root and a binary with the eBPF program; without them the test says so and passes, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

#[path = "support/able.rs"]
mod able;
#[path = "support/pinned.rs"]
mod pinned;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    net::IpAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use able::able;
use etherparse::{
    Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader,
    icmpv6::DestUnreachableCode,
};
use natmig::{
    config::RouterConfig,
    coordinator::{Phase, VmView},
    proto::v1,
    router::{Router, RouterError, StartOptions, reader::Reader, tracer::Tracer},
};
use natmig_common::{Counter, TraceAddress, TraceEvent, TraceFilter, TracePrefix, names};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pinned::Pinned;
use support::{Client, Fabric, TOPOLOGY, reach, start, start_request, vms};

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

/// Starts a router in this network namespace, with a host on its access interface.
fn start_router(instance: &str) -> Loaded {
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
    Loaded(instance.to_owned())
}

fn trace(instance: &str) {
    let _loaded = start_router(instance);
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

/// A packet in a frame.
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    frame: Vec<u8>,
}

/// Somebody who is no VM, with an address of the same family.
fn stranger(like: IpAddr, last: u8) -> IpAddr {
    match like {
        IpAddr::V4(_) => [10, 9, 0, last].into(),
        IpAddr::V6(_) => [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, u16::from(last)].into(),
    }
}

/// A datagram of so many bytes.
fn datagram(source: IpAddr, destination: IpAddr, bytes: usize) -> Packet {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} cannot send to {destination}"),
    };
    let mut frame = Vec::new();
    ip.udp(4000, 53).write(&mut frame, &vec![0; bytes]).unwrap();
    Packet {
        source,
        destination,
        frame,
    }
}

/// What a router says to the sender of a packet that it cannot deliver.
fn unreachable(router: IpAddr, packet: &Packet) -> Packet {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
    let quote = &packet.frame[14..];
    let mut frame = Vec::new();
    match (router, packet.source) {
        (IpAddr::V4(router), IpAddr::V4(sender)) => ethernet
            .ipv4(router.octets(), sender.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(
                DestUnreachableHeader::Host,
            ))
            .write(&mut frame, quote),
        (IpAddr::V6(router), IpAddr::V6(sender)) => ethernet
            .ipv6(router.octets(), sender.octets(), 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(
                DestUnreachableCode::Address,
            ))
            .write(&mut frame, quote),
        (router, sender) => panic!("{router} cannot send to {sender}"),
    }
    .unwrap();
    Packet {
        source: router,
        destination: packet.source,
        frame,
    }
}

/// Packets to, from and quoting an address, of so many bytes. Errors have a `router` of their own for each
/// address that they quote.
fn packets_of(address: IpAddr, router: u8, bytes: usize) -> [Packet; 3] {
    let to = datagram(stranger(address, 1), address, bytes);
    let error = unreachable(stranger(address, router), &to);
    [to, datagram(address, stranger(address, 2), bytes), error]
}

/// What a trace shows of a packet: source, destination, length.
type Seen = (IpAddr, IpAddr, usize);

fn shown(packet: &Packet) -> Seen {
    (packet.source, packet.destination, packet.frame.len())
}

fn natmig_trace(instance: &str, controller: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_natmig"));
    command
        .args(["trace", "--json", "--instance", instance])
        .args(arguments)
        .env("NATMIG_CONTROLLER", controller);
    command
}

/// A running `natmig trace`.
struct Tracing {
    child: Child,
    events: Receiver<Seen>,
}

impl Tracing {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in lines {
                let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                let before = &event["before"];
                let address = |name: &str| before[name].as_str().unwrap().parse().unwrap();
                let length = before["length"].as_u64().unwrap().try_into().unwrap();
                let seen = (address("source"), address("destination"), length);
                if sender.send(seen).is_err() {
                    break;
                }
            }
        });
        Self { child, events }
    }

    /// Ends it in an orderly way; what else it showed.
    fn finish(mut self) -> BTreeSet<Seen> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        let seen = self.events.iter().collect();
        assert!(self.child.wait().unwrap().success());
        seen
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Demands that a trace of these VMs shows their packets and nobody else's.
fn traces(instance: &str, controller: &str, all: &BTreeMap<String, Vec<IpAddr>>, vms: &[&str]) {
    let program = Path::new("/sys/fs/bpf/natmig")
        .join(instance)
        .join("programs")
        .join(names::PROGRAM);
    let program = Pinned::open(&program).unwrap();
    let ifindex = if_nametoindex("fab0").unwrap();
    let addresses = all.values().flatten().copied();
    // Of somebody on a segment who is no VM, too.
    let addresses: Vec<IpAddr> = addresses.chain([[10, 1, 1, 99].into()]).collect();
    // They have another length each time, so that it is known which they are.
    let packets = |bytes: usize| {
        let packets = (10..).zip(&addresses);
        packets.flat_map(move |(router, it)| packets_of(*it, router, bytes).map(|p| (*it, p)))
    };
    let run = |bytes: usize| {
        for (_, packet) in packets(bytes) {
            program.run(&packet.frame, ifindex, 1).unwrap();
        }
    };
    let wanted = |bytes: usize| -> BTreeSet<Seen> {
        let is_wanted = |address: &IpAddr| vms.iter().any(|vm| all[*vm].contains(address));
        packets(bytes)
            .filter(|(address, _)| is_wanted(address))
            .map(|(_, packet)| shown(&packet))
            .collect()
    };

    let arguments: Vec<&str> = vms.iter().flat_map(|vm| ["--vm", vm]).collect();
    let tracing = Tracing::start(natmig_trace(instance, controller, &arguments));
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut may_show = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    while seen.is_empty() {
        assert!(Instant::now() < deadline, "{vms:?} are not traced");
        bytes += 1;
        run(bytes);
        may_show.extend(wanted(bytes));
        match tracing.events.recv_timeout(Duration::from_millis(20)) {
            Ok(event) => seen.extend([event]),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("the trace of {vms:?} has ended"),
        }
    }
    // It runs; of what comes from here on nothing may be missing.
    bytes += 1;
    run(bytes);
    let must_show = wanted(bytes);
    seen.extend(tracing.finish());
    let missing: Vec<&Seen> = must_show.difference(&seen).collect();
    assert!(missing.is_empty(), "{vms:?}: {missing:?} are not shown");
    may_show.extend(must_show);
    let foreign: Vec<&Seen> = seen.difference(&may_show).collect();
    assert!(foreign.is_empty(), "{vms:?}: {foreign:?} are shown");
}

fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(why), "{said}");
    assert!(output.stdout.is_empty());
}

fn trace_vms(instance: &str, controller: &str, all: &BTreeMap<String, Vec<IpAddr>>) {
    let _loaded = start_router(instance);
    traces(instance, controller, all, &["vm1"]);
    traces(instance, controller, all, &["vm2", "vm3"]);

    let attempt = |controller: &str, arguments: &[&str]| {
        natmig_trace(instance, controller, arguments)
            .output()
            .unwrap()
    };
    let output = attempt(controller, &["--vm", "vm1", "--vm", "nobody"]);
    refused(&output, "there is no VM nobody");
    let output = attempt(controller, &["--vm", "vm1", "--vm", "vm2"]);
    refused(&output, "10 addresses are too many");
    // Only for VMs, somebody has to be asked.
    let nowhere = "unix:///nowhere/controller.sock";
    let output = attempt(nowhere, &["--vm", "vm1"]);
    refused(&output, "no controller can be asked on unix:///nowhere");
    let short = ["--address", "10.1.1.10", "--duration", "10ms"];
    let output = attempt(nowhere, &short);
    assert!(output.status.success(), "{output:?}");
}

async fn migrate(client: &mut Client, vms: &[&str], to: &str) {
    let id = start(client, start_request(vms, to)).await;
    // Who comes from home leaves no locator behind that could drain.
    let is_folded = |phase| matches!(phase, Phase::Draining | Phase::Done);
    reach(client, id, is_folded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_traced_by_all_its_addresses_and_nobody_else_is() {
    if !able() {
        return;
    }
    let (fabric, controller, mut client) = Fabric::ready().await;
    let request = v1::ApplyTopologyRequest {
        text: TOPOLOGY.replace("drain = \"50ms\"", "drain = \"1h\""),
        file: "test.toml".to_owned(),
    };
    client.apply_topology(request).await.unwrap();
    migrate(&mut client, &["vm1", "vm2"], "rack2").await;
    migrate(&mut client, &["vm1"], "rack3").await;
    let mut all = BTreeMap::new();
    for vm in vms(&mut client).await {
        let vm = VmView::try_from(vm).unwrap();
        let bound = vm.identities.iter().chain(vm.locators.iter());
        let bound: Vec<IpAddr> = bound.chain(vm.draining).collect();
        all.insert(vm.name.to_string(), bound);
    }
    // Identities, locators, and locators that still lead to the VM, of both families.
    let counts: Vec<usize> = all.values().map(Vec::len).collect();
    assert_eq!(counts, [6, 4, 2], "{all:?}");
    let socket = format!("unix://{}", fabric.config().socket.display());
    let traced = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let instance = format!("test-trace-vm-{}", std::process::id());
        trace_vms(&instance, &socket, &all);
    });
    let result = tokio::task::block_in_place(|| traced.join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    fabric.finish(controller).await;
}
