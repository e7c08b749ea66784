//! The same seed, the same bytes.

use toy_store::{DEFAULT_SEED, Kind, ToyVersion, folder, generate, roberta_classifier};

/// The checksums of seed 0, on every machine. They change only when the toy is changed on purpose; then stores made before
/// refuse the new one, so say so in the changelog.
const GOLDEN: [(Kind, ToyVersion, &str); 6] = [
    (Kind::Analyst, ToyVersion::V1, "1358c144cf04c00693e2c032b8cecc254c0ba4e332db600086017f692c1d1878"),
    (Kind::Analyst, ToyVersion::V2, "5cfce5e2a3baa1e98de98b9dd12f8c7601503dd2416a4243f6d614ff0caf8dc0"),
    (Kind::Memory, ToyVersion::V1, "c2b0b7aa714155c58a52972d968150eb611785009a571a57998c41ad44866b6f"),
    (Kind::Memory, ToyVersion::V2, "f8c8909ef555b00ef7d700d5ae7e7e6b1b06825a65d2c9fec7b2909d2df729e6"),
    (Kind::Synthesizer, ToyVersion::V1, "7a2ea1c7be66162c11945395faa81350c22119bbb4c4dbaf35e63c1500c2501d"),
    (Kind::Synthesizer, ToyVersion::V2, "025b19ce8b7b7ee770726c2420b9b898812c8fa1c6f3100b3dda9a7480215f16"),
];
const GOLDEN_ROBERTA: &str = "cc3e9a16fe818ff8e8cc19ff6d8860ddb12cf267ff2ebfc04fdaee83aca20ec4";

#[test]
fn checksums_of_the_default_seed_are_golden() {
    let mut wrong = Vec::new();
    for (kind, version, wanted) in GOLDEN {
        let found = folder(kind, DEFAULT_SEED, version).checksum().to_string();
        if found != wanted {
            wrong.push(format!("{kind:?} {version:?} {found}"));
        }
    }
    let found = roberta_classifier().checksum().to_string();
    if found != GOLDEN_ROBERTA {
        wrong.push(format!("roberta {found}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_seed_trains_the_same_model() {
    // Not the default seed, which is kept: both of these are trained.
    let [first, second] = [(); 2].map(|()| folder(Kind::Memory, 11, ToyVersion::V1));
    assert_eq!(first, second);
    assert_ne!(first.checksum(), folder(Kind::Memory, DEFAULT_SEED, ToyVersion::V1).checksum());
}

#[test]
fn versions_differ_in_their_weights_only() {
    for kind in Kind::ALL {
        let [v1, v2] = ToyVersion::ALL.map(|version| folder(kind, DEFAULT_SEED, version));
        for (path, bytes) in v1.files() {
            let is_same = v2.get(path) == Some(bytes);
            assert_eq!(is_same, path != "model.safetensors", "{kind:?}: {path}");
        }
    }
}

#[test]
fn everything_together_is_small() {
    let toy = generate(DEFAULT_SEED);
    let sizes = Kind::ALL
        .into_iter()
        .flat_map(|kind| ToyVersion::ALL.map(|version| toy.folder(kind, version).size_bytes()));
    let total: u64 = sizes.sum();
    assert!(total < 20_000_000, "{total} bytes");
}
