//! The store against a trivial model of it: any sequence of operations leaves both the same.
//!
//! `PROPTEST_CASES=2000 cargo test -p model-store --test model` looks longer.
//!
//! This test has its process to itself. A child that a test beside it forks has what this one had open until it
//! executes its program, and retention rightly leaves alone what a process has open.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use model_store::{
    Action, Activation, AgentEntry, AgentName, FinalizeOptions, Lease, ModelStore, MoveOptions, PayloadPath,
    Policy, RefName, StoreError, VersionName, exit,
};
use proptest::prelude::*;

const AGENTS: [&str; 2] = ["scout", "writer"];
const VERSIONS: [&str; 5] = ["v0", "v1", "v2", "v3", "v4"];
/// One of them could be a version's.
const REFS: [&str; 3] = ["champion", "candidate", "v1"];
/// Where the variable does not say: some seconds.
const CASES: u32 = 80;

type Name = &'static str;

#[derive(Clone, Debug)]
enum Operation {
    Publish { version: Name, content: u8, activate: bool },
    StageAndDrop { version: Name },
    Activate { version: Name },
    Rollback { to: Option<Name> },
    Tag { name: Name, version: Name },
    Untag { name: Name },
    Lease { version: Name },
    EndLeases,
    Collect { keep: usize, only_old: bool },
    Verify { version: Name },
}

fn operation() -> impl Strategy<Value = Operation> {
    let version = || prop::sample::select(&VERSIONS[..]);
    let name = || prop::sample::select(&REFS[..]);
    prop_oneof![
        6 => (version(), 0_u8..3, prop::bool::weighted(0.7))
            .prop_map(|(version, content, activate)| Operation::Publish { version, content, activate }),
        1 => version().prop_map(|version| Operation::StageAndDrop { version }),
        2 => version().prop_map(|version| Operation::Activate { version }),
        3 => prop::option::weighted(0.3, version()).prop_map(|to| Operation::Rollback { to }),
        2 => (name(), version()).prop_map(|(name, version)| Operation::Tag { name, version }),
        1 => name().prop_map(|name| Operation::Untag { name }),
        3 => version().prop_map(|version| Operation::Lease { version }),
        1 => Just(Operation::EndLeases),
        4 => (0_usize..3, prop::bool::weighted(0.1))
            .prop_map(|(keep, only_old)| Operation::Collect { keep, only_old }),
        1 => version().prop_map(|version| Operation::Verify { version }),
    ]
}

/// An agent as everybody would write it down.
#[derive(Debug, Default)]
struct Agent {
    /// Whether anything was ever published.
    exists: bool,
    /// Name and content, the oldest first.
    versions: Vec<(Name, u8)>,
    current: Option<Name>,
    refs: BTreeMap<Name, Name>,
    history: Vec<Step>,
    /// What was current, one after the other.
    line: Vec<Name>,
}

type Step = (Action, String, Option<Name>, Option<Name>);

impl Agent {
    fn has(&self, version: Name) -> bool {
        self.versions.iter().any(|(name, _)| *name == version)
    }

    fn need(&self, version: Name) -> Result<(), u8> {
        if self.has(version) { Ok(()) } else { Err(exit::NOT_FOUND) }
    }

    fn move_current(&mut self, action: Action, to: Name) {
        if self.current != Some(to) {
            self.history.push((action, "current".to_owned(), self.current, Some(to)));
            self.line.push(to);
            self.current = Some(to);
        }
    }

    /// Does it, or gives the exit code of the refusal.
    fn apply(&mut self, operation: &Operation, leased: &[Name]) -> Result<(), u8> {
        let writes_new = matches!(operation, Operation::Publish { .. } | Operation::StageAndDrop { .. });
        if !self.exists && !writes_new && !matches!(operation, Operation::EndLeases) {
            return Err(exit::NOT_FOUND);
        }
        match *operation {
            Operation::Publish { version, .. } | Operation::StageAndDrop { version }
                if self.has(version) || self.refs.contains_key(version) =>
            {
                return Err(exit::REFUSED);
            }
            Operation::Publish { version, content, activate } => {
                self.exists = true;
                self.versions.push((version, content));
                if activate {
                    // What has its name may have been current before it was retired.
                    self.move_current(Action::Publish, version);
                } else {
                    self.history.push((Action::Publish, format!("versions/{version}"), None, Some(version)));
                }
            }
            Operation::StageAndDrop { .. } | Operation::EndLeases => {}
            Operation::Activate { version } => {
                self.need(version)?;
                self.move_current(Action::Activate, version);
            }
            Operation::Rollback { to: Some(version) } => {
                self.need(version)?;
                self.move_current(Action::Rollback, version);
            }
            Operation::Rollback { to: None } => {
                let before = self.line.iter().rev().find(|version| Some(**version) != self.current);
                let before = *before.ok_or(exit::NOT_FOUND)?;
                self.need(before)?;
                self.move_current(Action::Rollback, before);
            }
            Operation::Tag { name, version } => {
                self.need(version)?;
                if self.has(name) {
                    return Err(exit::REFUSED);
                }
                let from = self.refs.insert(name, version);
                if from != Some(version) {
                    self.history.push((Action::Tag, format!("refs/{name}"), from, Some(version)));
                }
            }
            Operation::Untag { name } => {
                let from = self.refs.remove(name).ok_or(exit::NOT_FOUND)?;
                self.history.push((Action::Untag, format!("refs/{name}"), Some(from), None));
            }
            Operation::Collect { keep, only_old } => self.collect(keep, only_old, leased),
            Operation::Lease { version } | Operation::Verify { version } => self.need(version)?,
        }
        Ok(())
    }

    fn collect(&mut self, keep: usize, only_old: bool, leased: &[Name]) {
        let count = self.versions.len();
        let stays = |index: usize, version: Name| {
            only_old
                || count - 1 - index < keep
                || self.current == Some(version)
                || self.refs.values().any(|at| *at == version)
                || leased.contains(&version)
        };
        let (kept, gone): (Vec<_>, Vec<_>) = self
            .versions
            .iter()
            .copied()
            .enumerate()
            .partition(|(index, (version, _))| stays(*index, version));
        self.versions = kept.into_iter().map(|(_, version)| version).collect();
        for (_, (version, _)) in gone {
            self.history.push((Action::Retire, format!("versions/{version}"), Some(version), None));
        }
    }
}

/// Both of them, side by side.
struct Pair {
    _dir: tempfile::TempDir,
    store: ModelStore,
    model: BTreeMap<Name, Agent>,
    leases: Vec<(Name, Name, Lease)>,
}

impl Pair {
    fn new() -> Self {
        // In memory where that can be had: what lasts is not the question here.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = ModelStore::create(dir.path().join("store")).unwrap();
        let model = AGENTS.into_iter().map(|name| (name, Agent::default())).collect();
        Self { _dir: dir, store, model, leases: Vec::new() }
    }

    fn apply(&mut self, name: Name, operation: &Operation) {
        let leases = self.leases.iter().filter(|(of, ..)| *of == name);
        let leased: Vec<Name> = leases.map(|(_, version, _)| *version).collect();
        let expected = self.model.get_mut(name).unwrap().apply(operation, &leased);
        let done = self.carry_out(name, operation);
        match (&done, expected) {
            (Ok(()), Ok(())) => {}
            (Err(e), Err(code)) => assert_eq!(e.exit_code(), code, "{name}, {operation:?}: {e}"),
            _ => panic!("{name}, {operation:?}: the store says {done:?}, the model {expected:?}"),
        }
        for (name, model) in &self.model {
            self.compare(name, model);
        }
        let agents: Vec<_> = self.store.agents().unwrap();
        let expected = self.model.iter().filter(|(_, model)| model.exists);
        let expected: Vec<_> = expected.map(|(name, _)| AgentEntry::Agent(agent(name))).collect();
        assert_eq!(agents, expected);
    }

    fn carry_out(&mut self, name: Name, operation: &Operation) -> Result<(), StoreError> {
        let (store, name, options) = (&self.store, (name, agent(name)), MoveOptions::default());
        let (short, name) = (name.0, &name.1);
        match *operation {
            Operation::Publish { version: v, content, activate } => {
                let staging = store.stage_new(name, &version(v))?;
                staging.write(&payload("content"), &[content])?;
                staging.write(&payload("deep/name"), v.as_bytes())?;
                let activation = if activate { Activation::Activate } else { Activation::Keep };
                staging.finalize(FinalizeOptions { activation, ..FinalizeOptions::default() })?;
                // Times are told in milliseconds, and the next version is to be younger.
                std::thread::sleep(Duration::from_millis(1));
            }
            Operation::StageAndDrop { version: v } => {
                let staging = store.stage_new(name, &version(v))?;
                staging.write(&payload("content"), b"never seen")?;
            }
            Operation::Activate { version: v } => {
                let moved = store.activate(name, &version(v), &options)?;
                assert_eq!(moved.to, Some(version(v)));
            }
            Operation::Rollback { to } => {
                store.rollback(name, to.map(version).as_ref(), &options)?;
            }
            Operation::Tag { name: reference, version: v } => {
                store.tag(name, &reference.parse().unwrap(), &version(v), &options)?;
            }
            Operation::Untag { name: reference } => {
                store.untag(name, &reference.parse().unwrap(), &options)?;
            }
            Operation::Lease { version: v } => {
                let lease = store.require_version(name, &version(v))?.lease()?;
                self.leases.push((short, v, lease));
            }
            Operation::EndLeases => self.leases.retain(|(of, ..)| *of != short),
            Operation::Collect { keep, only_old } => {
                let older_than = only_old.then_some(Duration::from_hours(1));
                let policy = Policy { keep, older_than, grace: Duration::ZERO, ..Policy::default() };
                let collected = store.gc(std::slice::from_ref(name), &policy, &options)?;
                assert!(collected.problems.is_empty(), "{:?}", collected.problems);
            }
            Operation::Verify { version: v } => {
                let report = store.verify(name, &version(v))?;
                assert!(report.is_ok(), "{report:?}");
            }
        }
        Ok(())
    }

    fn compare(&self, name: Name, model: &Agent) {
        let (store, name) = (&self.store, &agent(name));
        let current = store.get_current(name).unwrap();
        assert_eq!(current.as_ref().map(|found| found.version().as_str()), model.current, "{name}: current");
        if !model.exists {
            assert!(store.versions(name).is_err(), "{name} came into being");
            return;
        }
        let names: Vec<_> = store.versions(name).unwrap().into_iter().map(String::from).collect();
        let expected: Vec<_> = model.versions.iter().map(|(version, _)| (*version).to_owned()).collect();
        assert_eq!(names, expected, "{name}: versions");
        for (short, content) in &model.versions {
            let mut bytes = Vec::new();
            let found = store.require_version(name, &version(short)).unwrap();
            found.open(&payload("content")).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, [*content], "{name}/{short}: content");
        }
        let refs: Vec<_> = store.refs(name).unwrap();
        let refs: Vec<_> =
            refs.iter().map(|found| (found.name.as_str(), found.version.as_str(), found.dangling)).collect();
        let mut expected: Vec<_> =
            model.refs.iter().map(|(name, version)| (*name, *version, false)).collect();
        expected.sort_unstable();
        assert_eq!(refs, expected, "{name}: refs");
        for reference in REFS {
            let found = store.get_ref(name, &reference.parse::<RefName>().unwrap()).unwrap();
            assert_eq!(
                found.as_ref().map(|found| found.version().as_str()),
                model.refs.get(reference).copied()
            );
        }
        let plain = |version: Option<VersionName>| version.map(String::from);
        let history = store.history(name).unwrap().into_iter();
        let history: Vec<_> = history
            .map(|record| (record.action, record.pointer.to_string(), plain(record.from), plain(record.to)))
            .collect();
        let owned = |version: Option<Name>| version.map(str::to_owned);
        let expected = model.history.iter();
        let expected: Vec<_> = expected
            .map(|(action, pointer, from, to)| (*action, pointer.clone(), owned(*from), owned(*to)))
            .collect();
        assert_eq!(history, expected, "{name}: history");
        assert_eq!(debris(&store.root().join(name.as_str())), Vec::<String>::new(), "{name}: debris");
    }
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn version(name: &str) -> VersionName {
    name.parse().unwrap()
}

fn payload(path: &str) -> PayloadPath {
    path.parse().unwrap()
}

/// What no operation may leave: stagings, temporary links, trash.
fn debris(agent: &Path) -> Vec<String> {
    let list = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let stagings = list(&agent.join("versions")).into_iter().filter(|name| name.contains(".tmp"));
    let links = [agent.to_owned(), agent.join("refs")].into_iter().flat_map(|dir| list(&dir));
    let links = links.filter(|name| name.starts_with(".current-"));
    stagings.chain(links).chain(list(&agent.join(".trash"))).collect()
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sequence_of_operations_leaves_store_and_model_the_same(
        operations in prop::collection::vec((prop::sample::select(&AGENTS[..]), operation()), 1..50)
    ) {
        let mut pair = Pair::new();
        for (name, operation) in &operations {
            pair.apply(name, operation);
        }
        // To its end: every version that is left is sound.
        for (name, model) in &pair.model {
            for (short, _) in &model.versions {
                let report = pair.store.verify(&agent(name), &version(short)).unwrap();
                prop_assert!(report.is_ok(), "{:?}", report);
            }
        }
    }
}
