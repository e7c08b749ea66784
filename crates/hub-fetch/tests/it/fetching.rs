//! What a fetch brings, and where it puts it.

use std::fs;

use hub_fetch::{Existing, Graphs, Proof, Request, Source};
use hub_server::faults::What;

use crate::world::{READER, World, assert_same, blobs, fetch, tiny};

#[test]
fn a_model_comes_whole_and_once() {
    let world = World::new();
    world.server.set(&[]);
    let snapshot = world.fetch(&tiny()).unwrap();
    let paths: Vec<&str> = snapshot.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        ["1_Pooling/config.json", "config.json", "empty.json", "model.safetensors", "tokenizer.json"]
    );
    assert_same(&world, &snapshot, "acme/tiny");
    assert_eq!(snapshot.source, Source::Hub);
    assert_eq!(snapshot.downloaded_bytes, snapshot.files.iter().map(|file| file.size_bytes).sum::<u64>());
    assert!(matches!(snapshot.files[3].proof, Proof::Sha256(_)), "{:?}", snapshot.files[3]);
    assert!(matches!(snapshot.files[1].proof, Proof::Git(_)), "{:?}", snapshot.files[1]);

    let repository = world.repository("acme/tiny");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), snapshot.commit);
    assert_eq!(snapshot.path, repository.join("snapshots").join(&snapshot.commit));
    let link = fs::read_link(snapshot.path.join("1_Pooling/config.json")).unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    assert!(
        blobs(&repository).iter().all(|blob| blob.len() == 64 || blob.len() == 40),
        "{:?}",
        blobs(&repository)
    );

    // Again: the branch is asked about, and nothing comes.
    world.server.set(&[]);
    let again = world.fetch(&tiny()).unwrap();
    assert_eq!((again.downloaded_bytes, &again.path), (0, &snapshot.path));
    let seen = world.server.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].path.starts_with("/api/models/acme/tiny/revision/main"), "{seen:?}");

    // By its commit: nobody is asked.
    world.server.set(&[]);
    let pinned = world.fetch(&tiny().at(&snapshot.commit)).unwrap();
    assert_eq!((pinned.source, pinned.path), (Source::Commit, snapshot.path));
    assert_eq!(world.server.seen(), []);
}

#[test]
fn revisions_shards_and_graphs() {
    let world = World::new();
    let second = world.fetch(&tiny().at("v2")).unwrap();
    assert_same(&world, &second, "acme/tiny@v2");
    let sharded = world.fetch(&Request::new("acme/sharded")).unwrap();
    assert_eq!(sharded.files.len(), 4);
    assert_same(&world, &sharded, "acme/sharded");
    let graphs = world.fetch(&Request { graphs: Graphs::Take, ..tiny() }).unwrap();
    assert_same(&world, &graphs, "acme/tiny");
    assert!(graphs.files.iter().any(|file| file.path == "onnx/model.onnx"));
    // The same bytes are in the cache once, whatever revisions they are of.
    let first = world.fetch(&tiny()).unwrap();
    assert_eq!(first.downloaded_bytes, 0);
    assert_ne!(first.commit, second.commit);
}

#[test]
fn a_renamed_model_is_followed_and_said() {
    let world = World::new();
    let snapshot = world.fetch(&Request::new("acme/old")).unwrap();
    assert_eq!(snapshot.renamed_to.as_deref(), Some("acme/tiny"));
    assert_same(&world, &snapshot, "acme/tiny");
    // In the cache it is found by the name that was asked for, as huggingface_hub has it.
    assert!(snapshot.path.starts_with(world.repository("acme/old")));
}

/// The second address refuses whoever shows it a token, as an object store does.
#[test]
fn the_token_goes_to_the_hub_alone() {
    let world = World::new();
    world.server.set(&[]);
    let hub = world.hub(&[("HF_TOKEN", READER)]);
    let snapshot = fetch(&hub, &Request::new("acme/secret")).unwrap();
    assert_same(&world, &snapshot, "acme/secret");
    let seen = world.server.seen();
    assert!(seen.iter().any(|request| request.cdn), "{seen:?}");
    for request in &seen {
        assert_eq!(request.with_token, !request.cdn, "{request:?}");
    }
    assert!(!format!("{hub:?} {snapshot:?}").contains(READER));
}

/// Some mirrors list names alone; what they leave out is asked for file by file.
#[test]
fn a_mirror_that_lists_names_alone() {
    let world = World::new();
    let commit = world.fetch(&tiny()).unwrap().commit;
    fs::remove_dir_all(world.cache()).unwrap();
    let text = format!(
        r#"{{"id": "acme/tiny", "sha": "{commit}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}]}}"#
    );
    world.server.set(&[("/api/models", 1, What::Status { code: 200, headers: Vec::new(), text })]);
    let snapshot = world.fetch(&tiny()).unwrap();
    assert_same(&world, &snapshot, "acme/tiny");
    assert_eq!(snapshot.files.len(), 2);
    assert!(matches!(snapshot.files[1].proof, Proof::Sha256(_)));
    assert_eq!(world.server.seen().iter().filter(|request| request.method == "HEAD").count(), 2);
}

#[test]
fn what_rots_in_the_cache() {
    let world = World::new();
    let snapshot = world.fetch(&tiny()).unwrap();
    let weights = snapshot.path.join("model.safetensors");
    let blob = weights.canonicalize().unwrap();
    let by_digest = Request { existing: Existing::ByDigest, ..tiny() };

    fs::write(&blob, b"short").unwrap();
    world.fetch(&tiny()).unwrap();
    assert_same(&world, &snapshot, "acme/tiny");

    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(world.fetch(&tiny()).unwrap().downloaded_bytes, 0);
    let offline = world.hub(&[("HF_HUB_OFFLINE", "1")]);
    let error = fetch(&offline, &by_digest).unwrap_err();
    assert!(error.to_string().contains("model.safetensors is damaged"), "{error}");
    for request in [by_digest.clone(), by_digest.at(&snapshot.commit)] {
        fs::write(&blob, &bytes).unwrap();
        world.fetch(&request).unwrap();
        assert_same(&world, &snapshot, "acme/tiny");
        // A copy in the place of the link, which rots on its own.
        fs::remove_file(&weights).unwrap();
        fs::write(&weights, &bytes).unwrap();
        assert_eq!(world.fetch(&request).unwrap().downloaded_bytes, 0);
        assert_same(&world, &snapshot, "acme/tiny");
        assert_eq!(weights.canonicalize().unwrap(), blob);
    }
}

#[test]
fn a_plan_writes_nothing() {
    let world = World::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let plan = world.hub(&[]).plan(&tiny(), &stop).unwrap();
    assert_eq!(plan.missing().count(), 5);
    assert!(plan.missing_bytes() > 3_000_000);
    assert!(!world.cache().exists());
    world.fetch(&tiny()).unwrap();
    let plan = world.hub(&[]).plan(&tiny(), &stop).unwrap();
    assert_eq!((plan.missing().count(), plan.missing_bytes()), (0, 0));
}
