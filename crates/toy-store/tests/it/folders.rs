//! The folders are what Hugging Face tools expect.

use std::fs;

use safetensors::SafeTensors;
use serde_json::Value;
use toy_store::{DEFAULT_SEED, Folder, Kind, Reference, ToyVersion, folder, roberta_classifier, write_model};

fn config(folder: &Folder) -> Value {
    serde_json::from_slice(folder.get("config.json").unwrap()).unwrap()
}

fn all_folders() -> Vec<(String, Folder)> {
    let of_agents = Kind::ALL.into_iter().flat_map(|kind| {
        ToyVersion::ALL.map(|version| {
            let name = format!("{}/{}", kind.agent(), version.name());
            (name, Folder::clone(&folder(kind, DEFAULT_SEED, version)))
        })
    });
    of_agents.chain([("roberta".to_owned(), roberta_classifier())]).collect()
}

#[test]
fn files_are_those_that_readers_look_for() {
    let common =
        ["README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"];
    for (name, folder) in all_folders() {
        let own: &[&str] = match name.split('/').next().unwrap() {
            "analyst" => &["vocab.txt"],
            "memory" => &[
                "1_Pooling/config.json",
                "config_sentence_transformers.json",
                "modules.json",
                "sentence_bert_config.json",
                "vocab.txt",
            ],
            "synthesizer" => &["generation_config.json"],
            _ => &["merges.txt", "vocab.json"],
        };
        let mut wanted: Vec<&str> = common.into_iter().chain(own.iter().copied()).collect();
        wanted.push("tokenizer_config.json");
        wanted.sort_unstable();
        let files: Vec<&str> = folder.files().map(|(path, _)| path).collect();
        assert_eq!(files, wanted, "{name}");
    }
}

#[test]
fn tensors_have_the_names_and_shapes_of_checkpoints() {
    for (name, tensor, shape) in [
        ("analyst/v2", "bert.embeddings.position_embeddings.weight", &[512, 64][..]),
        ("analyst/v2", "bert.encoder.layer.1.attention.self.query.bias", &[64]),
        ("analyst/v2", "bert.encoder.layer.0.intermediate.dense.weight", &[128, 64]),
        ("analyst/v2", "bert.pooler.dense.weight", &[64, 64]),
        ("analyst/v2", "classifier.weight", &[3, 64]),
        ("memory/v1", "embeddings.LayerNorm.weight", &[64]),
        ("memory/v1", "pooler.dense.bias", &[64]),
        ("synthesizer/v2", "model.layers.1.self_attn.k_proj.weight", &[32, 64]),
        ("synthesizer/v2", "lm_head.weight", &[640, 64]),
        ("roberta", "roberta.embeddings.position_embeddings.weight", &[514, 64]),
        ("roberta", "classifier.out_proj.weight", &[3, 64]),
    ] {
        let folder = all_folders().into_iter().find(|(other, _)| other == name).unwrap().1;
        let weights = SafeTensors::deserialize(folder.get("model.safetensors").unwrap()).unwrap();
        let found = weights.tensor(tensor).unwrap_or_else(|e| panic!("{name} has no {tensor}: {e}"));
        assert_eq!(found.shape(), shape, "{name}: {tensor}");
    }
}

#[test]
fn vocabularies_agree_with_configs_and_weights() {
    for (name, folder) in all_folders() {
        let tokenizer = tokenizers::Tokenizer::from_bytes(folder.get("tokenizer.json").unwrap()).unwrap();
        let size = config(&folder)["vocab_size"].as_u64().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true) as u64, size, "{name}");
        let weights = SafeTensors::deserialize(folder.get("model.safetensors").unwrap()).unwrap();
        let table = weights
            .iter()
            .find(|(tensor, _)| tensor.contains("word_embed") || tensor.contains("embed_tokens"));
        assert_eq!(table.unwrap().1.shape()[0] as u64, size, "{name}");
    }
}

#[test]
fn any_text_tokenizes_without_losing_it() {
    let texts = [
        "The quick brown fox jumps over 13 lazy dogs!",
        "Zürich's café – naïve façade…",
        "unprecedentedly photosynthesising",
        "e-mail: a.b@c.org (50% off) #1 & more",
    ];
    for (name, folder) in all_folders() {
        let reference = Reference::open(&folder);
        let unknown = tokenizers::Tokenizer::from_bytes(folder.get("tokenizer.json").unwrap())
            .unwrap()
            .token_to_id("[UNK]");
        for text in texts {
            let ids = reference.tokens(text);
            assert!(ids.len() > 5, "{name}: {text}");
            assert!(unknown.is_none_or(|unknown| !ids.contains(&unknown)), "{name}: {text}");
        }
    }
}

#[test]
fn long_texts_are_cut_and_empty_ones_answered() {
    let long = "profits rose sharply and ".repeat(400);
    for (name, folder) in all_folders() {
        let answers = Reference::open(&folder).answers(&[&long, ""]);
        assert!(answers.iter().flatten().all(|x| x.is_finite()), "{name}");
    }
}

#[test]
fn a_written_folder_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new/memory");
    write_model(Kind::Memory, &target).unwrap();
    let folder = folder(Kind::Memory, DEFAULT_SEED, ToyVersion::V2);
    for (path, bytes) in folder.files() {
        assert_eq!(fs::read(target.join(path)).unwrap(), bytes, "{path}");
    }
}
