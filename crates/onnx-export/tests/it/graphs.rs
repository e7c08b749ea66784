//! What is in an exported graph. That it computes the right numbers is shown where ONNX Runtime is: in trt-compiler.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use onnx_export::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use onnx_export::{
    Checkpoint, DataType, ExportOptions, Exported, Head, Lowering, Pattern, Pooling, Precision, SentenceHead,
    export,
};
use prost::Message;
use serde_json::json;
use toy_store::Kind;

use crate::support::{roberta, toy};

fn options(head: Head, precision: Precision, lowering: Lowering) -> ExportOptions {
    ExportOptions { lowering, ..ExportOptions::new(head, precision) }
}

fn exported(folder: &Path, options: &ExportOptions) -> Exported {
    export(&Checkpoint::open(folder).unwrap(), options).unwrap()
}

fn graph(exported: &Exported) -> GraphProto {
    ModelProto::decode(&*exported.onnx).unwrap().graph.unwrap()
}

fn operators(graph: &GraphProto) -> HashSet<&str> {
    graph.node.iter().map(NodeProto::op_type).collect()
}

/// Every name is made before it is used, once; every output is made.
fn check_sound(row: &str, graph: &GraphProto) {
    let mut known: HashSet<&str> = graph
        .input
        .iter()
        .map(ValueInfoProto::name)
        .chain(graph.initializer.iter().map(TensorProto::name))
        .collect();
    let mut names = HashSet::new();
    for node in &graph.node {
        assert!(names.insert(node.name()), "{row}: two nodes are called {}", node.name());
        for input in &node.input {
            assert!(known.contains(input.as_str()), "{row}: {} reads {input} before it is made", node.name());
        }
        for output in &node.output {
            assert!(known.insert(output), "{row}: {output} is made twice");
        }
    }
    for output in &graph.output {
        assert!(known.contains(output.name()), "{row}: nobody makes {}", output.name());
    }
}

#[test]
fn every_head_in_every_precision_and_lowering_is_sound_and_small() {
    let all = [
        Pooling::Cls,
        Pooling::Max,
        Pooling::Mean,
        Pooling::MeanSqrtLen,
        Pooling::WeightedMean,
        Pooling::LastToken,
    ];
    let sentence = Head::SentenceEmbedding(SentenceHead {
        pooling: all.into(),
        normalize: true,
        ..SentenceHead::default()
    });
    let (analyst, memory, roberta) = (toy(Kind::Analyst), toy(Kind::Memory), roberta());
    for (name, folder, head) in [
        ("analyst", &analyst, Head::SequenceClassification),
        ("analyst", &analyst, Head::HiddenStates),
        ("memory", &memory, sentence.clone()),
        ("roberta", &roberta, Head::SequenceClassification),
        ("roberta", &roberta, sentence),
    ] {
        for precision in Precision::FLOATS {
            for lowering in [Lowering::Portable, Lowering::TensorRt] {
                let row = format!("{name}, {}, {precision}, {lowering:?}", head.output());
                let exported = exported(folder.path(), &options(head.clone(), precision, lowering));
                let graph = graph(&exported);
                check_sound(&row, &graph);
                assert!(exported.onnx.len() < 50_000, "{row}: {} bytes", exported.onnx.len());
                assert_eq!(exported.report.outputs[0].name, head.output(), "{row}");
                assert_eq!(exported.report.outputs[0].dtype, DataType::F32, "{row}");
                let fused = lowering == Lowering::TensorRt && precision.compute_type() != DataType::F32;
                assert_eq!(operators(&graph).contains("Attention"), fused, "{row}");
                assert_eq!(operators(&graph).contains("Gelu"), lowering == Lowering::TensorRt, "{row}");
                assert_eq!(
                    exported.report.weight_casts > 0,
                    precision.compute_type() != DataType::F32,
                    "{row}"
                );
            }
        }
    }
}

#[test]
fn weights_are_pointed_at_where_they_lie() {
    let folder = toy(Kind::Analyst);
    let options = ExportOptions::new(Head::SequenceClassification, Precision::Fp16);
    let graph = graph(&exported(folder.path(), &options));
    let file = fs::read(folder.path().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut external = 0;
    for initializer in graph.initializer.iter().filter(|tensor| tensor.data_location() == 1) {
        let field = |key: &str| {
            let entry = initializer.external_data.iter().find(|entry| entry.key() == key).expect(key);
            entry.value().to_owned()
        };
        let (offset, length): (usize, usize) =
            (field("offset").parse().unwrap(), field("length").parse().unwrap());
        let expected = tensors.tensor(initializer.name()).unwrap();
        assert_eq!(field("location"), "model.safetensors");
        assert_eq!(&file[offset..offset + length], expected.data(), "{}", initializer.name());
        external += 1;
    }
    // 5 in the embeddings, 16 in each layer, 4 in pooler and classifier.
    assert_eq!(external, 5 + 2 * 16 + 4);
}

#[test]
fn modules_named_by_keep_fp32_compute_in_fp32() {
    let folder = toy(Kind::Analyst);
    let mut options = ExportOptions::new(Head::SequenceClassification, Precision::Fp16);
    let attentions = |options: &ExportOptions| {
        let graph = graph(&exported(folder.path(), options));
        graph.node.iter().filter(|node| node.op_type() == "Attention").count()
    };
    assert_eq!(attentions(&options), 2);
    options.keep_fp32 = vec![Pattern::new("layer.1.attention.*").unwrap()];
    assert_eq!(attentions(&options), 1, "layer 1 is written out, because it is in fp32");
    options.keep_fp32 = vec![Pattern::new("encoder.*").unwrap()];
    assert_eq!(attentions(&options), 0);
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let folder = toy(Kind::Memory);
    let options = ExportOptions::new(Head::HiddenStates, Precision::Bf16);
    assert_eq!(exported(folder.path(), &options).onnx, exported(folder.path(), &options).onnx);
}

/// A checkpoint of 16 GB that takes no room: a header and a hole. Exporting it must not read the hole, nor grow with it.
#[test]
fn the_size_of_the_weights_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (hidden, wide, layers, vocabulary) = (8192, 22_016, 7, 128_256);
    let mut header = serde_json::Map::new();
    let mut end = 0_u64;
    let mut add = |name: String, shape: &[u64]| {
        let bytes = 4 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes] }));
        end += bytes;
    };
    for (table, rows) in [("word", vocabulary), ("position", 512), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, hidden]);
    }
    for norm in ["weight", "bias"] {
        add(format!("embeddings.LayerNorm.{norm}"), &[hidden]);
    }
    for layer in 0..layers {
        for (module, inputs, outputs) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", hidden, wide),
            ("output.dense", wide, hidden),
        ] {
            add(format!("encoder.layer.{layer}.{module}.weight"), &[outputs, inputs]);
            add(format!("encoder.layer.{layer}.{module}.bias"), &[outputs]);
        }
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            for part in ["weight", "bias"] {
                add(format!("encoder.layer.{layer}.{norm}.{part}"), &[hidden]);
            }
        }
    }
    assert!(end > 16_000_000_000, "{end}");
    let text = serde_json::Value::Object(header).to_string();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8 + text.len() as u64 + end).unwrap();
    let config = json!({
        "model_type": "bert", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": 64, "vocab_size": vocabulary, "max_position_embeddings": 512,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

    let exported = exported(folder.path(), &ExportOptions::new(Head::HiddenStates, Precision::Fp16));
    assert!(exported.onnx.len() < 200_000);
    assert_eq!(exported.report.weight_bytes, end);
}
