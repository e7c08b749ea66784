//! Addresses: where they lead, and who is behind them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is in a part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Text as one part of a path: a slash in it is no separator.
pub(crate) fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// A path of several parts.
pub(crate) fn path(text: &str) -> String {
    text.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// An address without its query, which may be a signature: what errors and logs show.
pub(crate) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Who is behind an address: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// `http` or `https`.
    pub(crate) scheme: String,
    /// In lower case; an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    /// `None` if the address is not one of HTTP, has a user in it, or has no host.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Ok(default_port), str::parse).ok()?;
        (!host.is_empty()).then(|| Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

/// Where a redirection from `base` leads: RFC 3986, without what no server sends.
pub(crate) fn join(base: &str, location: &str) -> String {
    if location.contains("://") && !location.starts_with('/') {
        return location.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}");
    }
    let folder = shown(base).rsplit_once('/').map_or(base, |(folder, _)| folder);
    format!("{folder}/{location}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let check = |url: &str, expected: Option<(&str, &str, u16)>| {
            let origin = Origin::of(url);
            let found = origin.as_ref().map(|o| (o.scheme.as_str(), o.host.as_str(), o.port));
            assert_eq!(found, expected, "{url}");
        };
        check("https://huggingface.co/a/b", Some(("https", "huggingface.co", 443)));
        check("HTTP://Mirror:8080", Some(("http", "mirror", 8080)));
        check("http://[::1]:80/x", Some(("http", "::1", 80)));
        check("https://user:word@host/", None);
        check("ftp://host/", None);
        check("https:///x", None);
        check("https://host:port/", None);
        check("host/x", None);
    }

    #[test]
    fn redirections() {
        let check = |location: &str, expected: &str| {
            assert_eq!(join("https://hub/a/resolve/main/x?q=1", location), expected, "{location}");
        };
        check("https://cdn/y?sig=a/b", "https://cdn/y?sig=a/b");
        check("//cdn/y", "https://cdn/y");
        check("/b/resolve/main/x?to=http://z", "https://hub/b/resolve/main/x?to=http://z");
        check("y", "https://hub/a/resolve/main/y");
    }

    #[test]
    fn parts() {
        assert_eq!(part("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(path("1_Pooling/a b#.json"), "1_Pooling/a%20b%23.json");
        assert_eq!(shown("https://cdn/x?signature=secret"), "https://cdn/x");
    }
}
