//! Tokenizers: their vocabularies are made here, their work is done by the `tokenizers` crate reading what was made.

pub(crate) mod byte_pair;
pub(crate) mod word_piece;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::folder::Folder;

/// A tokenizer and the files that describe it.
pub(crate) struct Trained {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) files: Folder,
    pub(crate) vocabulary: usize,
}

impl Trained {
    /// Loads `tokenizer.json` from `files`, exactly as a reader of the folder will.
    pub(crate) fn from_files(files: Folder) -> Self {
        let json = files.get("tokenizer.json").unwrap_or_default();
        let tokenizer =
            Tokenizer::from_bytes(json).unwrap_or_else(|e| panic!("our own tokenizer.json is refused: {e}"));
        let vocabulary = tokenizer.get_vocab_size(true);
        Self { tokenizer, files, vocabulary }
    }

    /// The ids of `text` with the special tokens of its template.
    pub(crate) fn ids(&self, text: &str) -> Vec<u32> {
        encode(&self.tokenizer, text)
    }
}

/// The ids of `text` with special tokens. Any text can be encoded, so a failure is a bug.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = tokenizer.encode(text, true);
    encoding.unwrap_or_else(|e| panic!("cannot tokenize {text:?}: {e}")).get_ids().to_vec()
}

/// An entry of `added_tokens`.
pub(crate) fn special_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// A `TemplateProcessing` for one sentence or two; `pieces` are `(special token, id)` or `$A`, `$B` with their type.
pub(crate) fn template(single: &[Piece<'_>], pair: &[Piece<'_>]) -> Value {
    let render = |pieces: &[Piece<'_>]| -> Value {
        let render_one = |piece: &Piece<'_>| match piece {
            Piece::Special(token, _, kind) => json!({"SpecialToken": {"id": token, "type_id": kind}}),
            Piece::Sequence(name, kind) => json!({"Sequence": {"id": name, "type_id": kind}}),
        };
        pieces.iter().map(render_one).collect()
    };
    let mut special_tokens = serde_json::Map::new();
    for piece in single {
        if let Piece::Special(token, id, _) = piece {
            special_tokens.insert((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
    }
    json!({
        "type": "TemplateProcessing", "single": render(single), "pair": render(pair), "special_tokens": special_tokens,
    })
}

pub(crate) enum Piece<'a> {
    /// A special token, its id, its token type.
    Special(&'a str, usize, usize),
    /// `A` or `B` and its token type.
    Sequence(&'a str, usize),
}
