//! Signatures beside versions, and what a store's policy makes of them.
//!
//! The reference is the real `model_signing`, which `SIGNING_PYTHON` names; without it those tests skip and say so.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use model_store::{
    Activation, ChecksumKind, Digest, Doctoring, FinalizeOptions, Fix, ModelStore, MoveOptions, NewSignature,
    Policy, Severity, SignaturePolicy, SignatureState, SigningKey, StoreError, Unsigned, exit,
};

use crate::fixture::{Fixture, agent, full_message, payload, scout, signing_key, version};

/// The real `model_signing key` with a version's folder; `None`, and why on the standard error, where there is none.
fn python(command: &str, folder: &Path, signature: &Path, more: &[&str]) -> Option<Output> {
    let program = std::env::var_os("SIGNING_PYTHON").map(PathBuf::from).filter(|program| program.is_file());
    let Some(program) = program else {
        eprintln!(
            "skipped: SIGNING_PYTHON names no Python with model_signing; `make signing-python` makes one"
        );
        return None;
    };
    let mut process = Command::new(program);
    process.args(["-m", "model_signing", command, "key"]).arg(folder).arg("--signature").arg(signature);
    Some(process.args(more).output().unwrap())
}

fn options() -> MoveOptions {
    MoveOptions::default()
}

fn state(fixture: &Fixture, name: &str) -> SignatureState {
    fixture.store.check_signature(&scout(), &version(name)).unwrap()
}

fn reason(fixture: &Fixture, name: &str) -> String {
    match state(fixture, name) {
        SignatureState::Bad { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn signature_path(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.agent_dir().join(".signatures").join(format!("{name}.json"))
}

fn set_policy(fixture: &Fixture, unsigned: Unsigned, keys: &[&SigningKey]) {
    let mut policy = SignaturePolicy::new(unsigned);
    for key in keys {
        assert!(policy.trust(&key.verifying_key()));
    }
    fixture.store.set_signature_policy(&policy).unwrap();
    assert_eq!(fixture.store.signature_policy().unwrap(), policy);
}

/// Writes over a file as root would.
fn vandalise(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_signature_lies_beside_its_version() {
    let fixture = Fixture::with_v1();
    let key = signing_key();
    set_policy(&fixture, Unsigned::Allow, &[&key]);
    assert_eq!(state(&fixture, "v1"), SignatureState::Unsigned);
    assert_eq!(fixture.store.signature(&scout(), &version("v1")).unwrap(), None);
    let by = fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
    assert_eq!(
        (by, state(&fixture, "v1")),
        (key.verifying_key().fingerprint(), SignatureState::Signed { key: by })
    );
    let path = signature_path(&fixture, "v1");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o664);
    assert_eq!(fixture.store.signature(&scout(), &version("v1")).unwrap(), Some(fs::read(&path).unwrap()));
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    let last = fixture.history().pop().unwrap();
    assert_eq!((last["action"].as_str(), last["pointer"].as_str()), (Some("sign"), Some("versions/v1")));
    assert_eq!(last["reason"], format!("key {by}"));

    // Another key's replaces it.
    let other = SigningKey::generate().unwrap();
    fixture.store.sign(&scout(), &version("v1"), &other, &options()).unwrap();
    assert_eq!(
        reason(&fixture, "v1"),
        format!("was made with key {}, which is not trusted", other.verifying_key().fingerprint())
    );
    let missing = fixture.store.sign(&scout(), &version("v9"), &key, &options()).unwrap_err();
    assert_eq!(missing.exit_code(), exit::NOT_FOUND);
}

#[test]
fn the_real_model_signing_agrees() {
    let fixture = Fixture::new();
    let outside = fixture.outside();
    let key = signing_key();
    let (private, public) = (outside.join("key.pem"), outside.join("key.pub"));
    fs::write(&private, key.to_pem().unwrap().as_bytes()).unwrap();
    fs::write(&public, key.verifying_key().to_pem()).unwrap();
    set_policy(&fixture, Unsigned::Refuse, &[&key]);
    // Names whose order differs by bytes and by components, a checkout's file, links to a file, a link and a folder.
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    for (path, bytes) in
        [("a/b", "one"), ("a-b/c", "two"), (".gitattributes", "x"), ("sub/manifest.json", "{}")]
    {
        staging.write(&payload(path), bytes.as_bytes()).unwrap();
    }
    symlink("a/b", staging.path().join("link")).unwrap();
    symlink("link", staging.path().join("again")).unwrap();
    symlink("a", staging.path().join("folder")).unwrap();
    symlink("../folder/b", staging.path().join("sub/up")).unwrap();
    let signature = NewSignature::Make(key.clone());
    let published = staging.finalize(FinalizeOptions { signature, ..FinalizeOptions::default() }).unwrap();
    assert_eq!(published.signed_by, Some(key.verifying_key().fingerprint()));
    let (folder, signature) = (published.path.clone(), signature_path(&fixture, "v1"));
    let verify = ["--public_key", public.to_str().unwrap(), "--allow_symlinks"];
    let Some(output) = python("verify", &folder, &signature, &verify) else { return };
    assert!(output.status.success(), "{output:?}");

    // A version without links needs no option.
    let unsigned = FinalizeOptions { activation: Activation::Keep, ..FinalizeOptions::default() };
    fixture.publish_with("v2", &[("config.json", b"{}"), ("weights/model.bin", b"two")], unsigned).unwrap();
    let folder = fixture.agent_dir().join("versions/v2");
    let theirs = outside.join("theirs.json");
    let output = python("sign", &folder, &theirs, &["--private_key", private.to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{output:?}");
    fixture.store.put_signature(&scout(), &version("v2"), &fs::read(&theirs).unwrap()).unwrap();
    fixture.store.activate(&scout(), &version("v2"), &options()).unwrap();
    fixture.store.sign(&scout(), &version("v2"), &key, &options()).unwrap();
    let signature = signature_path(&fixture, "v2");
    let output = python("verify", &folder, &signature, &verify[..2]).unwrap();
    assert!(output.status.success(), "{output:?}");

    // Metadata is signed, too.
    let manifest = folder.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    vandalise(&manifest, text.replace("\"metadata\": {}", "\"metadata\": {\"gate\": \"passed\"}").as_bytes());
    let output = python("verify", &folder, &signature, &verify[..2]).unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("manifest.json"));
    assert_eq!(
        reason(&fixture, "v2"),
        "is not of this version: the files are not those that were signed: manifest.json has other bytes than were signed"
    );
}

#[test]
fn a_policy_that_refuses() {
    let fixture = Fixture::with_v1();
    let (key, other) = (signing_key(), SigningKey::generate().unwrap());
    set_policy(&fixture, Unsigned::Refuse, &[&key]);
    let files: &[(&str, &[u8])] = &[("config.json", b"{}")];
    let with =
        |signature, activation| FinalizeOptions { signature, activation, ..FinalizeOptions::default() };
    let check = |row: &str, found: Result<(), StoreError>, expected: &str| {
        let error = found.expect_err(row);
        let said = full_message(&error);
        assert!(
            matches!(error, StoreError::NotSigned { .. }) && error.exit_code() == exit::REFUSED,
            "{row}: {said}"
        );
        assert!(said.contains(expected), "{row}: {said}");
        assert_eq!(fixture.current().version(), &version("v1"), "{row}");
        assert_eq!(fixture.leftovers().iter().filter(|left| *left != ".signatures").count(), 0, "{row}");
    };
    let publish = |name: &str, signature, activation| {
        fixture.publish_with(name, files, with(signature, activation)).map(drop)
    };
    check(
        "publish, unsigned",
        publish("v2", NewSignature::None, Activation::Activate),
        "scout/v2 is not signed, and this store takes only what a trusted key has signed; `model-store sign scout v2",
    );
    check(
        "publish, by another",
        publish("v2", NewSignature::Make(other.clone()), Activation::Activate),
        "which is not trusted",
    );
    assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1")]);
    publish("v2", NewSignature::None, Activation::Keep).unwrap();
    check(
        "activate",
        fixture.store.activate(&scout(), &version("v2"), &options()).map(drop),
        "is not signed",
    );
    check(
        "tag",
        fixture.store.tag(&scout(), &"champion".parse().unwrap(), &version("v2"), &options()).map(drop),
        "is not",
    );
    fixture.store.sign(&scout(), &version("v2"), &other, &options()).unwrap();
    check(
        "activate, by another",
        fixture.store.activate(&scout(), &version("v2"), &options()).map(drop),
        "has a signature that does not count: it was made with key",
    );
    fixture.store.sign(&scout(), &version("v2"), &key, &options()).unwrap();
    fixture.store.tag(&scout(), &"champion".parse().unwrap(), &version("v2"), &options()).unwrap();
    fixture.store.activate(&scout(), &version("v2"), &options()).unwrap();
    let back = fixture.store.rollback(&scout(), None, &options()).unwrap_err();
    assert!(back.to_string().contains("scout/v1 is not signed"), "{back}");
    let back = fixture.store.rollback(&scout(), Some(&version("v1")), &options()).unwrap_err();
    assert!(matches!(back, StoreError::NotSigned { .. }), "{back}");
    publish("v3", NewSignature::Make(key), Activation::Activate).unwrap();
    fixture.store.rollback(&scout(), None, &options()).unwrap();
    assert_eq!(fixture.current().version(), &version("v2"));
}

#[test]
fn a_policy_that_warns_or_allows() {
    let fixture = Fixture::with_v1();
    let key = signing_key();
    fixture.publish("v2", &[("a", b"a")]).unwrap();
    for (unsigned, caution) in [(Unsigned::Allow, None), (Unsigned::Warn, Some("scout/v1 is not signed"))] {
        set_policy(&fixture, unsigned, &[&key]);
        let moved = fixture.store.activate(&scout(), &version("v1"), &options()).unwrap();
        match caution {
            None => assert_eq!(moved.caution, None),
            Some(caution) => assert!(moved.caution.unwrap().starts_with(caution)),
        }
        fixture.store.activate(&scout(), &version("v2"), &options()).unwrap();
    }
    let published = fixture.publish("v3", &[("a", b"a")]).unwrap();
    assert!(published.caution.unwrap().starts_with("scout/v3 is not signed"));
    let signature = NewSignature::Make(key);
    let options = FinalizeOptions { signature, ..FinalizeOptions::default() };
    assert_eq!(fixture.publish_with("v4", &[("a", b"a")], options).unwrap().caution, None);
}

#[test]
fn what_is_tampered_with() {
    // What is done to a store with a signed `scout/v1`, and why its signature does not count then.
    type Row = (&'static str, fn(&Fixture), &'static str);
    let key = signing_key();
    let manifest = |fixture: &Fixture| fixture.agent_dir().join("versions/v1/manifest.json");
    let rows: &[Row] = &[
        (
            "metadata",
            |fixture| {
                let path = fixture.agent_dir().join("versions/v1/manifest.json");
                let text = fs::read_to_string(&path).unwrap();
                vandalise(&path, text.replace("\"metadata\": {}", "\"metadata\": {\"gate\": 1}").as_bytes());
            },
            "manifest.json has other bytes",
        ),
        (
            "a digest in the manifest",
            |fixture| {
                let path = fixture.agent_dir().join("versions/v1/manifest.json");
                let text = fs::read_to_string(&path).unwrap();
                let (old, new) = (Digest::of(b"one").to_string(), Digest::of(b"onf").to_string());
                vandalise(&path, text.replace(&old, &new).as_bytes());
            },
            "manifest.json has other bytes than were signed; weights/model.bin has other bytes",
        ),
        (
            "a name in the manifest",
            |fixture| {
                let path = fixture.agent_dir().join("versions/v1/manifest.json");
                let text = fs::read_to_string(&path).unwrap();
                vandalise(&path, text.replace("config.json", "confih.json").as_bytes());
            },
            "config.json is called confih.json now",
        ),
        (
            "the signature, cut off",
            |fixture| {
                let path = signature_path(fixture, "v1");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            },
            "not sound JSON",
        ),
        (
            "the signature of another version",
            |fixture| {
                let (files, unsigned) = ([("config.json", b"{}" as &[u8])], Activation::Keep);
                let unsigned = FinalizeOptions { activation: unsigned, ..FinalizeOptions::default() };
                fixture.publish_with("v2", &files, unsigned).unwrap();
                fixture.store.sign(&scout(), &version("v2"), &signing_key(), &options()).unwrap();
                fs::copy(signature_path(fixture, "v2"), signature_path(fixture, "v1")).unwrap();
            },
            "manifest.json has other bytes than were signed",
        ),
    ];
    for (row, tamper, expected) in rows {
        let fixture = Fixture::with_v1();
        fixture.publish("v0", &[("a", b"a")]).unwrap();
        fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
        set_policy(&fixture, Unsigned::Refuse, &[&key]);
        assert!(manifest(&fixture).is_file());
        tamper(&fixture);
        let said = reason(&fixture, "v1");
        assert!(said.contains(expected), "{row}: {said}");
        let bytes = fixture.store.signature(&scout(), &version("v1")).unwrap();
        let json = fs::read(manifest(&fixture)).unwrap();
        let policy = fixture.store.signature_policy().unwrap();
        assert_eq!(
            policy.judge(&scout(), &version("v1"), &json, bytes.as_deref()),
            state(&fixture, "v1"),
            "{row}"
        );
        policy.check(&scout(), &version("v1"), &json, bytes.as_deref()).expect_err(row);
    }

    // A version that was signed, copied to another name with its signature.
    let fixture = Fixture::with_v1();
    set_policy(&fixture, Unsigned::Refuse, &[&key]);
    fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
    let versions = fixture.agent_dir().join("versions");
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(versions.join("v1"))
            .arg(versions.join("v2"))
            .status()
            .unwrap()
            .success()
    );
    fs::copy(signature_path(&fixture, "v1"), signature_path(&fixture, "v2")).unwrap();
    assert_eq!(reason(&fixture, "v2"), "is of scout/v1, and this is scout/v2");
    let refused = fixture.store.activate(&scout(), &version("v2"), &options()).unwrap_err();
    assert!(refused.to_string().contains("is of scout/v1"), "{refused}");
    // Bytes that rot are not read here, but by `verify`.
    vandalise(&versions.join("v1/weights/model.bin"), b"onf");
    assert!(matches!(state(&fixture, "v1"), SignatureState::Signed { .. }));
    assert!(!fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn what_gets_no_signature() {
    let fixture = Fixture::with_v1();
    let key = signing_key();
    fixture.publish("v2", &[("a", b"a")]).unwrap();
    fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
    let of_v1 = fixture.store.signature(&scout(), &version("v1")).unwrap().unwrap();
    let check = |row: &str, found: Result<(), StoreError>, expected: &str| {
        let error = found.expect_err(row);
        let said = full_message(&error);
        assert!(
            matches!(error, StoreError::SignatureRefused { .. }) && error.exit_code() == exit::REFUSED,
            "{row}: {said}"
        );
        assert!(said.contains(expected), "{row}: {said}");
    };
    let put = |name: &str, bytes: &[u8]| fixture.store.put_signature(&scout(), &version(name), bytes);
    put("v1", &of_v1).unwrap();
    check("another version's", put("v2", &of_v1), "it is not of this version");
    check("no bundle", put("v1", b"{}"), "it is not a model signature");
    assert_eq!(put("v9", &of_v1).unwrap_err().exit_code(), exit::NOT_FOUND);
    // Once a version is published with a signature from elsewhere, likewise.
    let take = |bytes: Vec<u8>| {
        let signature = NewSignature::Take(bytes);
        fixture
            .publish_with("v3", &[("a", b"a")], FinalizeOptions { signature, ..FinalizeOptions::default() })
            .map(drop)
    };
    check("publish with another's", take(of_v1), "it is not of this version");
    let legacy = FinalizeOptions {
        checksum: ChecksumKind::Legacy,
        signature: NewSignature::Make(key.clone()),
        ..FinalizeOptions::default()
    };
    check(
        "a legacy one",
        fixture.publish_with("v3", &[("a", b"a")], legacy).map(drop),
        "publish the version again",
    );
    let legacy = FinalizeOptions { checksum: ChecksumKind::Legacy, ..FinalizeOptions::default() };
    fixture.publish_with("v4", &[("a", b"a")], legacy).unwrap();
    check(
        "a published legacy one",
        fixture.store.sign(&scout(), &version("v4"), &key, &options()).map(drop),
        "lists no files",
    );
    assert_eq!(fixture.leftovers(), [".signatures"]);
    assert_eq!(fs::read_dir(fixture.agent_dir().join(".signatures")).unwrap().count(), 1);
}

#[test]
fn a_policy_must_be_sound() {
    let fixture = Fixture::with_v1();
    let path = fixture.root().join(".policy.json");
    assert_eq!(fixture.store.signature_policy().unwrap(), SignaturePolicy::default());
    fs::write(fixture.root().join("release.pub"), signing_key().verifying_key().to_pem()).unwrap();
    let check = |row: &str, text: &str, expected: &str| {
        fs::write(&path, text).unwrap();
        let found = fixture.store.signature_policy();
        if expected.is_empty() {
            assert_eq!(found.unwrap().trusted(), [signing_key().verifying_key()], "{row}");
            return;
        }
        let error = found.expect_err(row);
        assert!(
            full_message(&error).contains(expected) && error.exit_code() == exit::CORRUPT,
            "{row}: {error}"
        );
        // Nothing becomes current by a slip of the pen.
        fixture.store.activate(&scout(), &version("v1"), &options()).expect_err(row);
        let doctor = fixture.store.doctor(Doctoring::Look).unwrap();
        let complaint =
            doctor.complaints.iter().find(|complaint| complaint.check == "signatures").expect(row);
        assert_eq!((complaint.severity, &complaint.subject), (Severity::Error, &path), "{row}");
    };
    check("a path", r#"{"format": 1, "unsigned": "allow", "trusted_keys": ["release.pub"]}"#, "");
    check("no JSON", "{", "EOF");
    check("a newer one", r#"{"format": 2, "unsigned": {"by": 1}}"#, "is of format 2");
    check("a slip", r#"{"format": 1, "unsinged": "refuse", "trusted_keys": []}"#, "unknown field `unsinged`");
    check(
        "twice",
        r#"{"format": 1, "unsigned": "refuse", "unsigned": "allow", "trusted_keys": []}"#,
        "duplicate field",
    );
    check(
        "another word",
        r#"{"format": 1, "unsigned": "deny", "trusted_keys": []}"#,
        "unknown variant `deny`",
    );
    check(
        "no key",
        r#"{"format": 1, "unsigned": "allow", "trusted_keys": ["gone.pub"]}"#,
        "could not read the key",
    );
    check(
        "a bad key",
        r#"{"format": 1, "unsigned": "allow", "trusted_keys": ["-----BEGIN X-----"]}"#,
        "not a public key",
    );
    check("not a file's end", &format!("{{\"format\": 1}}{}", " ".repeat(2 << 20)), "larger than 1 MiB");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fixture.store.signature_policy().unwrap_err();
    fs::remove_dir(&path).unwrap();
    let mut policy = SignaturePolicy::default();
    assert!(policy.trust(&signing_key().verifying_key()) && !policy.trust(&signing_key().verifying_key()));
    let fingerprint = signing_key().verifying_key().fingerprint();
    assert!(
        policy.distrust(fingerprint) && !policy.distrust(fingerprint) && policy == SignaturePolicy::default()
    );
}

#[test]
fn retention_and_the_doctor_know_signatures() {
    let fixture = Fixture::with_v1();
    let key = signing_key();
    fixture.publish("v2", &[("a", b"a")]).unwrap();
    fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
    let policy = Policy { keep: 1, grace: std::time::Duration::ZERO, ..Policy::default() };
    let collected = fixture.store.gc(&[scout()], &policy, &options()).unwrap();
    assert_eq!((collected.retired.len(), collected.problems.len()), (1, 0), "{collected:?}");
    assert!(!signature_path(&fixture, "v1").exists());

    fs::write(signature_path(&fixture, "v1"), "{}").unwrap();
    set_policy(&fixture, Unsigned::Warn, &[&key]);
    let look = fixture.store.doctor(Doctoring::Look).unwrap();
    let of = |check: &str| {
        look.complaints.iter().find(|complaint| complaint.check == check).expect("it is complained of")
    };
    assert_eq!(
        (of("leftovers").what.as_str(), &of("leftovers").fix),
        ("is about a version that is gone", &Fix::Possible)
    );
    assert!(of("signatures").what.contains("scout/v2 is not signed"), "{look:?}");
    fixture.store.doctor(Doctoring::Fix).unwrap();
    assert!(!signature_path(&fixture, "v1").exists());
    fixture.store.sign(&scout(), &version("v2"), &key, &options()).unwrap();
    let look = fixture.store.doctor(Doctoring::Look).unwrap();
    assert!(look.complaints.iter().all(|complaint| complaint.check != "signatures"), "{look:?}");
}

#[test]
fn a_copy_takes_signatures_and_policy_along() {
    let fixture = Fixture::with_v1();
    let key = signing_key();
    set_policy(&fixture, Unsigned::Refuse, &[&key]);
    fixture.store.sign(&scout(), &version("v1"), &key, &options()).unwrap();
    let copy = fixture.outside().join("copy");
    assert!(Command::new("cp").arg("-a").arg(fixture.root()).arg(&copy).status().unwrap().success());
    let copied = ModelStore::open(&copy).unwrap();
    assert!(matches!(copied.check_signature(&scout(), &version("v1")), Ok(SignatureState::Signed { .. })));
    copied.rollback(&scout(), Some(&version("v1")), &options()).unwrap();
    assert_eq!(copied.agents().unwrap().len(), 1, "the policy is no agent");
    assert!(matches!(
        copied.check_signature(&agent("other"), &version("v1")),
        Err(StoreError::NothingCurrent { .. }
            | StoreError::AgentNotFound { .. }
            | StoreError::VersionNotFound { .. })
    ));
}
