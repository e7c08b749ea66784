//! Writes the graph of every family in every form to a folder, for tools that check files: `tests/parity/check_onnx.py`.

use std::fs;
use std::path::PathBuf;

use onnx_export::{Checkpoint, ExportOptions, Head, Lowering, Precision, export};

use crate::support::{copy_into, fixture};

const ENCODERS: [Head; 3] = [Head::HiddenStates, Head::SequenceClassification, Head::TokenClassification];
const DECODERS: [Head; 3] =
    [Head::HiddenStates, Head::CausalLm { cache: false }, Head::CausalLm { cache: true }];

/// `ONNX_GRAPHS_DIR=folder cargo test -p onnx-export -- --ignored every_graph_is_written`
#[test]
#[ignore = "writes a folder that ONNX_GRAPHS_DIR names, for another program to check"]
fn every_graph_is_written() {
    let out = PathBuf::from(std::env::var_os("ONNX_GRAPHS_DIR").expect("ONNX_GRAPHS_DIR names a folder"));
    let mut models: Vec<(String, &[Head])> = Vec::new();
    for entry in fs::read_dir(fixture("encoders")).unwrap() {
        models.push((format!("encoders/{}", entry.unwrap().file_name().into_string().unwrap()), &ENCODERS));
    }
    models.push(("roberta".to_owned(), &ENCODERS));
    let decoders = ["llama", "llama-linear", "llama-tied", "mistral", "qwen2", "qwen2-window", "qwen3"];
    models.extend(decoders.iter().map(|name| (format!("lm-{name}"), DECODERS.as_slice())));
    let mut written = 0;
    for (name, heads) in models {
        let folder = out.join(name.replace('/', "-"));
        copy_into(&fixture(&name), &folder);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for head in heads {
            for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
                for lowering in [Lowering::Portable, Lowering::TensorRt] {
                    let options = ExportOptions { lowering, ..ExportOptions::new(head.clone(), precision) };
                    let exported = match export(&checkpoint, &options) {
                        Ok(exported) => exported,
                        // A model without a layer for this head.
                        Err(error) if error.to_string().contains("classification") => continue,
                        Err(error) => panic!("{name}: {error}"),
                    };
                    let head = match head {
                        Head::HiddenStates => "hidden",
                        Head::SentenceEmbedding(_) => "sentence",
                        Head::SequenceClassification => "classes",
                        Head::TokenClassification => "tokens",
                        Head::CausalLm { cache: false } => "lm",
                        Head::CausalLm { cache: true } => "lm-cache",
                    };
                    let file = format!("{head}-{precision}-{lowering:?}.onnx").to_lowercase();
                    fs::write(folder.join(file), exported.onnx).unwrap();
                    written += 1;
                }
            }
        }
    }
    eprintln!("{written} graphs in {}", out.display());
}
