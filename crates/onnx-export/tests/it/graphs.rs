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

use crate::support::{copy_of, fixture, roberta, set_config, toy};

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
fn every_family_is_sound_in_every_precision_and_lowering() {
    let last = Head::SentenceEmbedding(SentenceHead {
        pooling: vec![Pooling::LastToken],
        ..SentenceHead::default()
    });
    let encoder = [Head::HiddenStates, Head::SequenceClassification, last.clone()];
    let decoder = [Head::CausalLm { cache: false }, Head::CausalLm { cache: true }, Head::HiddenStates, last];
    let encoders =
        ["albert", "deberta-v2", "distilbert", "electra", "modernbert-cls", "mpnet", "xlm-roberta"];
    let decoders = ["llama", "llama-tied", "mistral", "qwen2-window", "qwen3"];
    let encoders = encoders.map(|name| (format!("encoders/{name}"), encoder.as_slice()));
    let decoders = decoders.map(|name| (format!("lm-{name}"), decoder.as_slice()));
    for (name, heads) in encoders.iter().chain(&decoders) {
        for head in *heads {
            for precision in Precision::FLOATS {
                for lowering in [Lowering::Portable, Lowering::TensorRt] {
                    let row = format!("{name}, {}, {precision}, {lowering:?}", head.output());
                    let exported = exported(&fixture(name), &options(head.clone(), precision, lowering));
                    let (graph, report) = (graph(&exported), &exported.report);
                    check_sound(&row, &graph);
                    assert!(exported.onnx.len() < 100_000, "{row}: {} bytes", exported.onnx.len());
                    assert_eq!(report.outputs[0].name, head.output(), "{row}");
                    assert_eq!(report.outputs[0].dtype, DataType::F32, "{row}");
                    assert_eq!(report.operators.values().sum::<usize>(), report.nodes, "{row}");
                    let is_low = precision.compute_type() != DataType::F32;
                    assert_eq!(report.kept_fp32.is_empty(), !is_low, "{row}: {:?}", report.kept_fp32);
                }
            }
        }
    }
}

/// The names that optimum and onnxruntime-genai have.
#[test]
fn a_decoder_with_a_cache_says_so_in_its_inputs_and_outputs() {
    let options = options(Head::CausalLm { cache: true }, Precision::Fp16, Lowering::TensorRt);
    let report = exported(&fixture("lm-mistral"), &options).report;
    let shown = |all: &[onnx_export::TensorDescription]| -> Vec<String> {
        let one = |tensor: &onnx_export::TensorDescription| {
            format!("{} {:?} {}", tensor.name, tensor.dtype, tensor.shape.join(" "))
        };
        all.iter().map(one).collect()
    };
    assert_eq!(
        shown(&report.inputs),
        [
            "input_ids I64 batch sequence",
            "attention_mask I64 batch total_sequence",
            "past_key_values.0.key F16 batch 2 past_sequence 16",
            "past_key_values.0.value F16 batch 2 past_sequence 16",
            "past_key_values.1.key F16 batch 2 past_sequence 16",
            "past_key_values.1.value F16 batch 2 past_sequence 16",
        ]
    );
    assert_eq!(
        shown(&report.outputs),
        [
            "logits F32 batch sequence 320",
            "present.0.key F16 batch 2 total_sequence 16",
            "present.0.value F16 batch 2 total_sequence 16",
            "present.1.key F16 batch 2 total_sequence 16",
            "present.1.value F16 batch 2 total_sequence 16",
        ]
    );
    // Two layers: an attention each, two norms each and the last one, queries and keys turned.
    let count = |operator: &str| report.operators.get(operator).copied().unwrap_or_default();
    assert_eq!(["Attention", "RMSNormalization", "RotaryEmbedding"].map(count), [2, 5, 4]);
}

#[test]
fn the_report_says_what_was_cast_and_what_was_kept() {
    let mut options = options(Head::CausalLm { cache: false }, Precision::Fp16, Lowering::Portable);
    options.keep_fp32 = vec![Pattern::new("layers.1.mlp.down_proj").unwrap()];
    let report = exported(&fixture("lm-llama-tied"), &options).report;
    let kept: Vec<String> =
        report.kept_fp32.iter().map(|kept| format!("{}: {}", kept.module, kept.why)).collect();
    for line in [
        "layers.*.self_attn: the softmax of attention",
        "layers.*.input_layernorm: the mean square of the norm",
        "layers.1.mlp.down_proj: asked for by \"layers.1.mlp.down_proj\"",
    ] {
        assert!(kept.iter().any(|kept| kept == line), "{line:?} is not in {kept:#?}");
    }
    let cast = |from, to| {
        let found = report.casts.iter().find(|cast| (cast.from, cast.to) == (from, to));
        found.map(|cast| cast.count).unwrap_or_default()
    };
    // Stored in bfloat16: 16 tensors a layer, the embeddings and the last norm, of which one product stays in fp32.
    assert_eq!(cast(DataType::Bf16, DataType::F16), 2 * 16 + 2 - 2);
    assert_eq!(cast(DataType::Bf16, DataType::F32), 2);
    assert_eq!(report.weight_casts, 2 * 16 + 2);
}

#[test]
fn tied_weights_are_one_initializer() {
    let weights = |name: &str| {
        let options = options(Head::CausalLm { cache: false }, Precision::Fp32, Lowering::TensorRt);
        let exported = exported(&fixture(name), &options);
        let graph = graph(&exported);
        let mut names: Vec<_> = graph
            .initializer
            .iter()
            .filter(|tensor| tensor.data_location() == 1)
            .map(|t| t.name().to_owned())
            .collect();
        let bytes: u64 = names
            .iter()
            .map(|name| {
                let checkpoint = Checkpoint::open(fixture("lm-qwen3")).unwrap();
                checkpoint.tensor(name).map(|tensor| tensor.length_bytes).unwrap_or_default()
            })
            .sum();
        names.sort_unstable();
        (names, bytes, exported.report.weight_bytes)
    };
    let (names, bytes, reported) = weights("lm-qwen3");
    assert!(!names.contains(&"lm_head.weight".to_owned()), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.as_str() == "model.embed_tokens.weight").count(), 1);
    assert_eq!(bytes, reported, "every byte is counted once");
    assert!(weights("lm-llama").0.contains(&"lm_head.weight".to_owned()));
}

/// A bare model, saved without its head, has no prefix and gives hidden states only.
#[test]
fn a_decoder_without_its_last_product_is_named_as_such() {
    let folder = copy_of(&["lm-qwen3"]);
    set_config(folder.path(), "tie_word_embeddings", json!(false));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = export(&checkpoint, &ExportOptions::new(Head::CausalLm { cache: false }, Precision::Fp32));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("lm_head.weight"), "{error}");
    export(&checkpoint, &ExportOptions::new(Head::HiddenStates, Precision::Fp32)).unwrap();
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
