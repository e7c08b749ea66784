//! A remote that has other bytes than it should: refused, and the old version serves.

use std::fs;

use model_store::{Digest, Manifest, exit};

use crate::world::{
    World, agent, assert_refused, assert_sound, bytes, current, incoming, publish, publish_lively, pull,
    push, version,
};

const POINTER: &str = "agents/scout/current.json";
const MANIFEST: &str = "agents/scout/versions/v2.json";

fn path_of(bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    format!("blobs/sha256/{}/{digest}", &digest[..2])
}

/// What is done to a remote that has `scout/v1` and, current, `scout/v2`.
enum Harm {
    /// To the blob of the weights of `v2`.
    Blob(fn(&mut Vec<u8>)),
    Remove(&'static str),
    RemoveBlob,
    /// Some text of an object by other text.
    Replace(&'static str, &'static str, &'static str),
    Manifest(fn(&mut Manifest)),
    /// The manifest of `v1` in the place of that of `v2`.
    ManifestOfV1,
    HalfAManifest,
}

impl Harm {
    fn weights() -> String {
        path_of(&bytes(2, 700_000))
    }

    fn befall(&self, world: &World) {
        let remove = |path: &str| fs::remove_file(world.bucket().join(path)).unwrap();
        match self {
            Self::Blob(change) => world.tamper(&Self::weights(), |mut bytes| {
                change(&mut bytes);
                bytes
            }),
            Self::Remove(path) => remove(path),
            Self::RemoveBlob => remove(&Self::weights()),
            Self::Replace(path, from, to) => world.tamper(path, |text| {
                let text = String::from_utf8(text).unwrap();
                assert!(text.contains(from), "{from} in {text}");
                text.replace(from, to).into_bytes()
            }),
            Self::Manifest(change) => world.tamper(MANIFEST, |json| {
                let mut manifest = Manifest::from_json(&json).unwrap();
                change(&mut manifest);
                manifest.to_json().unwrap()
            }),
            Self::ManifestOfV1 => {
                let other = fs::read(world.bucket().join("agents/scout/versions/v1.json")).unwrap();
                world.tamper(MANIFEST, |_| other);
            }
            Self::HalfAManifest => world.tamper(MANIFEST, |mut json| {
                json.truncate(json.len() / 2);
                json
            }),
        }
    }
}

/// A pull of `v2` is refused and `v1` serves; once the remote is mended, the same pull works.
fn check(row: &str, harm: &Harm, code: u8, says: &str) {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    publish_lively(&here, "scout/v1", 1);
    push(&remote, &here, "scout/v1").unwrap();
    pull(&remote, &there, "scout").unwrap();
    publish_lively(&here, "scout/v2", 2);
    push(&remote, &here, "scout/v2").unwrap();
    let whole = world.objects();
    harm.befall(&world);
    assert_refused(row, pull(&remote, &there, "scout"), code, says);
    assert_eq!(current(&there, "scout").as_deref(), Some("v1"), "{row}");
    assert!(there.get_version(&agent("scout"), &version("v2")).unwrap().is_none(), "{row}");
    assert!(there.stagings(&agent("scout")).unwrap().is_empty(), "{row}");
    assert!(there.verify(&agent("scout"), &version("v1")).unwrap().is_ok(), "{row}");

    for (path, bytes) in whole {
        fs::write(world.bucket().join(path), bytes).unwrap();
    }
    pull(&remote, &there, "scout").unwrap_or_else(|e| panic!("{row}, mended: {e}"));
    assert_eq!(current(&there, "scout").as_deref(), Some("v2"), "{row}");
    assert_sound(row, &there, "scout/v2");
}

#[test]
fn wrong_blobs_are_refused() {
    let rows: [(&str, Harm, u8, &str); 7] = [
        ("a bit", Harm::Blob(|b| b[400_000] ^= 1), exit::CORRUPT, "has digest"),
        ("the first bit", Harm::Blob(|b| b[0] ^= 1), exit::CORRUPT, "has digest"),
        ("too short", Harm::Blob(|b| b.truncate(699_999)), exit::CORRUPT, "it has 699999 bytes"),
        ("too long", Harm::Blob(|b| b.push(0)), exit::CORRUPT, "it has 700001 bytes"),
        ("empty", Harm::Blob(Vec::clear), exit::CORRUPT, "it has 0 bytes"),
        ("another's bytes", Harm::Blob(|b| *b = bytes(9, 700_000)), exit::CORRUPT, "has digest"),
        ("missing", Harm::RemoveBlob, exit::NOT_FOUND, "which its manifest names"),
    ];
    for (row, harm, code, says) in rows {
        check(row, &harm, code, says);
    }
}

#[test]
fn wrong_manifests_are_refused() {
    let other_checksum = |m: &mut Manifest| {
        m.files.pop();
        m.checksum = model_store::checksum_of_listing(&m.files);
    };
    let huge = |m: &mut Manifest| m.files.iter_mut().for_each(|file| file.size = 1 << 52);
    let agent = ("\"agent\": \"scout\"", "\"agent\": \"memory\"");
    let link = ("\"target\": \"tokenizer/vocab.txt\"", "\"target\": \"../../v1/config.json\"");
    let rows: [(&str, Harm, u8, &str); 11] = [
        ("missing", Harm::Remove(MANIFEST), exit::NOT_FOUND, "no version v2"),
        ("half of it", Harm::HalfAManifest, exit::CORRUPT, "no manifest"),
        ("another version's", Harm::ManifestOfV1, exit::REFUSED, "its manifest is of scout/v1"),
        ("another agent's", Harm::Replace(MANIFEST, agent.0, agent.1), exit::REFUSED, "is of memory/v2"),
        (
            "another digest",
            Harm::Manifest(|m| m.files[0].sha256 = Digest::of(b"x")),
            exit::CORRUPT,
            "its checksum is",
        ),
        ("a file less", Harm::Manifest(|m| drop(m.files.pop())), exit::CORRUPT, "its checksum is"),
        ("a checksum of its own", Harm::Manifest(other_checksum), exit::REFUSED, "the pointer says checksum"),
        (
            "a path out",
            Harm::Replace(MANIFEST, "\"config.json\"", "\"../config.json\""),
            exit::CORRUPT,
            "no manifest",
        ),
        ("a link out", Harm::Replace(MANIFEST, link.0, link.1), exit::REFUSED, "tokenizer.txt"),
        ("a size that nobody has", Harm::Manifest(huge), exit::ENVIRONMENT, "no room"),
        (
            "of the future",
            Harm::Replace(MANIFEST, "\"format\": 1", "\"format\": 2"),
            exit::REFUSED,
            "of format 2",
        ),
    ];
    for (row, harm, code, says) in rows {
        check(row, &harm, code, says);
    }
}

#[test]
fn wrong_pointers_are_refused() {
    let rows: [(&str, Harm, u8, &str); 3] = [
        (
            "another agent's",
            Harm::Replace(POINTER, "\"scout\"", "\"memory\""),
            exit::CORRUPT,
            "it is of agent memory",
        ),
        (
            "of the future",
            Harm::Replace(POINTER, "\"format\": 1", "\"format\": 2"),
            exit::REMOTE,
            "use a newer",
        ),
        ("no JSON", Harm::Replace(POINTER, "{", "["), exit::CORRUPT, "is not what it should be"),
    ];
    for (row, harm, code, says) in rows {
        check(row, &harm, code, says);
    }
}

/// What an earlier run has left is believed as far as its digest goes.
#[test]
fn what_an_earlier_run_left_is_not_trusted() {
    let content = bytes(1, 500_000);
    let name = Digest::of(&content).to_string();
    let rows: [(&str, Vec<u8>, u64); 6] = [
        ("a sound beginning", content[..300_000].to_vec(), 200_000),
        ("an unsound beginning", bytes(2, 300_000), 500_000),
        ("all of it", content.clone(), 0),
        ("all of it, unsound", bytes(2, 500_000), 500_000),
        ("more than it", bytes(1, 500_008), 500_000),
        ("nothing", Vec::new(), 500_000),
    ];
    for (row, left, expected) in rows {
        for is_sealed in [false, true] {
            let world = World::new();
            let (here, there) = (world.host("here"), world.host("there"));
            let remote = world.remote();
            publish(&here, "scout/v1", &[("a", &content)]);
            push(&remote, &here, "scout/v1").unwrap();
            let dir = there.root().join("scout/.incoming");
            fs::create_dir_all(&dir).unwrap();
            fs::create_dir_all(there.root().join("scout/versions")).unwrap();
            let path = dir.join(&name);
            fs::write(&path, &left).unwrap();
            fs::write(dir.join("nobody-wants-this"), b"x").unwrap();
            if is_sealed {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
            }
            assert_eq!(incoming(&there, "scout").len(), 2);
            let pulled = pull(&remote, &there, "scout").unwrap();
            // A sealed file is whole or worth nothing; an unsound beginning shows at the end.
            let expected = match (row, is_sealed) {
                ("a sound beginning", true) => 500_000,
                ("an unsound beginning", false) => 200_000 + 500_000,
                _ => expected,
            };
            assert_eq!(pulled.received_bytes, expected, "{row}, sealed: {is_sealed}");
            assert_sound(row, &there, "scout/v1");
        }
    }
}

/// A file on its way that is a published version's already, because its process died between the publish and
/// the tidying up, must not be written to.
#[test]
fn a_published_file_is_never_written_to() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    let content = bytes(1, 300_000);
    publish(&here, "scout/v1", &[("a", &content)]);
    push(&remote, &here, "scout/v1").unwrap();
    pull(&remote, &there, "scout").unwrap();
    // The name of what is wanted next leads to a file of v1, whose mode somebody has opened up.
    let next = bytes(2, 300_000);
    let file = there.root().join("scout/versions/v1/a");
    let dir = there.root().join("scout/.incoming");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::hard_link(&file, dir.join(Digest::of(&next).to_string())).unwrap();
    publish(&here, "scout/v2", &[("a", &next)]);
    push(&remote, &here, "scout/v2").unwrap();
    pull(&remote, &there, "scout").unwrap();
    assert_eq!(fs::read(&file).unwrap(), content);
    assert_sound("v2", &there, "scout/v2");
}
