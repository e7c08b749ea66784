//! What must hold for any bytes that a store's files, names and links are made of. Shared by the fuzz targets and
//! `make test`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use model_store::{
    AgentName, Current, FinalizeOptions, Generation, Manifest, ModelStore, MoveOptions, PayloadPath,
    PointerName, RefName, Selector, StoreError, VersionName, exit,
};
use serde_json::Value;

/// A store with `scout/v1` and, outside of it, a decoy that looks like an agent.
pub(crate) struct Yard {
    _dir: tempfile::TempDir,
    store: ModelStore,
    outside: PathBuf,
}

impl Yard {
    pub(crate) fn new() -> Self {
        // In memory where that can be had: every input is a change to a store.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let base = dir.path().canonicalize().expect("it is there");
        let outside = base.join("outside");
        for (root, agent) in [(base.join("store"), scout()), (base.join("outside"), name("decoy"))] {
            let store = ModelStore::create(root).expect("a store");
            let staging = store.stage_new(&agent, &name("v1")).expect("a staging");
            staging.write(&name("a"), b"one").expect("a file");
            staging.finalize(FinalizeOptions::default()).expect("a version");
        }
        let store = ModelStore::open(base.join("store")).expect("the store");
        Self { _dir: dir, store, outside }
    }

    fn agent_dir(&self) -> PathBuf {
        self.store.root().join("scout")
    }
}

/// Runs a check with this thread's store.
pub(crate) fn with_yard(check: impl FnOnce(&Yard)) {
    thread_local!(static YARD: Yard = Yard::new());
    YARD.with(check);
}

fn name<T: TryFrom<&'static str, Error: std::fmt::Debug>>(name: &'static str) -> T {
    T::try_from(name).expect("a good name")
}

fn scout() -> AgentName {
    name("scout")
}

/// A manifest that can be read can be written and read again as the same; whatever it says, a version with it can be
/// listed, verified and compared.
pub(crate) fn manifest(yard: &Yard, data: &[u8]) {
    if let Ok(read) = Manifest::from_json(data) {
        let json = read.to_json().expect("what was read can be written");
        let again = Manifest::from_json(&json).expect("what was written can be read");
        // A number may differ in its last bit when it is read.
        assert!(alike(&read.metadata.clone().into(), &again.metadata.clone().into()), "{read:?} {again:?}");
        assert!(alike(&read.extra.clone().into(), &again.extra.clone().into()), "{read:?} {again:?}");
        let again = Manifest { metadata: read.metadata.clone(), extra: read.extra.clone(), ..again };
        assert_eq!(read, again);
        assert!(read.files.is_empty() || read.generation() == Generation::Current);
        for file in &read.files {
            assert_eq!(read.file(&file.path), Some(file));
        }
    }
    let path = yard.agent_dir().join("versions/v1/manifest.json");
    fs::remove_file(&path).expect("the manifest before is there");
    fs::write(&path, data).expect("a new one can be written");
    let (store, scout, v1) = (&yard.store, scout(), name("v1"));
    assert_eq!(store.versions(&scout).expect("agents can be listed"), [name::<VersionName>("v1")]);
    match store.get_version(&scout, &v1) {
        Ok(found) => {
            let found = found.expect("it is there");
            match store.diff(&found, &found) {
                Ok(diff) => assert!(diff.is_empty(), "{diff:?}"),
                Err(e) => assert!(matches!(e, StoreError::NewerFormat { .. }), "{e:?}"),
            }
        }
        Err(e) => assert_eq!(e.exit_code(), exit::CORRUPT, "{e:?}"),
    }
    match store.verify(&scout, &v1) {
        Ok(report) => assert!(report.findings.iter().all(|finding| !finding.to_string().is_empty())),
        Err(e) => assert!([exit::CORRUPT, exit::REFUSED].contains(&e.exit_code()), "{e:?}"),
    }
}

fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            (a - b).abs() <= a.abs() * 1e-15
        }
        _ => a == b,
    }
}

/// Stands for so much text that the repair does not see the beginning of the file at once.
const LONG: (u8, usize) = (1, 70_000);

/// Whatever the history contains, the next mutation leaves whole lines, loses none that was whole, and what they say of
/// `current` is then true. A second one changes nothing.
pub(crate) fn history(yard: &Yard, data: &[u8]) {
    let mut before = Vec::new();
    for &byte in data {
        let times = if byte == LONG.0 && before.len() < LONG.1 { LONG.1 } else { 1 };
        before.extend(std::iter::repeat_n(byte, times));
    }
    let path = yard.agent_dir().join("history.jsonl");
    fs::write(&path, &before).expect("the history can be written");
    let (store, scout) = (&yard.store, scout());
    let read_before = store.history(&scout).expect("any history can be read");
    let mutate = || {
        // It begins as every mutation, and ends because there is no such ref.
        let error =
            store.untag(&scout, &name("nothing"), &MoveOptions::default()).expect_err("there is no such ref");
        assert!(matches!(error, StoreError::RefNotFound { .. }), "{error:?}");
        fs::read(&path).expect("the history is there")
    };
    let after = mutate();
    let whole = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    assert_eq!(&after[..whole], &before[..whole], "a whole line was lost");
    assert!(after.is_empty() || after.ends_with(b"\n"), "a torn line was left");
    let read = store.history(&scout).expect("a repaired history can be read");
    assert!(read_before.len() <= read.len() + 1, "more than the torn line was lost");
    let last = read.iter().rev().find(|record| record.pointer == PointerName::Current);
    let said =
        last.filter(|last| last.action == model_store::Action::Reconcile).and_then(|last| last.to.as_ref());
    assert!(said.is_none_or(|said| said.as_str() == "v1"), "{last:?}");
    assert_eq!(mutate(), after, "a repair was repaired");
}

/// What is accepted as a name keeps the rules, and what is joined with it stays beneath.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for accepted in [
        AgentName::try_from(text).map(String::from),
        VersionName::try_from(text).map(String::from),
        RefName::try_from(text).map(String::from),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(accepted, text);
        assert!((1..=128).contains(&text.len()) && text.as_bytes()[0].is_ascii_alphanumeric(), "{text:?}");
        assert!(
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')),
            "{text:?}"
        );
        assert!(
            text.strip_suffix(".tmp").is_none() && !["versions", "current", "refs"].contains(&text),
            "{text:?}"
        );
        assert_beneath(text, 1);
    }
    if let Ok(path) = PayloadPath::try_from(text) {
        assert_eq!((path.as_str(), path.as_path()), (text, Path::new(text)));
        assert!(
            (1..=1024).contains(&text.len()) && text != "manifest.json" && !text.starts_with('-'),
            "{text:?}"
        );
        assert!(!text.chars().any(|c| c.is_control() || c == '\\'), "{text:?}");
        assert!(text.split('/').all(|part| (1..=255).contains(&part.len())), "{text:?}");
        assert_beneath(text, text.split('/').count());
        assert!(text.ends_with(path.file_name()) && !path.file_name().contains('/'), "{text:?}");
        let json = serde_json::to_string(&path).expect("a path can be written");
        assert_eq!(serde_json::from_str::<PayloadPath>(&json).expect("and read"), path);
    }
    if let Ok(pointer) = text.parse::<PointerName>() {
        assert_eq!(pointer.to_string(), text);
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string(), text);
    }
}

fn assert_beneath(text: &str, depth: usize) {
    let joined = Path::new("/store").join(text);
    let parts: Vec<_> = joined.strip_prefix("/store").expect("it is beneath").components().collect();
    assert_eq!(parts.len(), depth, "{text:?}");
    assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))), "{text:?}");
}

/// Wherever a pointer or an alias says that it leads, it is followed to a version of this store or refused.
///
/// The first byte picks the link. In its text `@` stands for the store's own path and `~` for that of the decoy.
pub(crate) fn links(yard: &Yard, data: &[u8]) {
    let Some((&which, text)) = data.split_first() else { return };
    let mut target = Vec::new();
    for &byte in text {
        match byte {
            b'@' => target.extend(yard.store.root().as_os_str().as_bytes()),
            b'~' => target.extend(yard.outside.as_os_str().as_bytes()),
            other => target.push(other),
        }
    }
    let refs = yard.agent_dir().join("refs");
    fs::create_dir_all(&refs).expect("a directory for refs");
    let link = match which % 3 {
        0 => yard.agent_dir().join("current"),
        1 => refs.join("r"),
        _ => yard.store.root().join("alias"),
    };
    let _ = fs::remove_file(&link);
    // Not every text can be one of a link.
    if symlink(OsStr::from_bytes(&target), &link).is_ok() {
        follow(yard, which % 3);
        fs::remove_file(&link).expect("the link is there");
    }
    if which % 3 == 0 {
        symlink("versions/v1", &link).expect("current as it was");
    }
}

fn follow(yard: &Yard, which: u8) {
    let (store, scout) = (&yard.store, scout());
    let found = match which {
        0 => store.get_current(&scout),
        1 => {
            if let Ok(refs) = store.refs(&scout) {
                assert!(refs.iter().all(|found| found.name == name("r")), "{refs:?}");
            }
            let _ = store.select(&scout, &Selector::Named(name("r")));
            store.get_ref(&scout, &name("r"))
        }
        _ => {
            store.agents().expect("a store can be listed");
            let error =
                store.stage_new(&name("alias"), &name("v2")).expect_err("an alias is never written to");
            assert!([exit::REFUSED, exit::CORRUPT, exit::FAILURE].contains(&error.exit_code()), "{error:?}");
            store.get_current(&name("alias"))
        }
    };
    match found {
        Ok(None) => {}
        Ok(Some(found)) => assert_ours(yard, &found),
        Err(e) => assert!([exit::CORRUPT, exit::FAILURE].contains(&e.exit_code()), "{e:?}"),
    }
}

fn assert_ours(yard: &Yard, found: &Current) {
    assert_eq!((found.agent(), found.version()), (&scout(), &name("v1")));
    assert_eq!(found.path(), yard.agent_dir().join("versions/v1"));
    assert_eq!(found.path().canonicalize().expect("it is there"), found.path());
}
