//! `build-engine bench`: how near to the reference and how fast the engines of a version are, on this host's GPU.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use model_store::{AgentName, VersionName};

use crate::cli::EngineArgs;
use crate::failure::Failure;

/// What is measured, and how.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Whose engines [default: every agent's]
    #[arg(long, value_name = "AGENT")]
    agent: Option<AgentName>,
    /// Which version of the agent [default: the current one]
    #[arg(long, value_name = "VERSION", requires = "agent")]
    version: Option<VersionName>,
    /// Texts in a batch (may be repeated, or a list) [default: one, eight and the most of each profile]
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "seq", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Tokens in a text (may be repeated, or a list) [default: 16, 128 and the most of each profile]
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "batch", value_parser = clap::value_parser!(u32).range(1..))]
    seq: Vec<u32>,
    /// The GPU's number
    #[arg(long, value_name = "N", default_value = "0")]
    device: usize,
    /// Record the GPU's work on a shape and replay it
    #[arg(long, value_name = "HOW", default_value = "off")]
    cuda_graphs: Graphs,
    /// Where TensorRT-RTX keeps the kernels that it compiles; `none` compiles them anew [default: `XDG_CACHE_HOME`]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Leave out ONNX Runtime on the CPU
    #[arg(long)]
    no_cpu: bool,
    /// The model store [default: `MODEL_STORE_ROOT`, else /opt/justnews/models]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whether the GPU's work is recorded.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Graphs {
    /// No
    Off,
    /// The second batch of a shape is, and later ones replay it
    Recorded,
    /// TensorRT-RTX does it by itself
    BuiltIn,
}

impl BenchArgs {
    /// The sizes asked for: every batch with every length.
    fn sizes(&self) -> Vec<(usize, usize)> {
        let pairs = self.batch.iter().flat_map(|batch| self.seq.iter().map(move |seq| (*batch, *seq)));
        pairs.map(|(batch, seq)| (batch as usize, seq as usize)).collect()
    }

    fn engines(&self) -> EngineArgs {
        let (agent, version, store) = (self.agent.clone(), self.version.clone(), self.store.clone());
        EngineArgs { agent, version, store, json: self.json }
    }
}

#[cfg(not(feature = "tensorrt"))]
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    let _ = (args.sizes(), args.engines(), args.device, args.cuda_graphs, &args.cache, args.no_cpu);
    Err(Failure::new(model_store::exit::ENVIRONMENT, trt_compiler::runtime::RuntimeError::NotBuilt))
}

#[cfg(feature = "tensorrt")]
pub(crate) use measured::run;

#[cfg(feature = "tensorrt")]
mod measured {
    use std::io::Write;

    use comfy_table::presets::NOTHING;
    use comfy_table::{CellAlignment, Table};
    use model_store::{Current, exit};
    use serde::Serialize;
    use trt_compiler::gate::Verdict;
    use trt_compiler::runtime::{Caching, CudaGraphs, Engine, RuntimeError, RuntimeOptions};
    use trt_compiler::{
        BenchRow, Interrupt, Runtimes, ThresholdWishes, bench_engine, bench_sizes, engines_of, judge_engine,
        texts,
    };

    use super::{BenchArgs, ExitCode, Failure, Graphs};
    use crate::preflight::chosen;
    use crate::show::{BAD, GOOD, QUIET};

    /// An engine, as `--json` prints it.
    #[derive(Debug, Serialize)]
    struct Benched {
        agent: String,
        version: String,
        plan: String,
        gpu: String,
        tensorrt: String,
        precision: String,
        cuda_graphs: String,
        verdict: Verdict,
        rows: Vec<BenchRow>,
    }

    pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
        let interrupt = crate::build::listen()?;
        let versions = chosen(&args.engines())?;
        let mut benched = Vec::new();
        let mut refused: Vec<(String, RuntimeError)> = Vec::new();
        for version in &versions {
            for found in engines_of(version) {
                let plan = format!("{}/{}/{}", version.agent(), version.version(), found.plan);
                let folder = version.path().join(found.plan.as_path());
                let folder = folder.parent().map(std::path::Path::to_owned).unwrap_or_default();
                // What a host lacks is said before a plan of gigabytes is read.
                let opened = trt_compiler::runtime::EngineRecord::of_folder(&folder)
                    .and_then(|record| trt_compiler::runtime::fit(&record, None, args.device))
                    .and_then(|_| Engine::open(&folder, &options(args, version)));
                match opened {
                    Ok(engine) => benched.push(bench(args, version, plan, &engine, &interrupt)?),
                    Err(error) => refused.push((plan, error)),
                }
            }
        }
        if benched.is_empty() {
            return Err(nothing(refused));
        }
        let text = if args.json {
            serde_json::to_string_pretty(&benched).map_err(|error| Failure::new(exit::FAILURE, error))?
        } else {
            let not = refused.iter().map(|(plan, error)| format!("{BAD}not run{BAD:#}  {plan}: {error}"));
            benched.iter().map(shown).chain(not).collect::<Vec<_>>().join("\n\n")
        };
        writeln!(anstream::stdout(), "{text}").map_err(Failure::output)?;
        let passed = benched.iter().all(|it| it.verdict.passed());
        Ok(ExitCode::from(if passed { exit::OK } else { exit::REFUSED }))
    }

    fn options(args: &BenchArgs, version: &Current) -> RuntimeOptions {
        let cuda_graphs = match args.cuda_graphs {
            Graphs::Off => CudaGraphs::Off,
            Graphs::Recorded => CudaGraphs::Recorded,
            Graphs::BuiltIn => CudaGraphs::BuiltIn,
        };
        let caching = match &args.cache {
            None => Caching::Default,
            Some(path) if path.as_os_str() == "none" => Caching::Off,
            Some(path) => Caching::Folder(path.clone()),
        };
        RuntimeOptions {
            device: args.device,
            cuda_graphs,
            caching,
            version: Some(version.path().to_owned()),
            ..RuntimeOptions::default()
        }
    }

    fn bench(
        args: &BenchArgs,
        version: &Current,
        plan: String,
        engine: &Engine,
        interrupt: &Interrupt,
    ) -> Result<Benched, Failure> {
        let folder = version.path();
        let verdict =
            judge_engine(engine, folder, &texts::built_in(), ThresholdWishes::default(), interrupt)?;
        let mut sizes = args.sizes();
        if sizes.is_empty() {
            sizes = bench_sizes(engine);
        }
        let runtimes = Runtimes::from_env();
        let rows = bench_engine(engine, folder, &sizes, Some(&runtimes).filter(|_| !args.no_cpu), interrupt)?;
        Ok(Benched {
            agent: version.agent().to_string(),
            version: version.version().to_string(),
            plan,
            gpu: engine.fit().gpu.name.clone(),
            tensorrt: engine.fit().version.clone(),
            precision: engine.record().precision.clone(),
            cuda_graphs: format!("{:?}", args.cuda_graphs).to_lowercase(),
            verdict,
            rows,
        })
    }

    /// Why nothing was measured; numbers that were not measured are not shown.
    fn nothing(refused: Vec<(String, RuntimeError)>) -> Failure {
        let Some((plan, error)) = refused.into_iter().next() else {
            let nothing = "there is no engine to measure; `build-engine --agent AGENT` builds one".to_owned();
            return Failure::message(exit::NOT_FOUND, nothing);
        };
        Failure::new(error.exit_code(), error)
            .context(format!("nothing was measured: {plan} does not run here"))
    }

    fn shown(it: &Benched) -> String {
        let measured = &it.verdict.comparison;
        let gate = if it.verdict.passed() {
            format!("{GOOD}passed{GOOD:#}")
        } else {
            format!("{BAD}failed{BAD:#}: {}", it.verdict.failures.join("; "))
        };
        let mut lines = vec![
            it.plan.clone(),
            format!(
                "  on {}, TensorRT {}, {}, CUDA graphs {}",
                it.gpu, it.tensorrt, it.precision, it.cuda_graphs
            ),
            format!(
                "  gate on the engine itself: {}  max abs {:.1e} (≤ {:.0e})  cosine {:.6}  {gate}",
                measured.output,
                measured.max_abs,
                it.verdict.allowed_abs(),
                measured.cosine_min
            ),
        ];
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header([
            "batch",
            "seq",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "texts/s",
            "first ms",
            "CPU p50 ms",
            "CPU texts/s",
        ]);
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &it.rows {
            let engine = &row.engine;
            let cpu = row.onnxruntime_cpu.as_ref();
            table.add_row([
                row.batch.to_string(),
                row.sequence.to_string(),
                format!("{:.3}", engine.p50_ms),
                format!("{:.3}", engine.p90_ms),
                format!("{:.3}", engine.p99_ms),
                format!("{:.0}", engine.texts_per_second),
                format!("{:.1}", row.first_ms),
                cpu.map_or("–".to_owned(), |cpu| format!("{:.1}", cpu.p50_ms)),
                cpu.map_or("–".to_owned(), |cpu| format!("{:.0}", cpu.texts_per_second)),
            ]);
        }
        lines.push(table.to_string());
        lines
            .push(format!("  {QUIET}CPU: ONNX Runtime on the same graph, on this host's processor{QUIET:#}"));
        lines.join("\n")
    }
}
