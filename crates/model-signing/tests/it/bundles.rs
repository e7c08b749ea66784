//! What is refused of a bundle, and with which words.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model_signing::{Bundle, MAX_BUNDLE_BYTES, SignatureError, SigningKey, verify};
use serde_json::{Value, json};

use crate::folder::{Folder, open, seal, two_files};

fn refused(row: &str, bundle: &[u8], keys: &[model_signing::VerifyingKey]) -> String {
    match verify(bundle, keys) {
        Ok(verified) => panic!("{row}: accepted as of {}", verified.key),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_field_of_a_bundle_counts() {
    let key = SigningKey::generate().unwrap();
    let other = SigningKey::generate().unwrap();
    let sealed = Folder::new().sign(&key);
    let check = |row: &str, alter: &dyn Fn(&mut Value), expected: &str| {
        let mut bundle = open(&sealed);
        alter(&mut bundle);
        assert_ne!(bundle, open(&sealed), "{row}: nothing was altered");
        let said = refused(row, &serde_json::to_vec(&bundle).unwrap(), &[key.verifying_key()]);
        assert!(said.contains(expected), "{row}: {said}");
    };
    check("media type", &|it| it["mediaType"] = json!("application/json"), "media type is");
    check(
        "no media type",
        &|it| drop(it.as_object_mut().unwrap().remove("mediaType")),
        "mediaType is missing",
    );
    check("another field", &|it| it["more"] = json!(1), "bundle.more is no field");
    check(
        "a certificate",
        &|it| it["verificationMaterial"]["certificate"] = json!({"rawBytes": ""}),
        "a certificate or an identity",
    );
    check("a message", &|it| it["messageSignature"] = json!({}), "signs one file");
    check(
        "another hint",
        &|it| {
            it["verificationMaterial"]["publicKey"]["hint"] =
                json!(other.verifying_key().fingerprint().to_string());
        },
        &format!("made with key {}, which is not trusted", other.verifying_key().fingerprint()),
    );
    check(
        "a hint that is none",
        &|it| it["verificationMaterial"]["publicKey"]["hint"] = json!("me\n"),
        "made with key me?, which is not trusted",
    );
    check(
        "a number for a hint",
        &|it| it["verificationMaterial"]["publicKey"]["hint"] = json!(1),
        "publicKey.hint is a number and not a string",
    );
    check("no key", &|it| it["verificationMaterial"] = json!({}), "publicKey is missing");
    check(
        "more of the key",
        &|it| it["verificationMaterial"]["publicKey"]["raw"] = json!("x"),
        "is no field",
    );
    check("more material", &|it| it["verificationMaterial"]["more"] = json!("x"), "more is no field");
    check("payload type", &|it| it["dsseEnvelope"]["payloadType"] = json!("text/plain"), "payload's type is");
    check("payload", &|it| flip(&mut it["dsseEnvelope"]["payload"]), "signed something else");
    check(
        "payload, not base64",
        &|it| it["dsseEnvelope"]["payload"] = json!("*"),
        "payload is not sound base64",
    );
    check("no padding", &|it| unpad(&mut it["dsseEnvelope"]["signatures"][0]["sig"]), "not sound base64");
    check("signature", &|it| flip(&mut it["dsseEnvelope"]["signatures"][0]["sig"]), "signed something else");
    check("no signature", &|it| it["dsseEnvelope"]["signatures"] = json!([]), "has 0 entries and not one");
    check(
        "two signatures",
        &|it| {
            let one = it["dsseEnvelope"]["signatures"][0].clone();
            it["dsseEnvelope"]["signatures"] = json!([one, one]);
        },
        "has 2 entries and not one",
    );
    check("key id", &|it| it["dsseEnvelope"]["signatures"][0]["keyid"] = json!("x"), "name different ones");
    check("more of the envelope", &|it| it["dsseEnvelope"]["more"] = json!(0), "more is no field");
    check(
        "more of the signature",
        &|it| it["dsseEnvelope"]["signatures"][0]["cert"] = json!(""),
        "is no field",
    );
}

fn flip(field: &mut Value) {
    let mut bytes = STANDARD.decode(field.as_str().unwrap()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    *field = json!(STANDARD.encode(bytes));
}

/// The same signature, one byte longer so that there is padding to take away.
fn unpad(field: &mut Value) {
    let mut bytes = STANDARD.decode(field.as_str().unwrap()).unwrap();
    while bytes.len().is_multiple_of(3) {
        bytes.push(0);
    }
    *field = json!(STANDARD.encode(bytes).trim_end_matches('='));
}

#[test]
fn a_bundle_that_was_cut_off_is_refused_at_every_byte() {
    let key = SigningKey::generate().unwrap();
    let sealed = serde_json::to_vec(&seal(&serde_json::to_vec(&two_files()).unwrap(), &key)).unwrap();
    verify(&sealed, &[key.verifying_key()]).unwrap();
    for length in 0..sealed.len() {
        let said = refused("cut", &sealed[..length], &[key.verifying_key()]);
        assert!(said.contains("not sound JSON"), "{length}: {said}");
    }
    let mut longer = sealed;
    longer.extend_from_slice(b"{}");
    assert!(refused("more", &longer, &[key.verifying_key()]).contains("trailing characters"));
    let many = format!("[{}0]", "0,".repeat(5_000_000));
    assert!(refused("many", many.as_bytes(), &[]).contains("more values than any signature"));
    let deep = "[".repeat(100_000);
    assert!(refused("deep", deep.as_bytes(), &[]).contains("recursion limit"));
    let huge = vec![b' '; MAX_BUNDLE_BYTES + 1];
    assert_eq!(Bundle::parse(&huge).unwrap_err(), SignatureError::TooLarge);
}

#[test]
fn keys_given_twice_are_refused_at_every_depth() {
    let key = SigningKey::generate().unwrap();
    let text = serde_json::to_string(&seal(&serde_json::to_vec(&two_files()).unwrap(), &key)).unwrap();
    for (field, again) in [
        ("\"payloadType\":", "\"payloadType\":\"text/plain\","),
        ("\"hint\":", "\"hint\":\"x\","),
        ("\"mediaType\":", "\"mediaType\":\"x\","),
        ("\"sig\":", "\"sig\":\"x\","),
    ] {
        let doubled = text.replacen(field, &format!("{again}{field}"), 1);
        assert_ne!(doubled, text, "{field}");
        let said = refused(field, doubled.as_bytes(), &[key.verifying_key()]);
        assert!(said.contains("is given twice"), "{field}: {said}");
    }
}

#[test]
fn whose_signature_it_is() {
    let (ours, theirs) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let sealed = Folder::new().sign(&ours);
    let (our_key, their_key) = (ours.verifying_key(), theirs.verifying_key());
    assert_eq!(verify(&sealed, &[their_key.clone(), our_key.clone()]).unwrap().key, our_key.fingerprint());
    assert!(matches!(verify(&sealed, &[]), Err(SignatureError::UnknownKey(_))));
    assert!(matches!(verify(&sealed, std::slice::from_ref(&their_key)), Err(SignatureError::UnknownKey(_))));
    // A signature from before there were hints is tried with every key.
    let mut nameless = open(&sealed);
    nameless["verificationMaterial"]["publicKey"] = json!({});
    let nameless = serde_json::to_vec(&nameless).unwrap();
    assert_eq!(verify(&nameless, &[their_key.clone(), our_key.clone()]).unwrap().key, our_key.fingerprint());
    assert_eq!(verify(&nameless, &[their_key]), Err(SignatureError::NoKeyFits));
    let bundle = Bundle::parse(&sealed).unwrap();
    assert_eq!(bundle.claimed_key(), Some(our_key.fingerprint().to_string()));
    assert_eq!(bundle.claims().unwrap(), verify(&sealed, &[our_key]).unwrap().statement);
}
