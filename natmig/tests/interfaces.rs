//! A router whose interfaces change under it, on a real kernel: each test in a network namespace of its
//! own, with an instance of its own.
//!
//! Needs root and a binary with the eBPF program; without them the tests say so and pass, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

#[path = "support/able.rs"]
mod able;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use able::able;
use natmig::{
    config::RouterConfig,
    router::{Router, StartOptions, unload},
    rule::{Attachment, MacAddress, Rule},
};
use nix::sched::{CloneFlags, unshare};

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

/// Makes an interface that has another index than all before it.
fn make(name: &str, addresses: &[&str]) {
    run(&format!(
        "ip link add {name} type veth peer name {name}-peer"
    ));
    for end in [name.to_owned(), format!("{name}-peer")] {
        run(&format!("ip link set {end} up"));
    }
    for address in addresses {
        run(&format!("ip address add {address} dev {name}"));
    }
}

const ACCESS: [&str; 2] = ["10.1.1.1/24", "2001:db8:1:1::1/64"];
const FABRIC: [&str; 2] = ["192.168.0.0/31", "2001:db8:ff::/127"];

/// Runs a test with a router in a network namespace of its own, then unloads it.
fn with_router(test: impl FnOnce(&mut Router) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !able() {
        return;
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let instance = format!("test-interfaces-{}-{number}", std::process::id());
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        make("acc0", &ACCESS);
        make("fab0", &FABRIC);
        run("ip route add 10.9.0.0/16 via 192.168.0.1");
        run("ip route add 2001:db8:9::/48 via 2001:db8:ff::1");
        let text = format!(
            "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = 1024\n\
             max_addresses_ipv6 = 1024\nlocator_pools = [\"10.1.1.128/25\", \"10.1.2.128/25\"]\n\
             [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
             prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
             [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n"
        );
        let config = RouterConfig::parse(Path::new("test.toml"), &text).unwrap();
        let mut router = Router::start(&config, &StartOptions::default())
            .unwrap()
            .router;
        test(&mut router);
        drop(router);
        unload(&instance).unwrap();
        for extension in ["lock", "json"] {
            let path = format!("/run/natmig/{instance}.{extension}");
            assert!(!Path::new(&path).exists(), "{path} is left behind");
        }
        let neighbours = run("ip -d neigh show") + &run("ip -d -6 neigh show");
        assert!(!neighbours.contains("managed"), "{neighbours}");
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn runs_xdp(name: &str) -> bool {
    run(&format!("ip -d link show dev {name}")).contains("prog/xdp")
}

#[test]
fn gateways_of_both_families_are_kept_resolved() {
    with_router(|_| {
        assert!(run("ip -d neigh show dev fab0").contains("managed"));
        assert!(run("ip -d -6 neigh show dev fab0").contains("managed"));
    });
}

#[test]
fn interfaces_made_anew_are_taken_up() {
    with_router(|router| {
        let at = Attachment {
            segment: "rack1".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 10]),
        };
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let rules = BTreeMap::from([
            (
                address("10.1.1.10"),
                Rule::Away {
                    locator: address("10.1.2.130"),
                    home: Some(at),
                },
            ),
            (
                address("10.1.2.130"),
                Rule::Known {
                    identity: address("10.1.1.10"),
                },
            ),
        ]);
        router.replace(&rules).unwrap();
        for (name, addresses) in [("fab0", FABRIC), ("acc0", ACCESS)] {
            run(&format!("ip link del {name}"));
            router.refresh_interfaces().unwrap();
            make(name, &addresses);
            assert!(!runs_xdp(name));
            router.refresh_interfaces().unwrap();
            assert!(runs_xdp(name));
            assert_eq!(router.table(), rules, "entries name the interface that is");
        }
        // Nothing changes without a reason.
        router.refresh_interfaces().unwrap();
        assert_eq!(router.table(), rules);
    });
}

#[test]
fn port_follows_the_fabric_mtu() {
    with_router(|router| {
        run("ip link set fab0-peer mtu 9000");
        run("ip link set fab0 mtu 9000");
        router.refresh_interfaces().unwrap();
        let links = run("ip -o link show type veth");
        let ports: Vec<&str> = links.lines().filter(|line| line.contains("nm")).collect();
        assert_eq!(ports.len(), 2, "{links}");
        assert!(
            ports.iter().all(|port| port.contains("mtu 9000")),
            "{links}"
        );
    });
}
