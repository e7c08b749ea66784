//! What the BERT-type toys have in common.

use serde_json::{Value, json};

use crate::model::encoder::Encoder;

/// Longest input in tokens.
pub(crate) const MAX_LENGTH: usize = 512;

/// A toy-sized BERT.
pub(crate) fn encoder(prefix: &'static str, vocabulary: usize) -> Encoder {
    Encoder {
        prefix,
        vocabulary,
        hidden: 64,
        layers: 2,
        heads: 4,
        intermediate: 128,
        positions: MAX_LENGTH,
        first_position: 0,
        token_types: 2,
        epsilon: 1e-12,
        has_pooler: true,
    }
}

/// Its `config.json`.
pub(crate) fn config(model: &Encoder) -> Value {
    json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": null,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": model.positions,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": model.token_types,
        "use_cache": true,
        "vocab_size": model.vocabulary,
    })
}
