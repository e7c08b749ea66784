//! How fast an engine is, and how fast ONNX Runtime runs the same graph on this host's CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use engine_runtime::Engine;
use model_loader::TokenBatch;
use serde::Serialize;

use crate::engine_gate::{Model, Sizes};
use crate::error::CompileError;
use crate::interrupt::Interrupt;
use crate::runtimes::Runtimes;
use crate::session::OnnxRuntime;
use crate::texts;

/// Runs before the clock starts: kernels are compiled, graphs recorded, clocks up.
const WARM_UP: usize = 10;
/// A size is run at least so often, and for at least [`LEAST_TIME`].
const LEAST_RUNS: usize = 50;
/// See [`LEAST_RUNS`].
const LEAST_TIME: Duration = Duration::from_secs(2);
/// The CPU is slower: it gets so many runs, however long they take.
const CPU_RUNS: usize = 5;

/// Milliseconds of a run, and texts in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Runs that were timed.
    pub runs: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// Nine in ten took no longer.
    pub p90_ms: f64,
    /// Ninety-nine in a hundred took no longer.
    pub p99_ms: f64,
    /// Texts in a second, over all runs.
    pub texts_per_second: f64,
}

/// One size, measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// Texts in a batch.
    pub batch: usize,
    /// Tokens in a text, all of them real: none is padding.
    pub sequence: usize,
    /// The engine, from tokens in host memory to fp32 values there.
    pub engine: Timing,
    /// The first run of this size, in milliseconds: what compiling kernels for it costs.
    pub first_ms: f64,
    /// ONNX Runtime on this host's CPU, if it was asked for and is there.
    pub onnxruntime_cpu: Option<Timing>,
}

/// The sizes to measure where none are named: one text and the most of each profile, at lengths of 16, 128 and the longest
/// that it takes.
#[must_use]
pub fn bench_sizes(engine: &Engine) -> Vec<(usize, usize)> {
    sizes_of(&Sizes::of(&engine.record().profiles()))
}

fn sizes_of(profiles: &[Sizes]) -> Vec<(usize, usize)> {
    let mut sizes = Vec::new();
    for profile in profiles {
        let (fewest, most) = profile.rows;
        let (shortest, longest) = profile.tokens;
        for rows in [fewest, most.min(8).max(fewest), most] {
            for seq in [16, 128, longest] {
                sizes.push((rows, seq.clamp(shortest, longest)));
            }
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Measures an engine at each of the sizes `(texts, tokens)`; `folder` is the model's, with its `model.onnx`.
///
/// ONNX Runtime runs the graph that the engine was built from, in the precision of the engine, on the CPU. `cpu` says
/// where it is; without, it is left out.
pub fn bench_engine(
    engine: &Engine,
    folder: &Path,
    sizes: &[(usize, usize)],
    cpu: Option<&Runtimes>,
    interrupt: &Interrupt,
) -> Result<Vec<BenchRow>, CompileError> {
    let model = Model::open(engine, folder)?;
    let mut session =
        cpu.map(|runtimes| OnnxRuntime::open(runtimes)?.load_file(&folder.join("model.onnx"))).transpose()?;
    let output = engine.record().outputs.first().map(|output| output.name.clone()).unwrap_or_default();
    let texts = texts::built_in();
    let measure = |&(batch, sequence): &(usize, usize)| {
        let tokens: TokenBatch = model.filled(&texts, batch, sequence)?;
        let mut run = || model.run(&tokens).map(drop);
        let first = timed(&mut run)?;
        for _ in 1..WARM_UP {
            interrupt.check()?;
            run()?;
        }
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < LEAST_RUNS || start.elapsed() < LEAST_TIME {
            interrupt.check()?;
            times.push(timed(&mut run)?);
        }
        let onnxruntime_cpu = match &mut session {
            None => None,
            Some(session) => {
                let mut run = || session.run(&tokens, &output).map(drop).map_err(CompileError::from);
                run()?;
                let mut times = Vec::new();
                for _ in 0..CPU_RUNS {
                    interrupt.check()?;
                    times.push(timed(&mut run)?);
                }
                Some(timing(times, batch))
            }
        };
        let (engine, first_ms) = (timing(times, batch), milliseconds(first));
        Ok(BenchRow { batch, sequence, engine, first_ms, onnxruntime_cpu })
    };
    sizes.iter().map(measure).collect()
}

fn timed(run: &mut impl FnMut() -> Result<(), CompileError>) -> Result<Duration, CompileError> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn timing(mut times: Vec<Duration>, batch: usize) -> Timing {
    times.sort_unstable();
    let total: Duration = times.iter().sum();
    // The smallest time that so many in a hundred are not above.
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).max(1) - 1;
        times.get(place).copied().map_or(0.0, milliseconds)
    };
    Timing {
        runs: times.len(),
        p50_ms: at(50),
        p90_ms: at(90),
        p99_ms: at(99),
        texts_per_second: (times.len() * batch) as f64 / total.as_secs_f64().max(f64::MIN_POSITIVE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let check = |count: u64, expected: [f64; 3]| {
            let times = (1..=count).rev().map(Duration::from_millis).collect();
            let found = timing(times, 2);
            let percentiles = [found.p50_ms, found.p90_ms, found.p99_ms];
            let near =
                percentiles.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9);
            assert!(near, "{count}: {percentiles:?}");
            let seconds = (count * (count + 1) / 2) as f64 / 1e3;
            assert!((found.texts_per_second - (2 * count) as f64 / seconds).abs() < 1e-6, "{count}");
        };
        check(1, [1.0, 1.0, 1.0]);
        check(2, [1.0, 2.0, 2.0]);
        check(100, [50.0, 90.0, 99.0]);
        check(1000, [500.0, 900.0, 990.0]);
    }

    #[test]
    fn the_sizes_measured_are_within_the_profiles() {
        let profile = |rows, tokens| Sizes { rows, tokens };
        let check = |profiles: &[Sizes], expected: &[(usize, usize)]| {
            assert_eq!(sizes_of(profiles), expected, "{profiles:?}");
        };
        let default = profile((1, 64), (1, 512));
        check(
            &[default],
            &[(1, 16), (1, 128), (1, 512), (8, 16), (8, 128), (8, 512), (64, 16), (64, 128), (64, 512)],
        );
        check(&[profile((4, 4), (32, 32))], &[(4, 32)]);
        check(&[profile((1, 1), (1, 64)), profile((1, 1), (1, 64))], &[(1, 16), (1, 64)]);
    }
}
