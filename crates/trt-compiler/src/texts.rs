//! The texts that a graph is checked on.

/// 64 sentences of news, from two words to several hundred, written for this project.
const BUILT_IN: &str = include_str!("texts.txt");

/// The built-in texts.
#[must_use]
pub fn built_in() -> Vec<String> {
    from_lines(BUILT_IN.split_once('\n').map_or(BUILT_IN, |(_comment, texts)| texts))
}

/// One text a line; empty lines do not count.
#[must_use]
pub fn from_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_64_short_and_long_texts_and_none_twice() {
        let mut texts = super::built_in();
        assert_eq!(texts.len(), 64);
        let words = |text: &String| text.split_whitespace().count();
        assert!(texts.iter().any(|text| words(text) <= 3));
        assert!(texts.iter().any(|text| words(text) >= 200));
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 64);
    }
}
