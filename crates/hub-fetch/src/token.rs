//! The secret that opens private and gated models.

use std::fmt;

/// A token of the Hub. It is written into the headers of requests and nowhere else: `Debug` hides it, and it has no
/// `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token as somebody wrote it down: line breaks and spaces around it are dropped. `None` if nothing is left.
    ///
    /// What could not be sent in a header (control characters, letters outside ASCII) is `Err`.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Unsendable> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Some(Self(text.to_owned())))
        } else {
            Err(Unsendable)
        }
    }

    /// What the `Authorization` header says.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

/// A token with characters in it that no header can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsendable;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::parse(" hf_secret\r\n").unwrap().unwrap();
        assert_eq!(token.authorization(), "Bearer hf_secret");
        assert_eq!(format!("{token:?}"), "Token(hidden)");
        assert_eq!(Token::parse(" \n"), Ok(None));
        assert_eq!(Token::parse("hf_a\nb"), Err(Unsendable));
        assert_eq!(Token::parse("hf_ä"), Err(Unsendable));
    }
}
