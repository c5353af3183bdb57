//! Whatever the writer does between two reads of a packet, the packet sees all of a transaction or
//! nothing of it.

use natmig_model::flip::{Plant, explore};

#[test]
fn packets_beside_two_transactions_see_all_or_nothing() {
    let found = explore(2, 2, None);
    println!("{} states", found.states);
    assert_eq!(found.counterexample, None);
    assert!(found.missing.is_empty(), "{:?}", found.missing);
}

#[test]
fn planted_bugs_of_the_writer_are_found() {
    for plant in Plant::ALL {
        let found = explore(1, 1, Some(plant));
        let counterexample = found.counterexample;
        let text = counterexample.unwrap_or_else(|| panic!("{} was not found", plant.name()));
        println!("{}: {} states\n{text}", plant.name(), found.states);
    }
}
