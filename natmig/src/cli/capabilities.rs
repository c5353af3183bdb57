//! Gives up what a daemon does not need: capabilities, and the way to get any back.
//!
//! Linux keeps capabilities for each thread, and a thread inherits them from the one that starts it:
//! this must happen before a daemon has more threads than one.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// What the controller needs once its sockets are bound: nothing.
pub(super) const CONTROLLER: &[Capability] = &[];

/// What the agent needs, from before it attaches the data plane on.
pub(super) const AGENT: &[Capability] = &[
    // Maps, programs and links; inner maps that come and go with dense prefixes.
    Capability::CAP_BPF,
    // XDP links; routes, neighbours, link flags; nftables.
    Capability::CAP_NET_ADMIN,
    // Announcements are sent by packet sockets.
    Capability::CAP_NET_RAW,
    // The verifier gives programs the freedoms that natmig's use.
    Capability::CAP_PERFMON,
];

/// Keeps these capabilities of those that the process has, in every set, and lets no program that it
/// starts have more.
pub(super) fn keep(wanted: &[Capability]) -> anyhow::Result<()> {
    let wanted: CapsHashSet = wanted.iter().copied().collect();
    // Without CAP_SETPCAP the bounding set stays; the switch below makes it meaningless.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::runtime::thread_all_supported() {
            if !wanted.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .with_context(|| format!("cannot give up {capability}"))?;
            }
        }
    }
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        let kept: CapsHashSet = caps::read(None, set)?
            .intersection(&wanted)
            .copied()
            .collect();
        caps::set(None, set, &kept).with_context(|| format!("cannot reduce the {set:?} set"))?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot forbid new privileges")
}
