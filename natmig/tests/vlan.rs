//! A router whose interfaces are VLANs of a trunk, with tagged frames through real interfaces.
//!
//! No 802.1Q devices are needed: veth ends stand for the VLANs in the configuration. What leaves is seen
//! by a trace, and counted where it arrives.
//!
//! Needs root and a binary with the eBPF program; without them the test says so and passes, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

#[path = "support/able.rs"]
mod able;

use std::{
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use able::able;
use etherparse::PacketBuilder;
use natmig::{
    config::RouterConfig,
    router::{Router, StartOptions, reader::Reader, tracer::Tracer},
};
use natmig_common::{Counter, TraceEvent, TraceFilter};
use nix::sched::{CloneFlags, unshare};

fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn mac(name: &str) -> [u8; 6] {
    let text = shell(&format!("ip -br link show {name} | awk '{{ print $3 }}'"));
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<Result<Vec<u8>, _>>()
        .unwrap()
        .try_into()
        .unwrap()
}

/// Removes the instance when the test ends.
struct Loaded(String);

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = natmig::router::unload(&self.0) {
            eprintln!("{} is left behind: {error}", self.0);
        }
        for extension in ["lock", "json", "trace.lock"] {
            fs::remove_file(format!("/run/natmig/{}.{extension}", self.0)).ok();
        }
    }
}

/// Sends a frame out of an interface.
fn send(interface: &str, frame: &[u8]) {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0);
    // SAFETY: the descriptor was just made.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero is a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    to.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
    let length = u32::try_from(size_of_val(&to)).unwrap();
    // SAFETY: frame and address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    assert_eq!(usize::try_from(sent).unwrap(), frame.len());
}

const MINE: [u8; 6] = [2, 0, 0, 0, 0, 0x20];

/// A packet in a frame to this MAC address, with this tag.
fn frame(to: [u8; 6], tag: Option<u16>, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MINE, to)
        .ipv4(source, destination, 64)
        .udp(4000, 53)
        .write(&mut frame, b"some payload, to be found again")
        .unwrap();
    if let Some(tag) = tag {
        let [high, low] = tag.to_be_bytes();
        frame.splice(12..12, [0x81, 0, high, low]);
    }
    frame
}

/// The VLAN of a frame.
fn vlan(bytes: &[u8]) -> Option<u16> {
    (bytes[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([bytes[14], bytes[15]]) & 0xfff)
}

fn received(interface: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until more has arrived than before.
fn await_arrival(interface: &str, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while received(interface) == before {
        assert!(Instant::now() < deadline, "nothing arrived at {interface}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What became of a frame.
fn sent_through(tracer: &mut Tracer, from: &str, bytes: &[u8]) -> TraceEvent {
    send(from, bytes);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let waited = tracer.wait(Duration::from_millis(50)).unwrap();
        assert_ne!(waited, natmig::router::tracer::Waited::Unloaded);
        while let Some(event) = tracer.next_event() {
            if event.bytes_before() == bytes {
                return event;
            }
        }
    }
    panic!("the frame into {from} was not seen");
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn route_between_vlans(instance: &str) {
    for name in ["trunk0", "trunk0.10", "trunk0.20", "fab0"] {
        let peer = name.replace("trunk0", "t") + "-p";
        shell(&format!(
            "ip link add {name} type veth peer name {peer} && ip link set {name} up && ip link set {peer} up"
        ));
        shell(&format!("ethtool -K {peer} gro on"));
    }
    shell("sysctl -qw net.ipv4.ip_forward=1 && ip link set lo up");
    shell("ip address add 10.1.1.1/24 dev trunk0.10");
    shell("ip address add 10.0.2.1/24 dev trunk0.20");
    shell("ip address add 10.0.3.1/24 dev fab0");
    for (address, device) in [
        ("10.1.1.20", "trunk0.10"),
        ("10.0.2.2", "trunk0.20"),
        ("10.0.3.2", "fab0"),
    ] {
        shell(&format!(
            "ip neigh add {address} lladdr 02:00:00:00:00:20 dev {device}"
        ));
    }
    shell("ip route add 10.1.3.0/24 via 10.0.2.2 && ip route add 10.1.4.0/24 via 10.0.3.2");
    let text = format!(
        "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = 1024\n\
         locator_pools = [\"10.1.3.128/25\", \"10.1.4.128/25\"]\n\
         [[interface]]\nname = \"trunk0.10\"\nparent = \"trunk0\"\nvlan = 10\nrole = \"access\"\n\
         segment = \"rack1\"\nprefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
         [[interface]]\nname = \"trunk0.20\"\nparent = \"trunk0\"\nvlan = 20\nrole = \"fabric\"\n\
         [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n"
    );
    let config = RouterConfig::parse(Path::new("router.toml"), &text).unwrap();
    // Before the router, which has to be gone when the instance is removed.
    let _loaded = Loaded(instance.to_owned());
    let mut started = Router::start(&config, &StartOptions::default()).unwrap();
    let bindings = tempfile::NamedTempFile::new().unwrap();
    let lines = "10.1.1.10 10.1.3.130 away home rack1 02:00:00:00:00:10\n\
                 10.1.1.11 10.1.4.131 away home rack1 02:00:00:00:00:11\n";
    fs::write(bindings.path(), lines).unwrap();
    let applied = started
        .router
        .apply_file(bindings.path(), false, &mut |_, _, _| {});
    applied.unwrap();

    let mut tracer = Tracer::start(instance, &TraceFilter::ALL).unwrap();
    let host = [10, 1, 1, 20];

    // From one VLAN into another: the tag is exchanged.
    let before = received("t-p");
    let bytes = frame(mac("trunk0.10"), Some(10), host, [10, 1, 1, 10]);
    let event = sent_through(&mut tracer, "t-p", &bytes);
    assert_eq!(Counter::from_raw(event.counter), Some(Counter::Translated));
    assert_eq!(
        (event.ingress, event.egress),
        (index("trunk0.10"), index("trunk0.20"))
    );
    let after = event.bytes_after();
    assert_eq!(vlan(after), Some(20));
    assert_eq!(after[18 + 16..18 + 20], [10, 1, 3, 130]);
    assert_eq!(after[6..12], mac("trunk0.20"));
    await_arrival("t-p", before);

    // Out of an interface that is none: the tag is taken off.
    let before = received("fab0-p");
    let bytes = frame(mac("trunk0.10"), Some(10), host, [10, 1, 1, 11]);
    let event = sent_through(&mut tracer, "t-p", &bytes);
    assert_eq!(event.egress, index("fab0"));
    let after = event.bytes_after();
    assert_eq!(vlan(after), None);
    assert_eq!(event.length_after + 4, event.length_before);
    assert_eq!(after[14 + 16..14 + 20], [10, 1, 4, 131]);
    await_arrival("fab0-p", before);

    // And back into a VLAN: a tag is put on.
    let before = received("t-p");
    let bytes = frame(mac("fab0"), None, [10, 1, 4, 131], host);
    let event = sent_through(&mut tracer, "fab0-p", &bytes);
    assert_eq!(
        (event.ingress, event.egress),
        (index("fab0"), index("trunk0.10"))
    );
    let after = event.bytes_after();
    assert_eq!(vlan(after), Some(10));
    assert_eq!(after[18 + 12..18 + 16], [10, 1, 1, 11]);
    await_arrival("t-p", before);

    // Another VLAN's frame, and one without a tag, pass as they are.
    for (tag, counter) in [
        (Some(30), Counter::PassUnknownVlan),
        (None, Counter::PassUnknownInterface),
    ] {
        let bytes = frame(mac("trunk0.10"), tag, host, [10, 1, 1, 10]);
        let event = sent_through(&mut tracer, "t-p", &bytes);
        assert_eq!(Counter::from_raw(event.counter), Some(counter));
        assert_eq!(event.bytes_after(), bytes);
    }
    drop(tracer);

    // Counted for the VLAN, not for the trunk.
    let interfaces = Reader::open(instance).unwrap().interfaces().unwrap();
    let packets = |name: &str, counter: Counter| {
        let interface = interfaces.iter().find(|view| view.interface == name);
        let counters = &interface.unwrap().counters;
        let view = counters.iter().find(|view| view.name == counter.name());
        view.unwrap().packets
    };
    assert_eq!(packets("trunk0.10", Counter::Translated), 2);
    assert_eq!(packets("fab0", Counter::Translated), 1);
}

#[test]
fn tags_are_exchanged_taken_off_and_put_on() {
    if !able() {
        return;
    }
    let result = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        route_between_vlans(&format!("test-vlan-{}", std::process::id()));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
