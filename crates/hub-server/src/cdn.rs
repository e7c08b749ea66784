//! The second address that large files are redirected to, as the Hub redirects to a content delivery network.
//!
//! A link is signed and ends after a while, because whoever has it needs no token. A request that brings one all the
//! same is refused, as object stores do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

/// How long a link can be followed.
const LIFE: Duration = Duration::from_hours(1);
/// What stays as it is in a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Makes and checks links.
#[derive(Debug)]
pub(crate) struct Cdn {
    base: String,
    key: [u8; 64],
}

/// A file that a link leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) id: String,
    pub(crate) commit: String,
    pub(crate) path: String,
}

impl Cdn {
    /// Links that begin with `base`, signed with `key`.
    pub(crate) fn new(base: String, key: [u8; 64]) -> Self {
        Self { base, key }
    }

    pub(crate) fn link(&self, file: &Linked) -> String {
        let expires = now_seconds() + LIFE.as_secs();
        let signature = hex::encode(self.mac(file, expires).finalize().into_bytes());
        let encoded = |text: &str| utf8_percent_encode(text, QUERY).to_string();
        format!(
            "{}/file?id={}&commit={}&path={}&expires={expires}&signature={signature}",
            self.base.trim_end_matches('/'),
            encoded(&file.id),
            encoded(&file.commit),
            encoded(&file.path)
        )
    }

    /// The file that a link's query names, if the link is one of ours and still holds.
    pub(crate) fn read(&self, query: &str) -> Option<Linked> {
        let value = |name: &str| {
            let text = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
            Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
        };
        let file = Linked { id: value("id")?, commit: value("commit")?, path: value("path")? };
        let expires: u64 = value("expires")?.parse().ok()?;
        let signature = hex::decode(value("signature")?).ok()?;
        self.mac(&file, expires).verify_slice(&signature).ok()?;
        (now_seconds() <= expires).then_some(file)
    }

    fn mac(&self, file: &Linked, expires: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        for text in [&file.id, &file.commit, &file.path, &expires.to_string()] {
            mac.update(&(text.len() as u64).to_le_bytes());
            mac.update(text.as_bytes());
        }
        mac
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_its_file_and_no_other() {
        let cdn = Cdn::new("http://127.0.0.1:1".to_owned(), [7; 64]);
        let file = Linked { id: "a/b".into(), commit: "c".into(), path: "x y/&z".into() };
        let link = cdn.link(&file);
        let query = link.split_once('?').unwrap().1;
        assert_eq!(cdn.read(query), Some(file));
        assert_eq!(cdn.read(&query.replace("id=a", "id=b")), None);
        assert_eq!(cdn.read(&query.replace("expires=", "expires=9")), None);
        assert_eq!(cdn.read(""), None);
        assert_eq!(Cdn::new(String::new(), [8; 64]).read(query), None);
    }
}
