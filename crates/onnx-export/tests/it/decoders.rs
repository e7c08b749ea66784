//! Every decoder's graph computes what transformers computes: all at once, and step by step with a cache.

use std::fs;
use std::path::Path;

use half::f16;
use model_loader::onnx::{OnnxSession, OnnxTensor};
use model_loader::{CausalLm, LmOptions, Prompt};
use onnx_export::{ExportOptions, Head, Precision};
use serde::Deserialize;

use crate::support::{
    Judge, Outputs, Rectangle, Side, copy_of, fixture, max_abs, runtime, session, variants,
};

const MODELS: [&str; 7] =
    ["lm-llama", "lm-llama-linear", "lm-llama-tied", "lm-mistral", "lm-qwen2", "lm-qwen2-window", "lm-qwen3"];
const VOCABULARY: usize = 320;
const PAD: i64 = 2;
/// Of `config.json` of all of them.
const POSITIONS: usize = 512;

/// What transformers gave for a prompt: its tokens, and the likeliest ones after it.
#[derive(Deserialize)]
struct Continued {
    ids: Vec<i64>,
    greedy: Vec<i64>,
}

#[derive(Deserialize)]
struct Reference {
    outputs: Vec<Continued>,
}

fn continued(model: &str) -> Vec<Continued> {
    let bytes = fs::read(fixture(model).join("reference.json")).unwrap();
    serde_json::from_slice::<Reference>(&bytes).unwrap().outputs
}

fn row(model: &str, options: &ExportOptions) -> String {
    format!("{model}, {}, {:?}", options.precision, options.lowering)
}

/// The logits of each sentence's own tokens, a row of the vocabulary each.
fn full_pass(session: &mut OnnxSession, sentences: &[Vec<i64>], side: Side) -> Vec<Vec<f32>> {
    let sentences: Vec<_> = sentences.iter().map(|ids| (ids.clone(), vec![0; ids.len()])).collect();
    let rectangle = Rectangle::new(&sentences, PAD, side);
    let outputs = session.run_named(rectangle.feed(session)).unwrap();
    let [(name, logits)] = outputs.as_slice() else { panic!("{} outputs", outputs.len()) };
    assert_eq!(name, "logits");
    let logits = logits.to_f32().unwrap();
    assert_eq!(logits.shape, [rectangle.rows, rectangle.sequence, VOCABULARY]);
    let rows = logits.values.chunks(rectangle.sequence * VOCABULARY);
    let own = rows
        .zip(&rectangle.starts)
        .zip(&sentences)
        .map(|((row, start), (ids, _))| row[start * VOCABULARY..(start + ids.len()) * VOCABULARY].to_vec());
    own.collect()
}

fn likeliest(logits: &[f32]) -> i64 {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
    i64::try_from(best.0).unwrap()
}

/// Prompts of different lengths with what torch wrote after them, in one rectangle padded on either side, and alone.
///
/// In fp32 the logits after the prompt are torch's, and every one of its 64 choices is made again; all logits of the 16-bit
/// graphs are held against those of the fp32 graph. (Of the few that torch left, cosines in bf16 are a matter of luck:
/// torch's own bf16 gives 0.9985 to 0.9999 for these models.)
#[test]
fn logits_are_those_of_transformers() {
    let Some(runtime) = runtime() else { return };
    for model in MODELS {
        let (folder, expected) = (fixture(model), continued(model));
        let logits = Outputs::open(&folder.join("outputs.safetensors")).floats("logits");
        let sentences: Vec<Vec<i64>> =
            expected.iter().map(|one| [one.ids.as_slice(), &one.greedy].concat()).collect();
        let mut exact = Vec::new();
        for options in variants(&Head::CausalLm { cache: false }) {
            let mut session = session(&runtime, &folder, &options);
            if exact.is_empty() {
                assert_eq!(options.precision, Precision::Fp32);
                exact = full_pass(&mut session, &sentences, Side::Right);
            }
            let mut judge = Judge::new(row(model, &options), options.precision, VOCABULARY);
            let mut check = |how: &str, index: usize, found: &[f32]| {
                let what = format!("{how}, prompt {index}");
                judge.add(&what, found, &exact[index]);
                if options.precision == Precision::Fp32 {
                    let after = (expected[index].ids.len() - 1) * VOCABULARY;
                    let torch = &logits[index * VOCABULARY..][..VOCABULARY];
                    judge.add(&what, &found[after..after + VOCABULARY], torch);
                    let choices: Vec<i64> =
                        found[after..].chunks(VOCABULARY).map(likeliest).take(64).collect();
                    assert_eq!(choices, expected[index].greedy, "{model}, {what}");
                }
            };
            for side in [Side::Right, Side::Left] {
                for (index, found) in full_pass(&mut session, &sentences, side).iter().enumerate() {
                    check(&format!("padded {side:?}"), index, found);
                }
            }
            for (index, sentence) in sentences.iter().enumerate() {
                let alone = full_pass(&mut session, std::slice::from_ref(sentence), Side::Right);
                check("alone", index, &alone[0]);
            }
        }
    }
}

/// One token, and as many as there are positions for: against the loader, which the loader's tests hold against torch.
#[test]
fn the_shortest_and_the_longest_text_are_those_of_the_loader() {
    let Some(runtime) = runtime() else { return };
    for model in MODELS {
        let folder = copy_of(&[model, "lm-tokenizer"]);
        let loader = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
        let one = continued(model).pop().unwrap();
        let long: Vec<i64> = one.ids.iter().chain(&one.greedy).copied().cycle().take(POSITIONS).collect();
        let short = one.ids[..1].to_vec();
        let reference = |ids: &[i64]| {
            let ids = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
            loader.logits(Prompt::Tokens(ids)).unwrap()
        };
        let expected = [(&short, reference(&short)), (&long, reference(&long))];
        for options in variants(&Head::CausalLm { cache: false }) {
            let mut session = session(&runtime, folder.path(), &options);
            let mut judge = Judge::new(row(model, &options), options.precision, VOCABULARY);
            for (ids, expected) in &expected {
                let found = &full_pass(&mut session, &[(*ids).clone()], Side::Right)[0];
                judge.add(&format!("{} tokens", ids.len()), &found[found.len() - VOCABULARY..], expected);
            }
        }
    }
}

/// A generation under way: what has been fed, and the cache as the graph gave it.
struct Steps<'a> {
    session: &'a mut OnnxSession,
    cache: Vec<(String, OnnxTensor)>,
    /// Row by row, of all tokens so far.
    mask: Vec<Vec<i64>>,
}

impl<'a> Steps<'a> {
    /// An empty cache of the type that the graph wants.
    fn new(session: &'a mut OnnxSession, rows: usize, folder: &Path, precision: Precision) -> Self {
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let size = |key: &str| config[key].as_u64().map(|size| usize::try_from(size).unwrap());
        let heads = size("num_key_value_heads").unwrap();
        let width = size("head_dim")
            .unwrap_or_else(|| size("hidden_size").unwrap() / size("num_attention_heads").unwrap());
        let shape = [rows, heads, 0, width];
        let empty = || match precision {
            Precision::Fp16 => OnnxTensor::halves(&shape, Vec::<f16>::new()).unwrap(),
            // Emulated, so in fp32.
            _ => OnnxTensor::floats(&shape, Vec::new()).unwrap(),
        };
        let names = session.input_names().filter(|name| name.starts_with("past_key_values."));
        let cache: Vec<_> = names.map(|name| (name.to_owned(), empty())).collect();
        assert_eq!(cache.len(), 2 * size("num_hidden_layers").unwrap());
        Self { session, cache, mask: vec![Vec::new(); rows] }
    }

    /// Feeds as many new tokens to every row; gives the logits of each row, [new, vocabulary].
    fn feed(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Vec<Vec<f32>> {
        for (all, new) in self.mask.iter_mut().zip(mask) {
            all.extend_from_slice(new);
        }
        let (rows, new, total) = (ids.len(), ids[0].len(), self.mask[0].len());
        let mut inputs = std::mem::take(&mut self.cache);
        inputs.push(("input_ids".to_owned(), OnnxTensor::integers(&[rows, new], ids.concat()).unwrap()));
        let mask = OnnxTensor::integers(&[rows, total], self.mask.concat()).unwrap();
        inputs.push(("attention_mask".to_owned(), mask));
        let mut outputs = self.session.run_named(inputs).unwrap();
        let (name, logits) = outputs.remove(0);
        assert_eq!(name, "logits");
        self.cache = outputs
            .into_iter()
            .map(|(name, tensor)| (name.replacen("present.", "past_key_values.", 1), tensor))
            .collect();
        let logits = logits.to_f32().unwrap();
        assert_eq!(logits.shape, [rows, new, VOCABULARY]);
        logits.values.chunks(new * VOCABULARY).map(<[f32]>::to_vec).collect()
    }
}

/// Prompts of different lengths, padded on either side, then token by token: the same logits as all at once.
#[test]
fn step_by_step_is_the_same_as_all_at_once() {
    const STEPS: usize = 24;
    let Some(runtime) = runtime() else { return };
    for model in MODELS {
        let (folder, expected) = (fixture(model), continued(model));
        let whole: Vec<Vec<i64>> =
            expected.iter().map(|one| [one.ids.as_slice(), &one.greedy[..STEPS]].concat()).collect();
        for options in variants(&Head::CausalLm { cache: true }) {
            let row = row(model, &options);
            let without = ExportOptions { head: Head::CausalLm { cache: false }, ..options.clone() };
            let at_once = full_pass(&mut session(&runtime, &folder, &without), &whole, Side::Right);
            let mut session = session(&runtime, &folder, &options);
            for side in [Side::Right, Side::Left] {
                let mut judge = Judge::new(format!("{row}, padded {side:?}"), options.precision, VOCABULARY);
                let prompts: Vec<_> =
                    expected.iter().map(|one| (one.ids.clone(), vec![0; one.ids.len()])).collect();
                let rectangle = Rectangle::new(&prompts, PAD, side);
                let rows = |values: &[i64]| -> Vec<Vec<i64>> {
                    values.chunks(rectangle.sequence).map(<[i64]>::to_vec).collect()
                };
                let mut steps = Steps::new(&mut session, prompts.len(), &folder, options.precision);
                // The prompt in two pieces: the second sees the first in the cache.
                let (ids, mask) = (rows(&rectangle.ids), rows(&rectangle.mask));
                let piece = |all: &[Vec<i64>], from: usize, to: usize| -> Vec<Vec<i64>> {
                    all.iter().map(|row| row[from..to].to_vec()).collect()
                };
                let middle = rectangle.sequence / 2;
                let mut prefill = steps.feed(&piece(&ids, 0, middle), &piece(&mask, 0, middle));
                let rest = steps.feed(
                    &piece(&ids, middle, rectangle.sequence),
                    &piece(&mask, middle, rectangle.sequence),
                );
                for (first, second) in prefill.iter_mut().zip(rest) {
                    first.extend(second);
                }
                for (index, one) in expected.iter().enumerate() {
                    let own =
                        &prefill[index][rectangle.starts[index] * VOCABULARY..][..one.ids.len() * VOCABULARY];
                    judge.add("prompt", own, &at_once[index][..own.len()]);
                }
                for step in 0..STEPS {
                    let next: Vec<Vec<i64>> = expected.iter().map(|one| vec![one.greedy[step]]).collect();
                    let found = steps.feed(&next, &vec![vec![1]; next.len()]);
                    for (index, one) in expected.iter().enumerate() {
                        let at = (one.ids.len() + step) * VOCABULARY;
                        judge.add(
                            &format!("step {step}"),
                            &found[index],
                            &at_once[index][at..at + VOCABULARY],
                        );
                    }
                }
            }
        }
    }
}

/// A decoder also serves as an encoder of sentences, whose last token is what is taken: the hidden states behind the
/// logits, which are the product with the tied embeddings.
#[test]
fn hidden_states_are_what_logits_are_made_of() {
    let Some(runtime) = runtime() else { return };
    let folder = fixture("lm-qwen3");
    let ids = continued("lm-qwen3")[1].ids.clone();
    let options = ExportOptions::new(Head::HiddenStates, Precision::Fp32);
    let logits = ExportOptions::new(Head::CausalLm { cache: false }, Precision::Fp32);
    let logits = full_pass(&mut session(&runtime, &folder, &logits), std::slice::from_ref(&ids), Side::Right);
    let mut session = session(&runtime, &folder, &options);
    let rectangle = Rectangle::new(&[(ids.clone(), vec![0; ids.len()])], PAD, Side::Right);
    let hidden = session.run_named(rectangle.feed(&session)).unwrap()[0].1.to_f32().unwrap();
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = tensors.tensor("model.embed_tokens.weight").unwrap();
    let words: Vec<f32> =
        words.data().as_chunks().0.iter().map(|x| half::bf16::from_le_bytes(*x).to_f32()).collect();
    for (token, (state, expected)) in
        hidden.values.chunks(hidden.shape[2]).zip(logits[0].chunks(VOCABULARY)).enumerate()
    {
        let dot = |word: &[f32]| word.iter().zip(state).map(|(a, b)| a * b).sum::<f32>();
        let found: Vec<f32> = words.chunks(state.len()).map(dot).collect();
        let difference = max_abs("hidden states", &found, expected);
        assert!(difference < 1e-3, "token {token}: {difference:e}");
    }
}
