//! Links that fail under traffic.

use anyhow::ensure;
use natmig_lab::{account::Window, clock};

use crate::common::{all_kept, migrate, scenario, step_of, three_tier, watch};

#[test]
fn cut_link_costs_only_its_own_outage() {
    scenario(three_tier(), |lab| {
        let watched = watch(
            lab,
            &[("vm1", "outside"), ("vm1", "host1"), ("vm1", "host4")],
        )?;
        let mut steps = vec![migrate(lab, &[("vm1", "rack3")])?];
        watched.more(300)?;
        let outage = |began: u64, ended: u64| {
            let window = |vm: &str| Window {
                vm: vm.into(),
                unplug: began,
                replug: ended,
                anchors: ended,
            };
            step_of(vec![window("vm1")])
        };
        let began = clock::now();
        lab.network.cut_link("agg3", "edge3")?;
        steps.push(outage(began, clock::now()));
        watched.more(300)?;
        steps.push(migrate(lab, &[("vm1", "rack4")])?);
        watched.more(300)?;
        let began = clock::now();
        lab.network.restore_link("agg3", "edge3")?;
        steps.push(outage(began, clock::now()));
        watched.more(300)?;
        steps.push(migrate(lab, &[("vm1", "rack1")])?);
        watched.more(300)?;
        let run = watched.finish(lab, steps)?;
        let outages = run.steps.iter().filter(|step| step.id == 0);
        let longest = outages
            .flat_map(|step| &step.windows)
            .map(|window| window.end() - window.unplug)
            .max();
        ensure!(longest < Some(2_000_000_000), "routing took {longest:?} ns");
        all_kept(&run)
    });
}
