//! A segment with two edge routers: one of them has the gateway's address, both deliver.

use natmig_lab::Topology;

use crate::common::{all_kept, migrate, ping, scenario, three_tier, watch};

/// The default topology, with edge1 and edge2 both on rack1.
fn paired() -> Topology {
    let mut topology = three_tier();
    for segment in &mut topology.segments {
        if segment.name == "rack1" {
            segment.routers.push("edge2".to_owned());
        }
    }
    topology
}

#[test]
fn a_pair_serves_its_home_vms_and_its_visitors() {
    scenario(paired(), |lab| {
        let watched = watch(
            lab,
            &[
                ("vm1", "outside"),
                ("vm1", "host1"),
                ("vm1", "host3"),
                ("vm1", "web1"),
                ("web2", "host1"),
                ("web2", "outside"),
            ],
        )?;
        let mut steps = Vec::new();
        for moves in [
            // Away from the pair, into it, within it, and home.
            &[("vm1", "rack3")][..],
            &[("web2", "rack1")],
            &[("vm1", "rack2")],
            &[("vm1", "rack1"), ("web2", "rack4")],
            &[("web2", "rack2")],
        ] {
            watched.more(300)?;
            steps.push(migrate(lab, moves)?);
        }
        watched.more(600)?;
        all_kept(&watched.finish(lab, steps)?)
    });
}

#[test]
fn neighbours_of_a_pair_reach_an_away_vm() {
    scenario(paired(), |lab| {
        migrate(lab, &[("vm1", "rack3")])?;
        for address in ["10.1.1.10", "2001:db8:1::10"] {
            ping(lab, "host1", address)?;
        }
        Ok(())
    });
}
