//! Models that must be signed.

use model_loader::{LoadError, ResolveOptions, Signatures, load};
use model_store::{
    MoveOptions, SignaturePolicy, SigningKey, StoreError, Unsigned, VersionName, exit, with_causes,
};

use crate::shelf::{Shelf, embedder, name};
use Signatures::{AsPolicy, Ignore, Require};

/// Whether a model would be loaded; the error with its causes where not.
fn attempt(options: &ResolveOptions) -> Result<(), String> {
    match load("analyst", options, |_| Ok(())) {
        Ok(_) => Ok(()),
        Err(error) => {
            assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
            assert!(matches!(error, LoadError::NotSigned { .. }), "{error}");
            Err(with_causes(&error))
        }
    }
}

#[test]
fn a_model_is_signed_as_the_policy_or_the_caller_asks() {
    let shelf = Shelf::new();
    let folder = embedder(1.0);
    shelf.publish("analyst", "v1", folder.path());
    let v1: VersionName = "v1".parse().unwrap();
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let set = |unsigned| {
        let mut policy = SignaturePolicy::new(unsigned);
        policy.trust(&key.verifying_key());
        shelf.store.set_signature_policy(&policy).unwrap();
    };
    let sign =
        |key: &SigningKey| shelf.store.sign(&name("analyst"), &v1, key, &MoveOptions::default()).map(drop);
    let check = |row: &str, signatures: Signatures, expected: Option<&str>| {
        let options = ResolveOptions { signatures, ..shelf.options() };
        match (attempt(&options), expected) {
            (Ok(()), None) => {}
            (Err(said), Some(expected)) => assert!(said.contains(expected), "{row}: {said}"),
            (found, _) => panic!("{row}: {found:?}"),
        }
    };
    check("no policy", AsPolicy, None);
    check("no policy, required", Require, Some("analyst/v1 is not signed"));
    set(Unsigned::Warn);
    check("a warning", AsPolicy, None);
    set(Unsigned::Refuse);
    // It was made current before the policy was set.
    check("refused", AsPolicy, Some("analyst/v1 is not used"));
    check("not looked at", Ignore, None);
    // Another place does not take its place.
    let elsewhere = ResolveOptions { folder: Some(folder.path().to_owned()), ..shelf.options() };
    assert!(attempt(&elsewhere).unwrap_err().contains("analyst/v1 is not signed"));
    sign(&other).unwrap();
    check("by another key", AsPolicy, Some("which is not trusted"));
    sign(&key).unwrap();
    check("signed", AsPolicy, None);
    check("signed and required", Require, None);
    set(Unsigned::Allow);
    check("required by the caller alone", Require, None);

    std::fs::write(shelf.store.signature_policy_path(), "{").unwrap();
    let error = load("analyst", &shelf.options(), |_| Ok(())).unwrap_err();
    assert!(matches!(error, LoadError::Store(StoreError::Corrupt { .. })), "{error}");
}

#[test]
fn nothing_outside_the_store_is_signed() {
    let shelf = Shelf::new();
    let folder = embedder(1.0);
    let options = ResolveOptions { folder: Some(folder.path().to_owned()), ..shelf.options() };
    attempt(&options).unwrap();
    let required = ResolveOptions { signatures: Signatures::Require, ..options };
    assert!(attempt(&required).unwrap_err().contains("is no version of the store"));
}

#[test]
fn what_the_variable_says() {
    for (value, expected) in [
        ("", Signatures::AsPolicy),
        ("policy", Signatures::AsPolicy),
        (" Require ", Signatures::Require),
        ("ignore", Signatures::Ignore),
        ("1", Signatures::Require),
        ("requre", Signatures::Require),
    ] {
        assert_eq!(Signatures::from_value(value), expected, "{value:?}");
    }
}
