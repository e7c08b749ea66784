//! Signatures go with their versions, and a store's policy holds for what comes from a remote.

use std::fs;

use model_store::{MoveOptions, SignaturePolicy, SignatureState, SigningKey, Unsigned, exit};

use crate::world::{
    World, agent, assert_refused, assert_sound, current, publish, publish_lively, pull, push, version,
};

const SIGNATURE: &str = "agents/scout/versions/v1.sig.json";

/// A policy that takes what this key signs and nothing else.
fn refusing(key: &SigningKey) -> SignaturePolicy {
    let mut policy = SignaturePolicy::new(Unsigned::Refuse);
    policy.trust(&key.verifying_key());
    policy
}

#[test]
fn a_signature_travels_and_is_asked_for() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    let (key, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    there.set_signature_policy(&refusing(&key)).unwrap();
    let (scout, v1) = (agent("scout"), version("v1"));
    publish_lively(&here, "scout/v1", 1);

    push(&remote, &here, "scout/v1").unwrap();
    assert_refused("unsigned", pull(&remote, &there, "scout"), exit::REFUSED, "sign");
    assert_eq!(there.get_version(&scout, &v1).unwrap().map(|it| it.version().clone()), None);

    here.sign(&scout, &v1, &stranger, &MoveOptions::default()).unwrap();
    push(&remote, &here, "scout/v1").unwrap();
    assert_refused("by a stranger", pull(&remote, &there, "scout"), exit::REFUSED, "sign");

    here.sign(&scout, &v1, &key, &MoveOptions::default()).unwrap();
    push(&remote, &here, "scout/v1").unwrap();
    assert_eq!(world.objects()[SIGNATURE], here.signature(&scout, &v1).unwrap().unwrap());
    let pulled = pull(&remote, &there, "scout").unwrap();
    assert!(pulled.new && pulled.activated);
    assert_sound("signed", &there, "scout/v1");
    let state = there.check_signature(&scout, &v1).unwrap();
    assert_eq!(state, SignatureState::Signed { key: key.verifying_key().fingerprint() });
    assert_eq!(here.signature(&scout, &v1).unwrap(), there.signature(&scout, &v1).unwrap());
    assert_eq!(remote.versions(&scout).unwrap(), [v1], "a signature is no version");
}

#[test]
fn a_version_that_is_here_gets_the_signature_that_was_made_since() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    let (key, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (scout, v1) = (agent("scout"), version("v1"));
    publish(&here, "scout/v1", &[("a", b"one")]);
    push(&remote, &here, "scout/v1").unwrap();
    pull(&remote, &there, "scout").unwrap();
    assert_eq!(there.check_signature(&scout, &v1).unwrap(), SignatureState::Unsigned);

    here.sign(&scout, &v1, &key, &MoveOptions::default()).unwrap();
    push(&remote, &here, "scout/v1").unwrap();
    pull(&remote, &there, "scout").unwrap();
    let good = here.signature(&scout, &v1).unwrap();
    assert!(good.is_some() && there.signature(&scout, &v1).unwrap() == good);

    // One that counts for nothing does not take its place.
    let mut policy = refusing(&key);
    policy.unsigned = Unsigned::Warn;
    there.set_signature_policy(&policy).unwrap();
    here.sign(&scout, &v1, &stranger, &MoveOptions::default()).unwrap();
    push(&remote, &here, "scout/v1").unwrap();
    pull(&remote, &there, "scout").unwrap();
    assert_eq!(there.signature(&scout, &v1).unwrap(), good);

    // Nor does it make a policy that refuses keep back what is here and signed.
    there.set_signature_policy(&refusing(&key)).unwrap();
    let pulled = pull(&remote, &there, "scout").unwrap();
    assert!(!pulled.new && pulled.caution.is_none(), "{pulled:?}");
}

#[test]
fn a_policy_that_warns_says_so_of_what_it_lets_in() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    publish(&here, "scout/v1", &[("a", b"one")]);
    push(&remote, &here, "scout/v1").unwrap();
    there.set_signature_policy(&SignaturePolicy::new(Unsigned::Warn)).unwrap();
    for new in [true, false] {
        let pulled = pull(&remote, &there, "scout").unwrap();
        assert_eq!(pulled.new, new);
        let caution = pulled.caution.unwrap();
        assert!(caution.contains("scout/v1 is not signed") && caution.contains("--key"), "{caution}");
    }
}

#[test]
fn what_was_tampered_with_is_refused_and_the_old_version_serves() {
    let key = SigningKey::generate().unwrap();
    let check = |name: &str, path: &str, change: fn(Vec<u8>) -> Vec<u8>, said: &str| {
        let world = World::new();
        let (here, there) = (world.host("here"), world.host("there"));
        let remote = world.remote();
        there.set_signature_policy(&refusing(&key)).unwrap();
        for at in ["scout/v0", "scout/v1"] {
            publish(&here, at, &[("a", at.as_bytes())]);
            here.sign(&agent("scout"), &version(&at[6..]), &key, &MoveOptions::default()).unwrap();
            push(&remote, &here, at).unwrap();
            if at == "scout/v0" {
                pull(&remote, &there, "scout").unwrap();
            }
        }
        world.tamper(path, change);
        let refused = pull(&remote, &there, "scout").unwrap_err();
        assert!(refused.to_string().contains(said), "{name}: {refused}");
        assert_eq!(current(&there, "scout").as_deref(), Some("v0"), "{name}");
        assert_eq!(there.get_version(&agent("scout"), &version("v1")).unwrap().map(drop), None, "{name}");
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    check("a signature that is cut off", SIGNATURE, cut, "v1");
    check("no signature", SIGNATURE, |_| Vec::new(), "v1");
    // What is written into a manifest is signed as well, though no file of the version says it.
    let other = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        text.replacen("\"of\": \"v1\"", "\"of\": \"v9\"", 1).into_bytes()
    };
    let world = World::new();
    let here = world.host("here");
    publish(&here, "scout/v1", &[("a", b"one")]);
    let manifest = fs::read(here.root().join("scout/versions/v1/manifest.json")).unwrap();
    assert_ne!(other(manifest.clone()), manifest, "the manifest has the words that are replaced");
    check("other metadata", "agents/scout/versions/v1.json", other, "v1");
}
