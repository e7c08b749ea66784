//! Keys, signatures and the policy on them, as an operator meets them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::desk::{Desk, text};

/// The desk, with a key that nobody trusts yet.
fn desk() -> Desk {
    let desk = Desk::with_v1();
    desk.run(&["keygen", "key.pem"]).ok();
    desk
}

fn file(desk: &Desk, name: &str) -> PathBuf {
    desk.folder().parent().unwrap().join(name)
}

fn fingerprint(desk: &Desk, key: &str) -> String {
    let run = desk.run(&["--json", "sign", "scout", "v1", "--key", key]);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    json["key"].as_str().unwrap().to_owned()
}

#[test]
fn a_key_is_made_once_and_for_its_owner() {
    let desk = Desk::new();
    let made = desk.run(&["--json", "keygen", "key.pem"]).json();
    assert_eq!((&made["private_key"], &made["public_key"]), (&json!("key.pem"), &json!("key.pem.pub")));
    let mode = |name| fs::metadata(file(&desk, name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("key.pem"), 0o600);
    let before = fs::read(file(&desk, "key.pem")).unwrap();
    for there in ["key.pem", "key.pem.pub"] {
        let run = desk.run(&["keygen", "key.pem"]).ended(1);
        assert!(run.stderr.contains("is there already"), "{}", run.stderr);
        assert_eq!(fs::read(file(&desk, "key.pem")).unwrap_or_else(|_| before.clone()), before);
        fs::remove_file(file(&desk, there)).unwrap();
        if there == "key.pem" {
            continue;
        }
        desk.run(&["keygen", "key.pem"]).ok();
    }
    assert_ne!(fs::read(file(&desk, "key.pem")).unwrap(), before);
}

#[test]
fn sign_show_and_verify() {
    let desk = desk();
    let unsigned = desk.run(&["verify", "scout", "--signatures"]).ended(6);
    assert_eq!(
        unsigned.stdout,
        "refused  scout/v1   2 files, 7 B\n           it is not signed\n           next       model-store sign scout v1 --key \
         KEY\n"
    );
    let run = desk.run(&["sign", "scout", "--key", "key.pem", "--reason", "reviewed"]).ended(0);
    assert!(run.stdout.starts_with("signed scout/v1   key "), "{}", run.stdout);
    assert!(run.stderr.contains("does not trust that key"), "{}", run.stderr);
    let key = fingerprint(&desk, "key.pem");
    assert!(desk.run(&["history", "scout"]).ok().contains(&format!("reviewed (key {key})")));

    let refused = desk.run(&["verify", "scout", "--signatures"]).ended(6);
    assert!(refused.stdout.contains("its signature was made with key"), "{}", refused.stdout);
    let verified = desk.run(&["verify", "scout", "--signatures", "--public-key", "key.pem.pub"]).ok();
    assert_eq!(verified, format!("ok       scout/v1   2 files, 7 B\n           signed with key {key}\n"));
    desk.run(&["policy", "trust", "key.pem.pub"]).ok();
    desk.run(&["sign", "scout", "--key", "key.pem"]).ok();
    let json = desk.run(&["--json", "verify", "--signatures"]).json();
    assert_eq!(json[0]["signature"], json!({"state": "signed", "key": key}));
    assert_eq!(desk.run(&["--json", "show", "scout"]).json()["signature"]["state"], "signed");
    assert!(desk.run(&["show", "scout"]).ok().contains(&format!("  signed     with key {key}\n")));
    assert_eq!(desk.run(&["--json", "ls"]).json()["agents"][0]["signature"]["state"], "signed");

    // Damage outweighs a signature, and gets none.
    desk.flip_a_bit("scout/versions/v1/config.json");
    desk.run(&["verify", "--signatures"]).ended(4);
    let run = desk.run(&["sign", "scout", "--key", "key.pem"]).ended(4);
    assert!(run.stderr.contains("not signed: a version is signed as it was published"), "{}", run.stderr);
    desk.run(&["sign", "scout", "--key", "key.pem", "--no-verify"]).ok();
}

#[test]
fn a_store_that_refuses() {
    let desk = desk();
    let run = desk.run(&["policy", "set", "refuse"]).ended(0);
    assert!(run.stderr.contains("no key is trusted, so nothing can become current"), "{}", run.stderr);
    assert!(
        run.stderr.contains("scout/v1 is not signed") && run.stderr.contains("it stays current"),
        "{}",
        run.stderr
    );
    let run = desk.run(&["policy", "trust", "key.pem.pub"]).ended(0);
    assert!(!run.stderr.contains("no key is trusted"), "{}", run.stderr);

    let run = desk.run(&["publish", "scout", "v2", "--from", "folder"]).ended(6);
    assert!(run.stderr.contains("scout/v2 is not signed, and this store takes only"), "{}", run.stderr);
    assert!(desk.leftovers().is_empty());
    let published = desk.run(&["publish", "scout", "v2", "--from", "folder", "--sign", "key.pem"]).ok();
    let key = fingerprint(&desk, "key.pem");
    assert!(published.contains(&format!("signed with key {key}\nscout → v2   (was v1)\n")), "{published}");
    desk.run(&["publish", "scout", "v3", "--from", "folder", "--no-activate"]).ok();
    let run = desk.run(&["activate", "scout", "v3"]).ended(6);
    assert!(run.stderr.contains("`model-store sign scout v3 --key KEY` signs it"), "{}", run.stderr);
    desk.run(&["sign", "scout", "v3", "--key", "key.pem"]).ok();
    desk.run(&["activate", "scout", "v3"]).ok();
    desk.run(&["rollback", "scout"]).ok();

    // By a prefix of its fingerprint the key is trusted no longer.
    desk.run(&["policy", "distrust", "00000000"]).ended(3);
    let run = desk.run(&["policy", "distrust", &key[..8]]).ended(0);
    assert!(run.stderr.contains("which is not trusted, and this store"), "{}", run.stderr);
    let run = desk.run(&["activate", "scout", "v3"]).ended(6);
    assert!(
        run.stderr.contains("has a signature that does not count: it was made with key"),
        "{}",
        run.stderr
    );

    let run = desk.run(&["policy", "set", "warn"]).ended(0);
    assert!(run.stderr.contains("warning: scout/v2 has a signature"), "{}", run.stderr);
    let run = desk.run(&["activate", "scout", "v3"]).ended(0);
    assert!(
        run.stdout.starts_with("scout: v2 → v3") && run.stderr.contains("warning: scout/v3"),
        "{}",
        run.stderr
    );
    assert!(desk.run(&["ls"]).ok().contains("⚠ bad signature"));
    assert!(desk.run(&["doctor"]).ended(1).stdout.contains("signatures"));
    desk.run(&["policy", "set", "allow"]).ok();
    desk.run(&["activate", "scout", "v2"]).ok();
    assert!(!desk.run(&["ls"]).ok().contains('⚠'));
}

#[test]
fn a_policy_is_shown() {
    let desk = desk();
    assert_eq!(
        desk.run(&["policy", "show"]).ok(),
        "unsigned  allow    (signatures are looked at when somebody asks)\ntrusted   no key\n"
    );
    desk.run(&["policy", "trust", "key.pem.pub"]).ok();
    desk.run(&["policy", "trust", "key.pem.pub"]).ok();
    let key = fingerprint(&desk, "key.pem");
    let shown = desk.run(&["--json", "policy", "show"]).json();
    let pem = fs::read_to_string(file(&desk, "key.pem.pub")).unwrap();
    assert_eq!(shown, json!({"unsigned": "allow", "trusted_keys": [{"fingerprint": key, "entry": pem}]}));
    assert!(desk.run(&["policy", "show"]).ok().ends_with(&format!("trusted   {key}\n")));
    // One that cannot be read stops what depends on it, and is set anew.
    fs::write(desk.root().join(".policy.json"), "{").unwrap();
    let run = desk.run(&["activate", "scout", "v1"]).ended(4);
    assert!(run.stderr.contains(".policy.json: is no sound policy"), "{}", run.stderr);
    let run = desk.run(&["policy", "set", "allow"]).ended(0);
    assert!(run.stderr.contains("no key is trusted any more"), "{}", run.stderr);
    desk.run(&["activate", "scout", "v1"]).ok();
}

#[test]
fn keys_that_are_none_or_everybodys() {
    let desk = desk();
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let run = desk.run(arguments).ended(code);
        assert!(run.stderr.contains(expected) && run.stdout.is_empty(), "{arguments:?}: {}", run.stderr);
        assert_eq!(run.stderr.matches("error:").count(), 1, "{}", run.stderr);
    };
    check(&["sign", "scout"], 2, "--key");
    check(&["sign", "scout", "--key", "gone.pem"], 3, "gone.pem");
    check(&["sign", "scout", "--key", "key.pem.pub"], 6, "`chmod 600 key.pem.pub`");
    check(&["sign", "scout", "v9", "--key", "key.pem"], 3, "no version v9");
    check(&["policy", "trust", "key.pem"], 2, "is a private key, which does not belong here");
    check(&["policy", "trust", "folder/config.json"], 2, "not a public key in PEM");
    check(&["policy", "set", "deny"], 2, "possible values");
    check(&["policy", "distrust", "me"], 2, "8 to 64 lower-case hexadecimal digits");
    check(&["verify", "--public-key", "key.pem.pub"], 2, "--signatures");
    check(&["publish", "scout", "v2", "--from", "folder", "--sign", "gone.pem"], 3, "gone.pem");
    check(
        &["publish", "scout", "v2", "--from", "folder", "--sign", "key.pem", "--checksum", "legacy"],
        6,
        "whose manifest lists no files",
    );
    let key = file(&desk, "key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    check(&["sign", "scout", "--key", "key.pem"], 6, "has mode 644, so others may read or replace");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let run = desk.run(&["sign", "scout", "--key", "key.pem"]).ended(0);
    assert!(run.stderr.contains("the group of key.pem can read the private key"), "{}", run.stderr);
    assert!(desk.leftovers().is_empty());
}

/// The two commands of `sign --help`, with the real `model_signing`.
#[test]
fn what_help_says_works_without_this_program() {
    let program = std::env::var_os("SIGNING_PYTHON").map(PathBuf::from).filter(|program| program.is_file());
    let Some(program) = program else {
        return eprintln!(
            "skipped: SIGNING_PYTHON names no Python with model_signing; `make signing-python` makes one"
        );
    };
    let desk = desk();
    desk.run(&["sign", "scout", "--key", "key.pem"]).ended(0);
    let run = |command: &str, signature: &str, more: &[&str]| {
        let (version, signature) = (desk.root().join("scout/versions/v1"), file(&desk, signature));
        let arguments =
            ["-m", "model_signing", command, "key", text(&version), "--signature", text(&signature)];
        let mut process = Command::new(&program);
        process.args(arguments).args(more).current_dir(desk.folder().parent().unwrap());
        let output = process.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run("verify", "store/scout/.signatures/v1.json", &["--public_key", "key.pem.pub"]);
    run("sign", "store/scout/.signatures/v1.json", &["--private_key", "key.pem"]);
    desk.run(&["verify", "--signatures", "--public-key", "key.pem.pub"]).ok();
}
