//! The Sigstore bundle and its DSSE envelope: how a statement and its signature lie in a file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::error::{SignatureError, StatementError};
use crate::json::{Fields, Json, malformed};
use crate::key::{Fingerprint, SigningKey, VerifyingKey};
use crate::statement::Statement;

/// No signature is larger: it has about 200 bytes a file.
pub const MAX_BUNDLE_BYTES: usize = 128 * 1024 * 1024;
/// Sigstore bundle v0.3.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What an in-toto statement is called in a DSSE envelope.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A statement that a trusted key has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What was signed.
    pub statement: Statement,
    /// By which key.
    pub key: Fingerprint,
}

/// Reads a signature and makes sure that one of some keys made it.
///
/// Nothing is said of any file yet: [`Statement::matches`] compares them.
pub fn verify(bundle: &[u8], trusted: &[VerifyingKey]) -> Result<Verified, SignatureError> {
    Bundle::parse(bundle)?.verify(trusted)
}

/// A signature that was read, and of which nothing is known to be true.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Who made it, as it says itself.
    hint: Option<String>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl Bundle {
    /// Reads a signature.
    pub fn parse(bundle: &[u8]) -> Result<Self, SignatureError> {
        if bundle.len() > MAX_BUNDLE_BYTES {
            return Err(SignatureError::TooLarge);
        }
        let mut bundle = Json::parse(bundle, "it")?.into_fields("the bundle")?;
        match bundle.text("mediaType")?.as_str() {
            MEDIA_TYPE => {}
            other => {
                let what = format!("the bundle's media type is {other:?} and not {MEDIA_TYPE:?}");
                return Err(SignatureError::Unsupported(what));
            }
        }
        let hint = hint(bundle.object("verificationMaterial")?)?;
        if bundle.optional("messageSignature").is_some() {
            let what = "it signs one file, and not a statement about a model".to_owned();
            return Err(SignatureError::Unsupported(what));
        }
        let mut envelope = bundle.object("dsseEnvelope")?;
        bundle.end()?;
        match envelope.text("payloadType")?.as_str() {
            PAYLOAD_TYPE => {}
            other => {
                let what = format!("the payload's type is {other:?} and not {PAYLOAD_TYPE:?}");
                return Err(SignatureError::Unsupported(what));
            }
        }
        let payload = base64(&envelope.text("payload")?, "the payload")?;
        let mut signed = envelope.only("signatures")?;
        envelope.end()?;
        let signature = base64(&signed.text("sig")?, "the signature")?;
        if let Some(keyid) = signed.optional_text("keyid")?
            && Some(&keyid) != hint.as_ref()
        {
            return Err(malformed("its two fields that name the key name different ones".to_owned()));
        }
        signed.end()?;
        Ok(Self { hint, payload, signature })
    }

    /// Makes sure that one of some keys made the signature, and gives what it signs.
    pub fn verify(&self, trusted: &[VerifyingKey]) -> Result<Verified, SignatureError> {
        let message = pre_authentication_encoding(&self.payload);
        let key = if let Some(hint) = &self.hint {
            let named = trusted.iter().find(|key| key.fingerprint().to_string() == *hint);
            let Some(key) = named else { return Err(SignatureError::UnknownKey(shown(hint))) };
            if !key.signed(&message, &self.signature) {
                return Err(SignatureError::Wrong(key.fingerprint()));
            }
            key
        } else {
            let fitting = trusted.iter().find(|key| key.signed(&message, &self.signature));
            fitting.ok_or(SignatureError::NoKeyFits)?
        };
        Ok(Verified { statement: Statement::from_json(&self.payload)?, key: key.fingerprint() })
    }

    /// The key that the signature says it was made with, as it says it; anybody can write that.
    #[must_use]
    pub fn claimed_key(&self) -> Option<String> {
        self.hint.as_deref().map(shown)
    }

    /// What the signature claims to sign. Anybody can write that: only [`verify`](Self::verify) makes it true.
    pub fn claims(&self) -> Result<Statement, SignatureError> {
        Statement::from_json(&self.payload)
    }
}

/// Who made the signature. The rest of the material is not ours to check, and weakens nothing.
fn hint(mut material: Fields) -> Result<Option<String>, SignatureError> {
    for kind in ["certificate", "x509CertificateChain"] {
        if material.optional(kind).is_some() {
            let what = "it was made with a certificate or an identity (Sigstore keyless), and not with a key; \
                        sign with `model_signing sign key`";
            return Err(SignatureError::Unsupported(what.to_owned()));
        }
    }
    let mut key = material.object("publicKey")?;
    let hint = key.optional_text("hint")?;
    key.end()?;
    material.optional("tlogEntries");
    material.optional("timestampVerificationData");
    material.end()?;
    Ok(hint)
}

/// Text of a stranger, short and on one line.
fn shown(hint: &str) -> String {
    let plain = hint.chars().map(|c| if c.is_control() { '?' } else { c });
    plain.take(64).collect()
}

/// Standard base64 with its padding, and in no other way.
fn base64(text: &str, what: &str) -> Result<Vec<u8>, SignatureError> {
    STANDARD.decode(text).map_err(|e| malformed(format!("{what} is not sound base64: {e}")))
}

/// What is signed: DSSE v1's PAE, which binds the payload to its type.
fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

/// Signs a statement's text and puts both into a bundle.
pub(crate) fn seal(statement: &[u8], key: &SigningKey) -> Result<Vec<u8>, StatementError> {
    let bundle = BundleOut {
        media_type: MEDIA_TYPE,
        verification_material: MaterialOut {
            public_key: KeyOut { hint: key.verifying_key().fingerprint().to_string() },
            tlog_entries: [],
        },
        dsse_envelope: EnvelopeOut {
            payload: STANDARD.encode(statement),
            payload_type: PAYLOAD_TYPE,
            signatures: [SignatureOut {
                sig: STANDARD.encode(key.sign(&pre_authentication_encoding(statement))),
                keyid: "",
            }],
        },
    };
    let json = serde_json::to_vec(&bundle).map_err(|e| StatementError::Json(e.to_string()))?;
    if json.len() > MAX_BUNDLE_BYTES { Err(StatementError::TooLarge) } else { Ok(json) }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BundleOut<'a> {
    media_type: &'a str,
    verification_material: MaterialOut,
    dsse_envelope: EnvelopeOut<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MaterialOut {
    public_key: KeyOut,
    tlog_entries: [(); 0],
}

#[derive(Serialize)]
struct KeyOut {
    hint: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnvelopeOut<'a> {
    payload: String,
    payload_type: &'a str,
    signatures: [SignatureOut<'a>; 1],
}

#[derive(Serialize)]
struct SignatureOut<'a> {
    sig: String,
    keyid: &'a str,
}
