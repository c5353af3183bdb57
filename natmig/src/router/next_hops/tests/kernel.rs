//! The follower against the kernel itself: random changes of a network namespace's routes, rules,
//! nexthop objects, interfaces and neighbours, after which the mirror must say what
//! `ip route get` says, or nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use natmig_common::{Interface, NextHop, Role};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, unshare},
};

use super::{Follower, Monitor};
use crate::router::next_hops::{fib::RouteId, grains::Grain, prefix::bits};

/// A reproducible source of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % count
    }

    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

fn ip(script: &str) -> String {
    let mut child = Command::new("ip")
        .args(["-j", "-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Interfaces f1 to f3 with gateways behind them, of which f3 is not natmig's; in0, where packets come
/// in.
fn build() -> BTreeMap<u32, Interface> {
    for name in ["all", "default"] {
        sysctl(&format!("ipv4/conf/{name}/forwarding"), "1");
        sysctl(&format!("ipv6/conf/{name}/forwarding"), "1");
        sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
        // No addresses that come some time after an interface.
        sysctl(&format!("ipv6/conf/{name}/addr_gen_mode"), "1");
    }
    let mut script = "link set lo up\nlink add in0 type veth peer name in1\n".to_owned();
    for number in 1..=3 {
        writeln!(
            script,
            "link add f{number} address 02:00:00:00:00:0{number} type veth peer name g{number}"
        )
        .unwrap();
    }
    for name in ["in0", "in1", "f1", "f2", "f3", "g1", "g2", "g3"] {
        writeln!(script, "link set {name} up").unwrap();
    }
    writeln!(script, "addr add 172.31.0.1/24 dev in0").unwrap();
    writeln!(script, "addr add fd31::1/64 dev in0 nodad").unwrap();
    script.push_str(&mend());
    ip(&script);
    let fabric = Interface {
        role: Role::Fabric as u8,
        ..Interface::default()
    };
    ["in0", "f1", "f2"]
        .map(|name| (ifindex(name), fabric))
        .into()
}

/// What changes may have taken away and is needed for the next ones.
fn mend() -> String {
    let mut script = String::new();
    for number in 1..=3 {
        writeln!(
            script,
            "addr replace 192.168.{number}.254/24 dev f{number}\naddr replace fe80::{number}:ff/64 dev f{number} nodad"
        )
        .unwrap();
        for host in 1..=4 {
            let mac = format!("06:00:00:00:0{number}:0{host}");
            for gateway in [
                format!("192.168.{number}.{host}"),
                format!("fe80::{number}:{host}"),
            ] {
                writeln!(
                    script,
                    "neigh replace {gateway} lladdr {mac} dev f{number} nud permanent"
                )
                .unwrap();
            }
        }
    }
    script
}

fn mac(gateway: &str) -> [u8; 6] {
    let bytes = match gateway.parse().unwrap() {
        IpAddr::V4(address) => address.octets()[2..].to_vec(),
        IpAddr::V6(address) => vec![address.octets()[13], address.octets()[15]],
    };
    [6, 0, 0, 0, bytes[0], bytes[1]]
}

fn any_way(choices: &mut Choices, ipv6: bool) -> String {
    let (number, host) = (1 + choices.below(3), 1 + choices.below(4));
    // Mostly out of interfaces of natmig.
    let number = if choices.below(4) == 0 {
        number
    } else {
        1 + number % 2
    };
    match (ipv6, choices.below(6)) {
        (true, _) => format!("via fe80::{number}:{host} dev f{number}"),
        (false, 0) => format!("via inet6 fe80::{number}:{host} dev f{number}"),
        (false, _) => format!("via 192.168.{number}.{host} dev f{number}"),
    }
}

fn any_prefix(choices: &mut Choices, ipv6: bool) -> String {
    if ipv6 {
        let length = choices.below(9);
        let (third, fourth) = (choices.below(2), choices.below(4));
        return match length {
            0 => "::/0".to_owned(),
            1 => "2001:db8::/32".to_owned(),
            2 | 3 => format!("2001:db8:{third}::/48"),
            4..=6 => format!("2001:db8:{third}:{fourth}::/64"),
            7 => format!("2001:db8:{third}:{fourth}::8/125"),
            _ => format!("2001:db8:{third}:{fourth}::9/128"),
        };
    }
    let (second, third) = (choices.below(3), choices.below(6));
    match choices.below(9) {
        0 => "default".to_owned(),
        1 => "10.0.0.0/8".to_owned(),
        2 | 3 => format!("10.{second}.0.0/16"),
        4 => format!("10.{second}.{}.0/23", third & 6),
        5..=7 => format!("10.{second}.{third}.0/24"),
        _ if choices.below(2) == 0 => format!("10.{second}.{third}.8/29"),
        _ => format!("10.{second}.{third}.9/32"),
    }
}

fn any_route(choices: &mut Choices) -> String {
    let ipv6 = choices.below(2) == 0;
    let to = any_prefix(choices, ipv6);
    let verb = choices.of(&[
        "add", "add", "add", "replace", "append", "del", "del", "change",
    ]);
    let metric = match choices.below(3) {
        0 => String::new(),
        number => format!(" metric {}", 100 * number),
    };
    let what = match choices.below(16) {
        0 => {
            return choices
                .of(&[
                    &*format!("route {verb} blackhole {to}{metric}"),
                    &*format!("route {verb} unreachable {to}{metric}"),
                ])
                .to_owned();
        }
        1 if choices.below(3) == 0 => format!("dev f{}", 1 + choices.below(2)),
        2 if !ipv6 && choices.below(3) == 0 => format!("{} tos 0x10", any_way(choices, ipv6)),
        3 => format!("{} table 100", any_way(choices, ipv6)),
        4 | 5 => format!("{} mtu lock 1300", any_way(choices, ipv6)),
        6 => format!("{} mtu 1280", any_way(choices, ipv6)),
        7..=9 => {
            let hops: Vec<String> = (0..2 + choices.below(2))
                .map(|_| {
                    format!(
                        "nexthop {} weight {}",
                        any_way(choices, ipv6),
                        1 + choices.below(3)
                    )
                })
                .collect();
            hops.join(" ")
        }
        10 | 11 => format!("nhid {}", 1 + choices.below(5) + if ipv6 { 10 } else { 0 }),
        _ => any_way(choices, ipv6),
    };
    format!("route {verb} {to}{metric} {what}")
}

fn any_change(choices: &mut Choices) -> String {
    let number = 1 + choices.below(3);
    match choices.below(24) {
        0 => format!("link set f{number} down\nlink set f{number} up"),
        1 if choices.below(3) == 0 => format!("link set f{number} down"),
        2 | 3 => format!("link set f{number} up"),
        4 if choices.below(3) == 0 => format!("link set g{number} down"),
        5 | 6 => format!("link set g{number} up"),
        7 => format!("link set f{number} mtu {}", 1400 + 10 * choices.below(10)),
        8 => {
            let verb = choices.of(&["add", "del"]);
            let (second, third) = (choices.below(3), choices.below(6));
            format!("addr {verb} 10.{second}.{third}.77/32 dev lo")
        }
        9 => format!("addr del 192.168.{number}.254/24 dev f{number}"),
        10 => format!("neigh del 192.168.{number}.1 dev f{number}"),
        11..=14 => {
            let ipv6 = choices.below(2) == 0;
            let id = 1 + choices.below(3) + if ipv6 { 10 } else { 0 };
            // A nexthop object of a way is of the gateway's family.
            let way = any_way(choices, ipv6).replace("inet6 ", "");
            format!("nexthop replace id {id} {way}")
        }
        15 => {
            let first = if choices.below(2) == 0 { 11 } else { 1 };
            let id = first + 3 + choices.below(2);
            format!("nexthop replace id {id} group {first},2/{}", first + 1)
        }
        16 => format!("nexthop del id {}", 1 + choices.below(15)),
        _ => any_route(choices),
    }
}

/// Takes in all that there is.
fn catch_up(follower: &mut Follower) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let drained = follower.take_events().unwrap();
        follower.read_again().unwrap();
        if drained && follower.is_certain() {
            return;
        }
        assert!(Instant::now() < deadline, "the follower never catches up");
    }
}

/// Waits until the kernel has done what it does later, such as adding routes of its own.
fn settle(follower: &mut Follower) {
    loop {
        catch_up(follower);
        let mut descriptors = [PollFd::new(follower.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, 50_u16).unwrap() == 0 {
            return;
        }
    }
}

/// What the tables would hold.
#[derive(Default)]
struct Tables {
    routes: HashMap<RouteId, Vec<NextHop>>,
}

impl Tables {
    fn take(&mut self, follower: &mut Follower) {
        let update = follower.mirror.update();
        self.routes.extend(update.routes);
        for id in &update.unused {
            self.routes.remove(id);
        }
        follower.mirror.freed(&update.unused);
    }
}

/// Compares; the number of destinations, and of those for which the mirror has an answer.
fn compare(follower: &Follower, tables: &Tables, choices: &mut Choices) -> (usize, usize) {
    let mut script = String::new();
    let mut destinations: Vec<IpAddr> = Vec::new();
    for _ in 0..60 {
        let (second, third) = (choices.below(3), choices.below(6));
        let host = choices.of(&[&1_u64, &9, &10, &77, &200]);
        destinations.push(format!("10.{second}.{third}.{host}").parse().unwrap());
        destinations.push(
            format!("2001:db8:{}:{}::{host}", choices.below(2), choices.below(4))
                .parse()
                .unwrap(),
        );
    }
    for destination in &destinations {
        let source = if destination.is_ipv4() {
            "172.31.0.9"
        } else {
            "fd31::9"
        };
        writeln!(script, "route get {destination} from {source} iif in0").unwrap();
    }
    let mut answers: HashMap<IpAddr, serde_json::Value> = HashMap::new();
    for line in serde_json::Deserializer::from_str(&ip(&script)).into_iter() {
        let line: serde_json::Value = line.unwrap();
        for answer in line.as_array().into_iter().flatten() {
            if let Some(destination) = answer["dst"].as_str() {
                answers.insert(destination.parse().unwrap(), answer.clone());
            }
        }
    }
    let mut known = 0;
    for destination in &destinations {
        let grain = match destination {
            IpAddr::V4(address) => Grain::Narrow(address.to_bits() >> 8),
            IpAddr::V6(_) => Grain::Slot(u64::try_from(bits(*destination) >> 64).unwrap()),
        };
        let id = follower.mirror.grains().route(grain);
        let hops = tables.routes.get(&id).map_or(&[][..], Vec::as_slice);
        if hops.is_empty() {
            continue;
        }
        known += 1;
        let answer = answers.get(destination).unwrap_or_else(|| {
            panic!("{destination}: the kernel has no route, the mirror {hops:?}")
        });
        let gateway = answer["gateway"]
            .as_str()
            .or_else(|| answer["via"]["host"].as_str());
        let (Some(gateway), Some(device)) = (gateway, answer["dev"].as_str()) else {
            panic!("{destination}: the kernel says {answer}, the mirror {hops:?}");
        };
        let wanted = (ifindex(device), mac(gateway));
        let found = hops
            .iter()
            .find(|hop| (hop.ifindex, hop.destination_mac) == wanted);
        // Of several ways, the kernel may take one that leads nowhere.
        let down = answer["flags"].to_string().contains("linkdown") || !has_carrier(device);
        assert!(
            found.is_some() || (is_ecmp(destination) && (down || !is_known(gateway, device))),
            "{destination}: the kernel says {answer}, the mirror {hops:?}"
        );
    }
    (destinations.len(), known)
}

/// Whether the kernel's route has several ways.
fn is_ecmp(destination: &IpAddr) -> bool {
    let text = ip(&format!("route get fibmatch {destination}\n"));
    text.contains("nexthops") || text.contains("nhid")
}

fn has_carrier(device: &str) -> bool {
    ip(&format!("link show dev {device}\n")).contains("LOWER_UP")
}

fn is_known(gateway: &str, device: &str) -> bool {
    ip(&format!("neigh get {gateway} dev {device}\n")).contains("PERMANENT")
}

#[test]
fn mirror_says_what_the_kernel_says() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("NATMIG_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "needs root"
        );
        eprintln!("SKIPPED: needs root");
        return;
    }
    // The thread gets a network namespace of its own, which ends with it.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let seed = std::env::var("NATMIG_SEED").ok();
        let seed = seed.map_or(0x5eed, |seed| seed.parse().unwrap());
        random_changes(seed, 16);
    })
    .join()
    .unwrap();
}

fn random_changes(seed: u64, rounds: u32) {
    let interfaces = build();
    let mut follower = Follower::new(Monitor::open().unwrap(), interfaces);
    let mut tables = Tables::default();
    let mut choices = Choices(seed);
    let chunks: BTreeSet<u16> = (0x0a00..0x0a03).collect();
    let slots: BTreeSet<u64> = (0..2)
        .flat_map(|third| (0..4).map(move |fourth| 0x2001_0db8 << 32 | third << 16 | fourth))
        .collect();
    follower.mirror.track(&chunks, &slots);
    let (mut asked, mut known) = (0, 0);
    for round in 0..rounds {
        let mut script = String::new();
        for _ in 0..30 {
            writeln!(script, "{}", any_change(&mut choices)).unwrap();
        }
        let ruled = round % 8 == 7;
        if ruled {
            script.push_str("rule add pref 100 to 10.1.0.0/16 lookup 100\n");
        }
        if round % 4 != 3 {
            script.push_str("link set f1 up\nlink set f2 up\nlink set g1 up\nlink set g2 up\n");
        }
        script.push_str(&mend());
        for _ in 0..10 {
            writeln!(script, "{}", any_route(&mut choices)).unwrap();
        }
        ip(&script);
        catch_up(&mut follower);
        tables.take(&mut follower);
        let (more_asked, more_known) = compare(&follower, &tables, &mut choices);
        (asked, known) = (asked + more_asked, known + more_known);
        settle(&mut follower);
        let missed = follower.audit().unwrap();
        tables.take(&mut follower);
        compare(&follower, &tables, &mut choices);
        assert_eq!(missed, 0, "changes were missed in round {round}");
        if ruled {
            ip("rule del pref 100\n");
        }
    }
    eprintln!("{asked} destinations, {known} known to the mirror");
    assert!(known * 20 > asked, "the mirror knows hardly anything");
}
