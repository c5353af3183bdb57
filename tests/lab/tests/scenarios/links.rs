//! Links that fail under traffic.

use std::time::Duration;

use anyhow::{Result, ensure};
use natmig_lab::{Lab, account::Window, clock, report::Step};

use crate::common::{all_kept, migrate, scenario, step_of, three_tier, watch};

/// No outage takes longer, on a busy machine either: the rest of a scenario is no outage.
const LONGEST: Duration = Duration::from_secs(20);

/// Changes the fabric: packets from and to vm1 may be lost until all routers follow.
fn outage(lab: &mut Lab, change: impl FnOnce(&mut Lab) -> Result<()>) -> Result<Step> {
    let began = clock::now();
    change(lab)?;
    lab.wait_followed()?;
    let ended = clock::now();
    let took = Duration::from_nanos(ended - began);
    ensure!(took < LONGEST, "routing took {took:?}");
    Ok(step_of(vec![Window {
        vm: "vm1".into(),
        unplug: began,
        replug: ended,
        anchors: ended,
    }]))
}

#[test]
fn cut_link_costs_only_its_own_outage() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "host4")],
        )?;
        let mut steps = vec![migrate(lab, &[("vm1", "rack3")])?];
        watched.more(300)?;
        steps.push(outage(lab, |lab| lab.network.cut_link("agg3", "edge3"))?);
        watched.more(300)?;
        steps.push(migrate(lab, &[("vm1", "rack4")])?);
        watched.more(300)?;
        steps.push(outage(lab, |lab| {
            lab.network.restore_link("agg3", "edge3")
        })?);
        watched.more(300)?;
        steps.push(migrate(lab, &[("vm1", "rack1")])?);
        watched.more(300)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}

#[test]
fn a_link_that_was_removed_works_again_when_it_is_made_anew() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "host4")],
        )?;
        let mut steps = vec![migrate(lab, &[("vm1", "rack3")])?];
        watched.more(300)?;
        steps.push(outage(lab, |lab| lab.network.remove_link("agg3", "edge3"))?);
        watched.more(300)?;
        // Nothing is routed over it yet, so that nothing may be lost.
        lab.network.make_link("agg3", "edge3")?;
        lab.wait_connected()?;
        watched.more(300)?;
        steps.push(outage(lab, |lab| {
            lab.network.restore_link("agg3", "edge3")
        })?);
        watched.more(300)?;
        // From here on it is the only way.
        steps.push(outage(lab, |lab| lab.network.cut_link("agg4", "edge3"))?);
        watched.more(300)?;
        steps.push(migrate(lab, &[("vm1", "rack1")])?);
        watched.more(300)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}
