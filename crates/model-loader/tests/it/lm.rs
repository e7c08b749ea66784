//! Small random language models against what transformers gave for them, and the ways to run one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use model_loader::{
    Backend, CausalLm, Completion, FinishReason, GenerateOptions, LmOptions, LoadOptions, Precision, Prompt,
    ResolveOptions, Strictness,
};
use model_store::{ModelStore, exit};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{check_error, data, edit_json, output};

/// What float32 sums in another order may differ by; the logits are about 10.
pub(crate) const MAX_ABS: f32 = 1e-3;

/// The folders of fixtures in safetensors.
pub(crate) const FAMILIES: &[&str] = &[
    "lm-llama",
    "lm-llama-linear",
    "lm-llama-tied",
    "lm-mistral",
    "lm-qwen2",
    "lm-qwen2-window",
    "lm-qwen3",
];

/// What transformers gave for a prompt.
#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    pub(crate) text: String,
}

#[derive(Deserialize)]
struct Reference {
    outputs: Vec<Expected>,
}

pub(crate) fn expected(folder: &str) -> Vec<Expected> {
    let path = data(folder).join("reference.json");
    serde_json::from_slice::<Reference>(&fs::read(path).unwrap()).unwrap().outputs
}

/// A folder with a fixture's model, copied, and the tokenizer of all of them.
pub(crate) fn model(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in [data(name), data("lm-tokenizer")] {
        for entry in fs::read_dir(from).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    folder
}

pub(crate) fn load(name: &str) -> CausalLm {
    CausalLm::from_dir(model(name).path(), &LmOptions::default()).unwrap()
}

pub(crate) fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

/// Tokens, logits and 64 greedy tokens are those of transformers.
#[track_caller]
pub(crate) fn check_parity(row: &str, lm: &CausalLm, fixture: &str, max_abs: f32) {
    let logits = output(fixture, "logits");
    for (index, expected) in expected(fixture).iter().enumerate() {
        let prompt = expected.prompt.as_str();
        assert_eq!(lm.tokens(prompt).unwrap(), expected.ids, "{row}: {prompt}");
        let found = crate::support::max_abs(&[lm.logits(prompt).unwrap()], &logits[index..=index]);
        eprintln!("{row}, prompt {index} of {} tokens: logits max abs {found:.1e}", expected.ids.len());
        assert!(found <= max_abs, "{row}: {prompt}: max abs {found:e}");
        let mut generation = lm.generate_stream(prompt, &greedy(64)).unwrap();
        let text: String = generation.by_ref().map(|piece| piece.unwrap().text).collect();
        assert_eq!(generation.tokens(), expected.greedy, "{row}: {prompt}");
        assert_eq!(text, expected.text, "{row}: {prompt}");
        assert_eq!(generation.finish(), Some(FinishReason::Length), "{row}");
        assert_eq!(generation.prompt_tokens(), expected.ids.len(), "{row}");
    }
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for folder in FAMILIES {
        check_parity(folder, &load(folder), folder, MAX_ABS);
    }
    let long = expected("lm-mistral").pop().unwrap();
    assert!(long.ids.len() > 128, "{}: longer than a window and than a piece of the prefill", long.ids.len());
    let shards = fs::read_dir(data("lm-mistral")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(shards.filter(|name| name.to_string_lossy().starts_with("model-0")).count() > 1);
}

#[test]
fn a_gguf_file_computes_what_its_numbers_say() {
    for folder in ["lm-gguf-llama", "lm-gguf-qwen2", "lm-gguf-qwen3"] {
        let exact = LmOptions { precision: Precision::Float32, ..LmOptions::default() };
        let beside = CausalLm::from_dir(model(folder).path(), &exact).unwrap();
        check_parity(folder, &beside, folder, MAX_ABS);
        // Alone, the tokenizer comes out of the file itself.
        let alone = CausalLm::from_dir(data(folder), &exact).unwrap();
        check_parity(&format!("{folder}, alone"), &alone, folder, MAX_ABS);
        assert_eq!(alone.eos_ids(), [1]);
    }
    // Blocks that are multiplied as they are: candle rounds the other factor to 8 bits, too, and a product of 32 numbers
    // averages little of that away.
    let blocks = CausalLm::from_dir(data("lm-gguf-qwen2"), &LmOptions::default()).unwrap();
    let logits = output("lm-gguf-qwen2", "logits");
    for (expected, logits) in expected("lm-gguf-qwen2").iter().zip(&logits) {
        let found = blocks.logits(expected.prompt.as_str()).unwrap();
        let cosine = crate::support::min_cosine(&[found], std::slice::from_ref(logits));
        assert!(cosine > 0.99, "{cosine}");
    }
    // Those without blocks are exact by default, too.
    let plain = CausalLm::from_dir(data("lm-gguf-llama"), &LmOptions::default()).unwrap();
    check_parity("f16, by default", &plain, "lm-gguf-llama", MAX_ABS);
}

#[test]
fn half_precision_is_near_and_what_the_cpu_lacks_is_refused() {
    let half = LmOptions { precision: Precision::Float16, ..LmOptions::default() };
    for folder in ["lm-llama", "lm-qwen3"] {
        let lm = CausalLm::from_dir(model(folder).path(), &half).unwrap();
        let expected = &expected(folder)[0];
        let found = lm.logits(expected.prompt.as_str()).unwrap();
        let cosine = crate::support::min_cosine(&[found], &output(folder, "logits")[..1]);
        assert!(cosine > 0.9999, "{folder}: {cosine}");
    }
    let check = |row: &str, options: LmOptions, code: u8, parts: &[&str]| {
        let error = CausalLm::from_dir(model("lm-llama").path(), &options).unwrap_err();
        check_error(row, &error, code, parts);
    };
    let brain = LmOptions { precision: Precision::Bfloat16, ..LmOptions::default() };
    check("bfloat16", brain, exit::REFUSED, &["on the CPU", "bfloat16", "float16"]);
    let load = LoadOptions { backend: Backend::OnnxRuntime, ..LoadOptions::default() };
    let runtime = LmOptions { load, ..LmOptions::default() };
    check("another backend", runtime, exit::USAGE, &["onnxruntime", "candle"]);
}

#[test]
fn pieces_are_characters_and_together_the_whole() {
    for folder in ["lm-llama", "lm-mistral", "lm-qwen3"] {
        let lm = load(folder);
        // Random models write bytes that make no characters, and halves of some that do.
        for seed in 0..4 {
            let options = GenerateOptions { temperature: 1.5, seed, ignore_eos: true, ..greedy(160) };
            let mut generation = lm.generate_stream("Ships 🚢", &options).unwrap();
            let pieces: Vec<String> = generation.by_ref().map(|piece| piece.unwrap().text).collect();
            assert_eq!(generation.tokens().len(), 160, "{folder}, {seed}");
            assert!(pieces.iter().all(|piece| !piece.is_empty()), "{folder}, {seed}");
            assert_eq!(pieces.concat(), lm.text(generation.tokens()).unwrap(), "{folder}, {seed}");
            assert!(pieces.len() > 20, "{folder}, {seed}: it streams");
        }
    }
}

#[test]
fn an_answer_ends_for_a_reason_that_is_said() {
    let lm = load("lm-llama");
    let prompt = "Ships wait";
    let whole = &expected("lm-llama")[0];
    let answer = |options: &GenerateOptions| lm.generate(prompt, options).unwrap();
    assert_eq!(
        answer(&greedy(64)),
        Completion {
            text: whole.text.clone(),
            prompt_tokens: whole.ids.len(),
            generated_tokens: 64,
            finish: FinishReason::Length
        }
    );
    assert_eq!(answer(&greedy(0)).generated_tokens, 0);

    // A text of several characters from the middle of the answer, so that it lies across tokens.
    let letters: Vec<(usize, char)> = whole.text.char_indices().collect();
    for (first, last) in [(6, 9), (12, 13), (20, 26)] {
        let stop = whole.text[letters[first].0..letters[last].0].to_owned();
        let before = &whole.text[..whole.text.find(&stop).unwrap()];
        let found =
            answer(&GenerateOptions { stop: vec!["no such text".to_owned(), stop.clone()], ..greedy(64) });
        assert_eq!((found.text.as_str(), found.finish), (before, FinishReason::Stop), "{stop:?}");
        assert!(found.generated_tokens < 64, "{stop:?}: it computes no further");
    }

    // The sixth token as one of several ends.
    let folder = model("lm-llama");
    let ends = json!({ "eos_token_id": [1, whole.greedy[5]], "max_new_tokens": 7 });
    fs::write(folder.path().join("generation_config.json"), ends.to_string()).unwrap();
    let lm = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
    let found = lm.generate(prompt, &lm.options()).unwrap();
    assert_eq!((found.finish, found.generated_tokens), (FinishReason::Eos, 6));
    assert_eq!(found.text, lm.text(&whole.greedy[..5]).unwrap());
    let on = lm.generate(prompt, &GenerateOptions { ignore_eos: true, ..lm.options() }).unwrap();
    assert_eq!((on.finish, on.generated_tokens), (FinishReason::Length, 7));
}

#[test]
fn options_of_the_folder_are_the_defaults() {
    let folder = model("lm-qwen2");
    let check = |row: &str, config: serde_json::Value, expected: GenerateOptions| {
        fs::write(folder.path().join("generation_config.json"), config.to_string()).unwrap();
        let lm = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
        assert_eq!(lm.options(), expected, "{row}");
    };
    let plain = GenerateOptions::default();
    check("none", json!({}), plain.clone());
    let sampled = json!({ "do_sample": true, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1 });
    let warm =
        GenerateOptions { temperature: 0.7, top_k: 50, top_p: 0.8, repetition_penalty: 1.1, ..plain.clone() };
    check("sampled", sampled, warm);
    check("not sampled", json!({ "do_sample": false, "temperature": 0.7 }), plain);
    fs::write(folder.path().join("generation_config.json"), r#"{"do_sample": true, "top_p": 7}"#).unwrap();
    let error = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap_err();
    check_error("out of range", &error, exit::CORRUPT, &["generation_config.json", "top_p", "7"]);
}

#[test]
fn draws_follow_from_the_seed() {
    let lm = load("lm-qwen2");
    let options = |seed| GenerateOptions { temperature: 1.0, top_p: 0.95, seed, ..greedy(32) };
    let tokens = |options: &GenerateOptions| {
        let mut generation = lm.generate_stream("Ships", options).unwrap();
        assert!(generation.by_ref().all(|piece| piece.is_ok_and(|piece| !piece.text.is_empty())));
        generation.tokens().to_vec()
    };
    assert_eq!(tokens(&options(3)), tokens(&options(3)));
    assert_ne!(tokens(&options(3)), tokens(&options(4)));
    let penalised = tokens(&GenerateOptions { repetition_penalty: 1e6, ..greedy(32) });
    let mut once = penalised.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), penalised.len(), "nothing comes twice");
}

#[test]
fn generations_run_side_by_side() {
    let lm = load("lm-qwen3");
    let expected = expected("lm-qwen3");
    std::thread::scope(|scope| {
        for round in 0..6 {
            let (lm, expected) = (&lm, &expected[round % expected.len()]);
            scope.spawn(move || {
                let answer = lm.generate(expected.prompt.as_str(), &greedy(64)).unwrap();
                assert_eq!(answer.text, expected.text);
            });
        }
    });
    // Two in one thread, taking turns, one of them given up.
    let one = lm.generate_stream(expected[0].prompt.as_str(), &greedy(64)).unwrap();
    let mut other = lm.generate_stream(expected[1].prompt.as_str(), &greedy(64)).unwrap();
    let mut text = String::new();
    for piece in one {
        text.push_str(&piece.unwrap().text);
        if text.len() < 20 {
            other.next();
        }
    }
    assert!(other.tokens().len() < 64, "it computes as it is asked");
    assert_eq!(text, expected[0].text);
}

#[test]
fn prompts_that_do_not_fit_are_errors_and_the_last_position_is_an_end() {
    let folder = model("lm-llama");
    edit_json(&folder.path().join("config.json"), &json!({ "max_position_embeddings": 12 }));
    let lm = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
    let check = |row: &str, prompt: Prompt, options: &GenerateOptions, code: u8, parts: &[&str]| {
        check_error(row, &lm.generate(prompt, options).unwrap_err(), code, parts);
    };
    let tokens = |count| Prompt::Tokens(vec![5; count]);
    let plain = GenerateOptions::default();
    check("too long", tokens(13), &plain, exit::FAILURE, &["13", "12", "max_position_embeddings", "shorten"]);
    check("empty", tokens(0), &plain, exit::FAILURE, &["at least one"]);
    check(
        "another vocabulary",
        Prompt::Tokens(vec![5, 320]),
        &plain,
        exit::FAILURE,
        &["320", "another model"],
    );
    let with = |change: &dyn Fn(&mut GenerateOptions)| {
        let mut options = GenerateOptions::default();
        change(&mut options);
        options
    };
    let bad = |row: &str, change: &dyn Fn(&mut GenerateOptions), parts: &[&str]| {
        check(row, tokens(3), &with(change), exit::USAGE, parts);
    };
    bad("temperature", &|options| options.temperature = -1.0, &["`temperature`", "-1"]);
    bad("not a number", &|options| options.temperature = f32::NAN, &["`temperature`", "NaN"]);
    bad("top p", &|options| options.top_p = 0.0, &["`top_p`"]);
    bad("min p", &|options| options.min_p = 1.5, &["`min_p`", "1.5"]);
    bad("penalty", &|options| options.repetition_penalty = 0.0, &["`repetition_penalty`"]);
    bad("stop", &|options| options.stop.push(String::new()), &["`stop`"]);
    let answer = lm.generate(tokens(9), &GenerateOptions { ignore_eos: true, ..greedy(64) }).unwrap();
    assert_eq!((answer.finish, answer.generated_tokens), (FinishReason::Length, 4));
    let answer = lm.generate(tokens(12), &GenerateOptions { ignore_eos: true, ..greedy(64) }).unwrap();
    assert_eq!(answer.generated_tokens, 1, "the last position predicts one more");
}

#[test]
fn an_agent_gets_the_model_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = ModelStore::create(dir.path().join("store")).unwrap();
    toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    let options = ResolveOptions {
        store: Some(store.root().to_owned()),
        strictness: Strictness::Strict,
        ..ResolveOptions::default()
    };
    let lm = CausalLm::load("synthesizer", &options, &LmOptions::default()).unwrap();
    assert_eq!(lm.resolved().unwrap().agent(), "synthesizer");
    let messages = [model_loader::ChatMessage::new("user", "Write about weather.")];
    let prompt = lm.chat(&messages, &model_loader::ChatOptions::default()).unwrap();
    let answer = lm.generate(prompt, &lm.options()).unwrap();
    assert_eq!(answer.finish, FinishReason::Eos, "{answer:?}");
    assert!(answer.text.split_whitespace().count() > 3, "{answer:?}");
}

/// A link in the place of the file is followed, as those of the Hub cache are.
#[test]
fn a_gguf_file_is_found_beside_other_files_unless_there_are_two() {
    let folder = tempfile::tempdir().unwrap();
    let file = data("lm-gguf-llama").join("model.gguf");
    symlink(&file, folder.path().join("a.gguf")).unwrap();
    fs::write(folder.path().join("README.md"), "a model").unwrap();
    let load = |folder: &Path| CausalLm::from_dir(folder, &LmOptions::default());
    load(folder.path()).unwrap();
    symlink(&file, folder.path().join("b.gguf")).unwrap();
    check_error("two", &load(folder.path()).unwrap_err(), exit::CORRUPT, &["2 GGUF files", "a.gguf"]);
}

/// A second opinion, of other hands, where they compute all that the configuration says.
#[test]
fn candle_transformers_agrees() {
    use candle_core::{DType, Device, Tensor};
    use candle_nn::VarBuilder;
    use candle_transformers::models::{llama, qwen3};

    let check = |folder: &str, theirs: &dyn Fn(&[u8], VarBuilder<'_>, &Tensor) -> Tensor| {
        let lm = load(folder);
        for expected in expected(folder) {
            let weights =
                candle_core::safetensors::load(data(folder).join("model.safetensors"), &Device::Cpu).unwrap();
            let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
            let config = fs::read(data(folder).join("config.json")).unwrap();
            let ids = Tensor::new(expected.ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = theirs(&config, weights, &ids).flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let ours = lm.logits(Prompt::Tokens(expected.ids.clone())).unwrap();
            let found = crate::support::max_abs(&[ours], &[logits]);
            assert!(found <= MAX_ABS, "{folder}: max abs {found:e}");
        }
    };
    check("lm-llama", &|config, weights, ids| {
        let config: llama::LlamaConfig = serde_json::from_slice(config).unwrap();
        let config = config.into_config(false);
        let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        llama::Llama::load(weights, &config).unwrap().forward(ids, 0, &mut cache).unwrap()
    });
    check("lm-qwen3", &|config, weights, ids| {
        let mut config: serde_json::Value = serde_json::from_slice(config).unwrap();
        config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
        let config: qwen3::Config = serde_json::from_value(config).unwrap();
        qwen3::ModelForCausalLM::new(&config, weights).unwrap().forward(ids, 0).unwrap()
    });
}
