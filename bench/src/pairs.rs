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
    /// What the bytes below are of; empty where a row is about time alone.
    pub(crate) bytes_of: &'static str,
    /// The most memory that each process had, or what each moved over the network, run by run.
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
        let bytes = self.bytes().map(|(ours, peer)| {
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            let (what, ratio) = (self.bytes_of, peer / ours);
            format!(" {what}: ours={:.0}MiB peer={:.0}MiB ratio={ratio:.1}", mib(ours), mib(peer))
        });
        let bytes = bytes.unwrap_or_default();
        format!("{} ours={ours} peer={peer} ratio={:.2}{bytes}", row.name, self.ratio())
    }

    /// The medians of both sides' bytes, where they were measured.
    fn bytes(&self) -> Option<(f64, f64)> {
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
            "bytes_of": self.bytes_of,
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
