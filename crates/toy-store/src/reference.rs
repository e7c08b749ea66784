//! What the toys answer when asked through the code that trained them.

use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use crate::folder::Folder;
use crate::model::Batch;
use crate::model::decoder::Decoder;
use crate::model::encoder::Encoder;
use crate::params::Params;
use crate::tape::{Tape, Var};
use crate::tokenizer::encode;

/// A folder of this crate, read back and run: answers to compare other implementations with.
///
/// ```
/// use toy_store::{DEFAULT_SEED, Reference, ToyVersion};
///
/// let memory = Reference::open(&toy_store::memory(DEFAULT_SEED, ToyVersion::V2));
/// let vectors = memory.answers(&["Snow fell in the mountains.", "It will be cold and rainy.", "A new phone."]);
/// let cosine = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum::<f32>();
/// assert!(cosine(0, 1) > cosine(0, 2));
/// ```
pub struct Reference {
    tokenizer: Tokenizer,
    params: Params,
    model: Model,
}

enum Model {
    Classifier(Encoder),
    Embedder(Encoder),
    Language(Decoder),
}

impl Reference {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder. Only this crate makes folders, so it cannot
    /// fail but by a bug.
    #[expect(clippy::missing_panics_doc, reason = "only a bug can make a folder that is no model")]
    #[must_use]
    pub fn open(folder: &Folder) -> Self {
        let file = |path| folder.get(path).unwrap_or_else(|| panic!("every toy has a {path}"));
        let config: Value = serde_json::from_slice(file("config.json"))
            .unwrap_or_else(|e| panic!("config.json is JSON: {e}"));
        let model = model(&config);
        let mut tokenizer = Tokenizer::from_bytes(file("tokenizer.json"))
            .unwrap_or_else(|e| panic!("tokenizer.json is a tokenizer: {e}"));
        let truncation =
            TruncationParams { max_length: model.max_length(&config), ..TruncationParams::default() };
        tokenizer
            .with_truncation(Some(truncation))
            .unwrap_or_else(|e| panic!("the longest input has room for the special tokens: {e}"));
        Self { tokenizer, params: Params::read(file("model.safetensors")), model }
    }

    /// The token ids of a text, special tokens included, cut to the longest input.
    #[must_use]
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        encode(&self.tokenizer, text)
    }

    /// One row for each text: a classifier's logits, an embedder's unit vector, or a language model's logits of the next
    /// token.
    #[must_use]
    pub fn answers(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let ids: Vec<_> = texts.iter().map(|text| self.tokens(text)).collect();
        let batch = Batch::new(ids.iter().map(Vec::as_slice));
        let mut tape = Tape::default();
        let answers = self.forward(&mut tape, &batch);
        let answers = tape.value(answers);
        (0..texts.len()).map(|row| answers.row(row).to_vec()).collect()
    }

    fn forward(&self, tape: &mut Tape, batch: &Batch) -> Var {
        let bound = self.params.bind(tape);
        match &self.model {
            Model::Classifier(encoder) => encoder.classify(tape, &bound, batch),
            Model::Embedder(encoder) => encoder.embed(tape, &bound, batch),
            Model::Language(decoder) => {
                let logits = decoder.logits(tape, &bound, batch);
                tape.gather(logits, batch.last_rows())
            }
        }
    }
}

impl Model {
    fn max_length(&self, config: &Value) -> usize {
        match self {
            Self::Classifier(encoder) | Self::Embedder(encoder) => encoder.positions - encoder.first_position,
            Self::Language(_) => number(config, "max_position_embeddings"),
        }
    }
}

fn model(config: &Value) -> Model {
    match config["architectures"][0].as_str() {
        Some("BertForSequenceClassification") => Model::Classifier(encoder("bert.", 0, true, config)),
        Some("RobertaForSequenceClassification") => {
            Model::Classifier(encoder("roberta.", number(config, "pad_token_id") + 1, false, config))
        }
        Some("BertModel") => Model::Embedder(encoder("", 0, true, config)),
        _ => Model::Language(decoder(config)),
    }
}

fn encoder(prefix: &'static str, first_position: usize, has_pooler: bool, config: &Value) -> Encoder {
    Encoder {
        prefix,
        vocabulary: number(config, "vocab_size"),
        hidden: number(config, "hidden_size"),
        layers: number(config, "num_hidden_layers"),
        heads: number(config, "num_attention_heads"),
        intermediate: number(config, "intermediate_size"),
        positions: number(config, "max_position_embeddings"),
        first_position,
        token_types: number(config, "type_vocab_size"),
        epsilon: real(config, "layer_norm_eps"),
        has_pooler,
    }
}

fn decoder(config: &Value) -> Decoder {
    Decoder {
        vocabulary: number(config, "vocab_size"),
        hidden: number(config, "hidden_size"),
        layers: number(config, "num_hidden_layers"),
        heads: number(config, "num_attention_heads"),
        key_value_heads: number(config, "num_key_value_heads"),
        intermediate: number(config, "intermediate_size"),
        epsilon: real(config, "rms_norm_eps"),
        theta: real(config, "rope_theta"),
    }
}

fn number(config: &Value, key: &str) -> usize {
    let number = config[key].as_u64().and_then(|number| usize::try_from(number).ok());
    number.unwrap_or_else(|| panic!("config.json says how large {key} is"))
}

#[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
fn real(config: &Value, key: &str) -> f32 {
    config[key].as_f64().unwrap_or_else(|| panic!("config.json says how large {key} is")) as f32
}
