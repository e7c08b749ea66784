//! The rows: what is measured, against what.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use model_store::{AgentName, FinalizeOptions, ImportOptions, ModelStore, Transfer, VersionName};

use crate::input::{random_files, settle, warm};
use crate::pairs::{Measured, timed};
use crate::{build, embed, export, sync};

/// The way of working that the store replaces.
const HELPER: &str = include_str!("../peers/python_helper.py");
/// How often a warm look-up is repeated.
const LOOK_UPS: u32 = 20_000;

/// One thing that is measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) work: &'static str,
    pub(crate) peer: &'static str,
    /// The ratio that was promised.
    pub(crate) at_least: f64,
    /// Measures it in an empty directory.
    pub(crate) measure: fn(&Path) -> anyhow::Result<Measured>,
}

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "publish",
        work: "a folder of 2 GiB in 4 files, until it is durable",
        peer: "the Python helper and sync",
        at_least: 2.0,
        measure: publish,
    },
    Row {
        name: "verify",
        work: "a version of 2 GiB in 4 files",
        peer: "openssl dgst -sha256",
        at_least: 1.9,
        measure: verify,
    },
    Row {
        name: "many-small",
        work: "20,000 files of 4 KiB, until they are durable",
        peer: "cp -r, sync and sha256sum",
        at_least: 1.5,
        measure: many_small,
    },
    Row {
        name: "resolve",
        work: "one warm look at what is current",
        peer: "os.readlink and Path.resolve",
        at_least: 10.0,
        measure: resolve,
    },
    Row {
        name: "sync",
        work: "push and pull of 2 GiB of which a tenth changed, durable and checked",
        peer: "rclone sync --checksum, and sync",
        at_least: 1.0,
        measure: sync::measure,
    },
    Row {
        name: "export",
        work: "all-MiniLM-L6-v2 to ONNX, a process",
        peer: "torch.onnx.export, with its load",
        at_least: 100.0,
        measure: export::measure,
    },
    Row {
        name: "build",
        work: "all-MiniLM-L6-v2 to a gated fp16 engine in a store, without a GPU",
        peer: "optimum-cli export onnx alone",
        at_least: 5.0,
        measure: build::measure,
    },
    Row {
        name: "load-embedder",
        work: "a process that embeds one sentence, all-MiniLM-L6-v2",
        peer: "sentence-transformers",
        at_least: 20.0,
        measure: embed::load_embedder,
    },
    Row {
        name: "embed-exact",
        work: "2,000 sentences, as loaded without options",
        peer: "sentence-transformers",
        at_least: 1.8,
        measure: embed::against_sentence_transformers,
    },
    Row {
        name: "embed-float32",
        work: "2,000 sentences, float32 kernels",
        peer: "sentence-transformers",
        at_least: 1.0,
        measure: embed::in_float32,
    },
    Row {
        name: "embed-exact-ort",
        work: "2,000 sentences, as loaded without options",
        peer: "ONNX Runtime in Python",
        at_least: 1.0,
        measure: embed::against_onnxruntime,
    },
    Row {
        name: "embed-onnxruntime",
        work: "2,000 sentences, backend onnxruntime",
        peer: "ONNX Runtime in Python",
        at_least: 1.0,
        measure: embed::onnxruntime,
    },
];

fn agent() -> anyhow::Result<AgentName> {
    Ok("bench".parse()?)
}

/// Publishes a folder into a new store, which shares nothing with it.
fn publish_into(root: &Path, from: &Path) -> anyhow::Result<ModelStore> {
    let store = ModelStore::create(root)?;
    let version: VersionName = "v1".parse()?;
    let staging = store.stage_new(&agent()?, &version)?;
    let options = ImportOptions { transfer: Transfer::Copy, ..ImportOptions::default() };
    staging.import_tree(from, options)?;
    staging.finalize(FinalizeOptions::default())?;
    Ok(store)
}

fn big_folder(place: &Path) -> anyhow::Result<std::path::PathBuf> {
    let folder = place.join("folder");
    random_files(&folder, 4, 512 * 1024 * 1024)?;
    warm(&folder)?;
    Ok(folder)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn shell(script: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    run(Command::new("sh").arg("-ec").arg(script).arg("sh").args(arguments))
}

/// Removes what a run made, outside the measured time.
fn clear(made: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(made)?;
    settle();
    Ok(())
}

fn publish(place: &Path) -> anyhow::Result<Measured> {
    let folder = big_folder(place)?;
    let helper = place.join("helper.py");
    std::fs::write(&helper, HELPER)?;
    let (ours, theirs) = (place.join("ours"), place.join("theirs"));
    Measured::in_turn(
        |_| {
            let took = timed(|| publish_into(&ours, &folder).map(drop))?;
            clear(&ours).map(|()| took)
        },
        |_| {
            let script = "python3 \"$1\" \"$2\" \"$3\" bench v1; sync";
            let took = timed(|| shell(script, &[&helper, &folder, &theirs]))?;
            clear(&theirs).map(|()| took)
        },
    )
}

fn verify(place: &Path) -> anyhow::Result<Measured> {
    let store = publish_into(&place.join("store"), &big_folder(place)?)?;
    let (agent, version) = (agent()?, "v1".parse()?);
    let files = store.require_current(&agent)?.path().to_owned();
    settle();
    warm(&files)?;
    Measured::in_turn(
        |_| {
            timed(|| {
                let report = store.verify(&agent, &version)?;
                ensure!(report.is_ok(), "{:?}", report.findings);
                Ok(())
            })
        },
        |_| timed(|| shell("find \"$1\" -name '*.bin' -exec openssl dgst -sha256 {} +", &[&files])),
    )
}

fn many_small(place: &Path) -> anyhow::Result<Measured> {
    let folder = place.join("folder");
    random_files(&folder, 20_000, 4096)?;
    warm(&folder)?;
    let (ours, theirs) = (place.join("ours"), place.join("theirs"));
    Measured::in_turn(
        |_| {
            let took = timed(|| publish_into(&ours, &folder).map(drop))?;
            clear(&ours).map(|()| took)
        },
        |_| {
            let script = "cp -r \"$1\" \"$2\"; sync; find \"$2\" -type f -exec sha256sum {} +";
            let took = timed(|| shell(script, &[&folder, &theirs]))?;
            clear(&theirs).map(|()| took)
        },
    )
}

fn resolve(place: &Path) -> anyhow::Result<Measured> {
    let folder = place.join("folder");
    random_files(&folder, 5, 4096)?;
    let store = publish_into(&place.join("store"), &folder)?;
    let agent = agent()?;
    let link = store.root().join("bench/current");
    let script = format!(
        "import os, pathlib, sys, time\n\
         link = sys.argv[1]\n\
         begun = time.perf_counter()\n\
         for _ in range({LOOK_UPS}):\n    os.readlink(link); pathlib.Path(link).resolve()\n\
         print((time.perf_counter() - begun) / {LOOK_UPS})"
    );
    Measured::in_turn(
        |_| {
            let begun = Instant::now();
            for _ in 0..LOOK_UPS {
                black_box(store.get_current(&agent)?);
            }
            Ok(begun.elapsed().as_secs_f64() / f64::from(LOOK_UPS))
        },
        |_| {
            let output = Command::new("python3").arg("-c").arg(&script).arg(&link).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            said.trim().parse().with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
        },
    )
}
