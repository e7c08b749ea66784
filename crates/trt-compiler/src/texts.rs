//! The texts that a graph is checked and calibrated on.

use std::path::{Path, PathBuf};
use std::{fs, io};

use model_store::Digest;
use serde_json::Value;

/// 64 sentences of news, from two words to several hundred, written for this project.
const BUILT_IN: &str = include_str!("texts.txt");

/// The built-in texts.
#[must_use]
pub fn built_in() -> Vec<String> {
    from_lines(BUILT_IN.split_once('\n').map_or(BUILT_IN, |(_comment, texts)| texts))
}

/// Keys of a line of JSON that hold a text, as data sets call it.
const TEXT_KEYS: [&str; 4] = ["text", "sentence", "content", "body"];

/// The texts in a file, one a line (`.jsonl`: one object or string of JSON a line), or in all text files of a folder and
/// those below it.
pub fn read(path: &Path) -> io::Result<Vec<String>> {
    if path.is_dir() {
        let mut files = Vec::new();
        text_files(path, &mut files)?;
        files.sort_unstable();
        let texts = files.iter().map(|file| read_file(file)).collect::<io::Result<Vec<_>>>()?;
        return Ok(texts.concat());
    }
    read_file(path)
}

fn read_file(path: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(path)?;
    if !is_jsonl(path) {
        return Ok(from_lines(&text));
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let is_text = |text: &io::Result<String>| text.as_ref().map_or(true, |text| !text.trim().is_empty());
    let parse = |(number, line): (usize, &str)| {
        text_of_json(line).map_err(|reason| {
            let reason = format!("{}, line {number}: {reason}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    };
    lines.map(parse).filter(is_text).collect()
}

fn text_of_json(line: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let text = match &value {
        Value::String(text) => Some(text),
        _ => TEXT_KEYS.iter().find_map(|key| match value.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
    };
    text.cloned().ok_or_else(|| format!("no text; it is looked for in {}", TEXT_KEYS.join(", ")))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "jsonl" || end == "ndjson")
}

fn text_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // Links are left out: one could lead in a circle.
        if entry.file_type()?.is_dir() {
            text_files(&path, found)?;
        } else if is_jsonl(&path) || path.extension().is_some_and(|end| end == "txt") {
            found.push(path);
        }
    }
    Ok(())
}

/// SHA-256 of the texts, joined by line feeds: what evidence knows them by.
#[must_use]
pub fn digest(texts: &[String]) -> String {
    Digest::of(texts.join("\n").as_bytes()).to_string()
}

/// One text a line; empty lines do not count.
#[must_use]
pub fn from_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    #[test]
    fn texts_come_from_lines_json_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let lines = write("b.txt", "one\n\n  two  \n");
        assert_eq!(super::read(&lines).unwrap(), ["one", "two"]);
        let json = write(
            "a/c.jsonl",
            "{\"text\": \"three\\nlines\"}\n{\"text\": \" \"}\n\n\"four\"\n{\"id\": 1, \"body\": \"five\"}\n",
        );
        assert_eq!(super::read(&json).unwrap(), ["three\nlines", "four", "five"]);
        write("picture.png", "no text");
        assert_eq!(super::read(folder.path()).unwrap(), ["three\nlines", "four", "five", "one", "two"]);
        for (line, reason) in
            [("{\"title\": \"x\"}", "no text"), ("{", "line 1"), ("{\"text\": 1}", "no text")]
        {
            let error = super::read(&write("bad.jsonl", line)).unwrap_err().to_string();
            assert!(error.contains("bad.jsonl, line 1") && error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn there_are_64_short_and_long_texts_and_none_twice() {
        let mut texts = super::built_in();
        assert_eq!(texts.len(), 64);
        let words = |text: &String| text.split_whitespace().count();
        assert!(texts.iter().any(|text| words(text) <= 3));
        assert!(texts.iter().any(|text| words(text) >= 200));
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 64);
    }
}
