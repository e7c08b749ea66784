//! A small agent that classifies a feed: `echo 'Profits rose.' | cargo run -p model-loader --example analyst -- --agent analyst`
#![expect(unreachable_pub, reason = "the module is shared by the examples")]

mod common;

use std::process::ExitCode;

use common::Failure;
use model_loader::{Loaded, Prediction, TextClassifier};
use model_store::exit;
use serde_json::{Map, Value, json};

const USAGE: &str = "\
Reads texts, one a line, and says what label each has: label, score, text.

Usage: analyst --agent AGENT [--only LABEL] [--version VERSION] [--store DIR] [--model DIR] [--json] [--verbose]

  --only LABEL       pass over texts with other labels
{COMMON}
With --json a line has: label, score, the scores of all labels, text, and the version that answered.

Examples:
  echo 'Profits rose sharply.' | analyst --agent analyst
  tail -f headlines.txt | analyst --agent analyst --only negative
  analyst --agent analyst --json < headlines.txt | jq -r '[.by, .label, .score] | @tsv'
";

fn main() -> ExitCode {
    common::main(USAGE, &["--only"], |arguments| {
        let analyst = arguments.model::<TextClassifier>()?;
        let only = arguments.own("--only");
        // A version with other labels does not take this one's place, so this holds from now on.
        if let Some(label) = only.filter(|only| analyst.get().labels().iter().all(|label| label != only)) {
            let there = analyst.get().labels().join(", ");
            return Err(Failure::Other(format!("no label `{label}`; there are: {there}"), exit::USAGE));
        }
        common::answer_lines(|texts| {
            // One model for the whole batch, whatever `current` does meanwhile.
            let model = analyst.get();
            let predictions = model.classify(texts)?;
            let wanted = |prediction: &Prediction| only.is_none_or(|label| prediction.label == label);
            let answers = predictions.iter().zip(texts).filter(|(prediction, _)| wanted(prediction));
            Ok(answers.map(|(prediction, text)| line(&model, prediction, text, arguments.json)).collect())
        })
    })
}

fn line(model: &Loaded<TextClassifier>, prediction: &Prediction, text: &str, json: bool) -> String {
    let Prediction { label, score, scores } = prediction;
    if !json {
        let width = model.labels().iter().map(String::len).max().unwrap_or_default();
        return format!("{label:<width$}  {score:.3}  {text}");
    }
    let scores = scores.iter().copied().map(Value::from);
    let scores: Map<String, Value> = model.labels().iter().cloned().zip(scores).collect();
    let by = model.resolved().short_name();
    json!({ "label": label, "score": score, "scores": scores, "text": text, "by": by }).to_string()
}
