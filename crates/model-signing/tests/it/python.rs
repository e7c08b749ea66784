//! The real `model_signing`: what it signs is accepted, it accepts what is signed here, and what was tampered with is
//! refused by both.
//!
//! `SIGNING_PYTHON` names a Python that has it; `make signing-python` makes one. Without it these tests skip and say
//! so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use model_signing::{SigningKey, Statement, Verified, verify};
use serde_json::{Value, json};

use crate::folder::{FILES, Folder, open, seal, statement};

struct Python {
    program: PathBuf,
}

impl Python {
    /// `None`, and why on the standard error, where there is no such Python.
    fn new() -> Option<Self> {
        let Some(program) = std::env::var_os("SIGNING_PYTHON").filter(|program| !program.is_empty()) else {
            eprintln!(
                "skipped: SIGNING_PYTHON names no Python with model_signing; `make signing-python` makes one"
            );
            return None;
        };
        let program = PathBuf::from(program);
        if !program.is_file() {
            eprintln!(
                "skipped: SIGNING_PYTHON is {}, which is not there; `make signing-python` makes it",
                program.display()
            );
            return None;
        }
        Some(Self { program })
    }

    fn run(&self, command: &str, model: &Path, signature: &Path, more: &[&str]) -> Output {
        let mut process = Command::new(&self.program);
        process.args(["-m", "model_signing", command, "key"]).arg(model).arg("--signature").arg(signature);
        process.args(more).output().unwrap()
    }

    fn sign(&self, folder: &Folder, more: &[&str]) -> Vec<u8> {
        let signature = folder.beside("theirs.sig");
        let output = self.run("sign", &folder.model(), &signature, more);
        assert!(output.status.success(), "{output:?}");
        fs::read(signature).unwrap()
    }

    /// Whether it accepts a signature, and what it says.
    fn accepts(&self, folder: &Folder, bundle: &[u8], public: &Path, more: &[&str]) -> (bool, String) {
        let signature = folder.beside("ours.sig");
        fs::write(&signature, bundle).unwrap();
        let more: Vec<&str> =
            ["--public_key", text(public)].into_iter().chain(more.iter().copied()).collect();
        let output = self.run("verify", &folder.model(), &signature, &more);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A key with its two files beside a folder.
fn key_of(folder: &Folder) -> (SigningKey, PathBuf, PathBuf) {
    let key = SigningKey::generate().unwrap();
    let (private, public) = (folder.beside("key.pem"), folder.beside("key.pub"));
    fs::write(&private, key.to_pem().unwrap().as_bytes()).unwrap();
    fs::write(&public, key.verifying_key().to_pem()).unwrap();
    (key, private, public)
}

#[test]
fn each_accepts_what_the_other_signed() {
    let Some(python) = Python::new() else { return };
    let folder = Folder::new();
    let (key, private, public) = key_of(&folder);
    let ours = folder.sign(&key);
    let (accepted, said) = python.accepts(&folder, &ours, &public, &[]);
    assert!(accepted, "{said}");

    let theirs = python.sign(&folder, &["--private_key", text(&private)]);
    let Verified { statement: signed, key: by } = verify(&theirs, &[key.verifying_key()]).unwrap();
    assert_eq!((signed.name.as_str(), by), ("scout", key.verifying_key().fingerprint()));
    assert_eq!(signed.resources.len(), FILES.len() - 1, "what git has is left out");
    signed.matches(folder.files()).unwrap();

    // The same statement, but for the order of what is left out.
    let sorted = |bundle: &[u8]| {
        let mut value = statement(bundle);
        let ignored = &mut value["predicate"]["serialization"]["ignore_paths"];
        ignored.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        value
    };
    assert_eq!(sorted(&ours), sorted(&theirs));
}

#[test]
fn links_are_signed_by_what_they_lead_to() {
    let Some(python) = Python::new() else { return };
    let folder = Folder::new();
    let (key, private, public) = key_of(&folder);
    symlink("a/b.bin", folder.model().join("link.bin")).unwrap();
    let ours = Statement::new("scout", folder.files())
        .unwrap()
        .leaving_out(model_signing::GIT_PATHS)
        .following_links(true)
        .sign(&key)
        .unwrap();
    let (accepted, said) = python.accepts(&folder, &ours, &public, &["--allow_symlinks"]);
    assert!(accepted, "{said}");
    let theirs = python.sign(&folder, &["--private_key", text(&private), "--allow_symlinks"]);
    let signed = verify(&theirs, &[key.verifying_key()]).unwrap().statement;
    assert!(signed.follows_links);
    signed.matches(folder.files()).unwrap();
}

/// What is done to the folder, what we say, what they say.
type FolderRow = (&'static str, fn(&Path), &'static str, &'static str);
/// What is done to the bundle.
type BundleRow<'a> = (&'static str, &'a dyn Fn(&mut Value));

#[test]
fn both_refuse_what_was_tampered_with() {
    let Some(python) = Python::new() else { return };
    let folders: &[FolderRow] = &[
        (
            "a byte",
            |m| fs::write(m.join("a/b.bin"), "onf").unwrap(),
            "a/b.bin has other bytes",
            "Hash mismatch",
        ),
        (
            "an extra file",
            |m| fs::write(m.join("a/more"), "").unwrap(),
            "a/more was not signed",
            "Extra files found",
        ),
        (
            "a missing file",
            |m| fs::remove_file(m.join("a.json")).unwrap(),
            "a.json was signed and is missing",
            "Missing files",
        ),
        (
            "a renamed file",
            |m| fs::rename(m.join("a.json"), m.join("b.json")).unwrap(),
            "a.json is called b.json now",
            "Extra files found",
        ),
        (
            "two files that changed places",
            |m| {
                fs::rename(m.join("a/b.bin"), m.join("t")).unwrap();
                fs::rename(m.join("a-b/c.bin"), m.join("a/b.bin")).unwrap();
                fs::rename(m.join("t"), m.join("a-b/c.bin")).unwrap();
            },
            "a-b/c.bin has other bytes than were signed",
            "Hash mismatch",
        ),
    ];
    let folder = Folder::new();
    let (key, private, public) = key_of(&folder);
    let (ours, theirs) = (folder.sign(&key), python.sign(&folder, &["--private_key", text(&private)]));
    for (row, tamper, we_say, they_say) in folders {
        let tampered = Folder::new();
        tamper(&tampered.model());
        for bundle in [&ours, &theirs] {
            let signed = verify(bundle, &[key.verifying_key()]).unwrap().statement;
            let mismatch = signed.matches(tampered.files()).expect_err(row).to_string();
            assert!(mismatch.contains(we_say), "{row}: {mismatch}");
        }
        let (accepted, said) = python.accepts(&tampered, &ours, &public, &[]);
        assert!(!accepted && said.contains(they_say), "{row}: {said}");
    }

    let other = SigningKey::generate().unwrap();
    let bundles: &[BundleRow<'_>] = &[
        ("payload", &|it| {
            let swapped = statement(&ours).to_string().replace("scout", "actor");
            it["dsseEnvelope"]["payload"] = seal(swapped.as_bytes(), &key)["dsseEnvelope"]["payload"].clone();
        }),
        ("signature", &|it| {
            it["dsseEnvelope"]["signatures"] = seal(b"{}", &key)["dsseEnvelope"]["signatures"].clone();
        }),
        ("another key's", &|it| *it = seal(statement(&ours).to_string().as_bytes(), &other)),
        ("payload type", &|it| it["dsseEnvelope"]["payloadType"] = json!("application/json")),
        ("media type", &|it| it["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v0.2+json")),
        ("hint", &|it| it["verificationMaterial"]["publicKey"]["hint"] = json!("00".repeat(32))),
        ("predicate type", &|it| {
            let mut value = statement(&ours);
            value["predicateType"] = json!("https://model_signing/signature/v9.9");
            *it = seal(value.to_string().as_bytes(), &key);
        }),
        ("subject digest", &|it| {
            let mut value = statement(&ours);
            value["subject"][0]["digest"]["sha256"] = json!("00".repeat(32));
            *it = seal(value.to_string().as_bytes(), &key);
        }),
    ];
    for (row, tamper) in bundles {
        let mut bundle = open(&ours);
        tamper(&mut bundle);
        let bundle = serde_json::to_vec(&bundle).unwrap();
        verify(&bundle, &[key.verifying_key()]).expect_err(row);
        let (accepted, said) = python.accepts(&folder, &bundle, &public, &[]);
        assert!(!accepted, "{row}: {said}");
    }
}
