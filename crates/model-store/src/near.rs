//! Names that somebody may have meant.

/// How many are worth reading.
const SHOWN: usize = 3;

/// The candidates that look like `wanted`, best first: few edits away, or one the beginning of the other.
pub fn near_names<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let allowed = 1 + wanted.chars().count() / 3;
    let mut near: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| {
            let lower = candidate.to_lowercase();
            let edits = edits(&wanted, &lower);
            let begins = lower.starts_with(&wanted) || wanted.starts_with(&lower);
            (begins || edits <= allowed).then_some((edits, candidate))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(SHOWN).map(|(_, candidate)| candidate.to_owned()).collect()
}

/// The least number of insertions, deletions and substitutions between two strings (Levenshtein's distance).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
