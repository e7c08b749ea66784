//! A small agent that finds what was said before: `echo 'wind' | cargo run -p model-loader --example memory -- --agent memory --documents notes.txt`
#![expect(unreachable_pub, reason = "the module is shared by the examples")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::{fs, io};

use common::Failure;
use model_loader::{LoadError, Loaded, SentenceEmbedder};
use model_store::exit;
use serde_json::{Value, json};

const USAGE: &str = "\
Reads questions, one a line, and finds the documents that are nearest to each: score, document.
Without documents it writes the vector of each line, a JSON array of floats.

Usage: memory --agent AGENT [--documents FILE] [--top N] [--version VERSION] [--store DIR] [--model DIR]
              [--json] [--verbose]

  --documents FILE   what to search, a document a line; empty lines are passed over
  --top N            how many documents to find (3)
{COMMON}
With --json a line has: text, the hits (score, document, its line in the file) or the vector, and the
version that answered. Documents are embedded again when the version changes: vectors of two versions
cannot be compared.

Examples:
  echo 'Ships wait for the wind to fall.' | memory --agent memory
  memory --agent memory --documents headlines.txt --top 5 < questions.txt
";

/// The documents and their vectors, all by one model.
struct Index {
    model: Arc<Loaded<SentenceEmbedder>>,
    vectors: Vec<Vec<f32>>,
}

struct Document {
    line: usize,
    text: String,
}

fn main() -> ExitCode {
    common::main(USAGE, &["--documents", "--top"], |arguments| {
        let top = arguments.own("--top").map_or(Ok(3), |top| common::number("--top", top))?;
        let top = usize::try_from(top).unwrap_or(usize::MAX);
        let documents = arguments.own("--documents").map(documents).transpose()?;
        let memory = arguments.model::<SentenceEmbedder>()?;
        let mut index: Option<Index> = None;
        common::answer_lines(|texts| {
            // One model for the whole batch, whatever `current` does meanwhile.
            let model = memory.get();
            let vectors = model.embed(texts)?;
            let by = model.resolved().short_name();
            let Some(documents) = &documents else {
                let line = |(vector, text): (Vec<f32>, &String)| {
                    let plain = !arguments.json;
                    let vector = Value::from(vector);
                    if plain { vector } else { json!({ "text": text, "vector": vector, "by": by }) }
                        .to_string()
                };
                return Ok(vectors.into_iter().zip(texts).map(line).collect());
            };
            let index = match index.take() {
                Some(known) if Arc::ptr_eq(&known.model, &model) => index.insert(known),
                _ => index.insert(Index::of(model.clone(), documents)?),
            };
            let lines = texts.iter().zip(&vectors).map(|(text, vector)| {
                let hits = index.nearest(vector, top);
                let hits = hits.into_iter().map(|(score, at)| (score, &documents[at]));
                if arguments.json {
                    let hit = |(score, document): (f32, &Document)| {
                        json!({ "score": score, "document": document.text, "line": document.line })
                    };
                    return json!({ "text": text, "hits": hits.map(hit).collect::<Vec<_>>(), "by": by }).to_string();
                }
                let hits = hits.map(|(score, document)| format!("\n  {score:.3}  {}", document.text));
                format!("{text}{}", hits.collect::<String>())
            });
            Ok(lines.collect())
        })
    })
}

impl Index {
    fn of(model: Arc<Loaded<SentenceEmbedder>>, documents: &[Document]) -> Result<Self, LoadError> {
        let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
        let vectors = model.embed(&texts)?;
        Ok(Self { model, vectors })
    }

    /// The documents that are most alike by the model's own measure, the nearest first.
    fn nearest(&self, vector: &[f32], top: usize) -> Vec<(f32, usize)> {
        let alike = self.model.similarity();
        let scores = self.vectors.iter().map(|document| alike.of(vector, document));
        let mut hits: Vec<(f32, usize)> = scores.zip(0..).collect();
        hits.sort_by(|a, b| b.0.total_cmp(&a.0));
        hits.truncate(top);
        hits
    }
}

fn documents(path: &str) -> Result<Vec<Document>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::FAILURE };
        Failure::Other(format!("cannot read {path}: {error}"), code)
    })?;
    let lines = (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty());
    Ok(lines.map(|(line, text)| Document { line, text: text.to_owned() }).collect())
}
