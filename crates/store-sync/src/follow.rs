//! Keeping in step with the fleet: one look at a time, so that whoever asks decides when.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model_store::{AgentName, ModelStore};

use crate::error::SyncError;
use crate::pointer::is_expired;
use crate::pull::{PullOptions, Pulled};
use crate::remote::{Remote, unique};
use crate::seen::Seen;

/// A note is written anew after so long even where nothing happened, so that it says when the remote answered
/// last.
const NOTED_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// Failures make the pause longer up to so many doublings.
const MOST_DOUBLINGS: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// What a look at an agent came to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// The fleet has no version of it yet.
    Nothing,
    /// This host has done already what the pointer says.
    InStep {
        /// The pointer's serial.
        serial: u64,
    },
    /// A new pointer was followed.
    Followed(Box<Pulled>),
}

impl Remote {
    /// Looks once where the fleet is with an agent, and goes there: pulls what is missing and activates it, or
    /// only pulls it where [`stage_only`](PullOptions::stage_only) says so.
    ///
    /// Only a new serial moves anything: what an operator activates here by hand stays until the fleet moves
    /// again. Whatever fails is remembered with the agent, and `current` stays where it is.
    pub fn sync_agent(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        options: &PullOptions,
    ) -> Result<Step, SyncError> {
        let before = self.seen(store, agent)?;
        let mut seen = before.clone();
        let step = self.step(store, agent, options, &mut seen);
        match &step {
            Ok(_) => {
                seen.contact = Some(Timestamp::now());
                seen.trouble = None;
            }
            Err(SyncError::Stopped) => {}
            Err(e) => {
                seen.failures += 1;
                seen.trouble = Some(model_store::with_causes(e));
                tracing::warn!(%agent, remote = %self.address(), failures = seen.failures, error = %e, "not in step");
            }
        }
        if is_worth_noting(&before, &seen) {
            match self.remember(store, agent, &seen) {
                // What went wrong before says more.
                Err(e) if step.is_ok() => return Err(e),
                _ => {}
            }
        }
        step
    }

    fn step(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        options: &PullOptions,
        seen: &mut Seen,
    ) -> Result<Step, SyncError> {
        let Some(pointer) = self.pointer(agent)? else {
            if seen.serial == 0 {
                return Ok(Step::Nothing);
            }
            let what = format!("pointer of {agent} any more; this host has seen serial {}", seen.serial);
            return Err(self.not_found(what));
        };
        self.ensure_new(seen, &pointer)?;
        seen.note(&pointer);
        if is_expired(&pointer) {
            return Err(SyncError::Expired {
                agent: agent.clone(),
                remote: self.address().to_string(),
                expired: pointer.expires.unwrap_or(pointer.time),
            });
        }
        if seen.applied_serial == pointer.serial {
            return Ok(Step::InStep { serial: pointer.serial });
        }
        let pulled = self.bring(store, agent, &pointer.version, Some(&pointer), options)?;
        seen.apply(&pointer);
        seen.received_bytes += pulled.received_bytes;
        Ok(Step::Followed(Box::new(pulled)))
    }
}

fn is_worth_noting(before: &Seen, now: &Seen) -> bool {
    let without_contact = |seen: &Seen| Seen { contact: None, ..seen.clone() };
    if without_contact(before) != without_contact(now) {
        return true;
    }
    match (before.contact, now.contact) {
        (Some(before), Some(now)) => now.duration_since(before) >= NOTED_EVERY,
        (before, now) => before != now,
    }
}

/// How long to wait until the next look: `every`, twice as long after each failure, and a fifth more or less by
/// chance, so that a fleet does not ask all at once.
#[must_use]
pub fn pause_between(every: Duration, failures: u32) -> Duration {
    let doubled = every.saturating_mul(1 << failures.min(MOST_DOUBLINGS));
    let pause = doubled.min(LONGEST_PAUSE.max(every));
    let chance = u32::from_str_radix(&unique()[..4], 16).unwrap_or_default();
    // Between 0.8 and 1.2.
    let factor = 0.8 + 0.4 * f64::from(chance) / f64::from(0xffff_u32);
    pause.mul_f64(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_scatter() {
        let second = Duration::from_secs(1);
        let rows = [
            (30, 0, 24.0, 36.0),
            (30, 1, 48.0, 72.0),
            (30, 9, 480.0, 720.0),
            (3600, 0, 2880.0, 4320.0),
            (3600, 3, 2880.0, 4320.0),
        ];
        for (every, failures, least, most) in rows {
            let pauses: Vec<_> =
                (0..50).map(|_| pause_between(second * every, failures).as_secs_f64()).collect();
            assert!(
                pauses.iter().all(|pause| (least..=most).contains(pause)),
                "{every} {failures}: {pauses:?}"
            );
            assert!(
                pauses.iter().any(|pause| (pause - pauses[0]).abs() > 1e-6),
                "{every} {failures}: {pauses:?}"
            );
        }
    }
}
