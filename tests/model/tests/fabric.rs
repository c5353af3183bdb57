//! Every scenario holds its invariants, and every planted bug breaks one.

use natmig_model::{
    plant::Plant,
    run::{Limits, explore},
    scenario,
};

#[test]
fn scenarios_hold_their_invariants() {
    for scenario in scenario::all() {
        let (name, depth) = (scenario.name, scenario.depth);
        let found = explore(scenario, None, Limits::default());
        println!(
            "{name}: {} states, depth {}, {:?}",
            found.states, found.depth, found.time
        );
        if let Some(counterexample) = found.counterexample {
            panic!("{name}:\n{}", counterexample.text());
        }
        let whole = found.complete || found.depth == depth;
        assert!(whole, "{name} was not explored to its end");
    }
}

#[test]
fn planted_bugs_are_found() {
    for plant in Plant::ALL {
        let scenario = scenario::of(plant).unwrap();
        let found = explore(scenario, Some(plant), Limits::default());
        println!(
            "{}: {} states, {:?}",
            plant.name(),
            found.states,
            found.time
        );
        let counterexample = found.counterexample;
        let counterexample =
            counterexample.unwrap_or_else(|| panic!("{} was not found", plant.name()));
        println!("{}", counterexample.text());
    }
}
