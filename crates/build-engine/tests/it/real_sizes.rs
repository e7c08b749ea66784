//! `make real-sizes`: models of the sizes that people use, with random weights, through the whole command; what it takes of
//! memory and time. Nothing is downloaded.
//!
//! `REAL_SIZES=bert-base,llama-1b` picks the models, `REAL_SIZES_DIR` says where they are written (10 GB for both).

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use toy_store::{Kind, ToyVersion};

use crate::support::{Bench, shown, text};

/// The words of the toys' tokenizers are fewer than this: rows of an embedding beyond are never looked up, and stay holes.
const USED_ROWS: u64 = 8192;
/// What the issue hopes for: peak memory as a multiple of the weights.
const GOAL: f64 = 2.5;
const TEXTS: &str =
    "Ships wait.\nThe central bank raised its rate by a quarter point.\nNo.\nHarvests fell.\n";

/// What a tensor is filled with.
#[derive(Clone, Copy, PartialEq)]
enum Fill {
    Random,
    /// Random in the rows that are looked up.
    Table,
    Ones,
    Zeros,
}

/// A model of a real size: its tensors, what of `config.json` makes it one, and whose tokenizer it borrows.
struct Model {
    name: &'static str,
    dtype: &'static str,
    toy: Kind,
    config: Value,
    tensors: Vec<(String, Vec<u64>, Fill)>,
}

fn bert_base() -> Model {
    let (hidden, wide) = (768, 3072);
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![30_522, hidden], Fill::Table),
        ("embeddings.position_embeddings.weight".to_owned(), vec![512, hidden], Fill::Random),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, hidden], Fill::Random),
        ("embeddings.LayerNorm.weight".to_owned(), vec![hidden], Fill::Ones),
        ("embeddings.LayerNorm.bias".to_owned(), vec![hidden], Fill::Zeros),
    ];
    for layer in 0..12 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, rows, columns) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", wide, hidden),
            ("output.dense", hidden, wide),
        ] {
            tensors.push((name(&format!("{part}.weight")), vec![rows, columns], Fill::Random));
            tensors.push((name(&format!("{part}.bias")), vec![rows], Fill::Random));
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            tensors.push((name(&format!("{part}.weight")), vec![hidden], Fill::Ones));
            tensors.push((name(&format!("{part}.bias")), vec![hidden], Fill::Zeros));
        }
    }
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": wide, "vocab_size": 30_522, "max_position_embeddings": 512,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    Model { name: "bert-base", dtype: "F16", toy: Kind::Analyst, config, tensors }
}

/// Llama 3.2 1B: 16 layers of 2048, 8 of 32 heads for keys and values, the embedding tied to the output.
fn llama_1b() -> Model {
    let (hidden, wide, vocabulary, kv) = (2048, 8192, 128_256, 512);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden], Fill::Table)];
    for layer in 0..16 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for (part, rows, columns) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ] {
            tensors.push((name(part), vec![rows, columns], Fill::Random));
        }
        for part in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((name(part), vec![hidden], Fill::Ones));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden], Fill::Ones));
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": wide, "vocab_size": vocabulary, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        "rope_scaling": { "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3" },
    });
    Model { name: "llama-1b", dtype: "BF16", toy: Kind::Synthesizer, config, tensors }
}

impl Model {
    fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, shape, _)| 2 * shape.iter().product::<u64>()).sum()
    }

    /// Writes the folder: the toy's tokenizer and settings, this model's configuration and weights.
    fn write(&self, folder: &Path) {
        toy_store::folder(self.toy, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(folder).unwrap();
        let path = folder.join("config.json");
        let toy: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut config = self.config.clone();
        for key in ["bos_token_id", "eos_token_id"] {
            if let Some(id) = toy.get(key) {
                config[key] = id.clone();
            }
        }
        fs::write(path, config.to_string()).unwrap();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape, _) in &self.tensors {
            let start = end;
            end += 2 * shape.iter().product::<u64>();
            header.insert(
                name.clone(),
                json!({ "dtype": self.dtype, "shape": shape, "data_offsets": [start, end] }),
            );
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
        file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&text).unwrap();
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut place = 8 + text.len() as u64;
        for (_, shape, fill) in &self.tensors {
            let elements: u64 = shape.iter().product();
            let written = match fill {
                Fill::Table => USED_ROWS.min(shape[0]) * shape[1],
                Fill::Zeros => 0,
                Fill::Random | Fill::Ones => elements,
            };
            for _ in 0..written {
                let x = if *fill == Fill::Ones { 1.0 } else { noise.next() };
                let bytes = if self.dtype == "F16" {
                    f16::from_f32(x).to_le_bytes()
                } else {
                    bf16::from_f32(x).to_le_bytes()
                };
                file.write_all(&bytes).unwrap();
            }
            place += 2 * elements;
            file.seek(SeekFrom::Start(place)).unwrap();
        }
        file.into_inner().unwrap().set_len(place).unwrap();
    }
}

/// Numbers like those that models begin with: around 0, about 0.02 wide.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..2 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            sum += (self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        }
        0.05 * sum
    }
}

/// The most memory that a process had, watched until it ends; the kernel keeps the peak.
fn watch(child: &mut Child) -> u64 {
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.unwrap_or(0_u64) * 1024);
        std::thread::sleep(Duration::from_millis(20));
    }
    peak
}

#[test]
#[ignore = "minutes, and gigabytes of memory and disk: `make real-sizes`"]
fn models_of_real_sizes_in_every_float() {
    let Some(bench) = Bench::new() else { return };
    let wanted = std::env::var("REAL_SIZES").unwrap_or_else(|_| "bert-base,llama-1b".to_owned());
    let place = std::env::var_os("REAL_SIZES_DIR").map(PathBuf::from);
    if let Some(place) = &place {
        fs::create_dir_all(place).unwrap();
    }
    let scratch = place.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let texts = scratch.path().join("texts.txt");
    fs::write(&texts, TEXTS).unwrap();
    let store = scratch.path().join("store");
    let mut rows = Vec::new();
    for model in [bert_base(), llama_1b()].iter().filter(|it| wanted.split(',').any(|name| name == it.name)) {
        let folder = scratch.path().join(model.name);
        let begun = Instant::now();
        model.write(&folder);
        eprintln!(
            "{}: {} MB of weights in {:.0} s",
            model.name,
            model.weight_bytes() / 1_000_000,
            begun.elapsed().as_secs_f64()
        );
        for precision in ["fp32", "fp16", "bf16"] {
            let arguments = [
                "--agent",
                "sized",
                "--source",
                folder.to_str().unwrap(),
                "--precision",
                precision,
                "--target",
                "89",
                "--texts",
                texts.to_str().unwrap(),
                "--output-version",
                &format!("{}-{precision}", model.name),
                "--json",
                "--profile",
                "1,1,2x1,32,128",
            ];
            let mut command = bench.command(&arguments);
            command.env("MODEL_STORE_ROOT", &store).stdout(Stdio::piped()).stderr(Stdio::piped());
            let begun = Instant::now();
            let mut child = command.spawn().unwrap();
            let peak = watch(&mut child);
            let output = child.wait_with_output().unwrap();
            let took = begun.elapsed();
            assert!(output.status.success(), "{}, {precision}: {}", model.name, shown(&output));
            let outcome: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
            rows.push(row(model, precision, (peak, took), &outcome));
            eprintln!("{}", table(&rows));
        }
        fs::remove_dir_all(&folder).unwrap();
    }
    assert!(!rows.is_empty(), "REAL_SIZES={wanted} names none of bert-base, llama-1b");
    #[expect(clippy::print_stdout, reason = "the table is what this is run for")]
    {
        println!("{}", table(&rows));
    }
}

fn row(model: &Model, precision: &str, (command_bytes, took): (u64, Duration), outcome: &Value) -> Value {
    let steps: Map<String, Value> = outcome["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step[0].as_str().unwrap().to_owned(), step[1].clone()))
        .collect();
    json!({
        "model": model.name, "precision": precision, "weight_bytes": model.weight_bytes(),
        "plan_bytes": outcome["engine"]["plan_bytes"], "builder_bytes": outcome["engine"]["peak_memory_bytes"],
        "private_bytes": outcome["engine"]["peak_private_bytes"],
        "command_bytes": command_bytes, "cosine": outcome["evidence"]["verdict"]["comparison"]["cosine_min"],
        "steps": steps, "seconds": took.as_secs_f64(),
    })
}

fn table(rows: &[Value]) -> String {
    let mut lines = vec![
        "| model | precision | weights as stored | in the engine's precision | plan | builder's peak | without mapped files | command's peak | export | check | engine | all |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for row in rows {
        let bytes = |key: &str| row[key].as_u64().unwrap_or_default() as f64;
        let stored = bytes("weight_bytes");
        let own = if row["precision"] == "fp32" { 2.0 * stored } else { stored };
        let peak = |key: &str| {
            let share = bytes(key) / own;
            let goal = if share <= GOAL { "" } else { " (over the goal)" };
            format!("{:.0} MB, {share:.2} ×{goal}", bytes(key) / 1e6)
        };
        let step = |name: &str| format!("{:.2} s", row["steps"][name].as_f64().unwrap_or_default());
        let all = row["seconds"].as_f64().unwrap_or_default();
        lines.push(format!(
            "| {} | {} | {:.0} MB | {:.0} MB | {:.0} MB | {} | {} | {} | {} | {} | {} | {all:.1} s |",
            row["model"].as_str().unwrap_or_default(),
            row["precision"].as_str().unwrap_or_default(),
            stored / 1e6,
            own / 1e6,
            bytes("plan_bytes") / 1e6,
            peak("builder_bytes"),
            peak("private_bytes"),
            peak("command_bytes"),
            step("export"),
            step("check"),
            step("engine"),
        ));
    }
    lines.join("\n")
}
