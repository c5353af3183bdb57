//! The lab itself.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use natmig_lab::{Lab, namespace::Namespace, run};

use crate::common::{all_kept, ping, root, three_tier, watch};

#[test]
fn lab_comes_up_forwards_and_cleans_up() {
    let Some(_alone) = root() else { return };
    let lab = Lab::plain(three_tier()).unwrap();
    let directory = lab.directory().to_owned();
    let prefix = lab
        .network
        .node("vm1")
        .unwrap()
        .name()
        .trim_end_matches("vm1")
        .to_owned();
    for (from, to) in [
        ("outside", "10.1.1.10"),
        ("vm1", "10.1.2.50"),
        ("host3", "10.1.4.50"),
        ("edge1", "10.1.3.50"),
        ("host1", "198.51.100.10"),
        ("outside", "2001:db8:1::10"),
        ("vm1", "2001:db8:2::50"),
        ("edge1", "2001:db8:3::50"),
        ("host1", "2001:db8:100::10"),
    ] {
        ping(&lab, from, to).unwrap();
    }
    assert!(directory.exists());
    drop(lab);
    assert!(Namespace::list(&prefix).unwrap().is_empty());
    assert!(!directory.exists());
}

#[test]
fn crashed_lab_is_cleared() {
    let Some(_alone) = root() else { return };
    let mut crashing = Command::new(env!("CARGO_BIN_EXE_natmig-lab"))
        .args(["up", "--plain"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(crashing.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    let (id, prefix) = run::running().unwrap();
    crashing.kill().unwrap();
    crashing.wait().unwrap();
    assert!(
        first.contains(run::directory(id).to_str().unwrap()),
        "{first}"
    );
    assert!(!Namespace::list(&prefix).unwrap().is_empty());
    run::clear_stale().unwrap();
    assert!(Namespace::list(&prefix).unwrap().is_empty());
    assert!(!run::directory(id).exists());
}

#[test]
fn guest_keeps_carrier_and_neighbours_while_plugged_elsewhere() {
    let Some(_alone) = root() else { return };
    let mut lab = Lab::plain(three_tier()).unwrap();
    ping(&lab, "vm1", "10.1.1.1").unwrap();
    let look = |lab: &Lab, what: &[&str]| crate::common::run(lab, "vm1", "ip", what).unwrap();
    let before = look(&lab, &["neighbour", "show"]);
    lab.relocate(&[("vm1", "rack2")], Duration::from_millis(20))
        .unwrap();
    assert!(look(&lab, &["link", "show", "eth0"]).contains("LOWER_UP"));
    let mac = |text: &str| text.split_whitespace().nth(4).map(str::to_owned);
    assert_eq!(mac(&before), mac(&look(&lab, &["neighbour", "show"])));
}

#[test]
fn plain_traffic_survives_a_cut_of_the_guests_link() {
    let Some(_alone) = root() else { return };
    let mut lab = Lab::plain(three_tier()).unwrap();
    let watched = watch(&lab, &[("vm1", "outside"), ("vm1", "host1")]).unwrap();
    watched.more(100).unwrap();
    let windows = lab
        .relocate(&[("vm1", "rack1")], Duration::from_millis(50))
        .unwrap();
    watched.more(200).unwrap();
    let mut run = watched.finish(&lab, Vec::new()).unwrap();
    assert!(
        !run.violations().is_empty(),
        "a pause without a migration is a loss"
    );
    run.steps.push(crate::common::step_of(windows));
    all_kept(&run).unwrap();
    assert!(run.accounts().iter().any(|account| account.excused > 0));
}
