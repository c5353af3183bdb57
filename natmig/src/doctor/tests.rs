//! Every check, good and bad, over facts.

use natmig_common::Role;

use super::{
    Facts, Finding, Severity, Subject, examine,
    facts::{
        Forwarding, Instance, Interface, Link, Lower, Machine, MemoryLimit, Offloads, Pins, Port,
        Queues, Xdp, XdpFeatures,
    },
};
use crate::router::next_hops::Pulse;

const PLAIN: Offloads = Offloads {
    lro: Some(false),
    gro_hw: Some(false),
    rx_vlan: Some(false),
    tx_checksum: Some(false),
};

/// What runs programs and redirects, one buffer per packet.
const SOURCE: u64 = XdpFeatures::BASIC | XdpFeatures::REDIRECT;
/// Everything that natmig asks for.
const ALL_FEATURES: u64 =
    SOURCE | XdpFeatures::TARGET | XdpFeatures::FRAGS | XdpFeatures::TARGET_FRAGS;

fn link() -> Link {
    Link {
        up: true,
        kind: None,
        lower: None,
        vlans: Vec::new(),
        mtu: 1500,
        xdp: Xdp::Ours { generic: false },
        driver: Some("ice".to_owned()),
        xdp_features: Some(XdpFeatures(ALL_FEATURES)),
        queues: Some(Queues {
            receive: 8,
            most: 8,
            combined: true,
        }),
        offloads: PLAIN,
        addresses: vec!["10.1.1.1".parse().unwrap()],
        rp_filter: Some(2),
        forwarding: Some(1),
        send_redirects: Some(0),
    }
}

/// A veth whose peer is in this network namespace.
fn veth() -> Link {
    Link {
        kind: Some("veth".to_owned()),
        driver: Some("veth".to_owned()),
        lower: Some(Lower {
            name: "peer0".to_owned(),
            kind: Some("veth".to_owned()),
            offloads: PLAIN,
            mtu: 1500,
            xdp: Xdp::None,
        }),
        ..link()
    }
}

/// A loaded router on which nothing is to be mended: an access interface, then a fabric interface.
fn good() -> Facts {
    Facts {
        machine: Machine {
            release: "6.12.57+deb13-amd64".to_owned(),
            cpus: 8,
            btf: true,
            bpffs: true,
            jit: Some(true),
            jit_harden: Some(0),
            bpf_stats: Some(0),
            unprivileged_bpf_disabled: Some(2),
            memory_limit: None,
            clock_synchronised: Some(true),
        },
        forwarding: Forwarding {
            ip_forward: Some(1),
            ipv6_forwarding: Some(1),
            rp_filter: Some(0),
            send_redirects: Some(0),
            neighbor_limit: Some(1024),
            nft: Some("nftables v1.1.3".to_owned()),
        },
        instance: Instance {
            name: "default".to_owned(),
            config_file: Some("router.toml".into()),
            pins: Pins::Loaded { abi_version: 1 },
            memory: Some(300 << 20),
            missing_guards: Some(Vec::new()),
            pulse: Some(Pulse::Beating),
            trace_lost: Some(0),
            port: Port {
                name: "natmig0".to_owned(),
                up: true,
                tx_checksum: Some(false),
            },
        },
        interfaces: vec![
            Interface {
                name: "acc0".to_owned(),
                role: Some(Role::Access),
                prefix: Some("10.1.1.0/24".parse().unwrap()),
                gateway: Some("10.1.1.1".parse().unwrap()),
                link: Some(link()),
            },
            Interface {
                name: "fab0".to_owned(),
                role: Some(Role::Fabric),
                prefix: None,
                gateway: None,
                link: Some(veth()),
            },
        ],
    }
}

/// The worst finding of a check.
fn worst(facts: &Facts, check: &str) -> Option<Finding> {
    examine(facts)
        .findings
        .into_iter()
        .filter(|finding| finding.check == check)
        .max_by_key(|finding| finding.severity)
}

/// What is wrong makes a check say so, with what follows; returns the command that mends it.
fn bad(check: &str, severity: Severity, spoil: impl FnOnce(&mut Facts)) -> String {
    let mut facts = good();
    assert!(
        worst(&facts, check).is_none_or(|finding| finding.severity == Severity::Ok),
        "{check} is good at first"
    );
    spoil(&mut facts);
    let finding = worst(&facts, check).expect(check);
    assert_eq!(finding.severity, severity, "{finding:?}");
    assert!(finding.consequence.is_some(), "{finding:?}");
    finding.remedy.unwrap_or_default()
}

fn access(facts: &mut Facts) -> &mut Link {
    facts.interfaces[0].link.as_mut().unwrap()
}

fn fabric(facts: &mut Facts) -> &mut Link {
    facts.interfaces[1].link.as_mut().unwrap()
}

#[test]
fn good_router_has_nothing_to_mend() {
    let report = examine(&good());
    let rest: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .collect();
    assert!(rest.is_empty(), "{rest:#?}");
    assert_eq!(report.worst(), Severity::Ok);
    assert_eq!(report.count(Severity::Ok), report.findings.len());
}

#[test]
fn findings_come_by_subject() {
    let mut subjects: Vec<_> = examine(&good())
        .findings
        .into_iter()
        .map(|finding| finding.subject)
        .collect();
    subjects.dedup();
    assert_eq!(
        subjects,
        [
            Subject::Kernel,
            Subject::Bpf,
            Subject::Clock,
            Subject::Router,
            Subject::Instance,
            Subject::Interface("acc0".to_owned()),
            Subject::Interface("fab0".to_owned()),
        ]
    );
}

#[test]
fn warnings_and_errors_have_a_remedy() {
    let mut facts = good();
    facts.forwarding.ip_forward = Some(0);
    facts.machine.bpffs = false;
    facts.machine.clock_synchronised = Some(false);
    facts.interfaces[0].link = None;
    for finding in examine(&facts).findings {
        assert_eq!(
            finding.severity >= Severity::Warning,
            finding.remedy.is_some(),
            "{finding:?}"
        );
    }
}

#[test]
fn facts_that_cannot_be_read_are_not_taken_for_bad() {
    let mut facts = good();
    facts.machine = Machine {
        jit: None,
        jit_harden: None,
        bpf_stats: None,
        unprivileged_bpf_disabled: None,
        memory_limit: None,
        clock_synchronised: None,
        ..facts.machine
    };
    facts.forwarding = Forwarding {
        ip_forward: None,
        ipv6_forwarding: None,
        rp_filter: None,
        send_redirects: None,
        neighbor_limit: None,
        ..facts.forwarding
    };
    facts.instance.missing_guards = None;
    let link = access(&mut facts);
    link.xdp_features = None;
    link.queues = None;
    link.offloads = Offloads::default();
    link.rp_filter = None;
    link.forwarding = None;
    link.send_redirects = None;
    assert!(examine(&facts).worst() <= Severity::Note);
}

#[test]
fn kernel_before_6_1_is_an_error() {
    bad("version", Severity::Error, |facts| {
        facts.machine.release = "5.10.0-39-amd64".to_owned();
    });
    for release in ["6.1.0-40-amd64", "6.18.44", "7.0-rc1"] {
        let mut facts = good();
        facts.machine.release = release.to_owned();
        assert_eq!(worst(&facts, "version").unwrap().severity, Severity::Ok);
    }
    bad("version", Severity::Note, |facts| {
        facts.machine.release = "custom".to_owned();
    });
}

#[test]
fn kernel_without_btf_is_a_warning() {
    bad("btf", Severity::Warning, |facts| facts.machine.btf = false);
}

#[test]
fn missing_bpffs_is_an_error() {
    let mend = bad("bpffs", Severity::Error, |facts| {
        facts.machine.bpffs = false;
    });
    assert_eq!(mend, "mount -t bpf bpf /sys/fs/bpf");
}

#[test]
fn interpreted_programs_are_a_warning() {
    let mend = bad("jit", Severity::Warning, |facts| {
        facts.machine.jit = Some(false);
    });
    assert_eq!(mend, "sysctl -w net.core.bpf_jit_enable=1");
    bad("jit_harden", Severity::Note, |facts| {
        facts.machine.jit_harden = Some(2);
    });
    bad("bpf_stats", Severity::Warning, |facts| {
        facts.machine.bpf_stats = Some(1);
    });
}

#[test]
fn unprivileged_bpf_is_a_warning() {
    bad("unprivileged_bpf", Severity::Warning, |facts| {
        facts.machine.unprivileged_bpf_disabled = Some(0);
    });
}

#[test]
fn clock_that_runs_free_is_a_warning() {
    bad("synchronised", Severity::Warning, |facts| {
        facts.machine.clock_synchronised = Some(false);
    });
}

#[test]
fn router_that_does_not_forward_is_an_error() {
    bad("ip_forward", Severity::Error, |facts| {
        facts.forwarding.ip_forward = Some(0);
    });
    bad("ipv6_forwarding", Severity::Note, |facts| {
        facts.forwarding.ipv6_forwarding = Some(0);
    });
    let mend = bad("forwarding", Severity::Error, |facts| {
        access(facts).forwarding = Some(0);
    });
    assert_eq!(mend, "sysctl -w net.ipv4.conf.acc0.forwarding=1");
}

#[test]
fn missing_nft_is_an_error() {
    bad("nft", Severity::Error, |facts| facts.forwarding.nft = None);
}

#[test]
fn segments_larger_than_the_neighbour_table_are_a_warning() {
    let mend = bad("neighbor_limit", Severity::Warning, |facts| {
        facts.interfaces[0].prefix = Some("10.1.0.0/20".parse().unwrap());
    });
    assert!(mend.contains("gc_thresh3=4096 "), "{mend}");
}

#[test]
fn pins_that_cannot_be_used_are_errors() {
    bad("pins", Severity::Error, |facts| {
        facts.instance.pins = Pins::OtherLayout {
            found: 9,
            expected: 1,
        };
    });
    bad("pins", Severity::Error, |facts| {
        facts.instance.pins = Pins::Unreadable("not natmig's".to_owned());
    });
    let mend = bad("pins", Severity::Note, |facts| {
        facts.instance.pins = Pins::None;
    });
    assert_eq!(mend, "natmig load --config router.toml");
}

#[test]
fn missing_guard_is_an_error_once_loaded() {
    bad("guard", Severity::Error, |facts| {
        facts.instance.missing_guards = Some(vec!["ip"]);
    });
    let mut facts = good();
    facts.instance.pins = Pins::None;
    facts.instance.missing_guards = Some(vec!["ip"]);
    assert_eq!(worst(&facts, "guard"), None);
}

#[test]
fn heart_that_stopped_is_a_warning_and_one_that_never_beat_a_note() {
    let mend = bad("next_hops", Severity::Warning, |facts| {
        facts.instance.pulse = Some(Pulse::Silent);
    });
    assert_eq!(mend, "natmig agent --config router.toml");
    bad("next_hops", Severity::Note, |facts| {
        facts.instance.pulse = Some(Pulse::None);
    });
    let mut facts = good();
    facts.instance.pins = Pins::None;
    facts.instance.pulse = Some(Pulse::Silent);
    assert_eq!(worst(&facts, "next_hops"), None);
}

#[test]
fn trace_that_lost_events_is_a_note() {
    let mend = bad("trace", Severity::Note, |facts| {
        facts.instance.trace_lost = Some(7);
    });
    assert!(mend.starts_with("natmig trace "), "{mend}");
}

#[test]
fn port_that_is_down_or_leaves_checksums_is_an_error() {
    bad("port", Severity::Error, |facts| {
        facts.instance.port.up = false;
    });
    let mend = bad("port", Severity::Error, |facts| {
        facts.instance.port.tx_checksum = Some(true);
    });
    assert_eq!(mend, "ethtool -K natmig0 tx off");
}

#[test]
fn control_group_too_small_for_the_tables_is_an_error() {
    bad("memory", Severity::Error, |facts| {
        facts.machine.memory_limit = Some(MemoryLimit {
            file: "/sys/fs/cgroup/user.slice/memory.max".into(),
            bytes: 256 << 20,
        });
    });
}

#[test]
fn no_interface_is_a_note() {
    bad("interfaces", Severity::Note, |facts| {
        facts.interfaces.clear();
    });
}

#[test]
fn interface_that_is_missing_or_down_is_found() {
    bad("exists", Severity::Error, |facts| {
        facts.interfaces[0].link = None;
    });
    bad("up", Severity::Warning, |facts| access(facts).up = false);
}

#[test]
fn unsuitable_kinds_are_errors() {
    for kind in ["bridge", "vlan", "dummy", "vxlan"] {
        bad("suitable", Severity::Error, |facts| {
            access(facts).kind = Some(kind.to_owned());
        });
    }
    let mend = bad("suitable", Severity::Error, |facts| {
        access(facts).kind = Some("vlan".to_owned());
        access(facts).lower = Some(Lower {
            name: "br0".to_owned(),
            kind: Some("bridge".to_owned()),
            ..vlan_parent()
        });
    });
    assert!(mend.starts_with("ip link show master br0"), "{mend}");
    bad("suitable", Severity::Error, |facts| {
        access(facts).kind = Some("vlan".to_owned());
        access(facts).lower = Some(Lower {
            kind: Some("vlan".to_owned()),
            ..vlan_parent()
        });
    });
    bad("suitable", Severity::Error, |facts| {
        facts.interfaces[0].name = "lo".to_owned();
    });
}

/// What a VLAN may lie on.
fn vlan_parent() -> Lower {
    Lower {
        name: "eth1".to_owned(),
        kind: None,
        offloads: PLAIN,
        mtu: 1500,
        xdp: Xdp::Ours { generic: false },
    }
}

#[test]
fn vlans_are_judged_by_their_parents() {
    let vlan = |facts: &mut Facts, parent: Lower| {
        access(facts).kind = Some("vlan".to_owned());
        access(facts).lower = Some(parent);
    };
    let mut facts = good();
    vlan(&mut facts, vlan_parent());
    for check in ["vlan_tag", "vlan_mtu", "program"] {
        let worst = worst(&facts, check).expect(check);
        assert_eq!(worst.severity, Severity::Ok, "{worst:?}");
    }
    let mend = bad("vlan_tag", Severity::Error, |facts| {
        let offloads = Offloads {
            rx_vlan: Some(true),
            ..PLAIN
        };
        vlan(
            facts,
            Lower {
                offloads,
                ..vlan_parent()
            },
        );
    });
    assert_eq!(mend, "ethtool -K eth1 rxvlan off txvlan off");
    bad("vlan_mtu", Severity::Warning, |facts| {
        vlan(
            facts,
            Lower {
                mtu: 1400,
                ..vlan_parent()
            },
        );
    });
    for xdp in [
        Xdp::None,
        Xdp::Foreign {
            id: 7,
            name: "other".to_owned(),
        },
    ] {
        bad("program", Severity::Error, |facts| {
            vlan(
                facts,
                Lower {
                    xdp,
                    ..vlan_parent()
                },
            );
        });
    }
}

#[test]
fn driver_without_native_xdp_is_an_error() {
    bad("native_xdp", Severity::Error, |facts| {
        access(facts).xdp_features = Some(XdpFeatures(0));
    });
    let mend = bad("native_xdp", Severity::Error, |facts| {
        fabric(facts).xdp_features = Some(XdpFeatures(0));
    });
    assert_eq!(mend, "ethtool -L peer0 tx 1");
}

#[test]
fn driver_that_cannot_be_asked_is_looked_up() {
    bad("native_xdp", Severity::Warning, |facts| {
        access(facts).xdp_features = None;
        access(facts).driver = Some("e1000e".to_owned());
    });
    let mut facts = good();
    access(&mut facts).xdp_features = None;
    assert_eq!(worst(&facts, "native_xdp").unwrap().severity, Severity::Ok);
}

#[test]
fn interface_that_takes_no_redirected_packets_is_an_error() {
    let mend = bad("redirect_target", Severity::Error, |facts| {
        fabric(facts).xdp_features = Some(XdpFeatures(SOURCE | XdpFeatures::FRAGS));
    });
    assert_eq!(mend, "ethtool -K peer0 gro on");
    bad("redirect_target", Severity::Error, |facts| {
        access(facts).xdp_features = Some(XdpFeatures(SOURCE | XdpFeatures::FRAGS));
    });
    // Drivers make themselves targets when they get a program.
    let mut facts = good();
    access(&mut facts).xdp_features = Some(XdpFeatures(SOURCE | XdpFeatures::FRAGS));
    access(&mut facts).xdp = Xdp::None;
    assert!(worst(&facts, "redirect_target").unwrap().severity == Severity::Ok);
}

#[test]
fn program_that_is_generic_foreign_or_missing_is_found() {
    bad("program", Severity::Warning, |facts| {
        access(facts).xdp = Xdp::Ours { generic: true };
    });
    let mend = bad("program", Severity::Error, |facts| {
        access(facts).xdp = Xdp::Foreign {
            id: 7,
            name: "xdp_pass".to_owned(),
        };
    });
    assert!(mend.contains("id 7 "), "{mend}");
    bad("program", Severity::Error, |facts| {
        access(facts).xdp = Xdp::None;
    });
    let mut facts = good();
    facts.instance.pins = Pins::None;
    access(&mut facts).xdp = Xdp::None;
    assert_eq!(worst(&facts, "program").unwrap().severity, Severity::Ok);
}

#[test]
fn jumbo_frames_need_a_driver_that_can() {
    let mend = bad("mtu", Severity::Warning, |facts| {
        access(facts).mtu = 9000;
        access(facts).xdp_features = Some(XdpFeatures(SOURCE | XdpFeatures::TARGET));
    });
    assert_eq!(mend, "ip link set dev acc0 mtu 3498");
    bad("mtu", Severity::Warning, |facts| {
        access(facts).mtu = 9000;
        access(facts).xdp_features = Some(XdpFeatures(ALL_FEATURES & !XdpFeatures::TARGET_FRAGS));
    });
    bad("mtu", Severity::Note, |facts| {
        access(facts).mtu = 9000;
        access(facts).xdp_features = None;
    });
    let mut facts = good();
    access(&mut facts).mtu = 9000;
    assert_eq!(worst(&facts, "mtu").unwrap().severity, Severity::Ok);
}

#[test]
fn fewer_queues_than_cpus_are_a_note() {
    let few = |most| {
        move |facts: &mut Facts| {
            access(facts).queues = Some(Queues {
                receive: 2,
                most,
                combined: true,
            });
        }
    };
    assert_eq!(
        bad("queues", Severity::Note, few(16)),
        "ethtool -L acc0 combined 8"
    );
    assert_eq!(bad("queues", Severity::Note, few(2)), "");
}

#[test]
fn merged_packets_are_a_warning() {
    let mend = bad("lro", Severity::Warning, |facts| {
        access(facts).offloads.lro = Some(true);
    });
    assert_eq!(mend, "ethtool -K acc0 lro off");
    bad("gro_hw", Severity::Warning, |facts| {
        access(facts).offloads.gro_hw = Some(true);
    });
}

#[test]
fn hidden_vlan_tags_matter_where_there_are_vlans() {
    bad("rx_vlan", Severity::Note, |facts| {
        access(facts).offloads.rx_vlan = Some(true);
    });
    bad("rx_vlan", Severity::Warning, |facts| {
        access(facts).offloads.rx_vlan = Some(true);
        access(facts).vlans = vec!["acc0.7".to_owned()];
    });
}

#[test]
fn senders_that_leave_checksums_are_an_error() {
    let mend = bad("sender_checksum", Severity::Error, |facts| {
        fabric(facts).lower.as_mut().unwrap().offloads.tx_checksum = Some(true);
    });
    assert_eq!(mend, "ethtool -K peer0 tx off");
    bad("sender_checksum", Severity::Note, |facts| {
        fabric(facts).lower = None;
    });
    bad("sender_checksum", Severity::Note, |facts| {
        access(facts).driver = Some("virtio_net".to_owned());
    });
}

#[test]
fn strict_reverse_path_filter_is_a_warning_inside() {
    let mend = bad("rp_filter", Severity::Warning, |facts| {
        fabric(facts).rp_filter = Some(1);
    });
    assert_eq!(mend, "sysctl -w net.ipv4.conf.fab0.rp_filter=2");
    // The stricter of the interface's and that of all does not win: the larger number does.
    bad("rp_filter", Severity::Warning, |facts| {
        facts.forwarding.rp_filter = Some(1);
        access(facts).rp_filter = Some(0);
    });
    let mut facts = good();
    facts.interfaces[1].role = Some(Role::External);
    fabric(&mut facts).rp_filter = Some(1);
    assert_eq!(worst(&facts, "rp_filter").unwrap().severity, Severity::Ok);
}

#[test]
fn redirects_are_a_warning_on_segments() {
    bad("send_redirects", Severity::Warning, |facts| {
        access(facts).send_redirects = Some(1);
    });
    bad("send_redirects", Severity::Note, |facts| {
        fabric(facts).send_redirects = Some(1);
    });
}

#[test]
fn dots_in_names_do_not_break_commands() {
    let mend = bad("rp_filter", Severity::Warning, |facts| {
        facts.interfaces[1].name = "eth0.7".to_owned();
        fabric(facts).rp_filter = Some(1);
    });
    assert_eq!(mend, "sysctl -w net/ipv4/conf/eth0.7/rp_filter=2");
}

#[test]
fn missing_gateway_address_is_a_warning() {
    let mend = bad("gateway", Severity::Warning, |facts| {
        access(facts).addresses.clear();
    });
    assert_eq!(mend, "ip address add 10.1.1.1/24 dev acc0");
}
