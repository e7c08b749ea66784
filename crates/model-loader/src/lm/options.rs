//! How to continue a prompt, and the folder's own wishes for it.

use std::path::Path;

use serde::Deserialize;

use crate::LoadError;
use crate::files::read_json;
use crate::lm::config::Ids;

/// How a prompt is continued. The default takes the likeliest token each time; a folder's own defaults are
/// [`CausalLm::options`](crate::CausalLm::options).
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens of the answer.
    pub max_new_tokens: usize,
    /// What the logits are divided by before a token is drawn; 0 takes the likeliest and draws nothing.
    pub temperature: f32,
    /// Draw from the likeliest so many only; 0 draws from all.
    pub top_k: usize,
    /// Draw from the likeliest that have this probability together; 1 draws from all.
    pub top_p: f32,
    /// Draw only what is at least this much as likely as the likeliest; 0 draws from all.
    pub min_p: f32,
    /// Divides the positive logits of tokens that prompt or answer have already, and multiplies the negative ones; 1 does
    /// nothing.
    pub repetition_penalty: f32,
    /// What the draws follow from: the same seed, model, prompt and options give the same answer.
    pub seed: u64,
    /// The answer ends before the first of these texts, also where it goes across tokens.
    pub stop: Vec<String>,
    /// Go on after the model's own end, up to `max_new_tokens`.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl GenerateOptions {
    /// An error that names the first option out of range.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let ranges = [
            ("temperature", self.temperature, 0.0..=f32::MAX, "it is 0 or more"),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "it is above 0 and at most 1"),
            ("min_p", self.min_p, 0.0..=1.0, "it is from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE..=f32::MAX, "it is above 0"),
        ];
        for (option, value, range, reason) in ranges {
            if !range.contains(&value) {
                return Err(LoadError::Option { option, value: value.to_string(), reason });
            }
        }
        if self.stop.iter().any(String::is_empty) {
            let reason = "an empty text would stop everything";
            return Err(LoadError::Option { option: "stop", value: "\"\"".to_owned(), reason });
        }
        Ok(())
    }
}

/// `generation_config.json`.
#[derive(Deserialize, Default)]
struct Raw {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<usize>,
    eos_token_id: Option<Ids>,
}

/// A folder's own options and the ids that end an answer, if it names any. Where it says `do_sample`, what it leaves out
/// is transformers' default.
pub(crate) fn from_dir(dir: &Path) -> Result<(GenerateOptions, Option<Vec<u32>>), LoadError> {
    let path = dir.join("generation_config.json");
    let raw: Raw = read_json(&path)?.unwrap_or_default();
    let plain = GenerateOptions::default();
    let options = GenerateOptions {
        max_new_tokens: raw.max_new_tokens.unwrap_or(plain.max_new_tokens),
        repetition_penalty: raw.repetition_penalty.unwrap_or(plain.repetition_penalty),
        ..plain
    };
    let options = if raw.do_sample.unwrap_or(false) {
        GenerateOptions {
            temperature: raw.temperature.unwrap_or(1.0),
            top_k: raw.top_k.unwrap_or(50),
            top_p: raw.top_p.unwrap_or(1.0),
            min_p: raw.min_p.unwrap_or(0.0),
            ..options
        }
    } else {
        options
    };
    options.check().map_err(|error| LoadError::config(&path, error.to_string()))?;
    Ok((options, raw.eos_token_id.map(Ids::into_vec)))
}
