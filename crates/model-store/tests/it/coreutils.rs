//! The checksum is one that anybody can compute without us.

use std::process::Command;

use model_store::FinalizeOptions;

use crate::fixture::{Fixture, has_program, payload, scout, version};

const ONE_LINER: &str = r#"cd "$ROOT/scout/current" && find . -type f ! -path ./manifest.json -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"#;

#[test]
fn the_checksum_is_what_sha256sum_says() {
    if !has_program("sha256sum", "--version") || !has_program("find", "--version") {
        return;
    }
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    // Names whose order differs between locales, between path bytes and components, and that shells like to
    // break.
    let names = [
        "model.safetensors",
        "a/b",
        "a-b",
        "a.b",
        "B",
        "Größe 1/模型.bin",
        "two  spaces ",
        "it's \"quoted\"",
        "$HOME",
        "*",
        "nested/manifest.json",
        "empty",
        ".hidden",
    ];
    for (i, name) in names.iter().enumerate() {
        staging.write(&payload(name), &vec![b'x'; i * 1000]).unwrap();
    }
    std::fs::write(staging.path().join("empty2"), b"").unwrap();
    std::os::unix::fs::symlink("model.safetensors", staging.path().join("link")).unwrap();
    let published = staging.finalize(FinalizeOptions::default()).unwrap();

    let output = Command::new("sh").args(["-c", ONE_LINER]).env("ROOT", fixture.root()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.split_whitespace().next(), Some(published.checksum.to_string().as_str()));
    assert_eq!(published.files, names.len() + 1);
}
