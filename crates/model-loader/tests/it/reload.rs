//! Models that follow `current` under load: no failed request, no mixture, nothing broken taken, memory given back.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model_loader::{
    LoadOptions, Model, ReloadEvent, Reloading, ResolveOptions, SentenceEmbedder, TextClassifier, Verify,
    Watching,
};
use model_store::{MoveOptions, RepairOptions, exit};

use crate::shelf::{PATIENCE, Shelf, change_weights, classifier, embedder, name, set_pooling, wait_until};
use crate::support::{check_error, copy_of, max_abs};

const TEXTS: [&str; 5] = [
    "ships wait for the wind",
    "the price of oil rose",
    "",
    "a committee met on tuesday in the town",
    "wind",
];

fn follow<M: Model<Options = LoadOptions>>(agent: &str, options: &ResolveOptions) -> Reloading<M> {
    try_follow(agent, options).unwrap()
}

fn try_follow<M: Model<Options = LoadOptions>>(
    agent: &str,
    options: &ResolveOptions,
) -> Result<Reloading<M>, model_loader::LoadError> {
    let watching = Watching::default().every(Duration::from_millis(5));
    Reloading::load(agent, options, &LoadOptions::default(), watching)
}

fn serves<M: Model>(model: &Reloading<M>, version: &str) -> bool {
    model.get().resolved().version().is_some_and(|served| served.as_str() == version)
}

/// Eight threads embed while `current` goes to and fro two hundred times; a version that cannot serve comes in between.
#[test]
fn eight_threads_embed_while_current_moves_two_hundred_times() {
    let shelf = Shelf::new();
    shelf.publish("memory", "a", embedder(1.0).path());
    let (other, broken) = (embedder(-3.0), embedder(1.0));
    shelf.shelve("memory", "b", other.path());
    // It loads as a file does, and is found out by its numbers.
    change_weights(broken.path(), |_, _| f32::NAN);
    shelf.shelve("memory", "broken", broken.path());

    let vectors_of = |version: &str| {
        let options = ResolveOptions { version: Some(version.into()), ..shelf.options() };
        SentenceEmbedder::load("memory", &options).unwrap().embed(&TEXTS).unwrap()
    };
    let expected = [vectors_of("a"), vectors_of("b")];
    assert!(max_abs(&expected[0], &expected[1]) > 0.1, "the two can be told apart");

    let memory = follow::<SentenceEmbedder>("memory", &shelf.options());
    let (done, answered, seen) =
        (AtomicBool::new(false), AtomicUsize::new(0), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let model = memory.get();
                    let vectors = model.embed(&TEXTS).unwrap();
                    // Within float noise, all of one version: the one that the model says it is.
                    let index = usize::from(model.resolved().version().unwrap().as_str() == "b");
                    let difference = max_abs(&vectors, &expected[index]);
                    assert!(difference <= 1e-5, "{}: {difference:e}", model.resolved());
                    seen[index].fetch_add(1, Ordering::Relaxed);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for flip in 1..=200 {
                let version = if flip % 2 == 1 { "b" } else { "a" };
                shelf.activate("memory", version);
                wait_until(&format!("flip {flip} to {version}"), || serves(&memory, version));
                if flip == 100 {
                    shelf.activate("memory", "broken");
                    wait_until("the broken version is refused", || memory.status().refused.is_some());
                    assert!(serves(&memory, "a"));
                    let before = answered.load(Ordering::Relaxed);
                    wait_until("the old one goes on", || answered.load(Ordering::Relaxed) > before + 8);
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        moved.unwrap();
    });
    let status = memory.status();
    assert_eq!((status.reloads, status.refused), (200, None));
    let counts = seen.map(AtomicUsize::into_inner);
    eprintln!("200 reloads under 8 threads: {counts:?} requests by each version, none failed, none mixed");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    // Everything that was replaced is free again.
    wait_until("old models are dropped", || memory.status().replaced_in_use == 0);
    let model = memory.get();
    assert_eq!(Arc::strong_count(&model), 2, "the one that serves, and this one");
}

/// A request that began with a model ends with it, and its version is not retired meanwhile.
#[test]
fn a_model_in_use_stays_what_it_is() {
    let shelf = Shelf::new();
    shelf.publish("memory", "a", embedder(1.0).path());
    let memory = follow::<SentenceEmbedder>("memory", &shelf.options());
    let held = memory.get();
    let before = held.embed(&TEXTS).unwrap();
    shelf.publish("memory", "b", embedder(-3.0).path());
    let new = memory.wait_for_change(&held, PATIENCE).unwrap();
    assert!(serves(&memory, "b") && new.resolved().version().unwrap().as_str() == "b");
    assert_eq!(memory.status().replaced_in_use, 1);
    assert_eq!(held.embed(&TEXTS).unwrap(), before);

    let policy = model_store::Policy { keep: 1, grace: Duration::ZERO, ..model_store::Policy::default() };
    let retired =
        |shelf: &Shelf| shelf.store.plan_gc(&[name("memory")], &policy).unwrap().to_retire().count();
    assert_eq!(retired(&shelf), 0, "the lease keeps it");
    let weak = Arc::downgrade(&held);
    drop(held);
    wait_until("the old model is dropped", || weak.strong_count() == 0);
    wait_until("its lease ends", || retired(&shelf) == 1);
    assert_eq!(memory.wait_for_change(&new, Duration::from_millis(20)).map(|_| ()), None, "nothing moved");
}

/// What must not serve is refused with its reason, once, and the old version goes on; whoever moves `current` back to what
/// serves clears the refusal.
#[test]
fn versions_that_cannot_serve_are_refused() {
    type Spoil = fn(&Path);
    let rows: [(&str, Spoil, &str); 6] = [
        (
            "no-weights",
            |folder| fs::remove_file(folder.join("model.safetensors")).unwrap(),
            "model.safetensors is missing",
        ),
        (
            "no-tokenizer",
            |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(),
            "tokenizer.json is missing",
        ),
        (
            "cut-short",
            |folder| fs::write(folder.join("model.safetensors"), b"cut").unwrap(),
            "damaged or truncated",
        ),
        ("nan", |folder| change_weights(folder, |_, _| f32::NAN), "holds NaN"),
        (
            "another-dimension",
            |folder| set_pooling(folder, &["mean", "max"]),
            "dimension was 32 and would be 64",
        ),
        (
            "no-model",
            |folder| fs::rename(folder.join("config.json"), folder.join("x.json")).unwrap(),
            "config.json",
        ),
    ];
    let shelf = Shelf::new();
    shelf.publish("memory", "good", embedder(1.0).path());
    let told = Arc::new(Mutex::new(Vec::new()));
    let watching = Watching::default().every(Duration::from_millis(5)).telling({
        let told = told.clone();
        move |event| {
            let line = match event {
                ReloadEvent::Refused(refused) => {
                    format!("{}: {}", refused.version.as_ref().unwrap(), refused.reason)
                }
                other => format!("{other:?}"),
            };
            told.lock().unwrap().push(line);
        }
    });
    let memory =
        Reloading::<SentenceEmbedder>::load("memory", &shelf.options(), &LoadOptions::default(), watching)
            .unwrap();
    for (version, spoil, reason) in rows {
        let folder = embedder(1.0);
        spoil(folder.path());
        shelf.publish("memory", version, folder.path());
        let refused = || {
            memory.status().refused.filter(|refused| refused.version.as_ref().unwrap().as_str() == version)
        };
        wait_until(version, || refused().is_some());
        let found = refused().unwrap().reason;
        assert!(found.contains(reason), "{version}: no `{reason}` in: {found}");
        assert!(serves(&memory, "good"), "{version}");
        memory.get().embed(&TEXTS).unwrap();
    }
    // It is not tried again while `current` stays.
    std::thread::sleep(Duration::from_millis(100));
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), rows.len(), "each once: {told:#?}");
    shelf.activate("memory", "good");
    wait_until("nothing is refused any more", || memory.status().refused.is_none());
    assert_eq!(memory.status().reloads, 0);
}

#[test]
fn a_classifier_keeps_its_labels() {
    let shelf = Shelf::new();
    shelf.publish("analyst", "v1", classifier(None).path());
    let analyst = follow::<TextClassifier>("analyst", &shelf.options());
    let labels = analyst.get().labels().to_vec();
    let others: Vec<String> = labels.iter().map(|label| format!("not {label}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    shelf.publish("analyst", "v2", classifier(Some(&others)).path());
    wait_until("other labels are refused", || analyst.status().refused.is_some());
    let reason = analyst.status().refused.unwrap().reason;
    assert!(reason.contains("labels was") && reason.contains("analyst/v2"), "{reason}");
    assert_eq!(analyst.get().labels(), labels);
    // Whoever starts now gets it.
    let fresh = follow::<TextClassifier>("analyst", &shelf.options());
    assert_eq!(fresh.get().labels(), others);
}

/// A version with the bytes of another is no news to retention, but it is a version; a quarantined one is refused.
#[test]
fn a_quarantined_or_rotten_version_is_refused() {
    let shelf = Shelf::new();
    shelf.publish("memory", "v1", embedder(1.0).path());
    let memory = follow::<SentenceEmbedder>("memory", &shelf.options());
    let rotten = shelf.shelve("memory", "v2", embedder(2.0).path());
    rot(&rotten.join("model.safetensors"));
    shelf.activate("memory", "v2");
    wait_until("rot is refused", || memory.status().refused.is_some());
    let reason = memory.status().refused.unwrap().reason;
    assert!(reason.contains("memory/v2") && reason.contains("model.safetensors has other bytes"), "{reason}");

    shelf.activate("memory", "v1");
    wait_until("v1 is current again", || memory.status().refused.is_none());
    let repaired =
        shelf.store.repair(&name("memory"), &"v2".parse().unwrap(), &RepairOptions::default()).unwrap();
    assert!(repaired.quarantined);
    let link = shelf.store.root().join("memory/current");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("versions/v2", &link).unwrap();
    wait_until("quarantine is refused", || {
        memory.status().refused.is_some_and(|refused| refused.reason.contains("quarantined"))
    });
    assert!(serves(&memory, "v1"));
}

/// What was refused was never tried again, though its message says that a repair may mend it.
#[test]
fn a_refused_version_is_taken_once_it_is_mended() {
    let shelf = Shelf::new();
    shelf.publish("memory", "v1", embedder(1.0).path());
    let told = Arc::new(AtomicUsize::new(0));
    let watching =
        Watching::default().every(Duration::from_millis(5)).retrying_after(Duration::from_millis(10));
    let watching = watching.telling({
        let told = told.clone();
        move |event| {
            told.fetch_add(usize::from(matches!(event, ReloadEvent::Refused(_))), Ordering::SeqCst);
        }
    });
    let memory =
        Reloading::<SentenceEmbedder>::load("memory", &shelf.options(), &LoadOptions::default(), watching)
            .unwrap();
    // The bytes of v2 twice, so that there is what to mend it from.
    let folder = embedder(2.0);
    let rotten = shelf.shelve("memory", "v2", folder.path());
    shelf.shelve("memory", "v3", folder.path());
    rot(&rotten.join("model.safetensors"));
    shelf.activate("memory", "v2");
    wait_until("rot is refused", || memory.status().refused.is_some());
    let first = memory.status().refused;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(told.load(Ordering::SeqCst), 1, "the same refusal is told once");
    assert_eq!(memory.status().refused, first);
    let mended =
        shelf.store.repair(&name("memory"), &"v2".parse().unwrap(), &RepairOptions::default()).unwrap();
    assert!(mended.after.is_ok(), "{mended:?}");
    wait_until("the mended version serves", || serves(&memory, "v2"));
    assert_eq!(memory.status().refused, None);
}

/// An absolute path into the store was loaded, and its `current` never followed.
#[test]
fn what_the_agent_map_leads_to_is_followed() {
    let check = |row: &str, base: &dyn Fn(&Shelf) -> serde_json::Value| {
        let shelf = Shelf::new();
        shelf.publish("base", "v1", embedder(1.0).path());
        let map = serde_json::json!({
            "base_models": { "b": base(&shelf) },
            "agents": { "memory": [{ "base_ref": "b" }] },
        });
        fs::write(shelf.beside("map.json"), map.to_string()).unwrap();
        let options = ResolveOptions { agent_map: Some(shelf.beside("map.json")), ..shelf.options() };
        let memory = follow::<SentenceEmbedder>("memory", &options);
        assert!(serves(&memory, "v1"), "{row}");
        shelf.publish("base", "v2", embedder(2.0).path());
        wait_until(row, || serves(&memory, "v2"));
    };
    check("an agent", &|_| serde_json::json!({ "model_store_agent": "base" }));
    check("a path", &|_| serde_json::json!({ "model_store_path": "base/current" }));
    check(
        "an absolute path",
        &|shelf| serde_json::json!({ "model_store_path": shelf.store.root().join("base/current") }),
    );
}

/// The looking after passed for strict, and told lenient agents of a variable that nobody had set.
#[test]
fn a_lenient_agent_is_told_what_it_is() {
    let shelf = Shelf::new();
    let damaged = shelf.publish("memory", "v1", embedder(1.0).path());
    rot(&damaged.join("1_Pooling/config.json"));
    fs::write(
        damaged.join("1_Pooling/config.json"),
        r#"{"embedding_dimension": 32, "pooling_mode": ["mean"]} "#,
    )
    .unwrap();
    let repaired =
        shelf.store.repair(&name("memory"), &"v1".parse().unwrap(), &RepairOptions::default()).unwrap();
    assert!(repaired.quarantined);
    // Whoever starts leniently has it, so it is nothing to be refused.
    let options = ResolveOptions { verify: Verify::Never, ..shelf.options() };
    let memory = follow::<SentenceEmbedder>("memory", &options);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((memory.status().refused, memory.status().trouble), (None, None));

    fs::remove_file(shelf.store.root().join("memory/current")).unwrap();
    wait_until("there is no current", || memory.status().refused.is_some());
    let reason = memory.status().refused.unwrap().reason;
    assert!(reason.contains("no `current`") && reason.contains("from the store only"), "{reason}");
    assert!(!reason.contains("STRICT_MODEL_STORE"), "{reason}");
    assert!(serves(&memory, "v1"));
}

/// A slip in the map lost its JSON path here.
#[test]
fn a_slip_in_the_agent_map_is_named() {
    let shelf = Shelf::new();
    let map = serde_json::json!({
        "base_models": { "b": { "model_store_agent": "../x" } },
        "agents": { "memory": [{ "base_ref": "b" }] },
    });
    fs::write(shelf.beside("map.json"), map.to_string()).unwrap();
    let options = ResolveOptions { agent_map: Some(shelf.beside("map.json")), ..shelf.options() };
    let error = try_follow::<SentenceEmbedder>("memory", &options).unwrap_err();
    check_error("a slip", &error, exit::CORRUPT, &["map.json", "`base_models.b.model_store_agent`", "../x"]);
    // One that leads to no model that serves is nobody's trouble.
    shelf.publish("memory", "v1", embedder(1.0).path());
    let memory = follow::<SentenceEmbedder>("memory", &options);
    shelf.publish("memory", "v2", embedder(2.0).path());
    wait_until("v2 serves", || serves(&memory, "v2"));
}

/// The clock cannot add the longest duration there is, so the thread did not wait at all.
#[test]
fn an_interval_without_end_is_an_hour() {
    let shown = format!("{:?}", Watching::default().every(Duration::MAX));
    assert!(shown.contains("interval: 3600s"), "{shown}");
}

/// Changes one byte, and no size.
fn rot(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A ref is followed as `current` is.
#[test]
fn a_ref_is_followed_and_a_version_is_not() {
    let shelf = Shelf::new();
    for (version, scale) in [("v1", 1.0), ("v2", -3.0)] {
        shelf.publish("memory", version, embedder(scale).path());
    }
    let tag = |version: &str| {
        let reference = "champion".parse().unwrap();
        shelf
            .store
            .tag(&name("memory"), &reference, &version.parse().unwrap(), &MoveOptions::default())
            .unwrap();
    };
    tag("v1");
    let asked = |version: &str| ResolveOptions { version: Some(version.into()), ..shelf.options() };
    let champion = follow::<SentenceEmbedder>("memory", &asked("champion"));
    let fixed = follow::<SentenceEmbedder>("memory", &asked("v1"));
    assert!(serves(&champion, "v1"));
    tag("v2");
    wait_until("the ref moved", || serves(&champion, "v2"));
    assert!(serves(&fixed, "v1"));
}

/// A host whose store comes later begins with a folder, and takes the store's version once it is there.
#[test]
fn a_store_that_comes_later_takes_over_from_a_folder() {
    let shelf = Shelf::new();
    let (folder, later) = (embedder(1.0), shelf.beside("later"));
    let options = ResolveOptions {
        store: Some(later.clone()),
        folder: Some(folder.path().to_owned()),
        ..shelf.options()
    };
    let memory = follow::<SentenceEmbedder>("memory", &options);
    let first = memory.get();
    assert_eq!(first.resolved().path(), folder.path());
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(memory.status().refused, None, "a folder that stands in is no refusal");
    shelf.publish("memory", "v1", embedder(-3.0).path());
    fs::rename(shelf.store.root(), &later).unwrap();
    let new = memory.wait_for_change(&first, PATIENCE).expect("the store takes over");
    assert_eq!(new.resolved().version().unwrap().as_str(), "v1");
    // What goes away again does not take the model with it.
    fs::remove_dir_all(&later).unwrap();
    wait_until("the loss is noticed", || {
        memory.status().refused.is_some() || memory.status().trouble.is_some()
    });
    memory.get().embed(&TEXTS).unwrap();
}

#[test]
fn the_first_model_must_load() {
    let shelf = Shelf::new();
    let row = |row: &str, code: u8, parts: &[&str]| {
        let error = try_follow::<SentenceEmbedder>("memory", &shelf.options()).unwrap_err();
        check_error(row, &error, code, parts);
    };
    row("nothing", exit::NOT_FOUND, &["agent `memory`", "no `current`"]);
    let broken = embedder(1.0);
    fs::remove_file(broken.path().join("tokenizer.json")).unwrap();
    shelf.publish("memory", "v1", broken.path());
    row("broken", exit::NOT_FOUND, &["tokenizer.json is missing"]);
}

/// An observer that panics, and a model that does, end nothing.
#[test]
fn a_panic_does_not_end_the_looking_after() {
    #[derive(Debug)]
    struct Moody(String);
    impl Model for Moody {
        type Options = ();

        fn load_from(found: &model_loader::ResolvedModel, (): &()) -> Result<Self, model_loader::LoadError> {
            let version = found.version().unwrap().to_string();
            assert!(version != "panics", "as it says");
            Ok(Self(version))
        }

        fn self_test(&self) -> Result<model_loader::Contract, model_loader::LoadError> {
            Ok(model_loader::Contract::new())
        }
    }
    let shelf = Shelf::new();
    let folder = copy_of("bert");
    for version in ["panics", "v2", "v1"] {
        shelf.publish("moody", version, folder.path());
    }
    let watching = Watching::default().every(Duration::from_millis(5)).telling(|_| panic!("an observer"));
    let moody = Reloading::<Moody>::load("moody", &shelf.options(), &(), watching).unwrap();
    shelf.activate("moody", "panics");
    wait_until("a panic is a refusal", || {
        moody.status().refused.is_some_and(|r| r.reason.contains("panicked"))
    });
    assert_eq!(moody.get().0, "v1");
    shelf.activate("moody", "v2");
    wait_until("the next one is taken", || moody.get().0 == "v2");
}

/// Dropping it ends the thread, and the model with it.
#[test]
fn dropping_it_frees_the_model() {
    let shelf = Shelf::new();
    shelf.publish("memory", "v1", embedder(1.0).path());
    let memory = follow::<SentenceEmbedder>("memory", &shelf.options());
    let weak = Arc::downgrade(&memory.get());
    drop(memory);
    wait_until("the model is freed", || weak.strong_count() == 0);
}
