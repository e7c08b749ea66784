//! A crowd: processes that publish, retire and read the same agents all at once.
//!
//! `CROWD_SECONDS` says for how long.

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use model_store::{AgentName, Current, FinalizeOptions, ModelStore, MoveOptions, Policy, StoreError, exit};
use sha2::{Digest, Sha256};

use crate::child::{Failure, Running, Task, Work};
use crate::fixture::{Fixture, agent, payload, version};

const PUBLISHERS: usize = 8;
const COLLECTORS: usize = 4;
const READERS: usize = 16;
const AGENTS: [&str; 2] = ["scout", "hawk"];

/// What one process does until its stdin ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Role {
    Publisher,
    Collector,
    Reader,
}

/// What one process came to.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Tally {
    /// Versions published, versions retired, or versions read from the first file to the last.
    done: usize,
    /// Bytes read under a lease.
    bytes: u64,
    /// Versions that were retired between the look at `current` and the lease.
    missed: usize,
}

/// Plays a role, and prints what it came to.
pub(crate) fn play(store: &ModelStore, role: Role, name: &str) -> Result<(), Failure> {
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.store(true, Ordering::Relaxed);
    });
    let mut tally = Tally::default();
    for round in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let agent = agent(AGENTS[round % AGENTS.len()]);
        match role {
            Role::Publisher => publish(store, &agent, &format!("{name}-{round}"), round, &mut tally)?,
            Role::Collector => collect(store, &mut tally)?,
            Role::Reader => read(store, &agent, &mut tally)?,
        }
    }
    let told = writeln!(std::io::stdout(), "\ntally {}", serde_json::to_string(&tally).unwrap());
    told.map_err(|e| violation(e.to_string()))
}

fn publish(
    store: &ModelStore,
    agent: &AgentName,
    name: &str,
    round: usize,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let name = version(name);
    let staging = store.stage_new(agent, &name)?;
    staging.write(&payload("name"), name.as_str().as_bytes())?;
    staging.write(&payload("weights/model.bin"), &name.as_str().as_bytes().repeat(5000))?;
    for i in 0..4 {
        staging.write(&payload(&format!("{i}/config.json")), format!("{{\"{name}\": {i}}}").as_bytes())?;
    }
    staging.finalize(FinalizeOptions::default())?;
    tally.done += 1;
    let options = MoveOptions::default();
    match round % 5 {
        0 => tolerate(store.tag(agent, &"candidate".parse().unwrap(), &name, &options)),
        1 => tolerate(store.rollback(agent, None, &options)),
        _ => Ok(()),
    }
}

/// Somebody else may have retired what this was about.
fn tolerate<T>(result: Result<T, StoreError>) -> Result<(), Failure> {
    match result {
        Err(e) if [exit::NOT_FOUND, exit::REFUSED].contains(&e.exit_code()) => Ok(()),
        other => other.map(drop).map_err(Failure::from),
    }
}

fn collect(store: &ModelStore, tally: &mut Tally) -> Result<(), Failure> {
    let policy = Policy { keep: 2, grace: Duration::ZERO, ..Policy::default() };
    let collected = store.gc(&AGENTS.map(agent), &policy, &MoveOptions::default())?;
    tally.done += collected.retired.len();
    if collected.problems.is_empty() {
        return Ok(());
    }
    Err(violation(collected.problems.join("; ")))
}

/// Reads a whole version under a lease and compares it with its manifest, and with itself.
fn read(store: &ModelStore, agent: &AgentName, tally: &mut Tally) -> Result<(), Failure> {
    let Some(current) = store.get_current(agent)? else { return Err(violation("nothing is current")) };
    let _lease = match current.lease() {
        Ok(lease) => lease,
        Err(StoreError::VersionNotFound { .. } | StoreError::Busy { .. }) => {
            tally.missed += 1;
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    };
    let names: Vec<_> = current.manifest().files.iter().map(|file| file.path.as_str()).collect();
    if names
        != ["0/config.json", "1/config.json", "2/config.json", "3/config.json", "name", "weights/model.bin"]
    {
        return Err(violation(format!("{} has {names:?}", current.version())));
    }
    for file in &current.manifest().files {
        let failed = |e: &dyn std::fmt::Display| {
            violation(format!("{} under a lease: {}: {e}", current.version(), file.path))
        };
        let mut bytes = Vec::new();
        current.open(&file.path)?.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        let by_path = fs::read(current.path().join(file.path.as_path())).map_err(|e| failed(&e))?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        if sha256 != file.sha256.to_string() || by_path != bytes {
            return Err(failed(&"other bytes than the manifest says"));
        }
        if !is_of(&current, &bytes) {
            return Err(failed(&"bytes of another version"));
        }
        tally.bytes += file.size;
    }
    tally.done += 1;
    Ok(())
}

/// Every file of these versions has its version's name in it.
fn is_of(current: &Current, bytes: &[u8]) -> bool {
    let name = current.version().as_str().as_bytes();
    bytes.windows(name.len()).any(|window| window == name)
}

fn violation(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), code: exit::FAILURE }
}

#[test]
fn a_crowd_sees_nothing_but_whole_versions() {
    let seconds = std::env::var("CROWD_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let fixture = Fixture::new();
    for name in AGENTS {
        publish(&fixture.store, &agent(name), "first", 2, &mut Tally::default()).unwrap();
    }
    let roles = [(Role::Publisher, PUBLISHERS), (Role::Collector, COLLECTORS), (Role::Reader, READERS)];
    let mut crowd: Vec<(Role, Running)> = Vec::new();
    for (role, count) in roles {
        for i in 0..count {
            let name = format!("p{i}");
            let task = Task { root: fixture.root().to_owned(), version: name, work: Work::Crowd(role) };
            crowd.push((role, task.start()));
        }
    }
    // Whoever ends before its time has failed.
    for _ in 0..seconds * 10 {
        std::thread::sleep(Duration::from_millis(100));
        if crowd.iter_mut().any(|(_, running)| running.has_ended()) {
            break;
        }
    }
    for (_, running) in &mut crowd {
        running.release();
    }
    let (mut sums, mut violations) = ([0; 3], Vec::new());
    let (mut bytes, mut missed) = (0, 0);
    for (role, running) in crowd {
        let outcome = running.end();
        let tally = outcome.stdout.lines().find_map(|line| line.strip_prefix("tally "));
        match tally.filter(|_| outcome.code() == Some(exit::OK)) {
            Some(tally) => {
                let tally: Tally = serde_json::from_str(tally).unwrap();
                sums[role as usize] += tally.done;
                bytes += tally.bytes;
                missed += tally.missed;
            }
            None => violations.push(format!("{role:?}: {outcome:?}")),
        }
    }
    let [published, retired, read] = sums;
    eprintln!(
        "crowd, {seconds} s: {published} versions published, {retired} retired, {read} read whole ({} MB), \
         {missed} gone before they were leased, violations {}",
        bytes / 1_000_000,
        violations.len()
    );
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(published > 0 && retired > 0 && read > 0);
    for name in AGENTS.map(agent) {
        for version in fixture.store.versions(&name).unwrap() {
            let report = fixture.store.verify(&name, &version).unwrap();
            assert!(report.is_ok(), "{name}/{version}: {:?}", report.findings);
        }
    }
}
