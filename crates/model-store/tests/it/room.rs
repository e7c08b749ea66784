//! What will not fit is refused before its first byte.

use std::fs;

use model_store::{ModelStore, StoreError, Transfer, exit};

use crate::fixture::{Fixture, scout, version};
use crate::host::Mount;
use crate::import::{by, noise, publish_folder};

#[test]
fn what_will_not_fit_is_refused_before_its_first_byte() {
    let fixture = Fixture::new();
    let at = fixture.outside().join("small");
    fs::create_dir(&at).unwrap();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"], &at) else { return };
    let store = ModelStore::open(&at).unwrap();
    let folder = fixture.outside().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("base.bin"), noise(1, 2_000_000)).unwrap();
    publish_folder(&store, ("scout", "v1"), &folder, by(Transfer::Auto)).unwrap();

    let space = store.space().unwrap();
    assert_eq!(space.total_bytes, 4 * 1024 * 1024);
    assert!(space.free_bytes < space.total_bytes - 2_000_000, "{space:?}");
    fs::write(folder.join("engine.bin"), noise(2, 1_000_000)).unwrap();
    let staging = store.stage_new(&scout(), &version("v2")).unwrap();
    let error = staging.import_tree(&folder, by(Transfer::Copy)).unwrap_err();
    let StoreError::NoRoom { needed_bytes, free_bytes, .. } = &error else { panic!("{error}") };
    assert!(*needed_bytes > 3_000_000 && *free_bytes <= space.free_bytes, "{error}");
    assert_eq!(error.exit_code(), exit::ENVIRONMENT);
    for part in ["3.3 MB are needed", "2.2 MB are free", "model-store gc --all --dry-run", "scout/v2"] {
        assert!(error.to_string().contains(part), "{part} is not in: {error}");
    }
    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0, "something was written");
    drop(staging);
    // Only what the store does not have yet has to fit.
    let second = publish_folder(&store, ("scout", "v2"), &folder, by(Transfer::Auto)).unwrap();
    assert_eq!((second.shared_bytes, second.copied_bytes), (2_000_000, 1_000_000));
}
