//! A RoBERTa-type classifier for tests that compare implementations. Its weights are seeded, not trained: what such a test
//! asks is whether two programs read one folder alike.

use std::collections::BTreeSet;

use serde_json::json;

use crate::folder::Folder;
use crate::grammar::Grammar;
use crate::model::encoder::Encoder;
use crate::params::Params;
use crate::rng::Rng;
use crate::tokenizer::byte_pair::Merges;
use crate::tokenizer::{Trained, special_token};
use crate::train::analyst::{LABELS, put_labels};

const FIRST: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const LAST: [&str; 1] = ["<mask>"];
const PAD: usize = 1;
const LEARNED_TOKENS: usize = 795;
const MAX_LENGTH: usize = 512;

/// The folder.
pub(crate) fn folder(seed: u64) -> Folder {
    let trained = tokenizer(&Grammar::sentiment().words());
    let model = Encoder {
        prefix: "roberta.",
        vocabulary: trained.vocabulary,
        hidden: 64,
        layers: 2,
        heads: 4,
        intermediate: 128,
        positions: MAX_LENGTH + PAD + 1,
        first_position: PAD + 1,
        token_types: 1,
        epsilon: 1e-5,
        has_pooler: false,
    };
    let mut params = Params::default();
    let mut rng = Rng::new(seed, "roberta parameters");
    model.init(&mut params, &mut rng);
    params.linear("classifier.dense", model.hidden, model.hidden, &mut rng);
    params.linear("classifier.out_proj", LABELS.len(), model.hidden, &mut rng);
    let mut folder = trained.files;
    let mut config = json!({
        "architectures": ["RobertaForSequenceClassification"],
        "model_type": "roberta",
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": null,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.intermediate,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": model.positions,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "pad_token_id": PAD,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": model.token_types,
        "use_cache": true,
        "vocab_size": model.vocabulary,
    });
    put_labels(&mut config);
    folder.put_json("config.json", &config);
    folder.put_weights(&params);
    folder.put_card(
        "A RoBERTa-type classifier for comparing implementations",
        "**Its weights are seeded random numbers.** Its answers mean nothing, but every reader must find the same ones.",
    );
    folder
}

fn tokenizer(words: &BTreeSet<String>) -> Trained {
    let text = words.iter().flat_map(|word| ["a ", word, " ", word, "\n"]).collect::<String>();
    let merges = Merges::learn(&text, LEARNED_TOKENS);
    let mask = FIRST.len() + LEARNED_TOKENS;
    let mut added: Vec<_> = FIRST.iter().enumerate().map(|(id, token)| special_token(id, token)).collect();
    added.push(special_token(mask, LAST[0]));
    added[FIRST.len()]["lstrip"] = json!(true);
    let mut files = Folder::default();
    files.put_json(
        "tokenizer.json",
        &json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {
                "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true,
                "add_prefix_space": false,
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": merges.model(&FIRST, &LAST),
        }),
    );
    let special = json!({
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
        "cls_token": "<s>", "mask_token": "<mask>",
    });
    let mut config = special.clone();
    config["tokenizer_class"] = json!("RobertaTokenizer");
    config["add_prefix_space"] = json!(false);
    config["model_max_length"] = json!(MAX_LENGTH);
    files.put_json("tokenizer_config.json", &config);
    files.put_json("special_tokens_map.json", &special);
    merges.put_legacy_files(&mut files, &FIRST, &LAST);
    Trained::from_files(files)
}
