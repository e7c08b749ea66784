//! Keys: ECDSA on P-256, in PEM.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use p256::ecdsa::signature::{Signer, Verifier};
use p256::elliptic_curve::zeroize::Zeroizing;
use p256::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding, ObjectIdentifier,
    PrivateKeyInfoRef, SecretDocument, SubjectPublicKeyInfoRef,
};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::error::KeyError;

/// A key in PEM is a few hundred bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;
/// Permissions of a private key's file that no one but the owner may have; the group may read.
const FORBIDDEN_MODE: u32 = 0o027;

/// Algorithms that a key may be of instead: what to call them.
const OTHERS: &[(&str, &str)] = &[
    ("1.3.132.0.34", "P-384"),
    ("1.3.132.0.35", "P-521"),
    ("1.3.132.0.10", "secp256k1"),
    ("1.2.840.113549.1.1.1", "RSA"),
    ("1.2.840.113549.1.1.10", "RSA"),
    ("1.3.101.112", "Ed25519"),
    ("1.3.101.113", "Ed448"),
    ("1.3.101.110", "X25519"),
    ("1.2.840.10040.4.1", "DSA"),
];

/// The name of a key: the SHA-256 of its public half in PEM, as `model_signing` writes it into a signature.
///
/// `openssl pkey -pubin -in key.pub | sha256sum` prints it, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;

    fn from_str(value: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        let lower = !value.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(value, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(unusable(format!(
                "{value:?} is not a key's fingerprint: 64 lower-case hexadecimal digits"
            ))),
        }
    }
}

/// A private key. Its memory is wiped when it is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct SigningKey(p256::ecdsa::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key().fingerprint())
    }
}

impl SigningKey {
    /// A new key, of the system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        loop {
            getrandom::fill(&mut *bytes).map_err(|e| KeyError::NoRandomness(e.to_string()))?;
            // Any number below the curve's order but 0 is a key, and one in 2^32 is not.
            if let Ok(key) = p256::ecdsa::SigningKey::from_slice(&*bytes) {
                return Ok(Self(key));
            }
        }
    }

    /// Reads a key in PEM, as PKCS#8 or SEC1.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let block = Block::only(text, "private")?;
        let secret = match block.label {
            "PRIVATE KEY" => block.pkcs8()?,
            "EC PRIVATE KEY" if block.text.contains("ENCRYPTED") => return Err(encrypted()),
            "EC PRIVATE KEY" => p256::SecretKey::from_sec1_pem(block.text)
                .map_err(|e| unusable(format!("it is no private key on the curve P-256: {e}")))?,
            "ENCRYPTED PRIVATE KEY" => return Err(encrypted()),
            "PUBLIC KEY" => {
                return Err(unusable("it is a public key; signing takes the private one".to_owned()));
            }
            _ => return Err(block.is_not("private")),
        };
        Ok(Self(secret.into()))
    }

    /// Reads a key's file, which must be its owner's alone: the group may read it, others may nothing.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & FORBIDDEN_MODE != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        in_file(path, Self::from_pem(&read(file).map_err(failed)?))
    }

    /// The key in PEM, as PKCS#8.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        self.0.to_pkcs8_pem(LineEnding::LF).map_err(|e| unusable(format!("it could not be written: {e}")))
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::of(*self.0.verifying_key())
    }

    /// Signs a message, deterministically (RFC 6979); DER.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.0.sign(message);
        signature.to_der().as_bytes().to_vec()
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    key: p256::ecdsa::VerifyingKey,
    pem: String,
}

impl VerifyingKey {
    fn of(key: p256::ecdsa::VerifyingKey) -> Self {
        // A point of the curve can always be written; nothing is lost should that ever fail: no signature has
        // the fingerprint of an empty text.
        let pem = key.to_public_key_pem(LineEnding::LF).unwrap_or_default();
        Self { key, pem }
    }

    /// Reads a key in PEM, as `openssl ec -pubout` and `model-store keygen` write it.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let block = Block::only(text, "public")?;
        match block.label {
            "PUBLIC KEY" => block.spki().map(Self::of),
            "PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => Err(unusable(
                "it is a private key, which does not belong here; `openssl pkey -in KEY -pubout` gives its public half"
                    .to_owned(),
            )),
            _ => Err(block.is_not("public")),
        }
    }

    /// Reads a key's file.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        let text = File::open(path).and_then(read).map_err(failed)?;
        in_file(path, Self::from_pem(&text))
    }

    /// The key in PEM, in the one way that its fingerprint is made of.
    #[must_use]
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The key's name.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(self.pem.as_bytes()).into())
    }

    /// Whether this key signed a message; `signature` is DER.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        p256::ecdsa::Signature::from_der(signature)
            .is_ok_and(|signature| self.key.verify(message, &signature).is_ok())
    }
}

/// One block of PEM.
struct Block<'a> {
    label: &'a str,
    /// From its first dash to its last.
    text: &'a str,
}

impl<'a> Block<'a> {
    /// The only key of a text. OpenSSL puts the curve's name before it, which is passed over.
    fn only(text: &'a str, kind: &str) -> Result<Self, KeyError> {
        let mut blocks = Self::all(text).filter(|block| block.label != "EC PARAMETERS");
        let first = blocks.next().ok_or_else(|| unusable(format!("it is not a {kind} key in PEM")))?;
        match blocks.next() {
            None => Ok(first),
            Some(_) => Err(unusable("it holds more than one key; give each a file of its own".to_owned())),
        }
    }

    fn all(mut text: &'a str) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let begin = text.find("-----BEGIN ")?;
            let label = text[begin + "-----BEGIN ".len()..].split_once("-----")?.0;
            let end = format!("-----END {label}-----");
            let length = text[begin..].find(&end)? + end.len();
            let block = &text[begin..begin + length];
            text = &text[begin + length..];
            Some(Self { label, text: block })
        })
    }

    fn pkcs8(&self) -> Result<p256::SecretKey, KeyError> {
        let damaged = |e: p256::pkcs8::Error| unusable(format!("it is no sound private key: {e}"));
        let (_, document) = SecretDocument::from_pem(self.text).map_err(|e| damaged(e.into()))?;
        let info = PrivateKeyInfoRef::try_from(document.as_bytes()).map_err(damaged)?;
        name_other(info.algorithm.oid, info.algorithm.parameters_oid().ok())?;
        p256::SecretKey::from_pkcs8_der(document.as_bytes()).map_err(damaged)
    }

    fn spki(&self) -> Result<p256::ecdsa::VerifyingKey, KeyError> {
        let damaged = |e: String| unusable(format!("it is no sound public key: {e}"));
        let (_, document) = p256::pkcs8::Document::from_pem(self.text).map_err(|e| damaged(e.to_string()))?;
        let info =
            SubjectPublicKeyInfoRef::try_from(document.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        name_other(info.algorithm.oid, info.algorithm.parameters_oid().ok())?;
        p256::ecdsa::VerifyingKey::from_public_key_der(document.as_bytes())
            .map_err(|e| damaged(e.to_string()))
    }

    fn is_not(&self, kind: &str) -> KeyError {
        let printable: String = self.label.chars().filter(|c| !c.is_control()).take(40).collect();
        unusable(format!("it is a {printable:?} in PEM, and not a {kind} key on the curve P-256"))
    }
}

/// Refuses a key of another algorithm by its name.
fn name_other(algorithm: ObjectIdentifier, curve: Option<ObjectIdentifier>) -> Result<(), KeyError> {
    let named = |oid: ObjectIdentifier| OTHERS.iter().find(|(number, _)| *number == oid.to_string());
    match curve.and_then(named).or_else(|| named(algorithm)) {
        None => Ok(()),
        Some((_, name)) => Err(unusable(format!(
            "it is a key of {name}; only ECDSA keys on the curve P-256 are supported: `model-store keygen` makes one"
        ))),
    }
}

fn encrypted() -> KeyError {
    unusable(
        "it is encrypted, which is not supported; `openssl pkey -in KEY -out PLAIN` takes the password off (keep \
         PLAIN on a disk that is encrypted, or in memory)"
            .to_owned(),
    )
}

fn unusable(what: String) -> KeyError {
    KeyError::Unusable(what)
}

fn in_file<T>(path: &Path, key: Result<T, KeyError>) -> Result<T, KeyError> {
    key.map_err(|source| KeyError::File { path: path.to_owned(), source: Box::new(source) })
}

fn read(file: File) -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_KEY_BYTES).read_to_end(&mut bytes)?;
    // What is no text is no PEM, which is said by whoever reads that.
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}
