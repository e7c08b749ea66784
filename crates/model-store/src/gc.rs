//! Retiring versions: the plan, carried out.
//!
//! A version is renamed into `.trash/`, the rename is made durable, and only then is anything deleted: no
//! crash leaves half a version under its name.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;

use crate::dir;
use crate::durable;
use crate::error::{StoreError, is_full};
use crate::history::{self, Action, MoveOptions, PointerName, Record};
use crate::holder::now;
use crate::holdings::{self, Inventory, in_use, open_alone, pointed_at};
use crate::human::with_causes;
use crate::layout::{
    AgentDir, Place, QUARANTINE_DIR, SIGNATURES_DIR, TRASH_DIR, VERIFIED_DIR, VERSIONS_DIR, c_name,
};
use crate::lock::Flock;
use crate::names::{AgentName, VersionName};
use crate::notes;
use crate::processes::{self, FileId, User};
use crate::retention::{Decision, Holding, Plan, Policy, Stock, Verdict, bytes_freed, decide};
use crate::store::ModelStore;

/// What a collection did.
#[derive(Clone, Debug, Serialize)]
pub struct Collected {
    /// What it went by.
    pub plan: Plan,
    /// The versions that are gone.
    pub retired: Vec<Retired>,
    /// What that freed.
    pub bytes_freed: u64,
    /// What was planned and could not be done, and why. The version is still there.
    pub problems: Vec<String>,
}

/// A version that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retired {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
}

/// How many versions are retired at a time: each is kept open until it is deleted.
const AT_A_TIME: usize = 64;

/// A version that nobody finds under its name any more and that is still locked by us.
struct Trashed<'a> {
    holding: &'a Holding,
    record: Record,
    /// The directory it lies in: `.trash/`, or `versions/` where a full disk has no room for that.
    bin: &'static str,
    /// Its name there.
    name: String,
    recorded: bool,
    _alone: Flock<OwnedFd>,
}

/// A plan, what it is of, and what could not be looked at.
type Planned = (Plan, Vec<Holding>, Vec<String>);

impl ModelStore {
    /// What [`gc`](Self::gc) would do, without doing it.
    pub fn plan_gc(&self, agents: &[AgentName], policy: &Policy) -> Result<Plan, StoreError> {
        let (mut plan, _, problems) = self.plan(agents, policy)?;
        plan.notes.extend(problems);
        Ok(plan)
    }

    /// Retires the versions of some agents that a policy does not keep.
    ///
    /// What came into use since the plan was made is left alone. A version that cannot be retired is a problem
    /// that is reported, and keeps no other from being retired.
    pub fn gc(
        &self,
        agents: &[AgentName],
        policy: &Policy,
        options: &MoveOptions,
    ) -> Result<Collected, StoreError> {
        let (mut plan, holdings, mut problems) = self.plan(agents, policy)?;
        let mut retired = Vec::new();
        let mut stock = Stock::of(&holdings);
        for agent in agents_of(&plan) {
            self.progress().advance(0).map_err(|e| StoreError::io("collect in", self.root(), e))?;
            let of_agent: Vec<&Holding> = plan
                .decisions
                .iter()
                .zip(&holdings)
                .filter(|(decision, _)| decision.agent == agent && is_to_go(decision))
                .map(|(_, holding)| holding)
                .collect();
            let mut collector =
                Collector { options, stock: &mut stock, problems: Vec::new(), spared: Vec::new() };
            let gone = self.collect_in(&agent, &mut collector, &of_agent, policy);
            problems.append(&mut collector.problems);
            spare(&mut plan, &agent, collector.spared);
            match gone {
                Ok(gone) => {
                    retired.extend(gone.into_iter().map(|version| Retired { agent: agent.clone(), version }));
                }
                Err(StoreError::Interrupted) => return Err(StoreError::Interrupted),
                Err(e) if agents.len() == 1 => return Err(e),
                Err(e) => problems.push(with_causes(&e)),
            }
        }
        let is_gone = |holding: &Holding| {
            retired.iter().any(|gone| gone.agent == holding.agent && gone.version == holding.version)
        };
        let bytes_freed = bytes_freed(&holdings, is_gone);
        Ok(Collected { plan, retired, bytes_freed, problems })
    }

    /// Retires what is planned of one agent, and says which versions are gone.
    fn collect_in(
        &self,
        agent: &AgentName,
        collector: &mut Collector<'_>,
        planned: &[&Holding],
        policy: &Policy,
    ) -> Result<Vec<VersionName>, StoreError> {
        let not_there = || self.agent_not_found(agent);
        let opened = AgentDir::open_to_write(self.root(), agent)?.ok_or_else(not_there)?;
        let _lock = self.lock_to_collect(&opened)?.ok_or_else(not_there)?;
        let still = collector.still_to_go(&opened, planned, policy)?;
        let mut gone = Vec::new();
        for some in still.chunks(AT_A_TIME) {
            gone.extend(collector.retire_all(&opened, some)?);
        }
        Ok(gone)
    }

    fn plan(&self, agents: &[AgentName], policy: &Policy) -> Result<Planned, StoreError> {
        let mut own_names: Vec<AgentName> = Vec::new();
        for agent in agents {
            // An alias is asked for under its agent's own name, once.
            let own = AgentDir::open(self.root(), agent)?.map(|opened| opened.name().clone());
            let own = own.ok_or_else(|| self.agent_not_found(agent))?;
            if !own_names.contains(&own) {
                own_names.push(own);
            }
        }
        let Inventory { holdings, notes, problems } = holdings::take(self, &own_names)?;
        let mut plan = decide(&holdings, policy, now());
        plan.notes.extend(notes);
        Ok((plan, holdings, problems))
    }
}

fn is_to_go(decision: &Decision) -> bool {
    matches!(decision.verdict, Verdict::Retire { .. })
}

fn agents_of(plan: &Plan) -> Vec<AgentName> {
    let mut agents: Vec<AgentName> = plan.to_retire().map(|decision| decision.agent.clone()).collect();
    agents.dedup();
    agents
}

/// Writes into the plan what came into use since it was made.
fn spare(plan: &mut Plan, agent: &AgentName, spared: Vec<(VersionName, String)>) {
    for (version, reason) in spared {
        let mut decisions = plan.decisions.iter_mut();
        if let Some(decision) = decisions.find(|one| one.agent == *agent && one.version == version) {
            decision.verdict = Verdict::Keep { reasons: vec![reason] };
        }
    }
}

struct Collector<'a> {
    options: &'a MoveOptions,
    /// What is left, for what each record says was freed.
    stock: &'a mut Stock,
    problems: Vec<String>,
    spared: Vec<(VersionName, String)>,
}

impl Collector<'_> {
    /// The plan was made without the lock, maybe minutes ago: what it retires must still be that very
    /// directory, and nothing may have come up that keeps it.
    fn still_to_go<'h>(
        &mut self,
        agent: &AgentDir,
        planned: &[&'h Holding],
        policy: &Policy,
    ) -> Result<Vec<&'h Holding>, StoreError> {
        let now_held = holdings::of_agent(agent, &mut self.problems)?;
        // The goal was reckoned over all agents.
        let policy = Policy { max_bytes: None, ..policy.clone() };
        let decisions = decide(&now_held, &policy, now()).decisions;
        let mut still = Vec::new();
        for &holding in planned {
            let same = |other: &&Holding| {
                other.version == holding.version
                    && other.blocks.others.first() == holding.blocks.others.first()
            };
            let found = now_held.iter().zip(&decisions).find(|(other, _)| same(other));
            match found.map(|(_, decision)| &decision.verdict) {
                Some(Verdict::Retire { .. }) => still.push(holding),
                Some(Verdict::Keep { reasons }) => {
                    self.spared.push((holding.version.clone(), reasons.join(", ")));
                }
                None => self.spared.push((holding.version.clone(), "it is another one by now".to_owned())),
            }
        }
        Ok(still)
    }

    /// Retires versions of an agent whose lock is held, and says which are gone.
    fn retire_all(
        &mut self,
        agent: &AgentDir,
        holdings: &[&Holding],
    ) -> Result<Vec<VersionName>, StoreError> {
        let pointed = pointed_at(agent)?;
        let mut trashed = Vec::new();
        for holding in holdings {
            match pointed.get(&holding.version) {
                Some(pointers) => self.spared.push((holding.version.clone(), pointers.join(", "))),
                None => match self.trash(agent, holding) {
                    Ok(one) => trashed.extend(one),
                    Err(e) => self.problem(&e),
                },
            }
        }
        if trashed.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(e) = sync_moves(agent) {
            // Unless the move lasts, deleting could leave half a version: everything goes back.
            for one in trashed {
                self.put_back(agent, &one);
            }
            return Err(e);
        }
        let trashed = self.spare_what_is_used(agent, trashed)?;
        Ok(trashed.iter().map(|one| self.delete(agent, one)).collect())
    }

    /// Moves a version out of sight; `None` where somebody holds it.
    fn trash<'h>(
        &mut self,
        agent: &AgentDir,
        holding: &'h Holding,
    ) -> Result<Option<Trashed<'h>>, StoreError> {
        let version = &holding.version;
        let path = agent.version_path(version, Place::Versions);
        let failed = |e| StoreError::io("retire", &path, e);
        let Some(alone) = open_alone(agent, version)? else {
            self.spared.push((version.clone(), "leased".to_owned()));
            return Ok(None);
        };
        let bin = match durable::make_dir(agent.handle(), TRASH_DIR) {
            Ok(_) => TRASH_DIR,
            Err(e) if is_full(&e) => VERSIONS_DIR,
            Err(e) => return Err(failed(e)),
        };
        let trash = dir::open(agent.handle(), bin).map_err(failed)?;
        let Some(versions) = agent.versions()? else { return Ok(None) };
        let name = match bin {
            TRASH_DIR => free_name(&trash, version).map_err(failed)?,
            // Whoever comes after a crash takes it for a dead writer's staging, and removes it.
            _ => version.staging_name(),
        };
        let pointer = PointerName::Version(version.clone());
        let mut record = self.options.record(Action::Retire, pointer, Some(version.clone()), None);
        record.bytes = Some(self.stock.take(&holding.blocks));
        let recorded = match history::append(agent, &record) {
            Ok(()) => true,
            // A full disk is what this is to mend: it is written down when there is room.
            Err(StoreError::Io { source, .. }) if is_full(&source) => false,
            Err(e) => return Err(e),
        };
        if let Err(e) = durable::rename_new_across(versions.as_fd(), version.as_str(), trash.as_fd(), &name) {
            // The next writer would do the same.
            let _ = history::repair(agent);
            return Err(failed(e));
        }
        Ok(Some(Trashed { holding, record, bin, name, recorded, _alone: alone }))
    }

    /// Looks once more who uses what is in the trash now. Whoever came between the plan and the rename gets it
    /// back; whoever comes later does not find it.
    fn spare_what_is_used<'h>(
        &mut self,
        agent: &AgentDir,
        trashed: Vec<Trashed<'h>>,
    ) -> Result<Vec<Trashed<'h>>, StoreError> {
        let wanted: HashSet<FileId> =
            trashed.iter().flat_map(|one| holdings::files(&one.holding.blocks)).collect();
        let uses = match processes::scan(&wanted) {
            Ok(uses) => uses,
            Err(e) => {
                for one in &trashed {
                    self.put_back(agent, one);
                }
                return Err(processes::failed(e));
            }
        };
        // The directories of the versions are open here, only for this.
        let own = std::process::id();
        let mut free = Vec::new();
        for one in trashed {
            let is_ours = |file, user: &User| {
                user.pid == own && user.open && one.holding.blocks.others.first() == Some(&file)
            };
            match in_use(one.holding, &uses, |file, user| !is_ours(file, user)) {
                None => free.push(one),
                Some(user) => {
                    if self.put_back(agent, &one) {
                        self.spared.push((one.holding.version.clone(), user));
                    }
                }
            }
        }
        Ok(free)
    }

    /// Gives a version its name again.
    fn put_back(&mut self, agent: &AgentDir, one: &Trashed<'_>) -> bool {
        let back = || -> Result<(), StoreError> {
            let version = &one.holding.version;
            let path = agent.path().join(one.bin).join(&one.name);
            let failed = |e| StoreError::io("put back", &path, e);
            let Some(versions) = agent.versions()? else { return Ok(()) };
            let trash = dir::open(agent.handle(), one.bin).map_err(failed)?;
            durable::rename_new_across(trash.as_fd(), &one.name, versions.as_fd(), version.as_str())
                .map_err(failed)?;
            sync_moves(agent)?;
            if one.recorded {
                let options = MoveOptions {
                    reason: Some("came into use while it was being retired".to_owned()),
                    ..self.options.clone()
                };
                let pointer = PointerName::Version(version.clone());
                let record = options.record(Action::Reconcile, pointer, None, Some(version.clone()));
                history::append(agent, &record)?;
            }
            Ok(())
        };
        back().map_err(|e| self.problem(&e)).is_ok()
    }

    /// Deletes what is in the trash. What cannot be deleted is gone from the agent all the same, and the next
    /// writer tries again.
    fn delete(&mut self, agent: &AgentDir, one: &Trashed<'_>) -> VersionName {
        let version = one.holding.version.clone();
        let path = agent.path().join(one.bin).join(&one.name);
        let deleted = dir::open(agent.handle(), one.bin)
            .and_then(|trash| durable::remove_tree(trash.as_fd(), &c_name(&one.name)))
            .map_err(|e| StoreError::io("delete", &path, e));
        let rest = [
            deleted,
            notes::remove(agent, VERIFIED_DIR, &version),
            notes::remove(agent, QUARANTINE_DIR, &version),
            notes::remove(agent, SIGNATURES_DIR, &version),
            if one.recorded { Ok(()) } else { history::append(agent, &one.record) },
        ];
        rest.into_iter().filter_map(Result::err).for_each(|e| self.problem(&e));
        version
    }

    fn problem(&mut self, error: &StoreError) {
        self.problems.push(with_causes(error));
    }
}

/// A name that nothing in the trash has: an earlier version of this name may still lie there, undeletable.
fn free_name(trash: &OwnedFd, version: &VersionName) -> io::Result<String> {
    let mut name = version.to_string();
    let mut number = 1;
    while dir::exists(trash.as_fd(), &name)? {
        number += 1;
        name = format!("{version}.{number}");
    }
    Ok(name)
}

/// Makes renames between `versions/` and `.trash/` last.
fn sync_moves(agent: &AgentDir) -> Result<(), StoreError> {
    let failed = |name: &str, e| StoreError::io("sync", &agent.path().join(name), e);
    if let Some(versions) = agent.versions()? {
        durable::sync_link(versions.as_fd()).map_err(|e| failed(VERSIONS_DIR, e))?;
    }
    // Where there is none, nothing was moved into it.
    dir::open_if_there(agent.handle(), TRASH_DIR)
        .and_then(|trash| trash.map_or(Ok(()), |trash| durable::sync_link(trash.as_fd())))
        .and_then(|()| durable::sync(agent.handle()))
        .map_err(|e| failed(TRASH_DIR, e))
}
