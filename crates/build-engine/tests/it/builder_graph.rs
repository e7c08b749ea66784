//! What the builder of an engine is given beside the version's own graph, and that nothing of it stays.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use toy_store::Kind;

use crate::support::{Bench, shown, text};

const WEIGHTS: &str = "building.safetensors";

/// A model may call its own weights as the builder's file is called: then the builder reads those.
#[test]
fn weights_that_have_the_builders_name_are_kept() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    let names = SafeTensors::deserialize(&weights).unwrap();
    let map: Map<String, Value> =
        names.names().into_iter().map(|name| (name.to_owned(), json!(WEIGHTS))).collect();
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::rename(folder.join("model.safetensors"), folder.join(WEIGHTS)).unwrap();
    let output = bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(fs::read(bench.root().join("memory/current").join(WEIGHTS)).unwrap(), weights);
    let files = bench.contents();
    assert!(files.iter().any(|path| path.ends_with("model.engine")), "{files:?}");
    assert!(!files.iter().any(|path| path.ends_with("building.onnx")), "{files:?}");
}

/// The check sees that fp16 is too narrow while the builder is at work on the graph: both begin again, with another one.
#[test]
fn a_graph_that_is_too_large_for_fp16_is_built_anew() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let attention = "encoder.layer.1.attention";
    let factor = 2.0_f32.powi(14);
    for (part, factor) in
        [("self.value.weight", factor), ("self.value.bias", factor), ("output.dense.weight", factor.recip())]
    {
        scale(&folder.join("model.safetensors"), &format!("{attention}.{part}"), factor);
    }
    let arguments = ["--agent", "memory", "--source", folder.to_str().unwrap(), "--output-version", "v1"];
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{}", shown(&output));
    let told = text(&output.stderr) + &text(&output.stdout);
    let place = |part: &str| told.find(part).unwrap_or_else(|| panic!("{part} is not in\n{told}"));
    assert!(place("takes the graph beyond fp16") < place("kept in fp32"), "{told}");
    let version = bench.root().join("memory/versions/v1");
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let evidence = read(&version.join("evidence.json"));
    let modules = evidence["overflow"]["modules"].as_array().unwrap();
    assert_eq!((modules.len(), &evidence["overflow"]["computed_in"]), (3, &json!("fp32")), "{evidence}");
    let engine = read(&version.join("engines/tensorrt-rtx-1.7.1/sm80+-fp16/engine.json"));
    assert_eq!(engine["onnx_sha256"], evidence["export"]["onnx_sha256"]);
    assert!(bench.contents().iter().all(|path| !path.contains("building")), "{:?}", bench.contents());
}

/// Multiplies a tensor of fp32.
fn scale(path: &Path, tensor: &str, factor: f32) {
    let mut bytes = fs::read(path).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr_range();
    let start = bytes.as_ptr_range().start;
    for value in bytes[data.start.addr() - start.addr()..data.end.addr() - start.addr()].chunks_exact_mut(4) {
        let scaled = f32::from_le_bytes(value.try_into().unwrap()) * factor;
        value.copy_from_slice(&scaled.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}
