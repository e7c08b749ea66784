//! The fuzz targets' checks without a fuzzer: over the committed seeds, seeds with a slip, and bytes of chance.
//! `make fuzz` searches in earnest.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "../../../../fuzz/checks/store.rs"]
mod checks;

use checks::with_yard;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let seeds: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "{} is empty", corpus.display());
    seeds
}

/// A seed, cut off, or with one byte another.
fn slips(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let slip = (any::<prop::sample::Index>(), prop::option::of(any::<u8>()));
    (prop::sample::select(seeds(target)), slip).prop_map(|(mut bytes, (at, byte))| {
        let at = at.index(bytes.len().max(1));
        match byte {
            Some(byte) if at < bytes.len() => bytes[at] = byte,
            _ => bytes.truncate(at),
        }
        bytes
    })
}

fn chance() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

fn check(target: &str, cases: u32, check: impl Fn(&[u8])) {
    for seed in seeds(target) {
        check(&seed);
    }
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let inputs = prop_oneof![9 => slips(target), 1 => chance()];
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let passed = runner.run(&inputs, |bytes| {
        check(&bytes);
        Ok(())
    });
    passed.unwrap_or_else(|e| panic!("{target}: {e}"));
}

#[test]
fn manifests() {
    check("manifest", 500, |data| with_yard(|yard| checks::manifest(yard, data)));
}

#[test]
fn histories() {
    check("history", 200, |data| with_yard(|yard| checks::history(yard, data)));
}

#[test]
fn names() {
    check("names", 2000, checks::names);
}

#[test]
fn links() {
    check("links", 500, |data| with_yard(|yard| checks::links(yard, data)));
}
