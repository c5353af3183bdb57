//! Offloads that hide from a program what a packet is on the wire.

use super::{
    facts::{Interface, Link},
    finding::Chapter,
    interface::at_peer,
};

pub(super) fn examine(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let name = &interface.name;
    let offloads = link.offloads;
    merging(
        chapter,
        "lro",
        offloads.lro,
        "packets are merged on receipt (large-receive-offload)",
        "lro",
        name,
    );
    merging(
        chapter,
        "gro_hw",
        offloads.gro_hw,
        "packets are merged in hardware (rx-gro-hw)",
        "rx-gro-hw",
        name,
    );
    rx_vlan(interface, link, chapter);
    partial_checksums(link, chapter);
}

fn merging(
    chapter: &mut Chapter<'_>,
    check: &'static str,
    on: Option<bool>,
    found: &str,
    feature: &str,
    name: &str,
) {
    match on {
        Some(true) => chapter.warning(
            check,
            found,
            "the driver refuses natmig's program, or packets come out larger than they came in",
            format!("ethtool -K {name} {feature} off"),
        ),
        Some(false) => chapter.ok(check, "packets are not merged"),
        None => {}
    }
}

/// A tag that the hardware took out is in the descriptor, where a program does not see it.
fn rx_vlan(interface: &Interface, link: &Link, chapter: &mut Chapter<'_>) {
    let mend = format!("ethtool -K {} rxvlan off", interface.name);
    match link.offloads.rx_vlan {
        Some(true) if !link.vlans.is_empty() => chapter.warning(
            "rx_vlan",
            format!(
                "VLAN tags are taken out on receipt (rxvlan), and it has VLANs: {}",
                link.vlans.join(", ")
            ),
            "natmig takes tagged packets for untagged ones, and forwards them without their tag",
            mend,
        ),
        Some(true) => chapter.note(
            "rx_vlan",
            "VLAN tags are taken out on receipt (rxvlan)",
            "tagged packets would be forwarded without their tag; nothing to do where there are none",
            Some(mend),
        ),
        Some(false) => chapter.ok("rx_vlan", "programs see VLAN tags"),
        None => {}
    }
}

/// A sender on the same machine leaves the checksum to hardware that there is not.
fn partial_checksums(link: &Link, chapter: &mut Chapter<'_>) {
    const CONSEQUENCE: &str = "packets arrive without complete checksums, and natmig, which only updates them, forwards them with wrong ones";
    match (link.driver.as_deref(), &link.lower) {
        (Some("veth"), Some(lower)) => match lower.offloads.tx_checksum {
            Some(true) => chapter.error(
                "sender_checksum",
                format!("its peer {} leaves checksums to hardware", lower.name),
                CONSEQUENCE,
                at_peer(link, "-K", "tx off"),
            ),
            Some(false) => chapter.ok(
                "sender_checksum",
                format!("its peer {} completes checksums", lower.name),
            ),
            None => {}
        },
        (Some("veth"), None) => chapter.note(
            "sender_checksum",
            "its peer is in another network namespace",
            format!("if that leaves checksums to hardware: {CONSEQUENCE}"),
            Some(at_peer(link, "-K", "tx off")),
        ),
        (Some("virtio_net" | "tun"), _) => chapter.note(
            "sender_checksum",
            "senders on the same machine are not visible from here",
            format!("if they leave checksums to hardware: {CONSEQUENCE}"),
            Some("ethtool -K DEVICE tx off   # on hosts and guests behind it".to_owned()),
        ),
        _ => {}
    }
}
