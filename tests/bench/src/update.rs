//! How long the agent's own code takes to update one binding while packets flow: each update is a
//! transaction of one entry, through the same calls as those that a controller asks for.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use natmig::{
    router::Router,
    rule::{Change, Changes, Rule, TransactionId},
};
use natmig_lab::run::check_interrupted;

use crate::{
    change::Updates,
    instance::Instance,
    live::while_sending,
    plan::Tables,
    programs::{Programs, hurry, pin},
    site::Site,
    traffic::{Area, Family, Traffic},
};

/// Pause before each of the updates that find caches cold and their CPU asleep.
const REST: Duration = Duration::from_millis(10);

/// Times of the steps of updates.
#[derive(Debug, Default)]
struct Times {
    prepare: Vec<Duration>,
    commit: Vec<Duration>,
    fold: Vec<Duration>,
    whole: Vec<Duration>,
}

/// Updates bindings all over the table, on the last CPU, while the first forwards packets; how long
/// the steps took. The table is as before in the end. The instance must have no agent yet.
pub fn run(
    programs: &mut Programs,
    site: &Site,
    instance: &Instance,
    tables: &Tables,
    cpus: &[usize],
    count: u32,
) -> Result<Vec<Updates>> {
    let traffic = Traffic::destination_hit(Family::Ipv4, tables.density, tables.bindings);
    let router = site.router()?;
    let (times, rested) = while_sending(programs, site, &traffic, &cpus[..1], |_| {
        router.enter(|| {
            if let [_, .., last] = cpus {
                pin(*last)?;
            }
            hurry(1);
            let mut router = Router::open(&instance.name)?;
            let times = update(&mut router, *tables, count, Duration::ZERO)?;
            let rested = update(&mut router, *tables, count.div_ceil(4), REST)?;
            Ok((times, rested))
        })
    })?;
    let name = |what: &str| format!("{:?}: {what}", tables.density);
    let updates = [
        Updates::new(name("prepare + commit + acknowledge"), &times.whole),
        Updates::new(name("… prepare"), &times.prepare),
        Updates::new(name("… commit + acknowledge"), &times.commit),
        Updates::new(name("fold"), &times.fold),
        Updates::new(name("one every 10 ms, its CPU idle before"), &rested.whole),
    ];
    Ok(updates.into_iter().flatten().collect())
}

/// Updates `count` bindings there and back, with a pause before each.
fn update(router: &mut Router, tables: Tables, count: u32, rest: Duration) -> Result<Times> {
    let (identities, locators) = (
        Area::Identities(tables.density),
        Area::Locators(tables.density),
    );
    let mut times = Times::default();
    // Every binding is changed and changed back.
    for number in 0..2 * count {
        check_interrupted()?;
        let at = (number / 2).wrapping_mul(7919) % tables.bindings;
        let locator = if number % 2 == 0 {
            // One that is none's.
            locators.ipv4(tables.bindings + at)
        } else {
            locators.ipv4(at)
        };
        let changes = Changes {
            early: Vec::new(),
            pending: vec![Change {
                address: IpAddr::from(identities.ipv4(at)),
                rule: Rule::Away {
                    locator: locator.into(),
                    home: None,
                },
            }],
        };
        let id = TransactionId(u64::from(number) + 1);
        std::thread::sleep(rest);
        let start = Instant::now();
        router.prepare(id, &changes)?;
        let prepared = Instant::now();
        let report = router.commit(id)?;
        let committed = Instant::now();
        router.fold(id)?;
        let folded = Instant::now();
        ensure!(report.committed_at != 0, "the commit was not stored");
        times.prepare.push(prepared - start);
        times.commit.push(committed - prepared);
        times.whole.push(committed - start);
        times.fold.push(folded - committed);
    }
    Ok(times)
}
