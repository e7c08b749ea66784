//! The tokenizer and the chat template of a GGUF file's metadata, for folders without a `tokenizer.json`.

use serde_json::{Map, Value as Json, json};

use crate::LoadError;
use crate::lm::chat::ChatTemplate;
use crate::lm::gguf::{Gguf, Value};
use crate::lm::text::LmTokenizer;

const SUPPORTED: &str = "gpt-2, llama-bpe, qwen2, or a tokenizer.json beside the file";
/// How Llama 3 and Qwen 2 cut a text into words, but for the length of numbers.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// The kinds of `tokenizer.ggml.token_type` that are found in a text before it is cut into words.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Builds the byte-level BPE tokenizer that the metadata describe. Others are refused by name.
pub(crate) fn tokenizer(gguf: &Gguf) -> Result<LmTokenizer, LoadError> {
    let unsupported = |what, found: &str| LoadError::Unsupported {
        path: gguf.path.clone(),
        what,
        found: found.to_owned(),
        supported: SUPPORTED,
    };
    let model = text(gguf, "tokenizer.ggml.model").unwrap_or("none");
    if model != "gpt2" {
        return Err(unsupported("tokenizer.ggml.model", model));
    }
    let pre = text(gguf, "tokenizer.ggml.pre").unwrap_or("none");
    let split = |numbers: &str| {
        let pattern = json!({ "Regex": format!("{}{numbers}{}", WORDS[0], WORDS[1]) });
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        ] })
    };
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    let (pre_tokenizer, normalizer, ignore_merges) = match pre {
        "gpt-2" | "gpt2" => (byte_level.clone(), Json::Null, false),
        "llama-bpe" | "llama3" | "llama-v3" => (split(r"\p{N}{1,3}"), Json::Null, true),
        "qwen2" => (split(r"\p{N}"), json!({ "type": "NFC" }), false),
        other => return Err(unsupported("tokenizer.ggml.pre", other)),
    };
    let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
    let merges = texts(gguf, "tokenizer.ggml.merges")?;
    let kinds = match gguf.get("tokenizer.ggml.token_type") {
        Some(Value::List(kinds)) => kinds.as_slice(),
        _ => &[],
    };
    let kind = |index: usize| match kinds.get(index) {
        Some(Value::Integer(kind)) => *kind,
        _ => 1,
    };
    let is_added = |index: usize| matches!(kind(index), CONTROL | USER_DEFINED);
    let added: Vec<Json> = (0..tokens.len())
        .filter(|index| is_added(*index))
        .map(|index| {
            json!({ "id": index, "content": tokens[index], "special": kind(index) == CONTROL, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let vocab: Map<String, Json> =
        tokens.iter().enumerate().map(|(index, token)| ((*token).to_owned(), Json::from(index))).collect();
    let bos = special(gguf, &tokens, "bos").filter(|_| adds_bos(gguf, pre));
    let post_processor = bos.map(|(id, token)| {
        let special = |kind| json!({ "SpecialToken": { "id": token, "type_id": kind } });
        json!({ "type": "TemplateProcessing",
            "single": [special(0), { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [special(0), { "Sequence": { "id": "A", "type_id": 0 } },
                special(1), { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } } })
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": merges },
    });
    let inner = tokenizers::Tokenizer::from_bytes(file.to_string())
        .map_err(|source| LoadError::Tokenizer { path: gguf.path.clone(), source })?;
    LmTokenizer::new(inner, gguf.path.clone())
}

/// The chat template of the metadata, if there is one.
pub(crate) fn template(gguf: &Gguf) -> Result<Option<ChatTemplate>, LoadError> {
    let Some(template) = text(gguf, "tokenizer.chat_template") else { return Ok(None) };
    let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
    let named = ["bos", "eos"].into_iter().filter_map(|name| {
        let (_, token) = special(gguf, &tokens, name)?;
        Some((format!("{name}_token"), Json::from(token)))
    });
    ChatTemplate::single(gguf.path.clone(), template, named.collect()).map(Some)
}

fn text<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a str> {
    match gguf.get(key) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// Whether a text begins with the token that begins texts. Files without the key are older than it; of those, Llama 3's do,
/// as llama.cpp has it.
fn adds_bos(gguf: &Gguf, pre: &str) -> bool {
    match gguf.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(adds)) => *adds,
        _ => matches!(pre, "llama-bpe" | "llama3" | "llama-v3"),
    }
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, LoadError> {
    let wrong = || LoadError::config(&gguf.path, format!("`{key}` is no list of texts"));
    let Some(Value::List(items)) = gguf.get(key) else { return Err(wrong()) };
    let text = |item: &'a Value| match item {
        Value::Text(text) => Ok(text.as_str()),
        _ => Err(wrong()),
    };
    items.iter().map(text).collect()
}

/// A special token's id and text.
fn special<'a>(gguf: &Gguf, tokens: &[&'a str], name: &str) -> Option<(usize, &'a str)> {
    let Some(Value::Integer(id)) = gguf.get(&format!("tokenizer.ggml.{name}_token_id")) else { return None };
    let id = usize::try_from(*id).ok()?;
    Some((id, *tokens.get(id)?))
}
