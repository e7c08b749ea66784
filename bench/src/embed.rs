//! The rows about embedding: all-MiniLM-L6-v2 on real sentences, against the Python libraries that people use.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use model_loader::{Backend, LoadOptions, SentenceEmbedder};
use onnx_export::{Checkpoint, ExportOptions, Head, Pooling, Precision, SentenceHead, export};

use crate::pairs::{Measured, timed};

/// The word that makes this program a process that loads a model, embeds one sentence and ends.
pub(crate) const FIRST_VECTOR: &str = "__first-vector";

const PEERS: &str = include_str!("../peers/embed.py");
const SENTENCE: &str = "Ships in the Suez Canal wait for the wind to fall.";

/// What [`FIRST_VECTOR`] does.
pub(crate) fn first_vector(folder: &str) -> anyhow::Result<()> {
    let embedder = SentenceEmbedder::from_dir(folder)?;
    let vectors = embedder.embed(&[SENTENCE])?;
    ensure!(vectors[0].len() == embedder.dimension());
    Ok(())
}

/// A process from its start to its first vector.
pub(crate) fn load_embedder(place: &Path) -> anyhow::Result<Measured> {
    let folder = model(place)?;
    let peers = Peers::new(place, &folder)?;
    let ours = std::env::current_exe()?;
    Measured::in_turn(
        |_| {
            timed(|| {
                let status = Command::new(&ours).arg(FIRST_VECTOR).arg(&folder).status()?;
                ensure!(status.success(), "{status}");
                Ok(())
            })
        },
        |_| timed(|| peers.run("st", &["first", SENTENCE]).map(drop)),
    )
}

/// All sentences, on what a load without options computes on, against sentence-transformers.
pub(crate) fn against_sentence_transformers(place: &Path) -> anyhow::Result<Measured> {
    sentences(place, Backend::Auto, "st")
}

/// The same against Python's ONNX Runtime.
pub(crate) fn against_onnxruntime(place: &Path) -> anyhow::Result<Measured> {
    sentences(place, Backend::Auto, "ort")
}

/// All sentences, on this project's float32 kernels, against sentence-transformers.
pub(crate) fn in_float32(place: &Path) -> anyhow::Result<Measured> {
    sentences(place, Backend::Cpu, "st")
}

/// All sentences, on ONNX Runtime on both sides.
pub(crate) fn onnxruntime(place: &Path) -> anyhow::Result<Measured> {
    sentences(place, Backend::OnnxRuntime, "ort")
}

fn sentences(place: &Path, backend: Backend, peer: &str) -> anyhow::Result<Measured> {
    let folder = model(place)?;
    let peers = Peers::new(place, &folder)?;
    let options = LoadOptions { backend, ..LoadOptions::default() };
    let embedder = SentenceEmbedder::from_dir_with(&folder, &options)?;
    let texts = corpus()?;
    // As the peer does: what is only done once is not measured.
    black_box(embedder.embed(&texts[..64])?);
    Measured::in_turn(
        |_| {
            let begun = Instant::now();
            black_box(embedder.embed(&texts)?);
            Ok(begun.elapsed().as_secs_f64())
        },
        |_| {
            let said = peers.run(peer, &["all", CORPUS])?;
            said.trim().parse().with_context(|| format!("the peer said {said:?}"))
        },
    )
}

/// Where all-MiniLM-L6-v2 lies.
pub(crate) fn model_folder() -> anyhow::Result<PathBuf> {
    let from = std::env::var_os("MODEL_TEST_MINILM")
        .map_or_else(|| ".models/all-MiniLM-L6-v2".into(), PathBuf::from);
    ensure!(
        from.join("model.safetensors").is_file(),
        "{} holds no model: `make models` fetches it",
        from.display()
    );
    Ok(from)
}

/// The Python that the peers are installed in.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let python =
        std::env::var_os("BENCH_PYTHON").map_or_else(|| "target/bench/venv/bin/python".into(), PathBuf::from);
    if !python.is_file() {
        bail!(
            "{} is not there: `make bench-peers` installs the peers, or name a python with BENCH_PYTHON",
            python.display()
        );
    }
    Ok(python)
}

/// A copy of the model with the graph that ONNX Runtime runs on both sides.
fn model(place: &Path) -> anyhow::Result<PathBuf> {
    let from = model_folder()?;
    let folder = place.join("model");
    copy(&from, &folder)?;
    let head = Head::SentenceEmbedding(SentenceHead {
        pooling: vec![Pooling::Mean],
        normalize: true,
        ..SentenceHead::default()
    });
    let options = ExportOptions::new(head, Precision::Fp32);
    std::fs::write(folder.join("model.onnx"), export(&Checkpoint::open(&folder)?, &options)?.onnx)?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let (entry, to) = (entry?, to);
        let into = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &into)?;
        } else {
            std::fs::copy(entry.path(), into)?;
        }
    }
    Ok(())
}

const CORPUS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/model-loader/tests/data/prose/sentences.txt");

fn corpus() -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(CORPUS).with_context(|| format!("could not read {CORPUS}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The Python of the peers, and their script.
struct Peers {
    python: PathBuf,
    script: PathBuf,
    model: PathBuf,
}

impl Peers {
    fn new(place: &Path, model: &Path) -> anyhow::Result<Self> {
        let python = python()?;
        let script = place.join("embed.py");
        std::fs::write(&script, PEERS)?;
        Ok(Self { python, script, model: model.to_owned() })
    }

    fn run(&self, peer: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.python)
            .arg(&self.script)
            .arg(&self.model)
            .arg(peer)
            .args(arguments)
            .env("HF_HUB_OFFLINE", "1")
            .output()?;
        ensure!(output.status.success(), "{peer} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}
