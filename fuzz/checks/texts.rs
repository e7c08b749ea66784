//! What must hold for any bytes that are taken for a configuration, a map, texts or a graph.

use std::fs;
use std::path::Path;

use model_loader::{AgentMap, Head, LmConfig, ModelConfig};
use trt_compiler::{EngineRecord, graph_precision, texts};

/// A `config.json` as the loader reads it, of an encoder and of a language model.
pub(crate) fn config(folder: &Path, data: &[u8]) {
    fs::write(folder.join("config.json"), data).expect("a config.json can be written");
    if let Ok(config) = ModelConfig::from_dir(folder) {
        assert!(config.hidden.is_multiple_of(config.heads.max(1)), "{config:?}");
        let _ = config.max_tokens();
    }
    let _ = LmConfig::from_dir(folder);
    let _ = Head::detect(folder);
}

/// An agent map: whatever is wrong with one agent is found, and named.
pub(crate) fn agent_map(folder: &Path, data: &[u8]) {
    let path = folder.join("AGENT_MODEL_MAP.json");
    fs::write(&path, data).expect("a map can be written");
    let Ok(Some(map)) = AgentMap::read(&path) else { return };
    let problems = map.problems();
    for agent in map.agents() {
        let entry = map.entry(agent, None);
        let _ = map.model_id(agent);
        assert!(entry.is_ok() || !problems.is_empty() || serde_json::from_slice::<serde_json::Value>(data).is_ok_and(|it| it.get("agents").is_none()), "{agent}: {entry:?}");
    }
}

/// Texts to calibrate and check on, as JSON lines and as lines: none is empty.
pub(crate) fn calibration(folder: &Path, data: &[u8]) {
    for name in ["texts.jsonl", "texts.txt"] {
        let path = folder.join(name);
        fs::write(&path, data).expect("texts can be written");
        if let Ok(read) = texts::read(&path) {
            assert!(read.iter().all(|text| !text.trim().is_empty()), "{read:?}");
            assert_eq!(texts::digest(&read).len(), 64);
        }
    }
}

/// An `engine.json`: what was read can be written and read again.
pub(crate) fn engine(_: &Path, data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<EngineRecord>(data) else { return };
    let json = serde_json::to_vec(&record).expect("what was read can be written");
    let again: EngineRecord = serde_json::from_slice(&json).expect("what was written can be read");
    assert_eq!((again.key, again.plan_sha256, again.targets), (record.key, record.plan_sha256, record.targets));
}

/// A graph that came as ONNX.
pub(crate) fn graph(folder: &Path, data: &[u8]) {
    let path = folder.join("given.onnx");
    fs::write(&path, data).expect("a graph can be written");
    let _ = graph_precision(&path);
}
