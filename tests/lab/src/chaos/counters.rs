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
    packets: BTreeMap<(String, &'static str), u64>,
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
    for interface in interfaces {
        for counter in interface.counters {
            if counter.class != "dropped" && !PASSED.contains(&counter.name) {
                continue;
            }
            let key = (interface.interface.clone(), counter.name);
            let before = seen.packets.insert(key, counter.packets).unwrap_or(0);
            // A router that was rebooted begins anew.
            let more = counter.packets.checked_sub(before);
            let more = more.unwrap_or(counter.packets);
            if more > 0 {
                changes.push(format!("{} {} +{more}", interface.interface, counter.name));
            }
        }
    }
    (!changes.is_empty()).then(|| changes.join(", "))
}
