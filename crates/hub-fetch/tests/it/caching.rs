//! Offline, unreachable, and shared with others.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hub_fetch::{FetchError, Progress, Request, Source};
use hub_server::faults::What;
use model_store::exit;

use crate::world::{World, assert_same, fetch, tiny};

#[test]
fn offline_takes_what_is_whole_and_asks_nobody() {
    let world = World::new();
    let hub = world.hub(&[("HF_HUB_OFFLINE", "1")]);
    world.server.set(&[]);
    let lacking = |request: &Request, says: &str| {
        let error = fetch(&hub, request).unwrap_err();
        assert!(matches!(error, FetchError::Offline { .. }), "{error:?}");
        assert!(error.to_string().contains(says) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
        assert_eq!(error.exit_code(), exit::NOT_FOUND);
    };
    lacking(&tiny(), "the revision is not known there");
    assert_eq!(world.server.seen(), []);

    let online = world.fetch(&tiny()).unwrap();
    world.server.set(&[]);
    for request in [tiny(), tiny().at(&online.commit)] {
        let snapshot = fetch(&hub, &request).unwrap();
        assert_eq!((&snapshot.source, &snapshot.path), (&Source::Offline, &online.path));
        assert_eq!(snapshot.files, online.files);
    }
    lacking(&tiny().at("v2"), "the revision is not known there");

    // Without the list of files too: what other programs leave has none.
    let repository = world.repository("acme/tiny");
    fs::remove_dir_all(repository.join("trees")).unwrap();
    let unlisted = fetch(&hub, &tiny()).unwrap();
    assert_eq!(unlisted.files.len(), online.files.len());
    assert!(online.is_listed && !unlisted.is_listed && !hub.cached(&tiny()).unwrap().unwrap().is_listed);
    fs::remove_file(online.path.join("config.json")).unwrap();
    lacking(&tiny(), "no config.json");
    assert_eq!(world.server.seen(), []);

    // A branch is taken for the commit it was at; what lacks a file is not whole.
    world.fetch(&Request::new("acme/sharded")).unwrap();
    let sharded = fetch(&hub, &Request::new("acme/sharded")).unwrap();
    fs::remove_file(sharded.path.join("model-00002-of-00002.safetensors")).unwrap();
    lacking(&Request::new("acme/sharded"), "model-00002-of-00002.safetensors is missing");
    fs::remove_dir_all(world.repository("acme/sharded").join("trees")).unwrap();
    lacking(&Request::new("acme/sharded"), "model-00002-of-00002.safetensors is missing");
}

/// A list of files in the cache is another program's, or an old one: the Hub knows better.
#[test]
fn a_list_that_is_of_no_use_does_not_end_a_fetch() {
    let world = World::new();
    let online = world.fetch(&tiny()).unwrap();
    let tree = world.repository("acme/tiny").join("trees").join(format!("{}.json", online.commit));
    let right = fs::read(&tree).unwrap();
    let offline = world.hub(&[("HF_HUB_OFFLINE", "1")]);
    let check = |files: &str, says: &str| {
        for request in [tiny(), tiny().at(&online.commit)] {
            fs::write(&tree, format!(r#"{{"format_version": 1, "files": {{{files}}}}}"#)).unwrap();
            assert_eq!(world.hub(&[]).cached(&request).unwrap(), None, "{files}");
            let error = fetch(&offline, &request).unwrap_err();
            assert!(matches!(error, FetchError::Offline { .. }), "{files}: {error:?}");
            assert!(error.to_string().contains(says), "{files}: {error}");
            let snapshot = world.fetch(&request).unwrap();
            assert_eq!(snapshot.files, online.files, "{files}");
            assert_eq!(fs::read(&tree).unwrap(), right, "{files}");
            assert_eq!(fetch(&offline, &request).unwrap().files, online.files, "{files}");
        }
    };
    let id = "0123456789012345678901234567890123456789";
    check("", "no *.safetensors");
    check(&format!(r#""pytorch_model.bin": {{"size": 1, "blob_id": "{id}"}}"#), "pickles only");
    let weights = format!(r#""model.safetensors": {{"size": 1, "blob_id": "{id}"}}"#);
    check(&format!(r#"{weights}, "1_x/../y.json": {{"size": 1, "blob_id": "{id}"}}"#), "leads out");
    check(
        &format!(r#"{weights}, "config.json": {{"size": 1, "blob_id": "../x"}}"#),
        "no digest of config.json",
    );
}

#[test]
fn an_unreachable_hub_is_said() {
    let world = World::new();
    let whole = world.fetch(&tiny()).unwrap();
    for code in [408, 429, 500, 503] {
        let outage = What::Status { code, headers: Vec::new(), text: String::new() };
        world.server.set(&[("/api/", u64::MAX, outage)]);
        let snapshot = world.fetch(&tiny()).unwrap();
        assert!(
            matches!(&snapshot.source, Source::Unreachable(why) if why.contains(&code.to_string())),
            "{:?}",
            snapshot.source
        );
        // With something to fall back on it is asked once.
        assert_eq!(world.server.seen().len(), 1);
    }

    let nobody = world.hub(&[("HF_ENDPOINT", "http://127.0.0.1:1")]);
    let snapshot = fetch(&nobody, &tiny()).unwrap();
    assert!(matches!(&snapshot.source, Source::Unreachable(why) if why.contains("127.0.0.1:1")));
    assert_eq!(snapshot.path, whole.path);
    let error = fetch(&nobody, &tiny().at("v2")).unwrap_err();
    assert_eq!(error.exit_code(), exit::REMOTE);
    assert!(error.to_string().contains("cannot reach 127.0.0.1:1"), "{error}");

    // What the Hub refuses is refused, whatever the cache has.
    world.server.set(&[]);
    let error = fetch(&world.hub(&[("HF_TOKEN", "hf_wrong")]), &tiny()).unwrap_err();
    assert!(!error.is_unreachable(), "{error:?}");
}

#[test]
fn a_proxy_is_gone_through_unless_the_host_is_named() {
    let world = World::new();
    let proxied = [("HTTP_PROXY", "http://127.0.0.1:1")];
    let error = fetch(&world.hub(&proxied), &tiny()).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
    let direct = [proxied[0], ("NO_PROXY", "localhost,127.0.0.1")];
    fetch(&world.hub(&direct), &tiny()).unwrap();
    fs::remove_dir_all(world.cache()).unwrap();
    let (address, tunnels) = proxy();
    let alive = [("HTTP_PROXY", address.as_str())];
    assert_same(&world, &fetch(&world.hub(&alive), &tiny()).unwrap(), "acme/tiny");
    // The Hub and the second address, each through the proxy.
    assert!(tunnels.load(Ordering::Relaxed) >= 2, "{tunnels:?}");
    let other = [("HTTPS_PROXY", "http://127.0.0.1:1")];
    fs::remove_dir_all(world.cache()).unwrap();
    fetch(&world.hub(&other), &tiny()).unwrap();
}

/// A proxy that connects whoever asks, and counts them.
fn proxy() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let tunnels = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tunnels);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, count) = (client.unwrap(), Arc::clone(&count));
            thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    client.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let mut server = TcpStream::connect(target).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                let _ = std::io::copy(&mut server, &mut client);
            });
        }
    });
    (address, tunnels)
}

/// Tells whether anybody was waited for.
#[derive(Default)]
struct Waiting(AtomicBool);

impl Progress for Waiting {
    fn waiting(&self, what: &str, _: Duration) {
        assert!(what.contains("another process"), "{what}");
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `flock` on the file that `huggingface_hub` locks.
#[test]
fn who_holds_the_lock_is_waited_for() {
    let world = World::new();
    let snapshot = world.fetch(&tiny()).unwrap();
    let blob = snapshot.path.join("config.json").canonicalize().unwrap();
    let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_dir_all(world.repository("acme/tiny")).unwrap();
    let lock = world.cache().join(".locks/models--acme--tiny").join(format!("{name}.lock"));
    let lock = File::options().write(true).open(lock).unwrap();
    lock.lock().unwrap();
    let waiting = Arc::new(Waiting::default());
    let (hub, told) = (world.hub(&[]), Arc::clone(&waiting));
    let fetching = thread::spawn(move || hub.fetch(&tiny(), &*told, &AtomicBool::new(false)));
    while !waiting.0.load(Ordering::Relaxed) {
        assert!(!fetching.is_finished());
        thread::sleep(Duration::from_millis(10));
    }
    lock.unlock().unwrap();
    assert_same(&world, &fetching.join().unwrap().unwrap(), "acme/tiny");
}

#[test]
fn many_at_once_download_each_file_once() {
    let world = World::new();
    world.server.set(&[]);
    let fetches: Vec<_> = (0..6)
        .map(|_| {
            let hub = world.hub(&[]);
            thread::spawn(move || fetch(&hub, &tiny()).unwrap())
        })
        .collect();
    let snapshots: Vec<_> = fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect();
    let came: u64 = snapshots.iter().map(|snapshot| snapshot.downloaded_bytes).sum();
    assert_eq!(came, snapshots[0].files.iter().map(|file| file.size_bytes).sum::<u64>());
    assert_same(&world, &snapshots[0], "acme/tiny");
    assert_eq!(world.server.seen().iter().filter(|request| request.cdn).count(), 1);
}

/// In a cache that others write too, a link by the name of a file to come would have its target overwritten.
#[test]
fn no_link_is_written_through() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let snapshot = world.fetch(&tiny()).unwrap();
    let blob = snapshot.path.join("config.json").canonicalize().unwrap();
    let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
    let part = world.repository("acme/tiny").join("blobs").join(format!("{name}.incomplete"));
    let lock = world.cache().join(".locks/models--acme--tiny").join(format!("{name}.lock"));
    let victim = world.cache().join("victim");
    for place in [&part, &lock] {
        let obstacles: [Box<dyn Fn()>; 2] = [
            Box::new(|| symlink(&victim, place).unwrap()),
            Box::new(|| {
                let made = std::process::Command::new("mkfifo").arg(place).status().unwrap();
                assert!(made.success());
            }),
        ];
        for put in obstacles {
            for path in [&blob, &part, &lock] {
                let _ = fs::remove_file(path);
            }
            fs::write(
                &victim,
                "precious, and longer than the file that is fetched by far, which is all there is to it",
            )
            .unwrap();
            let before = fs::read(&victim).unwrap();
            put();
            let error = world.fetch(&tiny()).unwrap_err();
            assert!(matches!(&error, FetchError::Io { path, .. } if path == place), "{error:?}");
            assert!(format!("{error:?}").contains("a link, or no file"), "{error:?}");
            assert_eq!(fs::read(&victim).unwrap(), before);
            fs::remove_file(place).unwrap();
            assert_same(&world, &world.fetch(&tiny()).unwrap(), "acme/tiny");
        }
    }
}

/// A cache on a share that this user only reads.
#[test]
fn a_cache_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let snapshot = world.fetch(&tiny()).unwrap();
    let repository = world.repository("acme/tiny");
    // Modes do not stop root; a file where a folder would have to be stops everybody.
    for folder in [repository.join("refs"), repository.join("trees"), world.cache().join(".locks")] {
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, b"").unwrap();
    }
    let folders = [repository.clone(), repository.join("blobs"), world.cache()];
    let mode = |mode| {
        for path in &folders {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    mode(0o555);
    let again = world.fetch(&tiny()).map(|again| again.path);
    mode(0o755);
    assert_eq!(again.unwrap(), snapshot.path);
}
