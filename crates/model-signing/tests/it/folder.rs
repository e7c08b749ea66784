//! A model's folder, what is in it, and signatures that were made by hand.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model_signing::{GIT_PATHS, SigningKey, Statement};
use p256::ecdsa::signature::Signer;
use p256::pkcs8::DecodePrivateKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Names whose order by bytes is not that of `pathlib`, one that is no ASCII, and one that is left out.
pub(crate) const FILES: &[(&str, &str)] = &[
    ("a/b.bin", "one"),
    ("a-b/c.bin", "two"),
    ("a.json", "{}"),
    ("grün/ß \u{1F40C}.txt", "snail"),
    ("same-1", "same"),
    ("same-2", "same"),
    (".gitattributes", "*.bin binary"),
];

pub(crate) struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().unwrap() };
        for (path, text) in FILES {
            let path = folder.model().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.dir.path().join("scout")
    }

    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Every file with the digest of its bytes; links are followed.
    pub(crate) fn files(&self) -> Vec<(String, [u8; 32])> {
        let mut files = Vec::new();
        list(&self.model(), &self.model(), &mut files);
        files
    }

    pub(crate) fn sign(&self, key: &SigningKey) -> Vec<u8> {
        Statement::new("scout", self.files()).unwrap().leaving_out(GIT_PATHS).sign(key).unwrap()
    }
}

fn list(root: &Path, folder: &Path, files: &mut Vec<(String, [u8; 32])>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.push((name, Sha256::digest(fs::read(&path).unwrap()).into()));
        }
    }
}

/// The bundle as a value that can be changed.
pub(crate) fn open(bundle: &[u8]) -> Value {
    serde_json::from_slice(bundle).unwrap()
}

/// The statement in a bundle.
pub(crate) fn statement(bundle: &[u8]) -> Value {
    let payload = open(bundle)["dsseEnvelope"]["payload"].as_str().unwrap().to_owned();
    serde_json::from_slice(&STANDARD.decode(payload).unwrap()).unwrap()
}

/// Signs a payload of any kind, by the format's own text and none of our code.
pub(crate) fn seal(payload: &[u8], key: &SigningKey) -> Value {
    let mut message = format!("DSSEv1 28 {PAYLOAD_TYPE} {} ", payload.len()).into_bytes();
    message.extend_from_slice(payload);
    let secret = p256::ecdsa::SigningKey::from_pkcs8_pem(&key.to_pem().unwrap()).unwrap();
    let signature: p256::ecdsa::Signature = secret.sign(&message);
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": key.verifying_key().fingerprint().to_string()}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": STANDARD.encode(signature.to_der().as_bytes()), "keyid": ""}],
        },
    })
}

/// The statement about two files, to be changed.
pub(crate) fn two_files() -> Value {
    let (a, b) = (Sha256::digest(b"a"), Sha256::digest(b"b"));
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": hex::encode(Sha256::digest([a, b].concat()))}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false},
            "resources": [
                {"name": "a", "algorithm": "sha256", "digest": hex::encode(a)},
                {"name": "b", "algorithm": "sha256", "digest": hex::encode(b)},
            ],
        },
    })
}
