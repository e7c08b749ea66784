//! BERT's `WordPiece` tokenizer, with every word of a grammar whole and everything else in pieces.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::folder::Folder;
use crate::tokenizer::{Piece, Trained, special_token, template};

/// The special tokens; their place is their id.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const CLS: usize = 2;
const SEP: usize = 3;

/// Pieces that spell words no grammar has: letters, digits and punctuation come on top of these.
const PIECES: &str = "\
    able age al ally an ance ant ar ary ate ated ates ation ative ber cal ce ced ces ch cial city ck ct der des dge dy ed \
    el en ence ency end ent er ers es ess est et ey ful fy ge ger ght gy hip hood ial ian ible ic ical ied ier ies iest ify \
    il ily in ine ing ings ion ions ious is ise ised ish ism ist ists ite ity ive ize ized ke ker king land ld le led ler \
    less let ling ll ly man ment ments mer mo nce nd ne ned ness net ng nor ns nt on one or ors ory ous out over own per \
    ping ple re red rel ren rer ring rs ry sed ses ship side sion some ss st sted stic ted ter ters th ther tic ting tion \
    tions tive tor ts ty ual ular up ure us ve ved ver ves vil ward way wise work y";

/// A tokenizer that keeps `words` whole. Lower-casing, as BERT's uncased models.
pub(crate) fn train(words: &BTreeSet<String>, max_length: usize) -> Trained {
    let tokens = vocabulary(words);
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(|(id, token)| special_token(id, token)).collect();
    let (cls, sep) = (Piece::Special("[CLS]", CLS, 0), |kind| Piece::Special("[SEP]", SEP, kind));
    let post_processor = template(
        &[cls, Piece::Sequence("A", 0), sep(0)],
        &[Piece::Special("[CLS]", CLS, 0), Piece::Sequence("A", 0), sep(0), Piece::Sequence("B", 1), sep(1)],
    );
    let mut files = Folder::default();
    files.put_json(
        "tokenizer.json",
        &json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": post_processor,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab,
            },
        }),
    );
    files.put_json(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "BertTokenizer", "do_lower_case": true, "do_basic_tokenize": true,
            "tokenize_chinese_chars": true, "strip_accents": null, "never_split": null,
            "model_max_length": max_length, "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
            "sep_token": "[SEP]", "mask_token": "[MASK]",
        }),
    );
    files.put_json(
        "special_tokens_map.json",
        &json!({
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }),
    );
    files.put("vocab.txt", (tokens.join("\n") + "\n").into_bytes());
    Trained::from_files(files)
}

/// The tokens in order of their ids: special, single characters, pieces, words.
fn vocabulary(words: &BTreeSet<String>) -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).into();
    let mut seen: BTreeSet<String> = tokens.iter().cloned().collect();
    let characters =
        ('!'..='~').filter(|c| !c.is_ascii_uppercase()).chain("–—‘’“”…€£".chars()).map(String::from);
    let inner = ('0'..='9').chain('a'..='z').map(|c| format!("##{c}"));
    let pieces = PIECES.split_whitespace().map(|piece| format!("##{piece}"));
    for token in characters.chain(inner).chain(pieces).chain(words.iter().cloned()) {
        if seen.insert(token.clone()) {
            tokens.push(token);
        }
    }
    tokens
}
