//! The command line.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use model_store::{AgentName, VersionName};
use onnx_export::{Pattern, Precision};
use trt_compiler::engine::{EngineOptions, PlanTrait};
use trt_compiler::{Method, Profile, Target};

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  build-engine --agent analyst --precision fp16
      rebuild what the agent runs now, in fp16
  build-engine --agent memory --source ./all-MiniLM-L6-v2 --precision fp16
      from a folder with config.json, tokenizer.json and *.safetensors
  build-engine --agent analyst --model-id org/name --revision main --output-version v2025-10-28
      from the Hugging Face Hub; HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured
  build-engine --agent memory --profile 1,8,64x1,128,256 --target 89,120 --dry-run
      say what would be done
  build-engine --agent memory --precision int8 --calib-data news.jsonl
      in 8 bits, with ranges from texts like those it will read
  build-engine --agent memory --from-onnx ./exported/model.onnx --reference ./all-MiniLM-L6-v2
      a graph that another tool exported, as it is, held against the model in safetensors
  build-engine --all --precision fp16 --dry-run
      which agents' engines are not what they should be, and why
  build-engine doctor
      say what this host has and what it lacks
  build-engine preflight --agent analyst
      say whether this host runs the agent's engines, and if not why

Exit codes:
  0 published   1 failure   2 usage   3 not found   4 corrupt   5 busy   6 refused (gate, existing version)
  7 environment (a runtime, memory, space or permission is missing)   8 remote (the Hub)   130 stopped

Nothing is published unless every step succeeds; what was current stays current.";

/// Turn a model into a checked TensorRT engine and publish it in the model store
///
/// Exports the model to ONNX without copying its weights, runs the graph on real text beside a reference, compiles it
/// with TensorRT-RTX (no GPU needed), and publishes model, graph, engine and evidence as one version.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) build: BuildArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say which runtimes, GPU and store this host has, and how to get what is missing
    Doctor(DoctorArgs),
    /// Say which engines of a version this host runs, and why it does not run the others
    Preflight(EngineArgs),
    /// Say what the engines of a version are: sizes, layers, precision, graph, and whether their bytes are sound
    Inspect(EngineArgs),
    /// Measure the engines of a version on this host's GPU: how near to the reference, and how fast
    Bench(crate::bench::BenchArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Which published engines are meant.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Whose engines [default: every agent's]
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Option<AgentName>,
    /// Which version of the agent [default: the current one]
    #[arg(long, value_name = "VERSION", requires = "agent")]
    pub(crate) version: Option<VersionName>,
    /// The model store [default: `MODEL_STORE_ROOT`, else /opt/justnews/models]
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The model store [default: `MODEL_STORE_ROOT`, else /opt/justnews/models]
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct BuildArgs {
    /// Whose model it is
    #[arg(long, value_name = "AGENT", required_unless_present = "all")]
    pub(crate) agent: Option<AgentName>,

    /// Build for every agent of the agent map and the store whose engine is not what a build would give today, by source,
    /// precision, library, GPU generations, profile, modules in fp32 and calibration
    #[arg(long, conflicts_with_all = ["agent", "source", "model_id", "output_version"])]
    pub(crate) all: bool,

    /// With --all, build so many at a time, as far as there is memory for them
    #[arg(long, value_name = "N", default_value = "1", requires = "all", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,

    /// What weights and matrix products are computed in: fp32, tf32, fp16, bf16, fp8, int8; w8a16 and w4a16 have weights in 8
    /// and 4 bits, and compute in fp16 [default: fp16; with a graph that comes as ONNX, its own]
    #[arg(long, value_name = "PRECISION")]
    pub(crate) precision: Option<Precision>,

    /// Name of the new version [default: vYYYYMMDD-HHMMSS-PRECISION, in UTC]
    #[arg(long, value_name = "VERSION")]
    pub(crate) output_version: Option<VersionName>,

    /// Take the model from the Hugging Face Hub: ORGANISATION/NAME
    #[arg(long, value_name = "ID", help_heading = "Source", conflicts_with = "source")]
    pub(crate) model_id: Option<String>,

    /// Branch, tag or commit of the model
    #[arg(
        long,
        value_name = "REVISION",
        help_heading = "Source",
        default_value = "main",
        conflicts_with = "source"
    )]
    pub(crate) revision: String,

    /// Take the model from a folder [default: the agent's current version, else its entry in the agent map]
    #[arg(long, value_name = "DIR", help_heading = "Source")]
    pub(crate) source: Option<PathBuf>,

    /// Take a graph that comes as ONNX, as it is; tokenizer and configuration are those of its folder, or of --source
    #[arg(long, value_name = "FILE", help_heading = "Source", conflicts_with_all = ["all", "model_id", "use_repo_onnx"])]
    pub(crate) from_onnx: Option<PathBuf>,

    /// Take the model's own onnx/model.onnx (or model.onnx) as it is, instead of exporting its weights
    #[arg(long, help_heading = "Source", conflicts_with = "all")]
    pub(crate) use_repo_onnx: bool,

    /// The model store [default: `MODEL_STORE_ROOT`, else /opt/justnews/models]
    #[arg(long, value_name = "DIR", help_heading = "Publish")]
    pub(crate) store: Option<PathBuf>,

    /// Publish the version, but leave `current` where it is
    #[arg(long, help_heading = "Publish")]
    pub(crate) no_activate: bool,

    /// Afterwards, retire the agent's older versions: keep the N newest, and what retention never takes away
    #[arg(long, value_name = "N", help_heading = "Publish")]
    pub(crate) keep: Option<usize>,

    /// Sizes the engine takes: MIN,OPT,MAX sentences x MIN,OPT,MAX tokens, and for a language model x MIN,OPT,MAX tokens in
    /// the cache; may be repeated, for kernels of their own for each
    /// [default: 1,8,64x1,128,512; of a language model 1x1,128,1024x0,512,3072]
    #[arg(long, value_name = "BATCHxSEQ[xPAST]", help_heading = "Engine")]
    pub(crate) profile: Vec<Profile>,

    /// A language model's engine without a cache of keys and values: it computes whole texts, again for every token
    #[arg(long, help_heading = "Engine")]
    pub(crate) no_kv_cache: bool,

    /// GPU generations the engine runs on: 75, 80, 86, 89, 120, 121 [default: 80,86,89,120,121]
    #[arg(long, value_name = "SM,…", value_delimiter = ',', help_heading = "Engine")]
    pub(crate) target: Vec<Target>,

    /// How hard TensorRT looks for fast kernels, 0 to 5 [default: TensorRT's own, 3]
    #[arg(long, value_name = "LEVEL", help_heading = "Engine", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub(crate) opt_level: Option<u8>,

    /// The most memory that kernels may ask for to work in: 512M, 2G [default: all that the GPU has]
    #[arg(long, value_name = "SIZE", help_heading = "Engine", value_parser = parse_size)]
    pub(crate) workspace: Option<u64>,

    /// Keep the weights in host memory, and stream them to the GPU
    #[arg(long, help_heading = "Engine")]
    pub(crate) weight_streaming: bool,

    /// A plan for later versions of TensorRT as well (TensorRT-RTX refuses this)
    #[arg(long, help_heading = "Engine")]
    pub(crate) version_compatible: bool,

    /// A plan for other GPU generations as well (TensorRT-RTX refuses this; see --target)
    #[arg(long, help_heading = "Engine")]
    pub(crate) hardware_compatible: bool,

    /// A plan without weights, which it gets when it is loaded (TensorRT-RTX refuses this on a host without a GPU)
    #[arg(long, help_heading = "Engine")]
    pub(crate) strip: bool,

    /// Build the engine even if the store holds one that was built from the same
    #[arg(long, help_heading = "Engine")]
    pub(crate) rebuild: bool,

    /// Publish the model and its checked graph without an engine
    #[arg(long, help_heading = "Engine")]
    pub(crate) no_engine: bool,

    /// Keep these modules in fp32, by name with `*`: 'layer.1.attention.*' (may be repeated)
    #[arg(long, value_name = "PATTERN", help_heading = "Engine", value_parser = parse_pattern)]
    pub(crate) keep_fp32: Vec<Pattern>,

    /// Write the weights in the engine's precision into a file of their own that the graph points at, instead of casts
    #[arg(long, help_heading = "Engine")]
    pub(crate) materialise: bool,

    /// With fp16, w8a16 and w4a16, keep nothing in fp32 by itself: otherwise modules whose activations exceed 512 in an fp32 run, or whose
    /// weights exceed 65504, are
    #[arg(long, help_heading = "Engine")]
    pub(crate) no_auto_fp32: bool,

    /// Texts that int8 and fp8 are calibrated on, and fp16 looks for overflow on [default: those of the check]: a file with one a line, JSONL, or a folder of such files
    #[arg(long, value_name = "PATH", help_heading = "8 bits")]
    pub(crate) calib_data: Option<PathBuf>,

    /// How the ranges of activations are found: error (smallest error of the products), max, percentile, entropy
    #[arg(
        long,
        value_name = "METHOD",
        help_heading = "8 bits",
        default_value = "error",
        requires = "calib_data"
    )]
    pub(crate) calib_method: Method,

    /// Stop the engine builder after so many seconds
    #[arg(long, value_name = "SECONDS", help_heading = "Engine", default_value = "14400", value_parser = parse_seconds)]
    pub(crate) build_timeout: Duration,

    /// Compare with the model in another folder instead of the model itself
    #[arg(long, value_name = "DIR", help_heading = "Gate")]
    pub(crate) reference: Option<PathBuf>,

    /// Check on these texts (a file with one a line, JSONL, or a folder of such files) instead of the built-in 64
    #[arg(long, value_name = "FILE", help_heading = "Gate")]
    pub(crate) texts: Option<PathBuf>,

    /// Allow this largest difference, as a share of the largest reference value [default: by precision]
    #[arg(long, value_name = "X", help_heading = "Gate", value_parser = parse_difference)]
    pub(crate) max_abs: Option<f64>,

    /// Ask for at least this cosine between an output and its reference [default: by precision]
    #[arg(long, value_name = "X", help_heading = "Gate", value_parser = parse_cosine)]
    pub(crate) min_cosine: Option<f64>,

    /// When the gate refuses, run every node beside fp32 and name the first that leaves the tolerance
    #[arg(long, help_heading = "Gate")]
    pub(crate) explain: bool,

    /// Ask for at least this mean cosine [default: by precision]
    #[arg(long, value_name = "X", help_heading = "Gate", value_parser = parse_cosine)]
    pub(crate) mean_cosine: Option<f64>,

    /// Say what would be done, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print one JSON object instead of the report
    #[arg(long)]
    pub(crate) json: bool,
}

impl BuildArgs {
    /// What a graph of our own export computes in.
    pub(crate) fn precision(&self) -> Precision {
        self.precision.unwrap_or(Precision::Fp16)
    }

    /// How the engine is built beyond what its graph says.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        let traits = [
            (self.weight_streaming, PlanTrait::WeightStreaming),
            (self.version_compatible, PlanTrait::VersionCompatible),
            (self.hardware_compatible, PlanTrait::HardwareCompatible),
            (self.strip, PlanTrait::Stripped),
        ];
        EngineOptions {
            more_profiles: self.profile.iter().skip(1).copied().collect(),
            level: self.opt_level,
            workspace_bytes: self.workspace,
            traits: traits.into_iter().filter(|(wanted, _)| *wanted).map(|(_, it)| it).collect(),
        }
    }
}

/// `512M`, `2G`: a number, and K, M, G or T for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: a number and K, M, G or T, such as 512M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).filter(|bytes| usize::try_from(*bytes).is_ok()).ok_or_else(wrong)
}

fn parse_pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|error| error.to_string())
}

fn parse_difference(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| format!("{text:?} is no difference: a number from 0 on"))
}

fn parse_cosine(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| (-1.0..=1.0).contains(x));
    number.ok_or_else(|| format!("{text:?} is no cosine: a number from -1 to 1"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no number of seconds")),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// Prints the completions of this command.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "build-engine", &mut script);
    io::Write::write_all(&mut io::stdout(), &script).map_err(Failure::output)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_or_say_why_not() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_size(text).ok(), expected, "{text}");
        check("512M", Some(512 << 20));
        check("2GiB", Some(2 << 30));
        check("1000", Some(1000));
        check("0", None);
        check("G", None);
        check("-1M", None);
        check("1.5G", None);
        check("99999999999T", None);
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
