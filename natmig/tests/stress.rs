//! The router's writer changes its tables as fast as it can while the program looks addresses up in
//! them, on another CPU; direct blocks are built, filled and given back meanwhile, of both families.
//!
//! The rules are a ring: every address is a locator whose VM "moved on" to an address of the next
//! class, as a destination and as a source, and a transaction changes for one class by how much the
//! *colour* of the next address differs. Each run of the program gets what the run before made of
//! the packet. So, whenever a batch of runs ends, the class tells how many runs there were, and
//! destination and source have the same colour: one look-up that finds nothing, the wrong entry, the
//! wrong version, or half a transaction puts them apart for good.
//!
//! Every transaction leads to addresses that had no entries before, in a prefix of their own, and
//! the prefix that it leads away from is retired. Some prefixes stay in the index, some are built as
//! blocks, some become blocks while packets look their addresses up.
//!
//! Needs root, two CPUs and a binary with the eBPF program. `NATMIG_STRESS_LOOKUPS` says how many
//! look-ups there are to be.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/pinned.rs"]
mod pinned;

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use natmig::{
    config::RouterConfig,
    router::{Router, StartOptions, Started, reader::Reader},
    rule::{Change, Changes, Rule, TransactionId},
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use pinned::Pinned;

const CLASSES: u8 = 4;
const COLORS: u8 = 8;
/// Times that a class's prefix differs from those that were there before.
const EPOCHS: u8 = 32;
/// Addresses that fill a prefix, so that it is worth a block.
const FILL: u8 = 140;
const BATCH: u32 = 20_000;
/// Look-ups per run that the test can tell right from wrong: destination and source.
const LOOKUPS: u64 = 2;
const REDIRECT: u32 = 4;

/// Whether a look-up is of a packet's destination or of its source.
#[derive(Clone, Copy)]
enum Side {
    Destination,
    Source,
}

const SIDES: [Side; 2] = [Side::Destination, Side::Source];

/// Where an address has its side, prefix and colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    side: u8,
    class: u8,
    color: u8,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    Ipv4,
    Ipv6,
}

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

impl Family {
    fn address(self, side: Side, class: u8, epoch: u8, last: u8) -> IpAddr {
        let side = 200 + side as u8;
        let prefix = epoch % EPOCHS * CLASSES + class % CLASSES;
        match self {
            Self::Ipv4 => Ipv4Addr::new(10, side, prefix, last).into(),
            Self::Ipv6 => {
                let [side, prefix, last] = [side, prefix, last].map(u16::from);
                Ipv6Addr::new(0x2001, 0xdb8, side, 0, 0, 0, 0, prefix << 8 | last).into()
            }
        }
    }

    /// The packet's destination and source.
    fn seen(self, frame: &[u8]) -> [Seen; 2] {
        let seen = |octets: &[u8], side: usize| Seen {
            side: octets[side] - 200,
            class: octets[octets.len() - 2] % CLASSES,
            color: octets[octets.len() - 1],
        };
        match self {
            Self::Ipv4 => [seen(&frame[30..34], 1), seen(&frame[26..30], 1)],
            Self::Ipv6 => [seen(&frame[38..54], 5), seen(&frame[22..38], 5)],
        }
    }

    /// A UDP packet from class 0 to class 0, without a checksum in IPv4; in IPv6 one that is wrong,
    /// which nobody here minds.
    fn frame(self, mac: [u8; 6]) -> Vec<u8> {
        let [to, from] = SIDES.map(|side| self.address(side, 0, 0, 5));
        let mut frame = mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        match (to, from) {
            (IpAddr::V4(to), IpAddr::V4(from)) => {
                let mut header = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                let sum: u32 = header
                    .chunks(2)
                    .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                    .sum();
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([8, 0]);
                frame.extend(header);
            }
            (IpAddr::V6(to), IpAddr::V6(from)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 17, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => unreachable!("both are of the family"),
        }
        let checksum = if matches!(self, Self::Ipv4) { 0 } else { 7 };
        frame.extend([0x10, 0, 0x20, 0, 0, 16, 0, checksum]);
        frame.extend([0; 8]);
        frame
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// A class's prefix, and by how much the colour changes on the way to the next class.
#[derive(Clone, Copy, Default)]
struct Class {
    epoch: u8,
    step: u8,
}

struct Writer {
    router: Router,
    classes: [Class; 4],
    next: u64,
    /// Packets of every family were looked up that many times.
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    committed: u64,
    aborted: u64,
    blocks: u64,
}

fn change(address: IpAddr, to: IpAddr) -> Change {
    let rule = Rule::Forward { identity: to, to };
    Change { address, rule }
}

impl Writer {
    fn class(&self, class: u8) -> Class {
        self.classes[usize::from(class % CLASSES)]
    }

    /// Where the addresses of a class and epoch lead.
    fn onward(class: u8, epoch: u8, step: u8, to: u8) -> Vec<Change> {
        let mut changes = Vec::new();
        for (family, side) in FAMILIES
            .iter()
            .flat_map(|family| SIDES.map(|side| (family, side)))
        {
            for color in 0..COLORS {
                let address = family.address(side, class, epoch, color);
                let next = family.address(side, class + 1, to, (color + step) % COLORS);
                changes.push(change(address, next));
            }
        }
        changes
    }

    /// Addresses that nobody looks up, in the prefix of a class and epoch.
    fn fill(class: u8, epoch: u8, from: u8, count: u8) -> Vec<Change> {
        let mut changes = Vec::new();
        for (family, side) in FAMILIES
            .iter()
            .flat_map(|family| SIDES.map(|side| (family, side)))
        {
            for last in from..from + count {
                let address = family.address(side, class, epoch, last);
                let astray = family.address(side, class + 2, epoch, last);
                changes.push(change(address, astray));
            }
        }
        changes
    }

    fn id(&mut self) -> TransactionId {
        self.next += 1;
        TransactionId(self.next)
    }

    fn run_transaction(&mut self, changes: &Changes, commit: bool) {
        let id = self.id();
        self.router.prepare(id, changes).unwrap();
        if commit {
            self.router.commit(id).unwrap();
            self.router.fold(id).unwrap();
        } else {
            self.router.abort(id).unwrap();
        }
    }

    /// Waits until packets that are on the way to what was replaced have left it.
    fn drain(&self) -> bool {
        let begun = self.rounds.load(Ordering::Acquire);
        while self.rounds.load(Ordering::Acquire) < begun + 2 {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            thread::yield_now();
        }
        true
    }

    /// One transaction: `class` leads by another step to a fresh prefix of the next class.
    fn replace(&mut self, class: u8, step: u8, how: u64) {
        let next = (class + 1) % CLASSES;
        let old = self.class(next);
        let epoch = (old.epoch + 1) % EPOCHS;
        let mut fresh = Self::onward(next, epoch, old.step, self.class(next + 1).epoch);
        if how % 3 == 1 {
            // The block is built of fresh addresses.
            fresh.extend(Self::fill(next, epoch, COLORS, FILL));
            self.blocks += 4;
        }
        let changes = Changes {
            early: fresh.clone(),
            pending: Self::onward(class, self.class(class).epoch, step, epoch),
        };
        let commit = how % 4 != 3;
        self.run_transaction(&changes, commit);
        if !commit {
            self.aborted += 1;
            return;
        }
        self.committed += 1;
        self.classes[usize::from(class)].step = step;
        self.classes[usize::from(next)].epoch = epoch;
        if how % 3 == 2 {
            // The block is built of addresses that packets are looking up.
            let changes = Changes {
                early: Self::fill(next, epoch, COLORS, FILL),
                pending: Vec::new(),
            };
            self.run_transaction(&changes, true);
            self.blocks += 4;
        }
        if !how.is_multiple_of(3) {
            // Into a block that is there already.
            let changes = Changes {
                early: Self::fill(next, epoch, COLORS + FILL, 20),
                pending: Vec::new(),
            };
            self.run_transaction(&changes, how.is_multiple_of(2));
        }
        if !self.drain() {
            return;
        }
        let retired: Vec<IpAddr> = FAMILIES
            .iter()
            .flat_map(|family| SIDES.map(|side| (family, side)))
            .flat_map(|(family, side)| {
                (0..=u8::MAX).map(move |last| family.address(side, next, old.epoch, last))
            })
            .collect();
        self.router.retire(&retired).unwrap();
    }

    fn run(&mut self) {
        let mut round = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            let mixed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let class = u8::try_from(mixed % u64::from(CLASSES)).unwrap();
            let step = u8::try_from((mixed >> 8) % u64::from(COLORS)).unwrap();
            self.replace(class, step, round);
            round += 1;
        }
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
}

/// A network namespace with a router that forwards what the ring makes of packets.
fn start(instance: &str) -> Router {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in [
        "ip link set lo up",
        "ip link add acc0 type veth peer name acc0-peer",
        "ip link set acc0 up",
        "ip link set acc0-peer up",
        "ip address add 10.1.1.1/24 dev acc0",
        "ip address add fd00:1::1/64 dev acc0 nodad",
        "ip neighbour add 10.1.1.50 lladdr 02:00:00:00:00:50 dev acc0 nud permanent",
        "ip neighbour add fd00:1::50 lladdr 02:00:00:00:00:50 dev acc0 nud permanent",
        "ip route add 10.200.0.0/15 via 10.1.1.50",
        "ip route add 2001:db8::/32 via fd00:1::50",
        "sysctl -qw net.ipv4.ip_forward=1",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
    ] {
        run(command);
    }
    let config = format!(
        "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = 8192\nmax_addresses_ipv6 = 8192\n\
         [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n"
    );
    let config = RouterConfig::parse(Path::new("test.toml"), &config).unwrap();
    let Started { router, .. } = Router::start(&config, &StartOptions::default()).unwrap();
    router
}

/// The near end of the router's own port, where its kernel's packets come in: index and MAC address.
fn port(instance: &str) -> (u32, [u8; 6]) {
    let interfaces = Reader::open(instance).unwrap().interfaces().unwrap();
    let port = interfaces
        .iter()
        .find(|interface| interface.role == "kernel")
        .unwrap();
    let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let prefix = format!("{}: ", port.ifindex);
    let line = text.lines().find(|line| line.starts_with(&prefix)).unwrap();
    let mac = line.split("link/ether ").nth(1).unwrap();
    let mac: natmig::rule::MacAddress = mac.split(' ').next().unwrap().parse().unwrap();
    (port.ifindex, mac.0)
}

/// What went wrong in one family, if something did, after `runs` runs.
fn judge(family: Family, runs: u64, verdict: u32, frame: &[u8]) -> Option<String> {
    let class = u8::try_from(runs % u64::from(CLASSES)).unwrap();
    let [to, from] = family.seen(frame);
    let right = verdict == REDIRECT
        && to.class == class
        && from.class == class
        && (to.side, from.side) == (0, 1)
        && to.color == from.color
        && to.color < COLORS;
    (!right).then(|| format!("{family:?} after {runs} runs: verdict {verdict}, {to:?}, {from:?}"))
}

fn stress(instance: &str, wanted: u64) {
    let mut router = start(instance);
    let table: BTreeMap<IpAddr, Rule> = (0..CLASSES)
        .flat_map(|class| Writer::onward(class, 0, 0, 0))
        .map(|change| (change.address, change.rule))
        .collect();
    router.replace(&table).unwrap();
    let (ifindex, mac) = port(instance);
    let pin_path = Path::new("/sys/fs/bpf/natmig")
        .join(instance)
        .join("programs/natmig");
    let program = Pinned::open(&pin_path).unwrap();
    let (rounds, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut writer = Writer {
        router,
        classes: [Class::default(); 4],
        next: 0,
        rounds: Arc::clone(&rounds),
        stop: Arc::clone(&stop),
        committed: 0,
        aborted: 0,
        blocks: 0,
    };
    let writer = thread::spawn(move || {
        pin(0);
        writer.run();
        writer
    });
    pin(1);
    let mut frames = FAMILIES.map(|family| family.frame(mac));
    let (mut runs, mut wrong) = (0_u64, None);
    while runs * LOOKUPS * 2 < wanted && wrong.is_none() && !writer.is_finished() {
        runs += u64::from(BATCH);
        for (family, frame) in FAMILIES.into_iter().zip(&mut frames) {
            let (verdict, output) = program.run(frame, ifindex, BATCH).unwrap();
            *frame = output;
            wrong = wrong.or(judge(family, runs, verdict, frame));
        }
        rounds.fetch_add(1, Ordering::Release);
    }
    stop.store(true, Ordering::Relaxed);
    let writer = writer.join().unwrap();
    println!(
        "{} look-ups; meanwhile {} transactions committed, {} aborted, {} blocks built",
        runs * LOOKUPS * 2,
        writer.committed,
        writer.aborted,
        writer.blocks
    );
    assert!(wrong.is_none(), "{}", wrong.unwrap());
    assert!(writer.committed > 1, "the writer hardly ran");
}

#[test]
fn look_ups_are_right_while_blocks_come_and_go() {
    let two_cpus = thread::available_parallelism().unwrap().get() >= 2;
    if !nix::unistd::geteuid().is_root() || !natmig::router::has_program() || !two_cpus {
        assert!(
            env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "NATMIG_REQUIRE_ROOT=1, and this test needs root, two CPUs and the eBPF program"
        );
        eprintln!("SKIPPED: this test needs root, two CPUs and a build with the eBPF program");
        return;
    }
    let wanted = env::var("NATMIG_STRESS_LOOKUPS").map_or(2_000_000, |text| text.parse().unwrap());
    let instance = format!("test-stress-{}", std::process::id());
    let result = thread::spawn({
        let instance = instance.clone();
        move || stress(&instance, wanted)
    })
    .join();
    // In whatever namespace: what is left is pins.
    if Path::new("/sys/fs/bpf/natmig").join(&instance).exists() {
        natmig::router::unload(&instance).unwrap();
    }
    for extension in ["lock", "json"] {
        std::fs::remove_file(format!("/run/natmig/{instance}.{extension}")).ok();
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
