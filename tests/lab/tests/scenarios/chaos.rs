//! A short chaos run, as `cargo xtask chaos` makes longer ones.

use std::time::Duration;

use natmig_lab::{
    chaos::{self, Options},
    lab::Store,
    traffic::Rates,
};

use crate::common::natmig;

#[test]
fn chaos_breaks_no_promise() {
    let Some(needs) = natmig() else { return };
    let report = tempfile::tempdir().unwrap();
    let options = Options {
        seed: 4,
        length: Duration::from_secs(25),
        report: report.path().to_owned(),
        store: Store::THREE,
        rates: Rates {
            udp: 25,
            ..Rates::default()
        },
    };
    let verdict = chaos::run(&needs.natmig, &options, &|words| eprintln!("{words}")).unwrap();
    let violations = verdict.violations();
    assert!(
        violations.is_empty(),
        "{}\n{}",
        violations.join("\n"),
        verdict.text().unwrap()
    );
    assert!(verdict.summary().faults > 5, "{:?}", verdict.summary());
}
