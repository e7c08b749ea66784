//! Texts in, labels out: `echo 'Profits rose.' | cargo run -p model-loader --example classify -- --agent analyst`
#![expect(unreachable_pub, reason = "the module is shared by the examples")]

mod common;

use std::process::ExitCode;

use model_loader::TextClassifier;
use serde_json::{Map, Value, json};

const USAGE: &str = "\
Reads texts, one a line; writes one JSON object a line: label, score, the scores of all labels, and the text.

Usage: classify --agent AGENT [--version VERSION] [--store DIR] [--model DIR] [--verbose]

  --agent AGENT      whose model to take from the store
  --version VERSION  another than the current one
  --store DIR        another store than MODEL_STORE_ROOT's
  --model DIR        a folder to take when the store does not serve the agent
  --verbose          say where the model came from, on the standard error

Example: echo 'Profits rose sharply.' | classify --agent analyst
";

fn main() -> ExitCode {
    common::main(USAGE, |arguments| {
        let classifier = TextClassifier::load(&arguments.agent, &arguments.options)?;
        arguments.loaded(classifier.resolved())?;
        common::answer_lines(|texts| {
            let predictions = classifier.classify(texts)?.into_iter().zip(texts);
            let line = |(prediction, text): (model_loader::Prediction, &String)| {
                let scores: Map<String, Value> = classifier
                    .labels()
                    .iter()
                    .cloned()
                    .zip(prediction.scores.into_iter().map(Value::from))
                    .collect();
                json!({ "label": prediction.label, "score": prediction.score, "scores": scores, "text": text })
            };
            Ok(predictions.map(line).collect())
        })
    })
}
