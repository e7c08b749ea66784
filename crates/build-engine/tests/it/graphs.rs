//! Models that come as ONNX: taken as they are, held against what there is to hold them against.

use std::fs;
use std::path::{Path, PathBuf};

use onnx_export::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use onnx_export::{Checkpoint, ExportOptions, Head, Lowering, Precision, SentenceHead, export};
use prost::Message;
use serde_json::{Value, json};
use toy_store::Kind;

use crate::support::{Bench, shown, text};

/// How a tensor's bytes are kept.
#[derive(Clone, Copy, PartialEq)]
enum Data {
    /// In the graph's own file.
    Inside,
    /// All in one file beside it, as other exporters write it.
    Beside(&'static str),
}

/// A graph as another program would have written it: the toy's own, with its weights taken out of its safetensors.
fn foreign(model: &Path, precision: Precision, data: Data) -> (ModelProto, Vec<u8>) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let head = match SentenceHead::read(&checkpoint).unwrap() {
        Some(head) => Head::SentenceEmbedding(head),
        None => Head::SequenceClassification,
    };
    let options = ExportOptions { lowering: Lowering::Portable, ..ExportOptions::new(head, precision) };
    let exported = export(&checkpoint, &options).unwrap();
    let mut onnx = ModelProto::decode(exported.onnx.as_slice()).unwrap();
    onnx.producer_name = Some("another".to_owned());
    let mut bytes = Vec::new();
    for tensor in &mut onnx.graph.as_mut().unwrap().initializer {
        if tensor.data_location != Some(1) {
            continue;
        }
        let entry =
            |key: &str| tensor.external_data.iter().find(|it| it.key.as_deref() == Some(key)).unwrap();
        let value = |key: &str| entry(key).value.clone().unwrap();
        let file = fs::read(model.join(value("location"))).unwrap();
        let (offset, length): (usize, usize) =
            (value("offset").parse().unwrap(), value("length").parse().unwrap());
        let own = &file[offset..offset + length];
        match data {
            Data::Inside => {
                *tensor = TensorProto {
                    raw_data: Some(own.to_vec()),
                    external_data: Vec::new(),
                    data_location: None,
                    ..tensor.clone()
                };
            }
            Data::Beside(location) => {
                tensor.external_data = external(location, bytes.len(), length);
                bytes.extend_from_slice(own);
            }
        }
    }
    (onnx, bytes)
}

/// The same with its data in `file` beside it: both as bytes.
pub(crate) fn foreign_beside(model: &Path, file: &'static str) -> (Vec<u8>, Vec<u8>) {
    let (onnx, data) = foreign(model, Precision::Fp32, Data::Beside(file));
    (onnx.encode_to_vec(), data)
}

fn external(location: &str, offset: usize, length: usize) -> Vec<StringStringEntryProto> {
    let entry =
        |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ]
}

/// Writes a foreign graph of `model` into `folder/onnx`, with the model's other files above it but its weights.
fn repository(bench: &Bench, kind: Kind, precision: Precision, data: Data) -> (PathBuf, PathBuf) {
    let model = bench.model(kind);
    let folder = model.with_extension("onnx-only");
    let (onnx, bytes) = foreign(&model, precision, data);
    fs::create_dir_all(folder.join("onnx")).unwrap();
    copy_files(&model, &folder);
    fs::write(folder.join("onnx/model.onnx"), onnx.encode_to_vec()).unwrap();
    if let Data::Beside(name) = data {
        fs::write(folder.join("onnx").join(name), bytes).unwrap();
    }
    (model, folder)
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_files(&entry.path(), &target);
        } else if entry.path().extension().is_none_or(|it| it != "safetensors") {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn evidence(bench: &Bench, agent: &str) -> Value {
    let current = bench.store().require_current(&agent.parse().unwrap()).unwrap();
    serde_json::from_slice(&fs::read(current.path().join("evidence.json")).unwrap()).unwrap()
}

#[test]
fn a_graph_is_taken_as_it_is_and_held_against_a_reference() {
    let Some(bench) = Bench::new() else { return };
    for (agent, kind, data) in
        [("analyst", Kind::Analyst, Data::Inside), ("memory", Kind::Memory, Data::Beside("model.onnx_data"))]
    {
        let (model, folder) = repository(&bench, kind, Precision::Fp32, data);
        let onnx = folder.join("onnx/model.onnx");
        let reference = model.to_str().unwrap();
        let output = bench.run(&[
            "--agent",
            agent,
            "--from-onnx",
            onnx.to_str().unwrap(),
            "--reference",
            reference,
            "--target",
            "89",
        ]);
        assert!(output.status.success(), "{agent}: {}", shown(&output));
        assert!(text(&output.stdout).contains("model.onnx as it came"), "{}", shown(&output));
        let store = bench.store();
        let current = store.require_current(&agent.parse().unwrap()).unwrap();
        assert!(fs::read(current.path().join("model.onnx")).unwrap() == fs::read(&onnx).unwrap(), "{agent}");
        if let Data::Beside(name) = data {
            let beside = fs::read(folder.join("onnx").join(name)).unwrap();
            assert!(fs::read(current.path().join(name)).unwrap() == beside, "{agent}");
        }
        assert!(!current.path().join("model.safetensors").exists(), "{agent}");
        assert!(store.verify(&agent.parse().unwrap(), current.version()).unwrap().is_ok(), "{agent}");
        let evidence = evidence(&bench, agent);
        assert_eq!(evidence["export"]["precision"], "fp32", "its own, without being asked for: {evidence}");
        assert!(evidence["verdict"]["comparison"]["max_abs"].as_f64().unwrap() < 1e-3, "{evidence}");
        assert!(evidence["reference"].as_str().unwrap().contains(reference), "{evidence}");
        assert_eq!(evidence["graph"]["producer"].as_str().unwrap().split(' ').next(), Some("another"));
        assert!(evidence["export"]["operators"]["MatMul"].as_u64().unwrap() > 0, "{evidence}");
        assert!(evidence["export"].get("lowering").is_none(), "nobody knows how it was written: {evidence}");
        // An engine was built from it: its key holds the digest of the data that lies beside the graph.
        let engines = trt_compiler::engines_of(&current);
        let record = engines[0].record.as_ref().unwrap();
        assert_eq!(record.onnx_sha256, evidence["export"]["onnx_sha256"]);
    }
}

#[test]
fn without_a_reference_it_says_that_there_was_none() {
    let Some(bench) = Bench::new() else { return };
    let (model, folder) = repository(&bench, Kind::Analyst, Precision::Fp32, Data::Beside("model.onnx_data"));
    // Its family is nobody's.
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["model_type"] = json!("unheard-of");
    fs::write(&path, config.to_string()).unwrap();
    let source = folder.to_str().unwrap();
    let base = ["--agent", "analyst", "--no-engine", "--source", source];

    bench.store();
    let planned = bench.run(&[&base[..], &["--use-repo-onnx", "--dry-run"]].concat());
    for part in ["onnx/model.onnx as it came (another", "compare    with nothing, so only NaN", "fp32"] {
        assert!(text(&planned.stdout).contains(part), "{part}: {}", shown(&planned));
    }
    let output = bench.run(&[&base[..], &["--use-repo-onnx"]].concat());
    assert!(output.status.success(), "{}", shown(&output));
    assert!(text(&output.stdout).contains("compared with nothing"), "{}", shown(&output));
    let evidence = evidence(&bench, "analyst");
    assert!(evidence["reference"].as_str().unwrap().starts_with("nothing, so only NaN"), "{evidence}");
    for measure in ["max_abs", "mean_abs", "cosine_min", "cosine_mean"] {
        assert_eq!(evidence["verdict"]["comparison"][measure], Value::Null, "{measure} was not measured");
    }
    let current = bench.store().require_current(&"analyst".parse().unwrap()).unwrap();
    assert_eq!(current.manifest().metadata["gate"]["max_abs"], Value::Null);
    let page = fs::read_to_string(current.path().join("report.html")).unwrap();
    assert!(page.contains("compared with nothing") && !page.contains("NaN where"), "{page}");

    // The version is a source of its own: its graph is taken again, and shared.
    let output = bench.run(&["--agent", "analyst", "--no-engine", "--output-version", "again"]);
    assert!(output.status.success(), "{}", shown(&output));
    // It is what a build would give, and no family is asked after.
    let planned = bench.run(&["--all", "--no-engine", "--dry-run"]);
    assert!(planned.status.success() && text(&planned.stdout).contains("up to date"), "{}", shown(&planned));

    // Weights of a known family beside it are the reference, without being asked for.
    fs::copy(model.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let output = bench.run(&[&base[..], &["--use-repo-onnx", "--output-version", "foreign"]].concat());
    assert!(output.status.success(), "{}", shown(&output));
    let current = bench.store().require_current(&"analyst".parse().unwrap()).unwrap();
    assert!(!current.path().join("model.safetensors").exists(), "weights that nobody has looked at");
    fs::copy(model.join("config.json"), &path).unwrap();
    let output = bench.run(&[&base[..], &["--use-repo-onnx", "--output-version", "known"]].concat());
    assert!(output.status.success(), "{}", shown(&output));
    let current = bench.store().require_current(&"analyst".parse().unwrap()).unwrap();
    assert!(current.path().join("model.safetensors").exists());
    assert!(current.manifest().metadata["gate"]["max_abs"].as_f64().unwrap() < 1e-3);
}

#[test]
fn an_unknown_family_with_a_graph_is_told_of_it() {
    let Some(bench) = Bench::new() else { return };
    let (model, folder) = repository(&bench, Kind::Analyst, Precision::Fp32, Data::Inside);
    fs::copy(model.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let path = folder.join("config.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("\"bert\"", "\"unheard-of\"")).unwrap();
    let output = bench.run(&["--agent", "analyst", "--source", folder.to_str().unwrap(), "--no-engine"]);
    assert_eq!(output.status.code(), Some(6), "{}", shown(&output));
    for part in ["unheard-of", "next: it has an ONNX graph of its own: --use-repo-onnx"] {
        assert!(text(&output.stderr).contains(part), "{part}: {}", shown(&output));
    }
}

/// Changes a graph's repository for the worse.
type Break = fn(&Path, &mut ModelProto);

fn first(onnx: &mut ModelProto) -> &mut TensorProto {
    let tensors = &mut onnx.graph.as_mut().unwrap().initializer;
    tensors.iter_mut().find(|tensor| tensor.data_location == Some(1)).unwrap()
}

fn set(onnx: &mut ModelProto, key: &str, value: &str) {
    let entry = first(onnx).external_data.iter_mut().find(|it| it.key.as_deref() == Some(key)).unwrap();
    entry.value = Some(value.to_owned());
}

fn rename(onnx: &mut ModelProto, from: &str, to: &str) {
    let graph = onnx.graph.as_mut().unwrap();
    let inputs = graph.input.iter_mut().chain(&mut graph.output).filter_map(|it| it.name.as_mut());
    let values = graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    for name in inputs.chain(values).filter(|name| *name == from) {
        to.clone_into(name);
    }
}

/// A field of bytes as it is on the wire.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut wire = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut wire).unwrap();
    wire.extend_from_slice(bytes);
    wire
}

#[test]
fn what_cannot_be_taken_is_refused_by_name_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let (model, folder) = repository(&bench, Kind::Analyst, Precision::Fp32, Data::Beside("model.onnx_data"));
    let onnx = folder.join("onnx/model.onnx");
    let sound = fs::read(&onnx).unwrap();
    let data = fs::read(folder.join("onnx/model.onnx_data")).unwrap();
    let secret = folder.with_file_name("secret");
    fs::write(&secret, &data).unwrap();
    let check = |row: &str, damage: Break, extra: &[&str], code: i32, parts: &[&str]| {
        let mut proto = ModelProto::decode(sound.as_slice()).unwrap();
        damage(&folder.join("onnx"), &mut proto);
        fs::write(&onnx, proto.encode_to_vec()).unwrap();
        let mut arguments = vec!["--agent", "analyst", "--no-engine", "--from-onnx", onnx.to_str().unwrap()];
        arguments.extend(extra);
        let before = bench.contents();
        let output = bench.run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{row}: {}", shown(&output));
        for part in parts {
            assert!(text(&output.stderr).contains(part), "{row}: {part:?}: {}", shown(&output));
        }
        let left = bench.contents().into_iter().filter(|path| path.contains("/versions/"));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "{row}: {before:?}");
        let _ = fs::remove_file(folder.join("onnx/model.onnx_data"));
        fs::write(folder.join("onnx/model.onnx_data"), &data).unwrap();
    };
    check("above", |_, m| set(m, "location", "../../secret"), &[], 6, &["../../secret", "leads out"]);
    check("absolute", |_, m| set(m, "location", "/etc/passwd"), &[], 6, &["/etc/passwd", "absolute"]);
    check("memory", |_, m| set(m, "location", "*/_ORT_MEM_ADDR_/*"), &[], 6, &["plain name"]);
    check("no name", |_, m| first(m).external_data.clear(), &[], 6, &["is no name"]);
    check("the store's own", |_, m| set(m, "location", "evidence.json"), &[], 6, &["for something else"]);
    check("missing", |_, m| set(m, "location", "gone.bin"), &[], 3, &["gone.bin", "fetch it"]);
    check("past the end", |_, m| set(m, "offset", "999999999"), &[], 4, &["999999999", "in a file of"]);
    check("an offset of nothing", |_, m| set(m, "offset", "zero"), &[], 4, &["\"zero\"", "no number"]);
    check("another length", |_, m| set(m, "length", "4"), &[], 4, &["4 bytes for a shape of"]);
    check(
        "a link out of the folder",
        |folder, _| {
            let path = folder.join("model.onnx_data");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("../../secret", path).unwrap();
        },
        &[],
        6,
        &["is a link to", "secret"],
    );
    check("no graph", |_, m| m.graph = Some(GraphProto::default()), &[], 4, &["is no ONNX graph"]);
    check(
        "a cache",
        |_, m| rename(m, "token_type_ids", "past_key_values.0.key"),
        &[],
        6,
        &["past_key_values.0.key", "without a cache"],
    );
    check(
        "no mask",
        |_, m| m.graph.as_mut().unwrap().input.retain(|it| it.name.as_deref() != Some("attention_mask")),
        &[],
        6,
        &["takes no attention_mask"],
    );
    check(
        "another output",
        |_, m| rename(m, "logits", "answer"),
        &[],
        6,
        &["\"answer\" (f32 [batch", "sentence_embedding"],
    );
    check(
        "another precision",
        |_, _| (),
        &["--precision", "fp16"],
        2,
        &["computes in fp32", "--precision fp32"],
    );
    check("kept modules", |_, _| (), &["--keep-fp32", "*"], 2, &["--keep-fp32 changes the graph"]);
    check(
        "damaged weights beside it",
        |_, _| (),
        &["--source", model.to_str().unwrap(), "--reference", "/nonexistent"],
        3,
        &["/nonexistent"],
    );
}

#[test]
fn hidden_tensors_are_found_and_garbage_is_none() {
    let Some(bench) = Bench::new() else { return };
    let (model, folder) = repository(&bench, Kind::Analyst, Precision::Fp32, Data::Inside);
    let onnx = folder.join("onnx/model.onnx");
    let sound = fs::read(&onnx).unwrap();
    // Hidden where a runtime would find it: in a node's attribute, and in a graph within a node.
    let hostile = TensorProto {
        external_data: external("/etc/passwd", 0, 4),
        data_location: Some(1),
        ..TensorProto::default()
    };
    let tensor = field(5, &hostile.encode_to_vec());
    for attribute in [tensor.clone(), field(6, &tensor)] {
        let node = field(1, &field(5, &attribute));
        // A second graph of a message is one with the first.
        fs::write(&onnx, [sound.clone(), field(7, &node)].concat()).unwrap();
        let output = bench.run(&["--agent", "analyst", "--from-onnx", onnx.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(6), "{}", shown(&output));
        assert!(text(&output.stderr).contains("/etc/passwd"), "{}", shown(&output));
    }
    fs::write(&onnx, "this is no graph").unwrap();
    let output = bench.run(&["--agent", "analyst", "--from-onnx", onnx.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{}", shown(&output));
    let output = bench.run(&["--agent", "analyst", "--from-onnx", "/nonexistent.onnx"]);
    assert_eq!(output.status.code(), Some(3), "{}", shown(&output));
    let output = bench.run(&["--agent", "analyst", "--source", model.to_str().unwrap(), "--use-repo-onnx"]);
    assert_eq!(output.status.code(), Some(3), "{}", shown(&output));
    assert!(
        text(&output.stderr).contains("holds no onnx/model.onnx and no model.onnx"),
        "{}",
        shown(&output)
    );
}

#[test]
fn materialised_weights_are_the_versions_own_and_its_engine_is_built_from_them() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let run = |version: &str, extra: &[&str]| {
        let base = ["--agent", "memory", "--source", folder.to_str().unwrap(), "--target", "89"];
        let output = bench.run(&[&base[..], &["--output-version", version], extra].concat());
        assert!(output.status.success(), "{version}: {}", shown(&output));
        output
    };
    let output = run("own", &["--materialise"]);
    assert!(text(&output.stdout).contains("converted into graph-fp16.safetensors"), "{}", shown(&output));
    let store = bench.store();
    let agent = "memory".parse().unwrap();
    let own = store.require_current(&agent).unwrap();
    let evidence_of_own = evidence(&bench, "memory");
    assert!(store.verify(&agent, own.version()).unwrap().is_ok());
    let graph = fs::read(own.path().join("model.onnx")).unwrap();
    let locations = String::from_utf8_lossy(&graph).matches("graph-fp16.safetensors").count();
    assert!(locations > 10, "{locations} weights");
    run("cast", &[]);
    let evidence_of_cast = evidence(&bench, "memory");
    for measure in ["max_abs", "cosine_min", "rows"] {
        let of = |evidence: &Value| evidence["verdict"]["comparison"][measure].clone();
        assert_eq!(of(&evidence_of_own), of(&evidence_of_cast), "{measure}: the same numbers");
    }
    // Weights of its own do not go into the versions that are built from it.
    run("next", &[]);
    let output = bench.run(&["--agent", "memory", "--no-engine", "--output-version", "again"]);
    assert!(output.status.success(), "{}", shown(&output));
    assert!(!store.require_current(&agent).unwrap().path().join("graph-fp16.safetensors").exists());
    let output = run("plain", &["--materialise", "--precision", "fp32"]);
    assert!(text(&output.stdout).contains("no weight is of another precision"), "{}", shown(&output));
}
