//! What must hold for any bytes that are taken for a model signature. Shared by the fuzz target and `make test`.

use std::sync::LazyLock;

use model_signing::{Bundle, SignatureError, SigningKey, VerifyingKey, verify};

/// Fixed, so that an input means the same in every run; the seeds are signed with it. It protects nothing.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqf+A6MboZacvJEGD
0Z2boKlA5gwKWI3pDv+t5Op2JRahRANCAARdbTTwXt4N/x3D6ciyAFjTmCB+8l7I
IbIQGPD3XLR2eBbULqGiZSN8n5yQoqW1bDNqEhUfmRsiFK2nMGaOmZDb
-----END PRIVATE KEY-----
";

static TRUSTED: LazyLock<VerifyingKey> =
    LazyLock::new(|| SigningKey::from_pem(KEY).expect("the key is sound").verifying_key());

/// A signature that is accepted is of files with plain paths, each once, and fits these files and no others. What is
/// refused says why.
pub(crate) fn signatures(data: &[u8]) {
    let keys = std::slice::from_ref(&*TRUSTED);
    let claims = Bundle::parse(data).and_then(|bundle| bundle.claims());
    let verified = match verify(data, keys) {
        Ok(verified) => verified,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            assert!(!matches!(e, SignatureError::TooLarge), "no input is so large");
            if let Ok(claimed) = claims {
                // What anybody can write is a statement like any other.
                let again = claimed.sign(&SigningKey::from_pem(KEY).expect("the key is sound"));
                let again = again.expect("what was read can be written");
                assert_eq!(verify(&again, keys).expect("and read").statement, claimed);
            }
            return;
        }
    };
    let statement = verified.statement;
    assert_eq!(verified.key, TRUSTED.fingerprint());
    assert_eq!(claims, Ok(statement.clone()), "a claim that is true is what it was");
    let files = || statement.resources.iter().map(|resource| (resource.path.clone(), resource.sha256));
    for (path, _) in files() {
        assert!(
            !path.starts_with('/') && path.split('/').all(|part| !matches!(part, "" | "." | "..")),
            "{path:?}"
        );
    }
    statement.matches(files()).expect("it fits what was signed");
    statement.matches(files().skip(1)).expect_err("a file is missing");
    let altered = files().map(|(path, mut sha256)| {
        sha256[0] ^= 1;
        (path, sha256)
    });
    statement.matches(altered).expect_err("every file is another");
}
