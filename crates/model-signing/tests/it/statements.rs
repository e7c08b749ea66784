//! What is refused of a statement that is signed as it should be, and how files are compared with one.

use model_signing::{GIT_PATHS, SigningKey, Statement, StatementError, verify};
use serde_json::{Value, json};

use crate::folder::{seal, two_files};

#[test]
fn what_a_signed_statement_must_say() {
    let key = SigningKey::generate().unwrap();
    let check = |row: &str, alter: &dyn Fn(&mut Value), expected: &str| {
        let mut statement = two_files();
        alter(&mut statement);
        let bundle = seal(&serde_json::to_vec(&statement).unwrap(), &key);
        let found = verify(&serde_json::to_vec(&bundle).unwrap(), &[key.verifying_key()]);
        match found {
            Ok(_) => assert_eq!(expected, "", "{row}: accepted"),
            Err(e) => assert!(!expected.is_empty() && e.to_string().contains(expected), "{row}: {e}"),
        }
    };
    let resource = |path: &str| json!({"name": path, "algorithm": "sha256", "digest": "00".repeat(32)});
    check("as it is", &|_| {}, "");
    check("what later versions may add", &|it| it["predicate"]["cards"] = json!([1, {"a": 2.5}]), "");
    check(
        "another type",
        &|it| it["_type"] = json!("https://in-toto.io/Statement/v0.1"),
        "statement's type is",
    );
    check(
        "another predicate",
        &|it| it["predicateType"] = json!("https://slsa.dev/provenance/v1"),
        "predicate's type",
    );
    check(
        "an old one",
        &|it| it["predicateType"] = json!("https://model_signing/Digests/v0.1"),
        "before 1.0",
    );
    check("no subject", &|it| it["subject"] = json!([]), "subject has 0 entries");
    check("two subjects", &|it| it["subject"] = json!([{}, {}]), "subject has 2 entries");
    check(
        "subject digest",
        &|it| it["subject"][0]["digest"]["sha256"] = json!("00".repeat(32)),
        "not that of its files",
    );
    check(
        "subject digest, short",
        &|it| it["subject"][0]["digest"]["sha256"] = json!("00"),
        "not 64 lower-case",
    );
    check(
        "subject digest, other",
        &|it| it["subject"][0]["digest"] = json!({"sha512": ""}),
        "sha256 is missing",
    );
    check(
        "by shards",
        &|it| it["predicate"]["serialization"]["method"] = json!("shards"),
        "signs by \"shards\"",
    );
    check(
        "other digests",
        &|it| it["predicate"]["serialization"]["hash_type"] = json!("blake3"),
        "are \"blake3\"",
    );
    check("links", &|it| it["predicate"]["serialization"]["allow_symlinks"] = json!("no"), "not a boolean");
    check("left out", &|it| it["predicate"]["serialization"]["ignore_paths"] = json!([1]), "is a number");
    check("no resources", &|it| it["predicate"]["resources"] = json!([]), "signs no file");
    check(
        "a resource's digest",
        &|it| it["predicate"]["resources"][0]["digest"] = json!("AB".repeat(32)),
        "lower-case",
    );
    check(
        "another digest",
        &|it| it["predicate"]["resources"][1]["digest"] = json!("00".repeat(32)),
        "not that of",
    );
    check(
        "an algorithm",
        &|it| it["predicate"]["resources"][1]["algorithm"] = json!("md5"),
        "\"b\" is \"md5\"",
    );
    check(
        "order",
        &|it| it["predicate"]["resources"].as_array_mut().unwrap().reverse(),
        "not that of its files",
    );
    for (path, expected) in [
        ("a", "named twice"),
        ("", "is missing"),
        ("/etc/passwd", "is absolute"),
        ("../b", "'.' or '..'"),
        ("x/./b", "'.' or '..'"),
        ("x//b", "empty component"),
        ("b/", "empty component"),
        ("b\0", "NUL"),
    ] {
        // An empty name is no name.
        let expected = if path.is_empty() { "is empty" } else { expected };
        check(path, &|it| it["predicate"]["resources"][1] = resource(path), expected);
    }
    for text in ["", "[]", "null", "7", "{\"_type\":1}", "{\"_type\":\"a\",\"_type\":\"b\"}"] {
        let bundle = seal(text.as_bytes(), &key);
        verify(&serde_json::to_vec(&bundle).unwrap(), &[key.verifying_key()]).expect_err(text);
    }
}

#[test]
fn what_differs() {
    let digest = |byte: u8| [byte; 32];
    let signed = [("a", digest(1)), ("b/c", digest(2)), ("d", digest(3)), (".gitignore", digest(9))];
    let statement = Statement::new("m", signed).unwrap().leaving_out(GIT_PATHS);
    let check = |row: &str, files: &[(&str, u8)], expected: &[&str]| {
        let files = files.iter().map(|(path, byte)| (*path, digest(*byte)));
        let found = statement.matches(files).err().map(|mismatch| mismatch.differences).unwrap_or_default();
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{row}");
    };
    check("the same", &[("d", 3), ("b/c", 2), ("a", 1)], &[]);
    check("with what is left out", &[("a", 1), ("b/c", 2), ("d", 3), (".gitignore", 8), (".git/x", 7)], &[]);
    check(
        "not what only begins so",
        &[("a", 1), ("b/c", 2), ("d", 3), (".gitmodules", 7)],
        &[".gitmodules was not signed"],
    );
    check("altered", &[("a", 7), ("b/c", 2), ("d", 3)], &["a has other bytes than were signed"]);
    check("extra", &[("a", 1), ("b/c", 2), ("d", 3), ("e", 1)], &["e was not signed"]);
    check("missing", &[("a", 1), ("d", 3)], &["b/c was signed and is missing"]);
    check("renamed", &[("a", 1), ("b/x", 2), ("d", 3)], &["b/c is called b/x now"]);
    check(
        "swapped",
        &[("a", 3), ("b/c", 2), ("d", 1)],
        &["a has other bytes than were signed", "d has other bytes than were signed"],
    );
    check(
        "all gone",
        &[],
        &["a was signed and is missing", "b/c was signed and is missing", "d was signed and is missing"],
    );
    let said = statement.matches([("x", digest(9))]).unwrap_err().to_string();
    assert!(said.ends_with("d was signed and is missing; and 1 more"), "{said}");
}

#[test]
fn what_cannot_be_signed() {
    let check = |row: &str, files: &[&str], expected: &str| {
        let error = Statement::new("m", files.iter().map(|path| (*path, [0; 32]))).unwrap_err();
        assert!(error.to_string().contains(expected), "{row}: {error}");
    };
    check("nothing", &[], "no file");
    check("twice", &["a", "b", "a"], "\"a\" is named twice");
    check("outside", &["a", "../b"], "'.' or '..'");
    check("absolute", &["/a"], "is absolute");
    let only_git = Statement::new("m", [(".gitignore", [0; 32])]).unwrap().leaving_out(GIT_PATHS);
    assert_eq!(only_git.sign(&SigningKey::generate().unwrap()), Err(StatementError::Empty));
}
