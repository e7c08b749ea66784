//! Which files of a repository are wanted: weights as safetensors, configurations, tokenizers. Never pickles, never
//! code.

use crate::request::Graphs;

/// Endings of weights that are pickles, or that only a framework of their own can read.
const PICKLES: [&str; 7] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"];

/// Where a repository has its own graph.
pub(crate) const GRAPHS: [&str; 2] = ["onnx/model.onnx", "model.onnx"];

/// Whether a file is wanted of a repository that has these files.
pub(crate) fn is_wanted(path: &str, graphs: Graphs, all: &[&str]) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match folder {
        "" => match name {
            // Mistral's repositories have their weights twice, under their own names and under transformers'.
            _ if name.starts_with("consolidated") && ending(name) == "safetensors" => !has_weights(all),
            _ => is_model_file(name) || graphs == Graphs::Take && is_graph(name),
        },
        "onnx" => graphs == Graphs::Take && is_graph(name),
        "additional_chat_templates" => ending(name) == "jinja",
        _ => is_module(folder) && is_model_file(name),
    }
}

/// Whether a repository has weights that can be read here.
pub(crate) fn has_weights(all: &[&str]) -> bool {
    all.iter().any(|path| path.ends_with(".safetensors") && !path.starts_with("consolidated"))
}

/// The weights among a repository's files that are never downloaded.
pub(crate) fn pickles<'a>(all: &[&'a str]) -> Vec<&'a str> {
    let named = |path: &&str| {
        PICKLES.iter().any(|ending| path.ends_with(ending)) && !path.ends_with("training_args.bin")
    };
    all.iter().copied().filter(named).collect()
}

fn ending(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, ending)| ending)
}

fn is_model_file(name: &str) -> bool {
    if name.starts_with('.') {
        return false;
    }
    matches!(ending(name), "safetensors" | "json" | "model" | "jinja" | "tiktoken")
        || matches!(name, "vocab.txt" | "merges.txt" | "added_tokens.txt")
}

/// `model.onnx` and the file or files its weights are in; the other precisions have names of their own.
fn is_graph(name: &str) -> bool {
    name == "model.onnx" || name == "model.onnx.data" || name.starts_with("model.onnx_data")
}

/// A module of sentence-transformers: `1_Pooling`, also within `0_Transformer` or a router's folder.
fn is_module(folder: &str) -> bool {
    let module = |part: &str| {
        part.split_once('_').is_some_and(|(number, name)| {
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty()
        })
    };
    folder.split('/').next().is_some_and(module) && folder.split('/').count() <= 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        let all = ["model.safetensors", "config.json"];
        let check = |path: &str, leave: bool, take: bool| {
            let found = (is_wanted(path, Graphs::Leave, &all), is_wanted(path, Graphs::Take, &all));
            assert_eq!(found, (leave, take), "{path}");
        };
        for path in [
            "model.safetensors",
            "model-00001-of-00004.safetensors",
            "model.safetensors.index.json",
            "adapter_model.safetensors",
            "config.json",
            "tokenizer.json",
            "vocab.txt",
            "merges.txt",
            "spiece.model",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "0_Transformer/model.safetensors",
        ] {
            check(path, true, true);
        }
        for path in ["model.onnx", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1"] {
            check(path, false, true);
        }
        for path in [
            "pytorch_model.bin",
            "1_Pooling/pytorch_model.bin",
            "model.pt",
            "tf_model.h5",
            "modeling_custom.py",
            "1_Custom/module.py",
            "README.md",
            ".gitattributes",
            ".eval.json",
            "onnx/model_fp16.onnx",
            "onnx/config.json",
            "openvino/config.json",
            "original/model.safetensors",
            "consolidated.safetensors",
            "model.gguf",
            "training_args.bin",
        ] {
            check(path, false, false);
        }
        assert!(is_wanted("consolidated.safetensors", Graphs::Leave, &["consolidated.safetensors"]));
    }

    #[test]
    fn what_is_a_pickle() {
        let all = ["pytorch_model.bin", "training_args.bin", "config.json", "x.pt", "model.safetensors"];
        assert_eq!(pickles(&all), ["pytorch_model.bin", "x.pt"]);
    }
}
