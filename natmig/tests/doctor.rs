//! The doctor on a real kernel, in a network namespace of its own: what it finds before anything is
//! set up, that its commands mend that, and what it finds once natmig is loaded.
//!
//! Needs root and a binary with the eBPF program; without them the test says so and passes, unless
//! `NATMIG_REQUIRE_ROOT=1`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps says what failed by where it panics"
)]

#[path = "support/able.rs"]
mod able;

use std::{path::Path, process::Command, thread};

use able::able;
use natmig::{
    config::RouterConfig,
    doctor::{Request, Severity, Subject, examine, gather},
    router::{Router, StartOptions},
};
use nix::sched::{CloneFlags, unshare};

fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn config(instance: &str) -> RouterConfig {
    let text = format!(
        "router = \"edge1\"\ninstance = \"{instance}\"\nmax_addresses = 1024\n\
         locator_pools = [\"10.1.1.128/25\"]\n\
         [[interface]]\nname = \"acc0\"\nrole = \"access\"\nsegment = \"rack1\"\n\
         prefix = \"10.1.1.0/24\"\ngateway = \"10.1.1.1\"\n\
         [[interface]]\nname = \"fab0\"\nrole = \"fabric\"\n"
    );
    RouterConfig::parse(Path::new("router.toml"), &text).unwrap()
}

/// Removes the instance when the test ends.
struct Loaded(String);

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = natmig::router::unload(&self.0) {
            eprintln!("{} is left behind: {error}", self.0);
        }
        for extension in ["lock", "json"] {
            std::fs::remove_file(format!("/run/natmig/{}.{extension}", self.0)).ok();
        }
    }
}

/// What the doctor finds of some severity on an interface or on the router as a whole: checks and
/// the commands that mend them. Kernel and clock are the machine's, whatever that is.
fn found(request: &Request, severity: Severity) -> Vec<(String, String)> {
    examine(&gather(request).unwrap())
        .findings
        .into_iter()
        .filter(|finding| finding.severity == severity)
        .filter_map(|finding| {
            let place = match finding.subject {
                Subject::Interface(name) => format!("{name} "),
                Subject::Router | Subject::Instance => String::new(),
                Subject::Kernel | Subject::Bpf | Subject::Clock => return None,
            };
            Some((
                format!("{place}{}", finding.check),
                finding.remedy.unwrap_or_default(),
            ))
        })
        .collect()
}

fn checks(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(check, _)| check.as_str()).collect()
}

fn diagnose(instance: &str) {
    // A network namespace begins with the machine's settings.
    shell("sysctl -qw net.ipv4.ip_forward=0 && sysctl -qw net.ipv4.conf.default.rp_filter=0");
    let config = config(instance);
    let request = Request {
        config: Some(("router.toml".into(), config.clone())),
        ..Request::default()
    };
    assert_eq!(
        checks(&found(&request, Severity::Error)),
        ["ip_forward", "acc0 exists", "fab0 exists"]
    );

    for name in ["acc0", "fab0"] {
        shell(&format!(
            "ip link add {name} type veth peer name {name}-peer && ip link set {name}-peer up"
        ));
        shell(&format!("ethtool -K {name}-peer gro off"));
    }
    shell("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.send_redirects=1");
    let errors = found(&request, Severity::Error);
    assert_eq!(
        checks(&errors),
        [
            "ip_forward",
            "acc0 redirect_target",
            "acc0 sender_checksum",
            "fab0 redirect_target",
            "fab0 sender_checksum",
        ]
    );
    let warnings = found(&request, Severity::Warning);
    assert_eq!(
        checks(&warnings),
        [
            "acc0 up",
            "acc0 rp_filter",
            "acc0 send_redirects",
            "acc0 gateway",
            "fab0 up",
            "fab0 rp_filter",
        ]
    );
    // The commands do what they say.
    for (_, remedy) in errors.iter().chain(&warnings) {
        shell(remedy);
    }
    assert_eq!(found(&request, Severity::Error), []);
    assert_eq!(found(&request, Severity::Warning), []);

    drop(Router::start(&config, &StartOptions::default()).unwrap());
    let loaded = Loaded(instance.to_owned());
    // Once loaded, the instance says what its interfaces are.
    let request = Request {
        instance: Some(instance.to_owned()),
        ..Request::default()
    };
    assert_eq!(found(&request, Severity::Error), []);
    let ok = found(&request, Severity::Ok);
    for check in [
        "pins",
        "guard",
        "trace",
        "port",
        "acc0 program",
        "fab0 program",
    ] {
        assert!(checks(&ok).contains(&check), "{check}: {ok:?}");
    }
    assert!(
        checks(&found(&request, Severity::Note)).contains(&"next_hops"),
        "no agent runs"
    );

    for family in ["netdev", "ip"] {
        shell(&format!("nft delete table {family} natmig_{instance}"));
        assert_eq!(checks(&found(&request, Severity::Error)), ["guard"]);
    }
    let other = Request {
        instance: Some(format!("{instance}-other")),
        interfaces: vec!["acc0".to_owned()],
        ..Request::default()
    };
    assert_eq!(
        checks(&found(&other, Severity::Error)),
        ["acc0 program"],
        "the program is another instance's"
    );
    drop(loaded);
}

#[test]
fn doctor_finds_what_is_wrong_and_how_to_mend_it() {
    if !able() {
        return;
    }
    let result = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        diagnose(&format!("test-doctor-{}", std::process::id()));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
