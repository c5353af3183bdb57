//! One interface: what it is, its driver, its program, its settings.

use natmig_common::Role;

use super::{
    drivers,
    facts::{Facts, Interface, Link, Lower, Pins, Xdp, XdpFeatures},
    finding::{Chapter, Finding, Subject},
    instance::load_command,
    offload, sysctl,
};

/// Largest MTU whose frames fit one buffer in every driver: a page of 4096 bytes without the
/// program's headroom (256), the kernel's shared info (320), Ethernet header and two tags (22).
pub(super) const SINGLE_BUFFER_MTU: u32 = 4096 - 256 - 320 - 22;

pub(super) fn examine(facts: &Facts, interface: &Interface, findings: &mut Vec<Finding>) {
    let mut chapter = Chapter::new(Subject::Interface(interface.name.clone()), findings);
    let chapter = &mut chapter;
    let Some(link) = &interface.link else {
        chapter.error(
            "exists",
            "it does not exist in this network namespace",
            "natmig refuses to load",
            "ip -brief link   # correct `name` in the configuration",
        );
        return;
    };
    state(interface, link, chapter);
    // Another interface has to be named in its place: no use in mending this one.
    if !suitable(interface, link, chapter) {
        return;
    }
    if let (Some("vlan"), Some(parent)) = (link.kind.as_deref(), &link.lower) {
        vlan(facts, link, parent, chapter);
        settings(facts, interface, link, chapter);
        gateway(interface, link, chapter);
        return;
    }
    native(interface, link, chapter);
    program(facts, interface, link, chapter);
    mtu(interface, link, chapter);
    offload::examine(interface, link, chapter);
    queues(facts, interface, link, chapter);
    settings(facts, interface, link, chapter);
    gateway(interface, link, chapter);
}

fn state(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let name = &interface.name;
    let role = interface.role.map_or("no role", Role::name);
    if link.up {
        chapter.ok("up", format!("up, {role}"));
    } else {
        chapter.warning(
            "up",
            format!("down, {role}"),
            "nothing passes through it",
            format!("ip link set dev {name} up"),
        );
    }
}

/// Whether an XDP program can run on the interface and be redirected to.
fn suitable(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) -> bool {
    let lower = link.lower.as_ref();
    let (what, instead) = match link.kind.as_deref() {
        _ if interface.name == "lo" => (
            "the loopback interface".to_owned(),
            "ip -brief link   # name the interfaces that packets come in on".to_owned(),
        ),
        Some("bridge") => (
            "a bridge".to_owned(),
            format!(
                "ip link show master {}   # name its ports instead",
                interface.name
            ),
        ),
        Some("vlan") if lower.is_some_and(|lower| lower.kind.as_deref() == Some("bridge")) => (
            "a VLAN interface of a bridge".to_owned(),
            lower.map_or_else(String::new, |lower| {
                format!(
                    "ip link show master {}   # name its ports instead",
                    lower.name
                )
            }),
        ),
        Some("vlan") if lower.is_none() => (
            "a VLAN of an interface in another network namespace".to_owned(),
            "ip -details link   # load natmig where the parent is".to_owned(),
        ),
        Some("vlan") if lower.is_some_and(|lower| lower.kind.as_deref() == Some("vlan")) => (
            "a VLAN of a VLAN".to_owned(),
            "ip -details link   # only the outer tag tells VLANs apart: use one tag".to_owned(),
        ),
        Some(
            kind @ ("dummy" | "macvlan" | "ipvlan" | "vxlan" | "gre" | "gretap" | "ipip" | "sit"
            | "geneve" | "wireguard" | "vrf" | "ifb" | "team"),
        ) => (
            format!("an interface of kind {kind}"),
            "ip -brief link   # name the interface below it instead".to_owned(),
        ),
        Some(_) | None => return true,
    };
    chapter.error(
        "suitable",
        format!("is {what}"),
        "programs do not run natively on it, or packets cannot be redirected to it",
        instead,
    );
    false
}

/// What a VLAN needs of its parent, on which the program runs.
fn vlan(facts: &Facts, link: &Link, parent: &Lower, chapter: &mut Chapter<'_>) {
    let name = &parent.name;
    if parent.offloads.rx_vlan == Some(true) {
        chapter.error(
            "vlan_tag",
            format!("{name} takes tags out of received frames (rxvlan)"),
            "the program cannot tell what is of this VLAN, so nothing of it is translated",
            format!("ethtool -K {name} rxvlan off txvlan off"),
        );
    } else {
        chapter.ok("vlan_tag", format!("{name} leaves tags in received frames"));
    }
    if parent.mtu < link.mtu {
        chapter.warning(
            "vlan_mtu",
            format!("MTU {}, and that of {name} is {}", link.mtu, parent.mtu),
            "large packets to this VLAN are dropped",
            format!("ip link set dev {name} mtu {}", link.mtu),
        );
    } else {
        chapter.ok("vlan_mtu", format!("{name} takes packets of this size"));
    }
    match &parent.xdp {
        Xdp::Foreign { id, name: program } => chapter.error(
            "program",
            format!("XDP program {program:?} (id {id}) on {name} is somebody else's"),
            "natmig refuses to load: an interface runs one program",
            format!("bpftool prog show id {id} && ip link set dev {name} xdp off"),
        ),
        Xdp::None if matches!(facts.instance.pins, Pins::Loaded { .. }) => chapter.error(
            "program",
            format!("instance is loaded, but natmig's program is not on {name}"),
            "packets that come in here are not translated",
            load_command(facts),
        ),
        Xdp::None => chapter.ok("program", format!("no XDP program is in the way on {name}")),
        Xdp::Ours { .. } => chapter.ok("program", format!("natmig's program runs on {name}")),
    }
}

fn native(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let name = &interface.name;
    let driver = link.driver.as_deref().unwrap_or("unknown");
    let veth = driver == "veth";
    let Some(features) = link.xdp_features else {
        if drivers::is_native(driver) {
            chapter.ok(
                "native_xdp",
                format!(
                    "driver {driver} is known for native XDP (this kernel cannot be asked for it)"
                ),
            );
        } else {
            chapter.warning(
                "native_xdp",
                format!(
                    "driver {driver} is not known for native XDP, and this kernel cannot be asked"
                ),
                "natmig may refuse to load; generic mode is slow",
                format!(
                    "ethtool -i {name}   # then try `natmig load`, or use another network card"
                ),
            );
        }
        return;
    };
    if !features.has(XdpFeatures::BASIC | XdpFeatures::REDIRECT) {
        let found =
            format!("driver {driver} does not run programs natively as the interface is set up");
        if veth {
            chapter.error(
                "native_xdp",
                found,
                "its peer has more transmit queues than it has receive queues, so natmig refuses to load",
                at_peer(link, "-L", "tx 1"),
            );
        } else {
            chapter.error(
                "native_xdp",
                found,
                "natmig refuses to load, except in generic mode, which is slow",
                format!("ethtool -i {name}   # use another network card, or a newer kernel"),
            );
        }
        return;
    }
    chapter.ok(
        "native_xdp",
        format!("driver {driver} runs programs natively and redirects"),
    );
    if features.has(XdpFeatures::TARGET) {
        chapter.ok("redirect_target", "packets can be redirected to it");
    } else if veth {
        chapter.error(
            "redirect_target",
            "its peer takes no redirected packets",
            "whatever natmig forwards out of it is dropped",
            at_peer(link, "-K", "gro on"),
        );
    } else if matches!(link.xdp, Xdp::Ours { .. }) {
        chapter.error(
            "redirect_target",
            format!("driver {driver} takes no redirected packets"),
            "whatever natmig forwards out of it is dropped",
            format!("ethtool -i {name}   # use another network card, or a newer kernel"),
        );
    }
    // Other drivers make themselves targets when they get a program.
}

/// An ethtool command for the other end of a veth.
pub(super) fn at_peer(link: &Link, option: &str, values: &str) -> String {
    match &link.lower {
        Some(lower) => format!("ethtool {option} {} {values}", lower.name),
        None => format!("ethtool {option} PEER {values}   # in the peer's network namespace"),
    }
}

fn program(facts: &Facts, interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let name = &interface.name;
    let loaded = matches!(facts.instance.pins, Pins::Loaded { .. });
    match &link.xdp {
        Xdp::Ours { generic: false } => chapter.ok("program", "natmig's program runs natively"),
        Xdp::Ours { generic: true } => chapter.warning(
            "program",
            "natmig's program runs in generic mode",
            "every packet is copied before the program sees it: slow, and not for production",
            format!(
                "natmig unload --instance {} && {}   # interrupts translation",
                facts.instance.name,
                load_command(facts)
            ),
        ),
        Xdp::Foreign { id, name: program } => chapter.error(
            "program",
            format!("XDP program {program:?} (id {id}) is somebody else's"),
            "natmig refuses to load: an interface runs one program",
            format!("bpftool prog show id {id} && ip link set dev {name} xdp off"),
        ),
        Xdp::None if loaded => chapter.error(
            "program",
            "instance is loaded, but natmig's program is not on this interface",
            "packets that come in here are not translated",
            load_command(facts),
        ),
        Xdp::None => chapter.ok("program", "no XDP program is in the way"),
    }
}

fn mtu(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let mtu = link.mtu;
    if mtu <= SINGLE_BUFFER_MTU {
        chapter.ok("mtu", format!("MTU {mtu}: every packet fits one buffer"));
        return;
    }
    let found = format!("MTU {mtu}: larger packets take several buffers");
    let shrink = format!("ip link set dev {} mtu {SINGLE_BUFFER_MTU}", interface.name);
    match link.xdp_features {
        Some(features)
            if features.has(XdpFeatures::FRAGS)
                && (features.has(XdpFeatures::TARGET_FRAGS)
                    || !features.has(XdpFeatures::TARGET)) =>
        {
            chapter.ok("mtu", format!("{found}, which the driver can do"));
        }
        Some(features) if features.has(XdpFeatures::FRAGS) => chapter.warning(
            "mtu",
            format!("{found}, which the driver receives but cannot be redirected"),
            "large packets to this interface are dropped",
            shrink,
        ),
        Some(_) => chapter.warning(
            "mtu",
            format!("{found}, which the driver cannot give to a program"),
            "the driver refuses natmig's program, or drops large packets",
            shrink,
        ),
        None => chapter.note(
            "mtu",
            found,
            "whether the driver can do that cannot be asked on this kernel; if not, natmig refuses to load",
            Some(shrink),
        ),
    }
}

fn queues(facts: &Facts, interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let Some(queues) = link.queues else { return };
    let cpus = facts.machine.cpus;
    let found = format!("receive queues: {}, CPUs: {cpus}", queues.receive);
    if queues.receive >= cpus {
        chapter.ok("queues", found);
        return;
    }
    let consequence = format!(
        "at most {} of {cpus} CPUs translate what comes in here",
        queues.receive
    );
    let wanted = queues.most.min(cpus);
    if wanted <= queues.receive {
        chapter.note(
            "queues",
            format!("{found}, and it has no more"),
            consequence,
            None,
        );
    } else {
        let name = &interface.name;
        chapter.note(
            "queues",
            found,
            consequence,
            Some(if queues.combined {
                format!("ethtool -L {name} combined {wanted}")
            } else {
                format!("ethtool -L {name} rx {wanted}")
            }),
        );
    }
}

fn settings(facts: &Facts, interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let name = &interface.name;
    if link.forwarding == Some(0) && facts.forwarding.ip_forward != Some(0) {
        chapter.error(
            "forwarding",
            format!("it does not forward (net.ipv4.conf.{name}.forwarding=0)"),
            "neither the kernel nor natmig's look-ups of next hops forward what comes in here",
            sysctl::set_interface(name, "forwarding", 1),
        );
    }
    // The kernel takes the larger of the two.
    let rp_filter = facts.forwarding.rp_filter.max(link.rp_filter);
    match rp_filter {
        Some(1) if interface.role == Some(Role::External) => chapter.ok(
            "rp_filter",
            "reverse-path filter is strict, which is right towards outside",
        ),
        Some(1) => chapter.warning(
            "rp_filter",
            "reverse-path filter is strict",
            "what natmig leaves to the kernel here is dropped where the way back is another, as for anchored packets and visitors",
            sysctl::set_interface(name, "rp_filter", 2),
        ),
        Some(0) => chapter.ok("rp_filter", "reverse-path filter is off"),
        Some(_) => chapter.ok("rp_filter", "reverse-path filter is loose"),
        None => {}
    }
    // The kernel sends redirects if either says so.
    let redirects = facts.forwarding.send_redirects.max(link.send_redirects);
    match redirects {
        Some(0) => chapter.ok("send_redirects", "sends no redirects"),
        Some(_) => {
            let found = "sends redirects (net.ipv4.conf.all.send_redirects or its own is 1)";
            let mend = format!(
                "{} && {}",
                sysctl::set("net.ipv4.conf.all.send_redirects", 0),
                sysctl::set_interface(name, "send_redirects", 0)
            );
            if interface.role.is_none_or(|role| role == Role::Access) {
                chapter.warning(
                    "send_redirects",
                    found,
                    "hosts are told ways around this router, and then miss its translation",
                    mend,
                );
            } else {
                chapter.note(
                    "send_redirects",
                    found,
                    "routers do not heed redirects",
                    Some(mend),
                );
            }
        }
        None => {}
    }
}

fn gateway(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let Some(gateway) = interface.gateway else {
        return;
    };
    if link.addresses.contains(&gateway) {
        chapter.ok("gateway", format!("owns the segment's gateway {gateway}"));
        return;
    }
    let length = interface.prefix.map_or(32, |prefix| prefix.prefix_len());
    chapter.warning(
        "gateway",
        format!("the segment's gateway {gateway} is not among its addresses"),
        "this router does not answer for VMs that are away; right only while another router of the segment owns the gateway (VRRP)",
        format!("ip address add {gateway}/{length} dev {}", interface.name),
    );
}
