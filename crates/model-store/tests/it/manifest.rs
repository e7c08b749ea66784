use std::fs;

use model_store::{CHECKSUM_ALGORITHM, FinalizeOptions, Generation, Manifest, StoreError, exit};
use serde_json::{Map, Value, json};

use crate::fixture::{Fixture, scout, version};

fn metadata() -> Map<String, Value> {
    let Value::Object(metadata) = json!({"commit": "abc", "author": "Ada", "gate": {"cosine": 0.99999}})
    else {
        unreachable!("an object was written")
    };
    metadata
}

#[test]
fn keys_come_in_the_documented_order() {
    let fixture = Fixture::new();
    let created_at = Some("2025-09-12T08:30:00Z".parse().unwrap());
    let options = FinalizeOptions { metadata: metadata(), created_at, ..FinalizeOptions::default() };
    fixture.publish_with("v2025-09-12", &[("b", b"b"), ("a", b"a")], options).unwrap();
    let text = fs::read_to_string(fixture.agent_dir().join("current/manifest.json")).unwrap();
    let object: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = object.keys().map(String::as_str).collect();
    let expected =
        ["version", "checksum", "metadata", "format", "checksum_algorithm", "agent", "created_at", "files"];
    assert_eq!(keys, expected, "no `links` where there is none");
    assert_eq!(object["format"], 1);
    assert_eq!(object["checksum_algorithm"], CHECKSUM_ALGORITHM);
    assert_eq!(object["created_at"], "2025-09-12T08:30:00Z");
    assert_eq!(object["metadata"], Value::Object(metadata()));
    let file: Vec<_> = object["files"][0].as_object().unwrap().keys().collect();
    assert_eq!(file, ["path", "size", "sha256"]);
    assert_eq!(object["files"][0]["path"], "a");
    assert!(text.ends_with("}\n"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let bytes = || {
        let fixture = Fixture::new();
        let created_at = Some("2025-09-12T08:30:00Z".parse().unwrap());
        let options = FinalizeOptions { metadata: metadata(), created_at, ..FinalizeOptions::default() };
        fixture.publish_with("v1", &[("b", b"b"), ("a", b"a")], options).unwrap();
        fs::read(fixture.agent_dir().join("current/manifest.json")).unwrap()
    };
    assert_eq!(bytes(), bytes());
}

#[test]
fn unknown_keys_survive() {
    let checksum = "0".repeat(64);
    let text = json!({
        "version": "v1", "checksum": checksum, "metadata": {}, "format": 1, "checksum_algorithm": CHECKSUM_ALGORITHM,
        "agent": "scout", "created_at": "2025-09-12T08:30:00Z", "files": [], "signature": {"by": "us"},
    });
    let manifest = Manifest::from_json(text.to_string().as_bytes()).unwrap();
    assert_eq!(manifest.extra["signature"], json!({"by": "us"}));
    let written: Value = serde_json::from_slice(&manifest.to_json().unwrap()).unwrap();
    assert_eq!(written["signature"], text["signature"]);
}

#[test]
fn a_newer_format_is_read_for_its_first_three_keys() {
    let fixture = Fixture::with_v1();
    let path = fixture.agent_dir().join("versions/v1/manifest.json");
    let newer = json!({
        "version": "v1", "checksum": "1".repeat(64), "metadata": {"commit": "abc"}, "format": 7,
        "agent": ["not", "a", "string"], "files": {"not": "a list"},
    });
    fs::remove_file(&path).unwrap();
    fs::write(&path, newer.to_string()).unwrap();
    let current = fixture.current();
    assert_eq!(current.manifest().generation(), Generation::Newer(7));
    assert_eq!(current.checksum().to_string(), "1".repeat(64));
    assert_eq!(current.manifest().metadata["commit"], "abc");
    let error = fixture.store.verify(&scout(), &version("v1")).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { format: 7, .. }), "{error}");
    assert_eq!(error.exit_code(), exit::REFUSED);
    fixture.publish("v2", &[("x", b"x")]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), newer.to_string(), "it was rewritten");
}

#[test]
fn a_damaged_manifest_is_corrupt() {
    let good = json!({
        "version": "v1", "checksum": "0".repeat(64), "metadata": {}, "format": 1,
        "files": [{"path": "a", "size": 1, "sha256": "0".repeat(64)}],
    });
    let with = |key: &str, value: Value| {
        let mut damaged = good.clone();
        damaged[key] = value;
        damaged.to_string()
    };
    let file = |path: &str| json!({"path": path, "size": 1, "sha256": "0".repeat(64)});
    let rows = [
        ("empty", String::new()),
        ("cut off", good.to_string()[..50].to_owned()),
        ("no object", "[]".to_owned()),
        ("a version that climbs", with("version", json!("../x"))),
        ("a short checksum", with("checksum", json!("00"))),
        ("an upper-case checksum", with("checksum", json!("A".repeat(64)))),
        ("a file that climbs", with("files", json!([file("../../etc/passwd")]))),
        ("a negative size", with("files", json!([{"path": "a", "size": -1, "sha256": "0".repeat(64)}]))),
        ("not sorted", with("files", json!([file("b"), file("a")]))),
        ("a path twice", with("files", json!([file("a"), file("a")]))),
        ("no files", with("files", Value::Null)),
        ("a format that is no number", with("format", json!("one"))),
    ];
    for (row, text) in rows {
        let fixture = Fixture::with_v1();
        let path = fixture.agent_dir().join("versions/v1/manifest.json");
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        let error =
            fixture.store.get_current(&scout()).err().unwrap_or_else(|| panic!("{row}: it was accepted"));
        assert_eq!(error.exit_code(), exit::CORRUPT, "{row}: {error}");
        assert!(error.to_string().contains("versions/v1/manifest.json"), "{row}: {error}");
        assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1")], "{row}: it is still there");
    }
}

#[test]
fn sizes_that_are_made_up_are_damage() {
    let fixture = Fixture::with_v1();
    let path = fixture.agent_dir().join("versions/v1/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        file["size"] = u64::MAX.into();
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, manifest.to_string()).unwrap();
    assert_eq!(fixture.current().manifest().size_bytes(), u64::MAX);
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert_eq!(report.findings.len(), 2, "{:?}", report.findings);
}
