//! The fuzz target's check without a fuzzer, over its committed seeds. `make fuzz` searches in earnest.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "../../../../fuzz/checks/tensors.rs"]
mod checks;

fn seeds() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/tensors");
    fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_committed_seeds() {
    let seeds = seeds();
    assert!(seeds.len() >= 5, "the corpus is not there");
    for seed in &seeds {
        checks::tensors(seed);
    }
}

proptest! {
    #[test]
    fn seeds_with_a_slip(
        mut bytes in prop::sample::select(seeds()), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        checks::tensors(&bytes);
    }
}
