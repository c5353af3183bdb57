//! The README's table of counters is the code's.

use natmig_common::{Counter, CounterClass};

#[test]
fn readme_explains_every_counter() {
    let readme = include_str!("../../README.md");
    for counter in Counter::ALL {
        let class = match counter.class() {
            CounterClass::Passed => "passed",
            CounterClass::Dropped => "dropped",
            CounterClass::Sent => "sent",
            CounterClass::Step => "step",
        };
        let row = format!(
            "| {} | `{}` | {class} | {} |",
            counter.raw(),
            counter.name(),
            counter.description()
        );
        assert!(readme.lines().any(|line| line == row), "missing: {row}");
    }
}
