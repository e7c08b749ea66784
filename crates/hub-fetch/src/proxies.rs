//! Which proxy an address is asked through, by the variables that Python's clients go by.

use std::fmt;

use crate::url::Origin;

/// The proxies of the environment.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// For `http://` addresses.
    pub(crate) http: Option<String>,
    /// For `https://` addresses.
    pub(crate) https: Option<String>,
    /// Hosts that are asked directly.
    direct: Vec<String>,
}

/// A proxy's address may have a password in it.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("direct", &self.direct)
            .finish()
    }
}

impl Proxies {
    /// Reads the variables; the lower-case name of each is asked first, as Python does.
    pub(crate) fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            [name.to_ascii_lowercase(), name.to_owned()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
        };
        let all = either("ALL_PROXY");
        let direct = either("NO_PROXY").unwrap_or_default();
        Self {
            http: either("HTTP_PROXY").or_else(|| all.clone()),
            https: either("HTTPS_PROXY").or(all),
            direct: direct
                .split(',')
                .map(|host| host.trim().to_ascii_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    /// Whether the host is asked without a proxy. `example.com` and `.example.com` mean that domain and what is below
    /// it, `*` everything; a port after a colon must be the same.
    pub(crate) fn is_direct(&self, origin: &Origin) -> bool {
        self.direct.iter().any(|entry| {
            if entry == "*" {
                return true;
            }
            let entry = entry.split_once("://").map_or(entry.as_str(), |(_, host)| host);
            let (host, port) = match entry.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
                _ => (entry, None),
            };
            if port.is_some_and(|port| port.parse() != Ok(origin.port)) {
                return false;
            }
            let host = host.trim_start_matches('[').trim_end_matches(']').trim_start_matches("*.");
            let domain = host.strip_prefix('.').unwrap_or(host);
            origin.host == domain || origin.host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_directly() {
        let check = |no_proxy: &str, url: &str, expected: bool| {
            let proxies = Proxies::from_variables(&|name| (name == "NO_PROXY").then(|| no_proxy.to_owned()));
            assert_eq!(proxies.is_direct(&Origin::of(url).unwrap()), expected, "{no_proxy}: {url}");
        };
        check("", "https://hub", false);
        check("*", "https://hub", true);
        check("hub", "https://hub", true);
        check("hub", "https://notthehub", false);
        check("example.com", "https://a.example.com", true);
        check(".example.com", "https://a.example.com", true);
        check("example.com", "https://badexample.com", false);
        check("localhost, 127.0.0.1", "http://127.0.0.1:8080", true);
        check("hub:8080", "http://hub:8080", true);
        check("hub:8080", "http://hub:80", false);
        check("::1", "http://[::1]:80", true);
    }

    #[test]
    fn the_scheme_decides() {
        let from = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            Proxies::from_variables(&move |name| {
                pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        };
        let proxies = from(&[
            ("HTTP_PROXY", "http://a"),
            ("https_proxy", "http://user:word@b"),
            ("HTTPS_PROXY", "http://c"),
        ]);
        assert_eq!(proxies.http.as_deref(), Some("http://a"));
        assert_eq!(proxies.https.as_deref(), Some("http://user:word@b"));
        assert!(!format!("{proxies:?}").contains("word"));
        let proxies = from(&[("ALL_PROXY", "http://a"), ("HTTPS_PROXY", "http://b")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (Some("http://a"), Some("http://b")));
    }
}
