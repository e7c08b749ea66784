//! Model signatures of the OpenSSF model-signing v1.0 format, by a key.
//!
//! A signature is a Sigstore bundle v0.3 in JSON, with a DSSE envelope around an in-toto statement that names every
//! file of a model with its SHA-256. Keys are ECDSA on P-256, in PEM. The reference is the Python package
//! `model-signing` 1.1: what it signs is accepted here, and `model_signing verify key` accepts what is signed here.
//!
//! ```
//! use model_signing::{SigningKey, Statement, verify};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = SigningKey::generate()?;
//! let files = [("config.json", [1; 32]), ("model.safetensors", [2; 32])];
//! let bundle = Statement::new("scout", files)?.sign(&key)?;
//!
//! let verified = verify(&bundle, &[key.verifying_key()])?;
//! assert_eq!(verified.key, key.verifying_key().fingerprint());
//! verified.statement.matches(files)?;
//!
//! let renamed = [("config.json", [1; 32]), ("weights.safetensors", [2; 32])];
//! let mismatch = verified.statement.matches(renamed).unwrap_err();
//! assert!(mismatch.to_string().contains("model.safetensors is called weights.safetensors now"));
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! No file is hashed here: digests come from the caller. Only signatures by a key are made and checked. What was
//! signed by an identity (Sigstore keyless), by a certificate, by shards of files, with other digests than SHA-256
//! or with other curves than P-256 is refused by its name, and so are encrypted private keys. What a bundle holds
//! beside the signature (transparency log, timestamps) is not looked at.

mod bundle;
mod difference;
mod error;
mod json;
mod key;
mod statement;

pub use bundle::{Bundle, MAX_BUNDLE_BYTES, Verified, verify};
pub use difference::{Difference, Mismatch};
pub use error::{KeyError, SignatureError, StatementError};
pub use key::{Fingerprint, SigningKey, VerifyingKey};
pub use statement::{GIT_PATHS, Resource, Statement};
