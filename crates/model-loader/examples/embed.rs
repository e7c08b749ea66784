//! Sentences in, vectors out: `echo 'A sentence.' | cargo run -p model-loader --example embed -- --agent memory`
#![expect(unreachable_pub, reason = "the module is shared by the examples")]

mod common;

use std::process::ExitCode;

use model_loader::SentenceEmbedder;
use serde_json::Value;

const USAGE: &str = "\
Reads sentences, one a line; writes one JSON array of floats a line.

Usage: embed --agent AGENT [--version VERSION] [--store DIR] [--model DIR] [--verbose]

  --agent AGENT      whose model to take from the store
  --version VERSION  another than the current one
  --store DIR        another store than MODEL_STORE_ROOT's
  --model DIR        a folder to take when the store does not serve the agent
  --verbose          say where the model came from, on the standard error

Example: echo 'Ships wait for the wind to fall.' | embed --agent memory
";

fn main() -> ExitCode {
    common::main(USAGE, |arguments| {
        let embedder = SentenceEmbedder::load(&arguments.agent, &arguments.options)?;
        arguments.loaded(embedder.resolved())?;
        common::answer_lines(|texts| Ok(embedder.embed(texts)?.into_iter().map(Value::from).collect()))
    })
}
