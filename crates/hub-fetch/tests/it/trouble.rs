//! Networks that fail and servers that are overloaded or lie.

use std::fs;
use std::time::{Duration, Instant};

use hub_fetch::{FetchError, Snapshot};
use hub_server::faults::{Seen, What};

use crate::world::{WEIGHT_BYTES, World, assert_same, blobs, fetch, tiny};

const WEIGHTS: &str = "model.safetensors";
const ALWAYS: u64 = u64::MAX;

fn status(code: u16, headers: &[(&str, &str)]) -> What {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    What::Status { code, headers, text: String::new() }
}

/// What a row expects of the requests that were made.
type Requests = fn(&[Seen]) -> bool;

fn resumed(seen: &[Seen]) -> bool {
    seen.iter().any(|request| {
        request.path.contains(WEIGHTS) && request.range.as_ref().is_some_and(|r| r != "bytes=0-")
    })
}

fn any(_: &[Seen]) -> bool {
    true
}

#[test]
fn what_is_got_over() {
    let check = |row: &str, faults: &[(&str, u64, What)], requests: Requests| {
        let world = World::new();
        world.server.set(faults);
        let hub = world.hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", "1"), ("HF_HUB_ETAG_TIMEOUT", "1")]);
        let snapshot: Snapshot = fetch(&hub, &tiny()).unwrap_or_else(|error| panic!("{row}: {error}"));
        assert_same(&world, &snapshot, "acme/tiny");
        let seen = world.server.seen();
        assert!(requests(&seen), "{row}: {seen:?}");
        let left = blobs(&world.repository("acme/tiny"));
        assert!(left.iter().all(|blob| !blob.ends_with(".incomplete")), "{row}: {left:?}");
    };
    // The signed address is where large files come from.
    check("cut once", &[("/file?", 1, What::Cut(1_000_000))], resumed);
    check(
        "cut again and again",
        &[("/file?", 3, What::Cut(400_000)), ("/file?", 2, What::Cut(300_000))],
        resumed,
    );
    check("cut before the first byte", &[("/file?", 2, What::Cut(0))], any);
    check("silence", &[("/file?", 1, What::Silence(700_000))], resumed);
    check("no ranges", &[("/file?", 1, What::Cut(900_000)), ("/file?", 1, What::NoRange)], resumed);
    check("a wrong byte", &[("/file?", 1, What::Flip(2_000_000))], |seen| {
        seen.iter().filter(|request| request.path.contains("/file?")).count() == 2
    });
    check("a wrong byte in a small file", &[("tokenizer.json", 1, What::Flip(3))], any);
    check("an expired link", &[("/file?", 1, status(403, &[]))], any);
    check("overload", &[("resolve", 2, status(503, &[])), ("/api/", 2, status(500, &[]))], any);
    check("too late", &[("/api/", 1, What::Late(3000))], |seen| {
        seen.iter().filter(|request| request.path.starts_with("/api/")).count() == 2
    });
    check("slow, but alive", &[("/file?", 1, What::Slow(1, 150))], any);
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let world = World::new();
    world.server.set(&[("/file?", 1, status(429, &[("retry-after", "1")]))]);
    let started = Instant::now();
    world.fetch(&tiny()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    world.server.set(&[("/api/", 1, status(429, &[("ratelimit", "\"api\";r=0;t=1")]))]);
    fs::remove_dir_all(world.cache()).unwrap();
    let started = Instant::now();
    world.fetch(&tiny()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn what_is_not_got_over() {
    let world = World::new();
    let check =
        |row: &str, faults: &[(&str, u64, What)], expected: &dyn Fn(&FetchError) -> bool, says: &str| {
            let _ = fs::remove_dir_all(world.cache());
            world.server.set(faults);
            let hub = world.hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", "1"), ("HF_HUB_ETAG_TIMEOUT", "1")]);
            let error = fetch(&hub, &tiny()).unwrap_err();
            assert!(expected(&error), "{row}: {error:?}");
            assert!(error.to_string().contains(says), "{row}: {error}");
            assert!(!error.to_string().contains("signature="), "{row}: {error}");
            assert_eq!(error.exit_code(), model_store::exit::REMOTE, "{row}");
            let weights = "model.safetensors";
            let (repository, sha) = (world.repository("acme/tiny"), blob_of(&world, weights));
            assert!(!repository.join("refs").exists(), "{row}");
            assert!(!repository.join("blobs").join(sha).exists(), "{row}");
        };
    check(
        "always cut",
        &[("/file?", ALWAYS, What::Cut(0))],
        &|e| matches!(e, FetchError::Unreachable { .. }),
        "cut",
    );
    check(
        "always silent",
        &[("/file?", ALWAYS, What::Silence(0))],
        &|e| matches!(e, FetchError::Unreachable { .. }),
        "said nothing for 1 s",
    );
    check(
        "always a wrong byte",
        &[("/file?", ALWAYS, What::Flip(7))],
        &|e| matches!(e, FetchError::Damaged { .. }),
        "expected SHA-256",
    );
    let cut_and_flipped = [("/file?", 1, What::Cut(1_000_000)), ("/file?", 1, What::Flip(7))];
    check(
        "a wrong byte in every pass, after a cut",
        &vec![cut_and_flipped; 5].concat(),
        &|e| matches!(e, FetchError::Damaged { .. }),
        "expected SHA-256",
    );
    let here_and_there = [500_000, 600_000].map(|after| ("/file?", 1, What::NoRangeAndCut(after)));
    check(
        "no ranges, and cut now here, now there",
        &[vec![("/file?", 1, What::Cut(900_000))], vec![here_and_there; 20].concat()].concat(),
        &|e| matches!(e, FetchError::Unreachable { .. }),
        "cut",
    );
    check(
        "a byte at a time",
        &[("/file?", ALWAYS, What::Cut(1))],
        &|e| matches!(e, FetchError::Unreachable { .. }),
        "cut",
    );
    let asked = world.server.seen().iter().filter(|request| request.cdn).count();
    assert!((50..150).contains(&asked), "{asked}");
    check(
        "always down",
        &[("/file?", ALWAYS, status(503, &[]))],
        &|e| matches!(e, FetchError::Status { status: 503, .. }),
        "answers 503",
    );
    check(
        "no patience for that",
        &[("/file?", 1, status(429, &[("retry-after", "86400")]))],
        &|e| matches!(e, FetchError::RateLimited { .. }),
        "86400 s",
    );
    check(
        "round and round",
        &[("/file?", ALWAYS, What::Redirect("/file?again".to_owned()))],
        &|e| matches!(e, FetchError::Protocol { .. }),
        "redirects more than 10 times",
    );
    check(
        "to nowhere",
        &[("resolve", ALWAYS, What::Redirect("http://127.0.0.1:1/x".to_owned()))],
        &|e| matches!(e, FetchError::Unreachable { .. }),
        "127.0.0.1:1",
    );
    check(
        "no Hub at all",
        &[("/api/", 1, What::Status { code: 200, headers: Vec::new(), text: "<html>hello</html>".into() })],
        &|e| matches!(e, FetchError::Protocol { .. }),
        "check HF_ENDPOINT",
    );
    check(
        "no commit",
        &[("/api/", 1, What::Status { code: 200, headers: Vec::new(), text: r#"{"sha": "main"}"#.into() })],
        &|e| matches!(e, FetchError::Protocol { .. }),
        "names no commit",
    );
    let lists = r#"{"sha": "0123456789012345678901234567890123456789",
        "siblings": [{"rfilename": "1_x/../escaped.json"}, {"rfilename": "model.safetensors"}]}"#;
    check(
        "a name that leads out",
        &[("/api/", 1, What::Status { code: 200, headers: Vec::new(), text: lists.into() })],
        &|e| matches!(e, FetchError::Protocol { .. }),
        "leads out",
    );
}

/// A mirror that keeps the Hub's list and files, and has entity tags of its own.
#[test]
fn a_mirror_with_tags_that_are_no_digests() {
    let world = World::new();
    let honest = world.fetch(&tiny()).unwrap();
    fs::remove_dir_all(world.cache()).unwrap();
    let size = WEIGHT_BYTES;
    let sha = blob_of(&world, WEIGHTS);
    let api = |weights: &str| {
        let text = format!(
            r#"{{"sha": "{}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "tokenizer.json"}},
                {{"rfilename": "model.safetensors" {weights}}}]}}"#,
            honest.commit
        );
        ("/api/", 1, What::Status { code: 200, headers: Vec::new(), text })
    };
    // The first request for a file is for its headers.
    let tag = |path: &'static str| (path, 1, status(200, &[("etag", "\"1-2f\"")]));
    world.server.set(&[
        api(&format!(r#", "lfs": {{"sha256": "{sha}", "size": {size}}}"#)),
        tag("config.json"),
        tag("tokenizer.json"),
        ("tokenizer.json", 1, What::Cut(100_000)),
    ]);
    let snapshot = world.fetch(&tiny()).unwrap();
    assert_eq!(snapshot.files.len(), 3);
    assert_same(&world, &snapshot, "acme/tiny");
    // The rest of a file that nobody can check might be another's.
    let seen = world.server.seen();
    let tokenizer: Vec<_> = seen.iter().filter(|request| request.path.contains("tokenizer.json")).collect();
    assert_eq!(tokenizer.len(), 3, "{tokenizer:?}");
    assert!(tokenizer.iter().all(|request| request.range.is_none()), "{tokenizer:?}");

    fs::remove_dir_all(world.cache()).unwrap();
    world.server.set(&[api(""), tag("config.json"), tag("tokenizer.json"), tag(WEIGHTS)]);
    let error = world.fetch(&tiny()).unwrap_err();
    assert!(matches!(error, FetchError::Protocol { .. }), "{error:?}");
    assert!(error.to_string().contains("no digest of model.safetensors"), "{error}");
    assert!(!world.cache().exists());
}

/// The sizes are known before anything comes, and so is whether there is room.
#[test]
fn a_model_that_is_larger_than_the_disk() {
    let world = World::new();
    let text = r#"{"sha": "0123456789012345678901234567890123456789", "siblings": [
        {"rfilename": "model.safetensors", "blobId": "0123456789012345678901234567890123456789", "size": 1000000000000000000},
        {"rfilename": "config.json", "blobId": "0123456789012345678901234567890123456780", "size": 7}]}"#;
    let answer =
        |text: &str| ("/api/", 1, What::Status { code: 200, headers: Vec::new(), text: text.into() });
    world.server.set(&[answer(&text.replace("1000000000000000000", "18446744073709551615"))]);
    let error = world.fetch(&tiny()).unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { needed_bytes: u64::MAX, .. }), "{error:?}");
    world.server.set(&[answer(text)]);
    let error = world.fetch(&tiny()).unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { needed_bytes: 1_000_000_000_000_000_007, .. }), "{error:?}");
    assert!(error.to_string().contains("HF_HUB_CACHE"), "{error}");
    assert_eq!(error.exit_code(), model_store::exit::ENVIRONMENT);
    assert_eq!(world.server.seen().len(), 1);
    assert!(!world.cache().exists());
}

/// The process ended in the middle, or what it left is not what it seems.
#[test]
fn what_an_earlier_run_has_left() {
    let world = World::new();
    let name = blob_of(&world, WEIGHTS);
    let whole = fs::read(world.models().join("acme/tiny").join(WEIGHTS)).unwrap();
    let other = vec![7; WEIGHT_BYTES];
    let check = |row: &str, left: &[u8], ranges: &[Option<&str>]| {
        let _ = fs::remove_dir_all(world.cache());
        let blobs = world.repository("acme/tiny").join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{name}.incomplete")), left).unwrap();
        world.server.set(&[]);
        let snapshot = world.fetch(&tiny()).unwrap();
        assert_same(&world, &snapshot, "acme/tiny");
        let seen = world.server.seen();
        let found: Vec<Option<&str>> =
            seen.iter().filter(|request| request.cdn).map(|request| request.range.as_deref()).collect();
        assert_eq!(found, ranges, "{row}");
    };
    check("nothing", b"", &[None]);
    check("a third", &whole[..1_000_000], &[Some("bytes=1000000-")]);
    check("everything", &whole, &[]);
    check("everything, and wrong", &other, &[None]);
    check("a third, and wrong", &other[..1_000_000], &[Some("bytes=1000000-"), None]);
    check("too much", &[&whole[..], &whole[..]].concat(), &[None]);
}

/// The name that a file's bytes have in the cache.
fn blob_of(world: &World, path: &str) -> String {
    let bytes = fs::read(world.models().join("acme/tiny").join(path)).unwrap();
    hex::encode(<sha2::Sha256 as sha2::Digest>::digest(bytes))
}
