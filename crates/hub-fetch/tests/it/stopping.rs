//! Ended in the middle: by a wish, and by a kill.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hub_fetch::{FetchError, Hub, Progress};
use hub_server::faults::What;

use crate::world::{World, assert_same, blobs, fetch, tiny};

const VARIABLE: &str = "HUB_FETCH_TEST_VICTIM";
const WEIGHTS: &str = "model.safetensors";

/// Wishes to stop once so much of the weights is here.
struct StopAt<'a>(u64, &'a AtomicBool);

impl Progress for StopAt<'_> {
    fn advanced(&self, path: &str, have_bytes: u64) {
        if path == WEIGHTS && have_bytes >= self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_wish_to_stop_is_heeded_soon_and_nothing_is_lost() {
    let check = |row: &str, fault: What| {
        let world = World::new();
        world.server.set(&[("/file?", 1, fault)]);
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        let error = world.hub(&[]).fetch(&tiny(), &StopAt(500_000, &stop), &stop).unwrap_err();
        assert!(matches!(error, FetchError::Stopped), "{row}: {error:?}");
        assert_eq!(error.exit_code(), model_store::exit::INTERRUPTED);
        // Well before the ten seconds that a silent server is given.
        assert!(started.elapsed() < Duration::from_secs(5), "{row}: {:?}", started.elapsed());
        goes_on(&world, row);
    };
    check("in the stream", What::Slow(1, 100));
    check("in a silence", What::Silence(600_000));

    let world = World::new();
    let stop = AtomicBool::new(true);
    let error = world.hub(&[]).fetch(&tiny(), &(), &stop).unwrap_err();
    assert!(matches!(error, FetchError::Stopped), "{error:?}");
}

/// Panics as soon as it is told anything.
struct Clumsy;

impl Progress for Clumsy {
    fn started(&self, path: &str, _: Option<u64>, _: u64) {
        panic!("{path} on purpose");
    }
}

#[test]
fn a_panic_is_no_hang() {
    let world = World::new();
    let hub = world.hub(&[]);
    let fetching = std::thread::spawn(move || hub.fetch(&tiny(), &Clumsy, &AtomicBool::new(false)));
    let started = Instant::now();
    while !fetching.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(20), "it hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(fetching.join().is_err());
}

/// What is here is kept under no name that says it is whole, and is not asked for again.
fn goes_on(world: &World, row: &str) {
    let repository = world.repository("acme/tiny");
    assert!(!repository.join("refs").exists(), "{row}");
    let part = blobs(&repository).into_iter().find(|blob| blob.ends_with(".incomplete") && blob.len() > 64);
    let kept = repository.join("blobs").join(part.unwrap()).metadata().unwrap().len();
    assert!(kept >= 500_000, "{row}: {kept}");
    world.server.set(&[]);
    let snapshot = world.fetch(&tiny()).unwrap();
    assert_same(world, &snapshot, "acme/tiny");
    let seen = world.server.seen();
    let range = seen.iter().find(|request| request.cdn).unwrap().range.clone();
    assert_eq!(range, Some(format!("bytes={kept}-")), "{row}");
}

#[test]
fn a_kill_leaves_nothing_half_under_a_final_name() {
    let world = World::new();
    world.server.set(&[("/file?", 1, What::Silence(600_000))]);
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stopping::victim", "--test-threads=1"])
        .envs(world.variables())
        .env(VARIABLE, "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let repository = world.repository("acme/tiny");
    let started = Instant::now();
    let has_come = || {
        blobs(&repository).iter().any(|blob| {
            let path = repository.join("blobs").join(blob);
            blob.ends_with(".incomplete") && path.metadata().is_ok_and(|part| part.len() >= 600_000)
        })
    };
    while !has_come() {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(!world.has_final_names("acme/tiny", "no such blob"));
    goes_on(&world, "killed");
}

/// What is killed; a test that does nothing unless it is told to be it.
#[test]
fn victim() {
    if std::env::var_os(VARIABLE).is_some() {
        let _ = fetch(&Hub::from_env().unwrap(), &tiny());
    }
}
