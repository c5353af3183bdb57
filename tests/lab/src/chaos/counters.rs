//! What the routers counted beside plain translation, as it happens: where packets were lost, this says
//! which router dropped them, passed them to its kernel, or did not believe its own next hops.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use natmig::router::reader::Reader;

use super::journal::Journal;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// Reasons of the class `passed` for which a router's kernel forwards or refuses what natmig did not.
const PASSED: [&str; 4] = [
    "pass_no_neighbor",
    "pass_no_route",
    "pass_fragment",
    "pass_ttl_expired",
];

/// What a router showed at the last look.
#[derive(Debug, Default)]
struct Seen {
    believes: Option<bool>,
    packets: BTreeMap<&'static str, u64>,
}

/// Writes to `log` what rises, until it is `over`. Routers by name, with their instances.
pub(super) fn watch(routers: &[(String, String)], log: &Path, over: &AtomicBool) -> Result<()> {
    let journal = Journal::begin(log)?;
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        let next = Instant::now() + INTERVAL;
        for (name, instance) in routers {
            let seen = seen.entry(name).or_default();
            if let Some(risen) = look(instance, seen) {
                journal.note(format!("{name}: {risen}"));
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// What changed since the last look; nothing of a router that is just being rebooted.
fn look(instance: &str, seen: &mut Seen) -> Option<String> {
    let reader = Reader::open(instance).ok()?;
    let interfaces = reader.interfaces().ok()?;
    let mut changes = Vec::new();
    let believes = reader.believes_next_hops();
    if seen.believes.replace(believes) != Some(believes) {
        let what = if believes {
            "believes its own next hops"
        } else {
            "asks the kernel for next hops"
        };
        changes.push(what.to_owned());
    }
    let mut packets: BTreeMap<&'static str, u64> = BTreeMap::new();
    for counter in interfaces.iter().flat_map(|it| &it.counters) {
        if counter.class == "dropped" || PASSED.contains(&counter.name) {
            *packets.entry(counter.name).or_default() += counter.packets;
        }
    }
    for (name, now) in packets {
        let before = seen.packets.insert(name, now).unwrap_or(0);
        // A router that was rebooted begins anew.
        let more = now.checked_sub(before).unwrap_or(now);
        if more > 0 {
            changes.push(format!("{name} +{more}"));
        }
    }
    (!changes.is_empty()).then(|| changes.join(", "))
}
