//! Texts as the batches that a graph and its reference run on.

use model_loader::{TokenBatch, Tokens};

use super::side_by_side::Batch;
use crate::error::CompileError;
use crate::job::Plan;
use crate::subject::Words;

/// Tokens in one batch of the check, padding included: small enough that a stop is heeded at once.
pub(crate) const CHECK_TOKENS: usize = 512;
/// Tokens in the batch with second segments, whose sum is all that is different there.
const PAIRED_TOKENS: usize = 128;

/// The texts as batches of about [`CHECK_TOKENS`], short ones first, each with the numbers of its texts, from 1.
///
/// An engine takes no longer sequences than its profile says, so none longer is checked. Where the model tells segments
/// apart, some of the first batch come once more with their second halves in the second segment.
pub(super) fn batches(texts: &[String], plan: &Plan, words: &Words) -> Result<Vec<Batch>, CompileError> {
    let mut texts: Vec<(usize, Tokens)> = (1..).zip(words.encode(texts)?).collect();
    for (_, tokens) in &mut texts {
        cut(tokens, plan);
    }
    texts.sort_by_key(|(_, tokens)| tokens.len());
    let mut groups: Vec<Vec<(usize, Tokens)>> = Vec::new();
    for (number, tokens) in texts {
        match groups.last_mut() {
            // The text at hand is the longest so far, so the rectangle is as wide as it.
            Some(group) if (group.len() + 1) * tokens.len() <= CHECK_TOKENS => group.push((number, tokens)),
            _ => groups.push(vec![(number, tokens)]),
        }
    }
    let segments = plan.export.inputs.iter().any(|input| input.name == "token_type_ids");
    if let Some(first) = groups.first().filter(|_| segments && words.tells_segments()) {
        let fits = |at: usize, tokens: &Tokens| at == 0 || (at + 1) * tokens.len() <= PAIRED_TOKENS;
        let some = first.iter().enumerate().take_while(|(at, (_, tokens))| fits(*at, tokens));
        let mut paired: Vec<_> = some.map(|(_, text)| text.clone()).collect();
        for (_, tokens) in &mut paired {
            let half = tokens.len() / 2;
            tokens.type_ids.iter_mut().skip(half).for_each(|segment| *segment = 1);
        }
        groups.push(paired);
    }
    let pad = |group: Vec<(usize, Tokens)>| {
        let batch = TokenBatch::pad(group.iter().map(|(_, tokens)| tokens), words.pad_id());
        (group.into_iter().map(|(number, _)| number).collect(), batch)
    };
    Ok(groups.into_iter().map(pad).collect())
}

/// As long as the engine's profiles allow.
pub(super) fn cut(tokens: &mut Tokens, plan: &Plan) {
    tokens.ids.truncate(plan.longest);
    tokens.type_ids.truncate(plan.longest);
}
