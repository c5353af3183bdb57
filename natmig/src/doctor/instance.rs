//! The instance: its pins, its guard, its port, its memory.

use super::{
    facts::{Facts, Pins},
    finding::{Chapter, Finding, Subject},
};
use crate::router::next_hops::Pulse;

/// The command that loads the instance.
pub(super) fn load_command(facts: &Facts) -> String {
    let file = facts
        .instance
        .config_file
        .as_ref()
        .map_or_else(|| "FILE".to_owned(), |file| file.display().to_string());
    format!("natmig load --config {file}")
}

pub(super) fn examine(facts: &Facts, findings: &mut Vec<Finding>) {
    let instance = &facts.instance;
    let mut chapter = Chapter::new(Subject::Instance, findings);
    let name = &instance.name;
    match &instance.pins {
        Pins::None => chapter.note(
            "pins",
            format!("instance {name} is not loaded"),
            "nothing is translated here",
            Some(load_command(facts)),
        ),
        Pins::Loaded { abi_version } => chapter.ok(
            "pins",
            format!("instance {name} is loaded, layout version {abi_version}"),
        ),
        Pins::OtherLayout { found, expected } => chapter.error(
            "pins",
            format!("instance {name} was loaded by another natmig (layout version {found}, this one's is {expected})"),
            "it forwards on, but this natmig can neither read nor change it",
            format!("natmig unload --instance {name} && {}   # interrupts translation", load_command(facts)),
        ),
        Pins::Unreadable(cause) => chapter.error(
            "pins",
            format!("the pins of instance {name} cannot be read: {cause}"),
            "neither natmig's agent nor its commands can work with the instance",
            format!("ls -lR /sys/fs/bpf/natmig/{name}   # as root; move away what is not natmig's"),
        ),
    }
    if matches!(instance.pins, Pins::Loaded { .. }) {
        loaded(facts, &mut chapter);
    }
    memory(facts, &mut chapter);
    if facts.interfaces.is_empty() {
        chapter.note(
            "interfaces",
            "no interface was named",
            "interfaces are not examined",
            Some("natmig doctor --config FILE".to_owned()),
        );
    }
}

/// What a loaded instance needs beside its pins.
fn loaded(facts: &Facts, chapter: &mut Chapter<'_>) {
    let instance = &facts.instance;
    match instance.missing_guards.as_deref() {
        Some([]) => chapter.ok("guard", "the guard's tables are installed"),
        Some(missing) => chapter.error(
            "guard",
            format!(
                "tables of the guard are gone from nftables: family {}",
                missing.join(", ")
            ),
            if *missing == ["netdev"] {
                "the kernel drops frames that natmig took for a VM and leaves to it"
            } else {
                "locators may leave the fabric in what the kernel itself sends"
            },
            load_command(facts),
        ),
        None => {}
    }
    pulse(facts, chapter);
    match instance.trace_lost {
        Some(0) => chapter.ok("trace", "the last trace lost no event"),
        Some(lost) => chapter.note(
            "trace",
            format!("the last trace lost {lost} events: its ring buffer was full"),
            "traces show only some of the packets that they are about",
            Some("natmig trace --sample 100   # or fewer packets by a filter".to_owned()),
        ),
        None => {}
    }
    let port = &instance.port;
    if !port.up {
        chapter.error(
            "port",
            format!("the router's port {} is missing or down", port.name),
            "the router's own kernel cannot reach VMs that are away",
            load_command(facts),
        );
    } else if port.tx_checksum == Some(true) {
        chapter.error(
            "port",
            format!(
                "the router's port {} leaves checksums to hardware",
                port.name
            ),
            "what the router's own kernel sends to VMs that are away arrives with wrong checksums",
            format!("ethtool -K {} tx off", port.name),
        );
    } else {
        chapter.ok("port", format!("the router's port {} is up", port.name));
    }
}

/// Whether an agent vouches for natmig's own next hops.
fn pulse(facts: &Facts, chapter: &mut Chapter<'_>) {
    let agent = || {
        let file = facts.instance.config_file.as_ref();
        let file = file.map_or_else(|| "FILE".to_owned(), |file| file.display().to_string());
        format!("natmig agent --config {file}")
    };
    match facts.instance.pulse {
        Some(Pulse::Beating) => {
            chapter.ok("next_hops", "the agent's heart beats: next hops are natmig's own");
        }
        Some(Pulse::Silent) => chapter.warning(
            "next_hops",
            "the agent's heart stopped: it was killed, or hangs",
            "the program asks the kernel for every packet's next hop, which takes about as long as all the rest",
            agent(),
        ),
        Some(Pulse::None) => chapter.note(
            "next_hops",
            "no agent keeps next hops",
            "the program asks the kernel for every packet's next hop, which takes about as long as all the rest",
            Some(agent()),
        ),
        None => {}
    }
}

/// Since Linux 5.11 the memory of maps is charged to the control group of who makes them.
fn memory(facts: &Facts, chapter: &mut Chapter<'_>) {
    let Some(needed) = facts.instance.memory else {
        return;
    };
    let megabytes = needed.div_ceil(1 << 20);
    match &facts.machine.memory_limit {
        Some(limit) if limit.bytes < needed => chapter.error(
            "memory",
            format!(
                "tables take {megabytes} MiB, and this control group is limited to {} MiB",
                limit.bytes >> 20
            ),
            "loading from here fails for want of memory",
            format!(
                "echo max > {}   # or lower max_addresses",
                limit.file.display()
            ),
        ),
        Some(_) | None => chapter.ok(
            "memory",
            format!("no control group keeps tables of {megabytes} MiB from this shell's processes"),
        ),
    }
}
