//! Which versions may go: a pure function of what there is.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::human::human_size;
use crate::names::{AgentName, VersionName};
use crate::processes::FileId;
use crate::usage::Blocks;

/// What retention keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many of an agent's newest sound versions stay; 3 unless set.
    pub keep: usize,
    /// Only what was published longer ago may go.
    pub older_than: Option<Duration>,
    /// Go on, from the oldest, until the agents' versions take no more than this; then stop.
    pub max_bytes: Option<u64>,
    /// What was published, or stopped being current, less than this ago stays; 15 minutes unless set.
    pub grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { keep: 3, older_than: None, max_bytes: None, grace: Duration::from_mins(15) }
    }
}

/// Whether a version stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// It stays.
    Keep {
        /// Everything that keeps it; never empty.
        reasons: Vec<String>,
    },
    /// It goes.
    Retire {
        /// Why it may.
        reason: String,
    },
}

/// What retention says of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// When it was published, by the history, the manifest or the file system, in this order.
    pub published_at: Timestamp,
    /// The bytes of its payload.
    pub bytes: u64,
    /// What only this version holds. Two versions that share a file free it together.
    pub bytes_alone: u64,
    /// Whether it stays, and why.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What a collection would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Every version of the agents asked for, by agent, the oldest first.
    pub decisions: Vec<Decision>,
    /// The bytes of all their payloads, each file once.
    pub bytes: u64,
    /// What would be free afterwards.
    pub bytes_to_free: u64,
    /// What the reader should know: a goal that cannot be reached, processes that could not be looked into.
    pub notes: Vec<String>,
}

impl Plan {
    /// The versions that would go.
    pub fn to_retire(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| matches!(decision.verdict, Verdict::Retire { .. }))
    }
}

/// A version and everything that decides about it.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) agent: AgentName,
    pub(crate) version: VersionName,
    pub(crate) published_at: Timestamp,
    /// When it was current last; `None` where it is, or never was.
    pub(crate) left_current_at: Option<Timestamp>,
    /// The pointers at it, and what else there is that no policy overrules.
    pub(crate) held_by: Vec<String>,
    /// When its directory got its name, by the file system.
    pub(crate) changed_at: Timestamp,
    /// Whether it is known to be a version and not known to be damaged.
    pub(crate) sound: bool,
    pub(crate) blocks: Blocks,
}

/// Decides about versions; they come by agent, the oldest first.
pub(crate) fn decide(holdings: &[Holding], policy: &Policy, now: Timestamp) -> Plan {
    let mut decisions: Vec<Decision> = holdings
        .iter()
        .enumerate()
        .map(|(index, holding)| Decision {
            agent: holding.agent.clone(),
            version: holding.version.clone(),
            published_at: holding.published_at,
            bytes: holding.blocks.bytes(),
            bytes_alone: holding.blocks.bytes_alone(),
            verdict: verdict(holding, newer_sound_versions(holdings, index), policy, now),
        })
        .collect();
    let mut stock = Stock::of(holdings);
    let bytes = stock.bytes;
    let mut notes = Vec::new();
    match policy.max_bytes {
        None => {
            for (decision, holding) in decisions.iter().zip(holdings) {
                if matches!(decision.verdict, Verdict::Retire { .. }) {
                    stock.take(&holding.blocks);
                }
            }
        }
        Some(goal) => {
            stop_at_the_goal(&mut decisions, holdings, &mut stock, goal);
            if stock.bytes > goal {
                notes.push(format!(
                    "{} would be left, more than the {} asked for: everything else is kept for a reason",
                    human_size(stock.bytes),
                    human_size(goal)
                ));
            }
        }
    }
    Plan { decisions, bytes, bytes_to_free: bytes - stock.bytes, notes }
}

/// What may go goes from the oldest on, until the goal is reached; the rest stays.
fn stop_at_the_goal(decisions: &mut [Decision], holdings: &[Holding], stock: &mut Stock, goal: u64) {
    let mut candidates: Vec<usize> = (0..decisions.len())
        .filter(|&index| matches!(decisions[index].verdict, Verdict::Retire { .. }))
        .collect();
    candidates.sort_by_key(|&index| (decisions[index].published_at, index));
    for index in candidates {
        if stock.bytes > goal {
            stock.take(&holdings[index].blocks);
        } else {
            let reasons = vec![format!("the goal of {} is reached", human_size(goal))];
            decisions[index].verdict = Verdict::Keep { reasons };
        }
    }
}

/// How many sound versions of the same agent are newer. A damaged one does not push a sound one out.
fn newer_sound_versions(holdings: &[Holding], index: usize) -> usize {
    let same_agent = |holding: &&Holding| holding.agent == holdings[index].agent;
    holdings[index + 1..].iter().take_while(same_agent).filter(|holding| holding.sound).count()
}

fn verdict(holding: &Holding, newer: usize, policy: &Policy, now: Timestamp) -> Verdict {
    let mut reasons = holding.held_by.clone();
    if newer < policy.keep {
        reasons.push(match policy.keep {
            1 => "the newest".to_owned(),
            keep => format!("one of the newest {keep}"),
        });
    }
    if let Some(at) = holding.left_current_at.filter(|at| is_within(policy.grace, *at, now)) {
        reasons.push(format!("was current {} ago", span(at, now)));
    }
    if is_within(policy.grace, holding.published_at, now) {
        reasons.push(format!("published {} ago", span(holding.published_at, now)));
    } else if is_within(policy.grace, holding.changed_at, now) {
        // Restored, or dated by a clock that was wrong.
        reasons.push(format!("came to its place {} ago", span(holding.changed_at, now)));
    }
    if let Some(age) = policy.older_than.filter(|age| is_within(*age, holding.published_at, now)) {
        reasons.push(format!("younger than {}", in_words(age)));
    }
    if !reasons.is_empty() {
        return Verdict::Keep { reasons };
    }
    let damaged = if holding.sound { "" } else { ", and it is known to be damaged" };
    let age = span(holding.published_at, now);
    Verdict::Retire { reason: format!("published {age} ago, {newer} newer, nothing points at it{damaged}") }
}

/// Whether something happened less than a time ago. What lies in the future, by a clock that was set back,
/// did.
fn is_within(time: Duration, at: Timestamp, now: Timestamp) -> bool {
    let elapsed = now.duration_since(at);
    elapsed.is_negative() || elapsed.unsigned_abs() < time
}

fn span(from: Timestamp, to: Timestamp) -> String {
    in_words(Duration::try_from(to.duration_since(from)).unwrap_or_default())
}

/// A time in its largest unit.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// What is on disk of some versions, while one after the other is taken out. An inode is gone when its last
/// name is, and some of them may be in versions that are not looked at, or outside the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stock {
    names_taken: HashMap<FileId, u64>,
    pub(crate) bytes: u64,
}

impl Stock {
    pub(crate) fn of(holdings: &[Holding]) -> Self {
        let mut stock = Self::default();
        for (id, inode) in holdings.iter().flat_map(|holding| &holding.blocks.inodes) {
            if stock.names_taken.insert(*id, 0).is_none() {
                stock.bytes = stock.bytes.saturating_add(inode.bytes);
            }
        }
        stock
    }

    /// Takes a version out and gives the bytes that this frees.
    pub(crate) fn take(&mut self, blocks: &Blocks) -> u64 {
        let before = self.bytes;
        for (id, inode) in &blocks.inodes {
            if let Some(taken) = self.names_taken.get_mut(id) {
                let was_there = *taken < inode.names;
                *taken += inode.here;
                if was_there && *taken >= inode.names {
                    self.bytes = self.bytes.saturating_sub(inode.bytes);
                }
            }
        }
        before - self.bytes
    }
}

/// What the store lost with some of the versions of a plan.
pub(crate) fn bytes_freed(holdings: &[Holding], retired: impl Fn(&Holding) -> bool) -> u64 {
    let mut stock = Stock::of(holdings);
    holdings.iter().filter(|holding| retired(holding)).map(|holding| stock.take(&holding.blocks)).sum()
}
