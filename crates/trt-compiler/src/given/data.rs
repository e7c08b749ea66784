//! The files in which a graph's tensors lie: found, and held to be where a model's files may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::GraphError;
use super::schema::{Model, Tensor};

/// Files that this command writes into a version: a graph's data cannot have their names.
const TAKEN: [&str; 3] = ["model.onnx", "evidence.json", "report.html"];

/// The files that the tensors of `model` lie in, relative to the folder of the graph, each with its size in bytes.
///
/// Every one is a plain relative path to a regular file below `roots`, and holds all that the graph says it does.
pub(super) fn files(
    model: &Model,
    path: &Path,
    roots: &[PathBuf],
) -> Result<BTreeMap<String, u64>, GraphError> {
    let mut found = BTreeMap::new();
    for tensor in model.tensors().into_iter().filter(|tensor| tensor.is_external()) {
        let name = tensor.name.clone().unwrap_or_default();
        let location = tensor.external("location").unwrap_or_default();
        let hostile = |reason: &str| GraphError::Hostile {
            path: path.to_owned(),
            tensor: name.clone(),
            location: location.to_owned(),
            reason: reason.to_owned(),
        };
        let relative = plain(location).map_err(hostile)?;
        let file_bytes = if let Some(bytes) = found.get(&relative) {
            *bytes
        } else {
            let file = folder_of(path).join(&relative);
            let Ok(target) = file.canonicalize() else {
                return Err(GraphError::NoData { path: path.to_owned(), tensor: name, file });
            };
            if !roots.iter().any(|root| target.starts_with(root)) {
                return Err(hostile(&format!("is a link to {}", target.display())));
            }
            let metadata =
                fs::metadata(&target).map_err(|source| GraphError::Io { path: target.clone(), source })?;
            if !metadata.is_file() {
                return Err(hostile("is no regular file"));
            }
            metadata.len()
        };
        check_extent(tensor, file_bytes).map_err(|reason| GraphError::Data {
            path: path.to_owned(),
            tensor: name,
            reason,
        })?;
        found.insert(relative, file_bytes);
    }
    Ok(found)
}

/// The folder of a graph.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A location as a plain path with `/`, or what is wrong with it.
fn plain(location: &str) -> Result<String, &'static str> {
    if location.is_empty() {
        return Err("is no name");
    }
    // ONNX Runtime takes `*/_ORT_MEM_ADDR_/*` for an address in memory.
    if location.contains(['\\', '*', '\0']) {
        return Err("is no plain name");
    }
    let mut parts = Vec::new();
    for part in Path::new(location).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::CurDir => {}
            Component::ParentDir => return Err("leads out of it"),
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
        }
    }
    let plain = parts.join("/");
    if plain.is_empty() || location.ends_with('/') {
        return Err("is no file");
    }
    if TAKEN.contains(&plain.as_str()) || parts.first() == Some(&"engines") {
        return Err("is a name that a version has for something else");
    }
    Ok(plain)
}

/// Whether a tensor's bytes are within a file of so many bytes, and as many as its shape says.
fn check_extent(tensor: &Tensor, file_bytes: u64) -> Result<(), String> {
    let number = |key: &str| match tensor.external(key) {
        None => Ok(None),
        Some(text) => {
            text.trim().parse::<u64>().map(Some).map_err(|_| format!("its {key} is {text:?}, no number"))
        }
    };
    let offset = number("offset")?.unwrap_or(0);
    let expected = tensor.bytes();
    let rest = file_bytes.saturating_sub(offset);
    // Without a length it is all that the shape asks for.
    let length = number("length")?.or(expected).unwrap_or(rest);
    if let Some(expected) = expected.filter(|expected| *expected != length) {
        return Err(format!("{length} bytes for a shape of {expected}"));
    }
    match offset.checked_add(length) {
        Some(end) if end <= file_bytes => Ok(()),
        _ => Err(format!("{length} bytes from {offset} on, in a file of {file_bytes}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_extent, plain};
    use crate::given::schema::Tensor;
    use onnx_export::proto::StringStringEntryProto;

    #[test]
    fn only_plain_relative_names_are_taken() {
        let check = |location: &str, expected: Result<&str, &str>| {
            assert_eq!(plain(location), expected.map(str::to_owned), "{location:?}");
        };
        check("model.onnx_data", Ok("model.onnx_data"));
        check("./weights/part-0.bin", Ok("weights/part-0.bin"));
        check("", Err("is no name"));
        check("/etc/passwd", Err("is absolute"));
        check("../secret", Err("leads out of it"));
        check("a/../../secret", Err("leads out of it"));
        check("a\\..\\secret", Err("is no plain name"));
        check("*/_ORT_MEM_ADDR_/*", Err("is no plain name"));
        check(".", Err("is no file"));
        check("a/", Err("is no file"));
        check("model.onnx", Err("is a name that a version has for something else"));
        check("engines/x/model.engine", Err("is a name that a version has for something else"));
    }

    #[test]
    fn data_lies_within_its_file_and_fills_its_shape() {
        let check = |row: &str, entries: &[(&str, &str)], expected: Result<(), &str>| {
            let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
                key: Some((*key).to_owned()),
                value: Some((*value).to_owned()),
            };
            let tensor = Tensor {
                dims: vec![2, 3],
                data_type: Some(1),
                external_data: entries.iter().map(entry).collect(),
                ..Tensor::default()
            };
            match (check_extent(&tensor, 100), expected) {
                (Ok(()), Ok(())) => {}
                (Err(found), Err(part)) => assert!(found.contains(part), "{row}: {found}"),
                (found, _) => panic!("{row}: {found:?}"),
            }
        };
        check("all said", &[("offset", "76"), ("length", "24")], Ok(()));
        check("no length", &[("offset", "76")], Ok(()));
        check("nothing said", &[], Ok(()));
        check("one byte past the end", &[("offset", "77"), ("length", "24")], Err("24 bytes from 77 on"));
        check("no length, past the end", &[("offset", "77")], Err("24 bytes from 77 on"));
        check(
            "an end past all numbers",
            &[("offset", "18446744073709551615")],
            Err("from 18446744073709551615"),
        );
        check("no number", &[("offset", "-1")], Err("no number"));
        check("another length", &[("length", "12")], Err("12 bytes for a shape of 24"));
    }
}
