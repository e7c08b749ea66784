//! What the Hub refuses, each with its own error, exit code and next step.

use hub_fetch::{FetchError, Request};
use model_store::exit;

use crate::world::{READER, STRANGER, World, assert_same, fetch};

type Is = fn(&FetchError) -> bool;

#[test]
fn each_refusal_says_what_to_do() {
    let world = World::new();
    let check = |model: &str, revision: &str, token: Option<&str>, is: Is, code: u8, says: &[&str]| {
        let row = format!("{model} {revision} {token:?}");
        let hub = world.hub(token.map(|token| ("HF_TOKEN", token)).as_slice());
        let error = fetch(&hub, &Request::new(model).at(revision)).unwrap_err();
        assert!(is(&error), "{row}: {error:?}");
        assert_eq!(error.exit_code(), code, "{row}");
        for words in says {
            assert!(error.to_string().contains(words), "{row}: {error}");
        }
        assert!(!format!("{error} {error:?}").contains("hf_"), "{row}: {error:?}");
    };
    let missing: Is = |e| matches!(e, FetchError::NotFound { .. });
    check("acme/none", "main", None, missing, exit::NOT_FOUND, &["no model acme/none", "set HF_TOKEN"]);
    check(
        "acme/none",
        "main",
        Some(READER),
        missing,
        exit::NOT_FOUND,
        &["account of HF_TOKEN may not see it"],
    );
    check("acme/secret", "main", None, missing, exit::NOT_FOUND, &["or it is private", "set HF_TOKEN"]);
    check("acme/secret", "main", Some(STRANGER), missing, exit::NOT_FOUND, &["may not see it"]);
    let unknown: Is = |e| matches!(e, FetchError::BadToken { .. });
    check(
        "acme/tiny",
        "main",
        Some("hf_wrong"),
        unknown,
        exit::REFUSED,
        &["does not know the token", "hf auth login"],
    );
    let gated: Is = |e| matches!(e, FetchError::Gated { .. });
    let page = format!("{}/acme/gated", world.server.url);
    check(
        "acme/gated",
        "main",
        None,
        gated,
        exit::REFUSED,
        &["accept its terms at", &page, "then set HF_TOKEN"],
    );
    check(
        "acme/gated",
        "main",
        Some(STRANGER),
        gated,
        exit::REFUSED,
        &[&page, "account that HF_TOKEN belongs to"],
    );
    let revision: Is = |e| matches!(e, FetchError::RevisionNotFound { .. });
    check("acme/tiny", "v9", None, revision, exit::NOT_FOUND, &["no revision v9"]);
    let commit = "0123456789012345678901234567890123456789";
    check("acme/tiny", commit, None, revision, exit::NOT_FOUND, &[commit]);
    let pickles: Is = |e| matches!(e, FetchError::OnlyPickles { .. });
    check(
        "acme/pickled",
        "main",
        None,
        pickles,
        exit::REFUSED,
        &["pytorch_model.bin", "run code", "refs/pr/"],
    );
    let empty: Is = |e| matches!(e, FetchError::NoWeights { .. });
    check("acme/empty", "main", None, empty, exit::NOT_FOUND, &["no *.safetensors"]);
    let name: Is = |e| matches!(e, FetchError::Name { .. });
    check("acme/../tiny", "main", None, name, exit::USAGE, &["is no model id"]);
    check("acme/tiny", "../main", None, name, exit::USAGE, &["is no revision"]);

    for model in ["acme/secret", "acme/gated"] {
        let snapshot = fetch(&world.hub(&[("HF_TOKEN", READER)]), &Request::new(model)).unwrap();
        assert_same(&world, &snapshot, model);
    }
}
