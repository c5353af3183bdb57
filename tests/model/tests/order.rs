//! The memory order of the program and the agent suffices on x86-TSO, and nothing less does.

use natmig_model::order::{OrderModel, Plant, explore};

#[test]
fn packets_beside_a_commit_see_all_of_it_or_nothing() {
    let found = explore(OrderModel {
        packets: 3,
        plant: None,
    });
    println!("{} states", found.states);
    assert_eq!(found.counterexample, None);
    assert!(found.states > 500, "{} states", found.states);
}

#[test]
fn planted_bugs_of_memory_order_are_found() {
    for plant in Plant::ALL {
        let found = explore(OrderModel {
            packets: 2,
            plant: Some(plant),
        });
        let counterexample = found.counterexample;
        let text = counterexample.unwrap_or_else(|| panic!("{} was not found", plant.name()));
        println!("{}: {} states\n{text}", plant.name(), found.states);
    }
}
