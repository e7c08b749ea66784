//! The operations: what each finds, what it does, and what has to hold wherever it was broken off.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use model_store::{FinalizeOptions, ModelStore, MoveOptions, RepairOptions, SignaturePolicy, Unsigned};

use super::scratch;
use super::state::{State, debris};
use super::strike::{Point, points_of};
use crate::child::{Failure, Task, Work, perform};
use crate::fixture::{payload, scout, signing_key, version};

/// One operation on one store.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Sets up what the operation finds.
    pub(crate) scene: fn(&ModelStore),
    pub(crate) work: Work,
    /// The version it is about.
    pub(crate) version: &'static str,
    /// What readers see change when it succeeds.
    pub(crate) effect: &'static str,
    /// Where another row has the points before the first call of that name.
    pub(crate) from: Option<&'static str>,
    /// Whether it is several steps, of which some may be done when another fails.
    pub(crate) stepwise: bool,
    /// Whether its failure may be that the version is quarantined.
    pub(crate) may_condemn: bool,
}

/// What most rows have.
const ROW: Row = Row {
    name: "",
    scene: two_versions,
    work: Work::Publish,
    version: "v2",
    effect: "",
    from: None,
    stepwise: false,
    may_condemn: false,
};

pub(crate) const ROWS: &[Row] = &[
    Row { name: "publish, a new agent", scene: |_| {}, effect: "current - -> v2, +v2", ..ROW },
    Row { name: "publish, after a crash", scene: after_a_crash, effect: "current v1 -> v2, +v2", ..ROW },
    Row {
        name: "publish, many files",
        scene: one_version,
        work: Work::PublishMany,
        effect: "current v1 -> v2, +v2",
        from: Some("syncfs"),
        ..ROW
    },
    Row {
        name: "publish without activating",
        scene: one_version,
        work: Work::PublishOnly,
        effect: "+v2",
        ..ROW
    },
    Row {
        name: "publish, signed",
        scene: |store| {
            one_version(store);
            policed(store);
        },
        work: Work::PublishSigned,
        effect: "current v1 -> v2, +v2, v2 signed",
        ..ROW
    },
    Row { name: "sign", work: Work::Sign, effect: "v2 signed", stepwise: true, ..ROW },
    Row { name: "activate", work: Work::Activate, version: "v1", effect: "current v2 -> v1", ..ROW },
    Row { name: "rollback", work: Work::Rollback, effect: "current v2 -> v1", ..ROW },
    Row { name: "tag, a new ref", work: Work::Tag, effect: "refs/champion - -> v2", ..ROW },
    Row {
        name: "tag, a ref that moves",
        scene: tagged,
        work: Work::Tag,
        effect: "refs/champion v1 -> v2",
        ..ROW
    },
    Row { name: "untag", scene: tagged, work: Work::Untag, effect: "refs/champion v1 -> -", ..ROW },
    Row {
        name: "repair from another version",
        scene: |store| {
            two_versions(store);
            rot(store, "config.json", b"{]");
        },
        work: Work::Repair,
        effect: "v2 mended",
        stepwise: true,
        may_condemn: true,
        ..ROW
    },
    Row {
        name: "repair of a mode",
        scene: |store| {
            two_versions(store);
            let file = store.root().join("scout/versions/v2/config.json");
            fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        },
        work: Work::Repair,
        effect: "v2 mended",
        stepwise: true,
        ..ROW
    },
    Row {
        name: "repair to a quarantine",
        scene: |store| {
            two_versions(store);
            rot(store, "weights/model.bin", b"tvo");
        },
        work: Work::Condemn,
        effect: "v2 quarantined",
        stepwise: true,
        ..ROW
    },
    Row {
        name: "repair to a release",
        scene: |store| {
            two_versions(store);
            rot(store, "weights/model.bin", b"tvo");
            store.repair(&scout(), &version("v2"), &RepairOptions::default()).unwrap();
            rot(store, "weights/model.bin", b"two");
        },
        work: Work::Repair,
        effect: "v2 released",
        stepwise: true,
        ..ROW
    },
    Row {
        name: "doctor --fix",
        scene: |store| {
            after_a_crash(store);
            let file = store.root().join("scout/versions/v1/config.json");
            fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        },
        work: Work::Doctor,
        effect: "v1 mended",
        stepwise: true,
        ..ROW
    },
    Row {
        name: "gc",
        scene: five_versions,
        work: Work::Collect,
        effect: "-v2, -v3, -v4",
        stepwise: true,
        ..ROW
    },
];

fn publish(store: &ModelStore, name: &str, files: &[(&str, &[u8])]) {
    let staging = store.stage_new(&scout(), &version(name)).unwrap();
    for (path, bytes) in files {
        staging.write(&payload(path), bytes).unwrap();
    }
    staging.finalize(FinalizeOptions::default()).unwrap();
}

fn one_version(store: &ModelStore) {
    publish(store, "v1", &[("config.json", b"{}"), ("weights/model.bin", b"one")]);
}

fn two_versions(store: &ModelStore) {
    one_version(store);
    publish(store, "v2", &[("config.json", b"{}"), ("weights/model.bin", b"two")]);
}

/// Writes over a file of `v2`.
fn rot(store: &ModelStore, file: &str, bytes: &[u8]) {
    let path = store.root().join("scout/versions/v2").join(file);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
}

/// Takes nothing but what the test's key has signed.
fn policed(store: &ModelStore) {
    let mut policy = SignaturePolicy::new(Unsigned::Refuse);
    policy.trust(&signing_key().verifying_key());
    store.set_signature_policy(&policy).unwrap();
}

fn tagged(store: &ModelStore) {
    two_versions(store);
    let champion = "champion".parse().unwrap();
    store.tag(&scout(), &champion, &version("v1"), &MoveOptions::default()).unwrap();
}

/// One is current, one has a ref, and there are notes about the rest.
fn five_versions(store: &ModelStore) {
    tagged(store);
    for name in ["v3", "v4", "v5"] {
        publish(store, name, &[("config.json", b"{}"), ("weights/model.bin", name.as_bytes())]);
        let report = store.verify(&scout(), &version(name)).unwrap();
        store.note_check(&report, 0.1).unwrap();
        store.sign(&scout(), &version(name), &signing_key(), &MoveOptions::default()).unwrap();
    }
}

/// What a writer left that died with its intent open and in the middle of the next line.
fn after_a_crash(store: &ModelStore) {
    one_version(store);
    let agent = store.root().join("scout");
    fs::create_dir_all(agent.join("versions/v0.tmp/deep")).unwrap();
    fs::write(agent.join("versions/v0.tmp/deep/file"), b"x").unwrap();
    symlink("versions/v0", agent.join(".current-4711")).unwrap();
    let history = agent.join("history.jsonl");
    let mut text = fs::read_to_string(&history).unwrap();
    text.push_str(&text.clone().replace(r#""from":null,"to":"v1""#, r#""from":"v1","to":"v0""#));
    text.push_str("{\"torn");
    fs::write(&history, text).unwrap();
}

/// What may be seen after an operation ended in some way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Before,
    After,
    Either,
}

/// A row with what was learned by letting it succeed once.
pub(crate) struct Known {
    pub(crate) row: &'static Row,
    pub(crate) before: State,
    pub(crate) after: State,
    pub(crate) points: Vec<Point>,
    debris_before: Vec<String>,
}

impl Row {
    pub(crate) fn task(&self, root: &Path) -> Task {
        Task { root: root.to_owned(), version: self.version.to_owned(), work: self.work }
    }

    /// Makes a store in a directory and sets the scene.
    pub(crate) fn set(&self, dir: &Path) -> ModelStore {
        let store = ModelStore::create(dir.join("store")).unwrap();
        (self.scene)(&store);
        store
    }

    /// Lets it succeed once.
    pub(crate) fn learn(&'static self) -> Known {
        let dir = scratch();
        let store = self.set(dir.path());
        let before = State::read(&store).unwrap();
        let debris_before = debris(store.root());
        let mut points = points_of(&self.task(store.root()), &dir.path().join("strace.log"));
        if let Some(from) = self.from {
            let first = points.iter().position(|point| point.call == from).expect("it makes that call");
            points.drain(..first);
        }
        let after = State::read(&store).unwrap();
        assert_eq!(before.change_to(&after), self.effect, "{}", self.name);
        Known { row: self, before, after, points, debris_before }
    }

    /// Does it once more after it was broken off.
    fn again(&self, store: &ModelStore) -> Result<(), Failure> {
        let mut task = self.task(store.root());
        let publishes = matches!(self.work, Work::Publish | Work::PublishMany | Work::PublishSigned);
        if publishes && store.get_version(&scout(), &version(self.version))?.is_some() {
            // Broken off between the version and the pointer: the version is there, the pointer is what is left.
            task.work = Work::Activate;
        }
        perform(store, &task)
    }
}

impl Known {
    /// What has to hold after the operation ended, or was broken off: readers see what is expected, the doctor
    /// leaves nothing behind, and the operation succeeds.
    pub(crate) fn check(&self, store: &ModelStore, expect: Expect) -> Result<(), String> {
        self.check_readers(store, expect)?;
        mend(store).map_err(|e| format!("the doctor: {}", e.message))?;
        self.check_tidy(store).map_err(|e| format!("after the doctor: {e}"))?;
        // A process that another thread has just started holds our open directories until it has become another
        // program, and what is held is not retired: then it is tried again.
        for _ in 0..3 {
            if State::read(store)? != self.after {
                self.row.again(store).map_err(|e| format!("once more: {}", e.message))?;
            }
        }
        let end = self.check_tidy(store).map_err(|e| format!("after doing it once more: {e}"))?;
        if end == self.after {
            return Ok(());
        }
        Err(format!("doing it once more led to: {}", self.after.change_to(&end)))
    }

    fn check_readers(&self, store: &ModelStore, expect: Expect) -> Result<(), String> {
        let now = State::read(store).map_err(|e| format!("a reader: {e}"))?;
        let (wanted, name) = match expect {
            Expect::Before => (&self.before, "before"),
            Expect::After => (&self.after, "after"),
            Expect::Either => return self.check_between(now),
        };
        if now == *wanted {
            return Ok(());
        }
        Err(format!("not as {name} it: {}", wanted.change_to(&now)))
    }

    fn check_between(&self, mut state: State) -> Result<(), String> {
        if self.row.may_condemn && state.marks.contains_key(self.row.version) {
            state.marks.remove(self.row.version);
        }
        state.check_between(&self.before, &self.after)
    }

    fn check_tidy(&self, store: &ModelStore) -> Result<State, String> {
        let state = State::read(store).map_err(|e| format!("a reader: {e}"))?;
        self.check_between(state.clone())?;
        state.check_history(store.root())?;
        let left = debris(store.root());
        if left.is_empty() { Ok(state) } else { Err(format!("{left:?} left")) }
    }

    /// What an operation left that said that it failed, besides what it found.
    pub(crate) fn check_no_new_debris(&self, store: &ModelStore) -> Result<(), String> {
        // What a step left that failed is there for the next mutation.
        let mut left = debris(store.root());
        if self.row.stepwise {
            left.clear();
        }
        let left: Vec<_> = left.into_iter().filter(|path| !self.debris_before.contains(path)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} left by a failure")) }
    }
}

/// What clears what is left: the doctor here, and every mutation likewise.
fn mend(store: &ModelStore) -> Result<(), Failure> {
    perform(store, &Task { root: store.root().to_owned(), version: "none".to_owned(), work: Work::Doctor })
}
