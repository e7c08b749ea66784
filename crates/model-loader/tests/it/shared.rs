//! One instance for the whole process, as long as anyone uses it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use model_loader::{
    Contract, LoadError, LoadOptions, Loaded, Loading, Model, ResolveOptions, ResolvedModel,
    SentenceEmbedder, Strictness, TextClassifier, Verify, shared,
};
use model_store::exit;
use rayon::prelude::*;

use crate::shelf::{Shelf, classifier, embedder, wait_until};
use crate::support::{check_error, copy_of};

/// A classifier that counts how often it is loaded, and takes its time.
struct Counted(TextClassifier);

static LOADS: AtomicUsize = AtomicUsize::new(0);

impl Model for Counted {
    type Options = LoadOptions;

    fn load_from(found: &ResolvedModel, options: &LoadOptions) -> Result<Self, LoadError> {
        LOADS.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        TextClassifier::load_from(found, options).map(Self)
    }

    fn self_test(&self) -> Result<Contract, LoadError> {
        self.0.self_test()
    }
}

/// Whether both are one instance in memory.
fn is_same<M>(one: &Loaded<M>, other: &Loaded<M>) -> bool {
    std::ptr::eq::<M>(&raw const **one, &raw const **other)
}

fn embedder_of(options: &ResolveOptions) -> Arc<Loaded<SentenceEmbedder>> {
    shared::<SentenceEmbedder>("memory", options, &LoadOptions::default()).unwrap()
}

#[test]
fn ten_callers_load_once() {
    let shelf = Shelf::new();
    shelf.publish("analyst", "v1", classifier(None).path());
    let options = shelf.options();
    let get = || shared::<Counted>("analyst", &options, &LoadOptions::default());
    let barrier = Barrier::new(10);
    let models: Vec<Arc<Loaded<Counted>>> = std::thread::scope(|scope| {
        let caller = || {
            barrier.wait();
            get().unwrap()
        };
        let callers: Vec<_> = (0..10).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(LOADS.load(Ordering::SeqCst), 1);
    assert!(models.iter().all(|model| is_same(model, &models[0])));
    assert_eq!(models[0].resolved().version().unwrap().as_str(), "v1");
    assert!(!models[0].0.classify(&["wind"]).unwrap().is_empty());

    // The last user is gone, and with it the memory and the lease.
    let weak = Arc::downgrade(&models[0]);
    drop(models);
    assert!(weak.upgrade().is_none());
    drop(get().unwrap());
    assert_eq!(LOADS.load(Ordering::SeqCst), 2);

    // What does not load is tried again by the next caller.
    let broken = classifier(None);
    fs::remove_file(broken.path().join("tokenizer.json")).unwrap();
    shelf.publish("analyst", "v2", broken.path());
    for loads in [3, 4] {
        check_error("broken", &get().map(drop).unwrap_err(), exit::NOT_FOUND, &["tokenizer.json is missing"]);
        assert_eq!(LOADS.load(Ordering::SeqCst), loads);
    }
    shelf.publish("analyst", "v3", classifier(None).path());
    get().unwrap();
}

/// A model whose loading needs rayon's threads, after all of them had the time to come and wait for it.
struct Spread;

static SPREADING: AtomicUsize = AtomicUsize::new(0);

impl Model for Spread {
    type Options = ();

    fn load_from(_: &ResolvedModel, (): &()) -> Result<Self, LoadError> {
        SPREADING.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!((0..1000).into_par_iter().sum::<u32>(), 499_500);
        Ok(Self)
    }

    fn self_test(&self) -> Result<Contract, LoadError> {
        Ok(Contract::new())
    }
}

/// Callers on rayon's threads waited for a load that needed those very threads.
#[test]
fn callers_on_the_threads_of_rayon_do_not_wait_for_each_other() {
    let shelf = Shelf::new();
    shelf.publish("spread", "v1", classifier(None).path());
    let options = shelf.options();
    let (sender, receiver) = std::sync::mpsc::channel();
    let get = move || shared::<Spread>("spread", &options, &()).unwrap();
    let first = std::thread::spawn(get.clone());
    wait_until("it is being loaded", || SPREADING.load(Ordering::SeqCst) == 1);
    std::thread::spawn(move || sender.send(rayon::broadcast(|_| get())));
    let others = receiver.recv_timeout(crate::shelf::PATIENCE).expect("no deadlock");
    let first = first.join().unwrap();
    assert!(others.iter().all(|other| is_same(other, &first)));
}

/// Whoever came second was told where the first one's model came from, and had nothing verified.
#[test]
fn each_caller_has_its_own_word_on_a_shared_model() {
    let shelf = Shelf::new();
    let path = shelf.publish("base", "v1", embedder(1.0).path());
    let entry = serde_json::json!([{ "base_ref": "b" }]);
    let map = serde_json::json!({
        "base_models": { "b": { "model_store_agent": "base" } },
        "agents": { "critic": entry, "editor": entry },
    });
    fs::write(shelf.beside("map.json"), map.to_string()).unwrap();
    let options = ResolveOptions { agent_map: Some(shelf.beside("map.json")), ..shelf.options() };
    let get = |agent: &str, options: &ResolveOptions| {
        shared::<SentenceEmbedder>(agent, options, &LoadOptions::default())
    };
    let (critic, editor) = (get("critic", &options).unwrap(), get("editor", &options).unwrap());
    assert!(is_same(&critic, &editor), "the weights are there once");
    assert_eq!((critic.resolved().agent(), editor.resolved().agent()), ("critic", "editor"));
    assert_eq!(editor.contract(), critic.contract());
    // The model stays as long as anybody has it.
    drop(critic);
    assert!(is_same(&editor, &get("critic", &options).unwrap()));

    let dry = ResolveOptions { loading: Loading::DryRun, ..options.clone() };
    check_error("a dry run", &get("critic", &dry).unwrap_err(), exit::REFUSED, &["MODEL_STORE_DRY_RUN"]);
    fs::write(path.join("planted.json"), "{}").unwrap();
    let strict = ResolveOptions { strictness: Strictness::Strict, ..options };
    let error = get("critic", &strict).unwrap_err();
    check_error("changed since", &error, exit::CORRUPT, &["base/v1", "planted.json"]);
    get("critic", &ResolveOptions { verify: Verify::Never, ..strict }).unwrap();
}

#[test]
fn what_differs_is_another_instance() {
    let shelf = Shelf::new();
    shelf.publish("memory", "v1", embedder(1.0).path());
    shelf.publish("other", "v1", embedder(1.0).path());
    let options = shelf.options();
    let first = embedder_of(&options);
    assert!(is_same(&first, &embedder_of(&ResolveOptions { version: Some("v1".into()), ..options.clone() })));
    let other = shared::<SentenceEmbedder>("other", &options, &LoadOptions::default()).unwrap();
    assert!(!is_same(&first, &other), "another agent's version");
    let load = LoadOptions { cpu_fallback: true, ..LoadOptions::default() };
    assert!(!is_same(&first, &shared("memory", &options, &load).unwrap()), "loaded in another way");
    shelf.publish("memory", "v2", embedder(2.0).path());
    let second = embedder_of(&options);
    assert_eq!(second.resolved().version().unwrap().as_str(), "v2");
    assert_eq!(first.resolved().version().unwrap().as_str(), "v1", "the first stays what it is");

    // Two ways to one folder.
    let folder = copy_of("bert");
    let link = shelf.beside("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let at = |path: &std::path::Path| {
        let options = ResolveOptions { folder: Some(path.to_owned()), ..shelf.options() };
        shared::<TextClassifier>("nobody", &options, &LoadOptions::default()).unwrap()
    };
    let direct = at(folder.path());
    assert!(is_same(&direct, &at(&link)));
}
