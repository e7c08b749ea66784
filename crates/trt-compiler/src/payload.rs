//! Which files of a model folder belong to a version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files that a model is made of, by name.
const NAMES: [&str; 14] = [
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
    // sentence-transformers has named it after the family: sentence_bert_config.json, sentence_roberta_config.json, …
    let sentence = name.starts_with("sentence_") && name.ends_with("_config.json");
    NAMES.contains(&name)
        || sentence
        || has_extension(name, "safetensors")
        || has_extension(name, "model") && name.contains("sentencepiece")
        || name == "tokenizer.model"
        || depth == 0 && (upper == "README.MD" || upper.starts_with("LICENSE") || upper.starts_with("NOTICE"))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The files of `folder` that belong to a version, sorted.
///
/// A symbolic link counts if it leads to a file within the folder or, in a snapshot of the Hub's cache, to one of its
/// blobs. Any other is an error: what it leads to was never meant to be part of a model.
pub fn list(folder: &Path) -> io::Result<Vec<String>> {
    let roots = allowed(folder)?;
    let mut files = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(below) = pending.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.file_type()?.is_dir() && below.is_empty() {
                pending.push(path);
            } else if belongs(&path) {
                check(&entry.path(), &path, &roots)?;
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Where the files of `folder` may be: in it, or among the blobs of the Hub's cache, `<repository>/blobs` beside
/// `<repository>/snapshots/<commit>`.
pub(crate) fn allowed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = folder.canonicalize()?;
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    Ok(std::iter::once(folder).chain(blobs).collect())
}

fn check(file: &Path, name: &str, roots: &[PathBuf]) -> io::Result<()> {
    let refuse = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} {reason}")));
    let Ok(target) = file.canonicalize() else { return refuse("is a link that leads nowhere") };
    if !roots.iter().any(|root| target.starts_with(root)) {
        return refuse(&format!("leads out of the folder, to {}", target.display()));
    }
    if !fs::metadata(&target)?.is_file() {
        return refuse("is not a regular file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{belongs, list};

    #[test]
    fn models_and_their_papers_belong_and_nothing_else() {
        let check = |path: &str, expected: bool| assert_eq!(belongs(path), expected, "{path}");
        check("config.json", true);
        check("model.safetensors", true);
        check("model-00001-of-00002.safetensors", true);
        check("1_Pooling/config.json", true);
        check("sentence_roberta_config.json", true);
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

    #[test]
    fn links_stay_in_the_folder_or_lead_to_blobs_of_the_cache() -> std::io::Result<()> {
        use std::os::unix::fs::symlink;
        let scratch = tempfile::tempdir()?;
        let snapshot = scratch.path().join("snapshots/0123");
        std::fs::create_dir_all(&snapshot)?;
        std::fs::create_dir(scratch.path().join("blobs"))?;
        std::fs::write(scratch.path().join("blobs/ab"), "{}")?;
        symlink("../../blobs/ab", snapshot.join("config.json"))?;
        symlink("/nowhere", snapshot.join("notes.txt"))?;
        assert_eq!(list(&snapshot)?, ["config.json"], "what does not belong is not looked at");
        for target in ["/etc/passwd", "/nowhere", "/dev/zero"] {
            symlink(target, snapshot.join("LICENSE"))?;
            let Err(error) = list(&snapshot) else { panic!("{target} was taken") };
            assert!(error.to_string().contains("LICENSE"), "{error}");
            std::fs::remove_file(snapshot.join("LICENSE"))?;
        }
        Ok(())
    }
}
