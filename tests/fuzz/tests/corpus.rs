//! The inputs that fuzzing began with or once found something with, as a test.

use std::{fs, path::Path};

#[test]
fn every_input_of_the_corpus_is_as_the_oracle_says() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut inputs = 0;
    for file in fs::read_dir(corpus).expect("a corpus") {
        let path = file.expect("a file of the corpus").path();
        let input = fs::read(&path).expect("a readable input");
        if let Err(difference) = natmig_fuzz::run(&input) {
            panic!("{}: {difference}", path.display());
        }
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
}
