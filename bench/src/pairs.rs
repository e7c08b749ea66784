//! Measuring two things in turn.

use std::time::Instant;

use serde_json::{Value, json};

use crate::rows::Row;

/// How often each side runs; odd, so that the median is one of the runs.
pub(crate) const ROUNDS: usize = 3;

/// What both sides took, run by run.
#[derive(Default)]
pub(crate) struct Measured {
    /// Seconds.
    pub(crate) ours_s: Vec<f64>,
    pub(crate) peer_s: Vec<f64>,
    /// The most memory that each process had, in bytes; empty where that is not what a row is about.
    pub(crate) ours_bytes: Vec<f64>,
    pub(crate) peer_bytes: Vec<f64>,
}

impl Measured {
    /// Runs both in turn. Each gives the seconds it took, so that what is not to be measured is left out.
    pub(crate) fn in_turn(
        mut ours: impl FnMut(usize) -> anyhow::Result<f64>,
        mut peer: impl FnMut(usize) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Self> {
        let mut measured = Self::default();
        for round in 0..ROUNDS {
            // Who begins changes: neither always finds the disk as the other left it.
            if round % 2 == 0 {
                measured.ours_s.push(ours(round)?);
                measured.peer_s.push(peer(round)?);
            } else {
                measured.peer_s.push(peer(round)?);
                measured.ours_s.push(ours(round)?);
            }
        }
        Ok(measured)
    }

    /// How many times as fast ours is.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.peer_s) / median(&self.ours_s)
    }

    pub(crate) fn line(&self, row: &Row) -> String {
        let (ours, peer) = (shown(median(&self.ours_s)), shown(median(&self.peer_s)));
        let memory = self.memory().map(|(ours, peer)| {
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            format!(" memory: ours={:.0}MiB peer={:.0}MiB ratio={:.1}", mib(ours), mib(peer), peer / ours)
        });
        let memory = memory.unwrap_or_default();
        format!("{} ours={ours} peer={peer} ratio={:.2}{memory}", row.name, self.ratio())
    }

    /// The medians of what both had in memory, where it was measured.
    fn memory(&self) -> Option<(f64, f64)> {
        (!self.ours_bytes.is_empty()).then(|| (median(&self.ours_bytes), median(&self.peer_bytes)))
    }

    pub(crate) fn json(&self, row: &Row, host: &str) -> Value {
        json!({
            "row": row.name,
            "work": row.work,
            "peer": row.peer,
            "ours_s": self.ours_s,
            "peer_s": self.peer_s,
            "ours_median_s": median(&self.ours_s),
            "peer_median_s": median(&self.peer_s),
            "ratio": self.ratio(),
            "ours_bytes": self.ours_bytes,
            "peer_bytes": self.peer_bytes,
            "at_least": row.at_least,
            "host": host,
        })
    }
}

/// The seconds that something takes.
pub(crate) fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds, milliseconds or microseconds.
pub(crate) fn shown(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2}s"),
        s if s >= 1e-3 => format!("{:.2}ms", s * 1e3),
        s => format!("{:.2}us", s * 1e6),
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
