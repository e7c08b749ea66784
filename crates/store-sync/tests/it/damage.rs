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
type Harm = fn(&World);

fn replace(world: &World, path: &str, from: &str, to: &str) {
    world.tamper(path, |text| {
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        text.replace(from, to).into_bytes()
    });
}

fn edit(world: &World, change: impl FnOnce(&mut Manifest)) {
    world.tamper(MANIFEST, |json| {
        let mut manifest = Manifest::from_json(&json).unwrap();
        change(&mut manifest);
        manifest.to_json().unwrap()
    });
}

#[test]
fn wrong_bytes_are_refused_and_the_old_version_serves() {
    let weights = || path_of(&bytes(2, 700_000));
    let config = || path_of(b"{\"hidden\": 4}");
    let rows: [(&str, Harm, u8, &str); 20] = [
        (
            "a bit of a blob",
            |w| {
                w.tamper(&path_of(&bytes(2, 700_000)), |mut b| {
                    b[400_000] ^= 1;
                    b
                })
            },
            exit::CORRUPT,
            "has digest",
        ),
        (
            "the first bit",
            |w| {
                w.tamper(&path_of(&bytes(2, 700_000)), |mut b| {
                    b[0] ^= 1;
                    b
                })
            },
            exit::CORRUPT,
            "has digest",
        ),
        (
            "a short blob",
            |w| {
                w.tamper(&path_of(&bytes(2, 700_000)), |mut b| {
                    b.truncate(699_999);
                    b
                })
            },
            exit::CORRUPT,
            "it has 699999 bytes",
        ),
        (
            "a long blob",
            |w| {
                w.tamper(&path_of(&bytes(2, 700_000)), |mut b| {
                    b.push(0);
                    b
                })
            },
            exit::CORRUPT,
            "it has 700001 bytes",
        ),
        (
            "an empty blob",
            |w| w.tamper(&path_of(&bytes(2, 700_000)), |_| Vec::new()),
            exit::CORRUPT,
            "it has 0 bytes",
        ),
        (
            "another blob's bytes",
            |w| w.tamper(&path_of(&bytes(2, 700_000)), |_| bytes(9, 700_000)),
            exit::CORRUPT,
            "has digest",
        ),
        (
            "no blob",
            |w| fs::remove_file(w.bucket().join(path_of(&bytes(2, 700_000)))).unwrap(),
            exit::NOT_FOUND,
            "which its manifest names",
        ),
        (
            "no manifest",
            |w| fs::remove_file(w.bucket().join(MANIFEST)).unwrap(),
            exit::NOT_FOUND,
            "no version v2",
        ),
        (
            "half a manifest",
            |w| {
                w.tamper(MANIFEST, |mut b| {
                    b.truncate(b.len() / 2);
                    b
                })
            },
            exit::CORRUPT,
            "no manifest",
        ),
        (
            "the manifest of another version",
            |w| {
                fs::copy(w.bucket().join("agents/scout/versions/v1.json"), w.bucket().join(MANIFEST))
                    .unwrap();
            },
            exit::REFUSED,
            "its manifest is of scout/v1",
        ),
        (
            "the manifest of another agent",
            |w| replace(w, MANIFEST, "\"agent\": \"scout\"", "\"agent\": \"memory\""),
            exit::REFUSED,
            "its manifest is of memory/v2",
        ),
        (
            "another digest in the list",
            |w| edit(w, |m| m.files[0].sha256 = Digest::of(b"x")),
            exit::CORRUPT,
            "its checksum is",
        ),
        ("a file less in the list", |w| edit(w, |m| drop(m.files.pop())), exit::CORRUPT, "its checksum is"),
        (
            "a list and checksum of somebody's own",
            |w| {
                edit(w, |m| {
                    m.files.pop();
                    m.checksum = model_store::checksum_of_listing(&m.files);
                })
            },
            exit::REFUSED,
            "the pointer says checksum",
        ),
        (
            "a path that leads out",
            |w| replace(w, MANIFEST, "\"config.json\"", "\"../config.json\""),
            exit::CORRUPT,
            "no manifest",
        ),
        (
            "a link that leads out",
            |w| {
                replace(
                    w,
                    MANIFEST,
                    "\"tokenizer/vocab.txt\"\n    }\n  ]",
                    "\"../../v1/config.json\"\n    }\n  ]",
                )
            },
            exit::REFUSED,
            "tokenizer.txt",
        ),
        (
            "a size that nobody has",
            |w| edit(w, |m| m.files.iter_mut().for_each(|f| f.size = 1 << 52)),
            exit::ENVIRONMENT,
            "no room",
        ),
        (
            "a manifest of the future",
            |w| replace(w, MANIFEST, "\"format\": 1", "\"format\": 2"),
            exit::REFUSED,
            "of format 2",
        ),
        (
            "a pointer of another agent",
            |w| replace(w, POINTER, "\"scout\"", "\"memory\""),
            exit::CORRUPT,
            "it is of agent memory",
        ),
        (
            "a pointer of the future",
            |w| replace(w, POINTER, "\"format\": 1", "\"format\": 2"),
            exit::REMOTE,
            "use a newer model-store",
        ),
    ];
    let _ = (weights(), config());
    for (row, harm, code, says) in rows {
        let world = World::new();
        let (here, there) = (world.host("here"), world.host("there"));
        let remote = world.remote();
        publish_lively(&here, "scout/v1", 1);
        push(&remote, &here, "scout/v1").unwrap();
        pull(&remote, &there, "scout").unwrap();
        publish_lively(&here, "scout/v2", 2);
        push(&remote, &here, "scout/v2").unwrap();
        let whole = world.objects();
        harm(&world);
        assert_refused(row, pull(&remote, &there, "scout"), code, says);
        assert_eq!(current(&there, "scout").as_deref(), Some("v1"), "{row}");
        assert!(there.get_version(&agent("scout"), &version("v2")).unwrap().is_none(), "{row}");
        assert!(there.stagings(&agent("scout")).unwrap().is_empty(), "{row}");
        assert!(there.verify(&agent("scout"), &version("v1")).unwrap().is_ok(), "{row}");

        // Once it is mended, the same pull works.
        for (path, bytes) in whole {
            fs::write(world.bucket().join(path), bytes).unwrap();
        }
        pull(&remote, &there, "scout").unwrap_or_else(|e| panic!("{row}, mended: {e}"));
        assert_eq!(current(&there, "scout").as_deref(), Some("v2"), "{row}");
        assert_sound(row, &there, "scout/v2");
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
