//! Which files of a model folder belong to a version.

use std::fs;
use std::io;
use std::path::Path;

/// Files that a model is made of, by name.
const NAMES: [&str; 15] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "chat_template.jinja",
];

/// Whether the file at `path` (relative, with `/`) belongs to a version: configuration, tokenizer, safetensors weights,
/// licence and description, in the folder itself or one below it. Pickles, other frameworks' weights, code and what an
/// earlier build left (`model.onnx`, engines) do not.
#[must_use]
pub fn belongs(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let depth = folder.split('/').filter(|part| !part.is_empty()).count();
    let hidden = path.split('/').any(|part| part.starts_with('.'));
    if hidden || depth > 1 || matches!(folder, "engines" | "onnx" | "openvino") {
        return false;
    }
    let upper = name.to_ascii_uppercase();
    NAMES.contains(&name)
        || has_extension(name, "safetensors")
        || has_extension(name, "model") && name.contains("sentencepiece")
        || name == "tokenizer.model"
        || depth == 0 && (upper == "README.MD" || upper.starts_with("LICENSE") || upper.starts_with("NOTICE"))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The files of `folder` that belong to a version, sorted. Symbolic links to files count: the Hub's cache is made of them.
pub fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(below) = pending.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = fs::metadata(folder.join(&path))?;
            if kind.is_dir() && below.is_empty() {
                pending.push(path);
            } else if kind.is_file() && belongs(&path) {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::belongs;

    #[test]
    fn models_and_their_papers_belong_and_nothing_else() {
        let check = |path: &str, expected: bool| assert_eq!(belongs(path), expected, "{path}");
        check("config.json", true);
        check("model.safetensors", true);
        check("model-00001-of-00002.safetensors", true);
        check("1_Pooling/config.json", true);
        check("2_Dense/model.safetensors", true);
        check("LICENSE.txt", true);
        check("README.md", true);
        check("pytorch_model.bin", false);
        check("model.onnx", false);
        check("onnx/config.json", false);
        check("engines/tensorrt-rtx-1.7/sm89-fp16/engine.json", false);
        check("a/b/config.json", false);
        check(".git/config.json", false);
        check(".wheel", false);
        check("modeling_custom.py", false);
        check("evidence.json", false);
    }
}
