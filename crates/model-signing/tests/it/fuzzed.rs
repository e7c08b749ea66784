//! The fuzz target's check without a fuzzer: over the committed seeds, seeds with a slip, and bytes of chance.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "../../../../fuzz/checks/signatures.rs"]
mod checks;

fn seeds() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/signatures");
    let seeds: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "{} is empty", corpus.display());
    seeds
}

/// A seed, cut off, or with one byte another.
fn slips() -> impl Strategy<Value = Vec<u8>> {
    let slip = (any::<prop::sample::Index>(), prop::option::of(any::<u8>()));
    (prop::sample::select(seeds()), slip).prop_map(|(mut bytes, (at, byte))| {
        let at = at.index(bytes.len().max(1));
        match byte {
            Some(byte) if at < bytes.len() => bytes[at] = byte,
            _ => bytes.truncate(at),
        }
        bytes
    })
}

#[test]
fn signatures() {
    for seed in seeds() {
        checks::signatures(&seed);
    }
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    let inputs = prop_oneof![9 => slips(), 1 => prop::collection::vec(any::<u8>(), 0..100)];
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let passed = runner.run(&inputs, |bytes| {
        checks::signatures(&bytes);
        Ok(())
    });
    passed.unwrap_or_else(|e| panic!("{e}"));
}
