//! The Hub as the environment describes it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::FetchError;
use crate::proxies::Proxies;
use crate::retry::Retry;
use crate::token::Token;
use crate::url::Origin;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// As `huggingface_hub` has it, for metadata and for files.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// No time-out is longer: a clock that is added to for longer overflows in the end.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

/// A Hub, who asks it, and the cache for what it gives.
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) endpoint: String,
    pub(crate) origin: Origin,
    pub(crate) token: Option<Token>,
    pub(crate) cache: PathBuf,
    pub(crate) offline: bool,
    /// How long a file's server may say nothing.
    pub(crate) download_timeout: Duration,
    /// How long the Hub may take to say what there is.
    pub(crate) etag_timeout: Duration,
    pub(crate) proxies: Proxies,
    pub(crate) retry: Retry,
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Hub {
    /// The Hub of this process's environment.
    pub fn from_env() -> Result<Self, FetchError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// [`from_env`](Self::from_env) with other variables.
    pub fn from_variables(variables: impl Fn(&str) -> Option<OsString>) -> Result<Self, FetchError> {
        let variable = |name: &str| -> Option<String> {
            variables(name)?.into_string().ok().filter(|value| !value.trim().is_empty())
        };
        let (endpoint, origin) = endpoint(&variable)?;
        let hub_home = hub_home(&variable);
        Ok(Self {
            endpoint,
            origin,
            token: token(&variable, hub_home.as_deref())?,
            cache: cache(&variable, hub_home.as_deref()).ok_or(FetchError::NoCache)?,
            offline: is_set(&variable, "HF_HUB_OFFLINE") || is_set(&variable, "TRANSFORMERS_OFFLINE"),
            download_timeout: timeout(&variable, "HF_HUB_DOWNLOAD_TIMEOUT")?,
            etag_timeout: timeout(&variable, "HF_HUB_ETAG_TIMEOUT")?,
            proxies: Proxies::from_variables(&variable),
            retry: Retry::default(),
        })
    }

    /// Tries again otherwise than [`Retry::default`] does.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Keeps what it gets in another cache than the environment's.
    #[must_use]
    pub fn with_cache(self, cache: PathBuf) -> Self {
        Self { cache, ..self }
    }

    /// Without a scheme's default port and a slash at the end: `https://huggingface.co`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The cache, `~/.cache/huggingface/hub` if nothing says otherwise.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Whether nothing may be downloaded.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline
    }
}

fn endpoint(variable: Variable<'_>) -> Result<(String, Origin), FetchError> {
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
    match Origin::of(&endpoint) {
        Some(origin) if !endpoint.contains(['?', '#']) => Ok((endpoint, origin)),
        _ => Err(wrong("HF_ENDPOINT", "write http://host or https://host, with no user or password in it")),
    }
}

fn token(variable: Variable<'_>, hub_home: Option<&Path>) -> Result<Option<Token>, FetchError> {
    if is_set(variable, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    }
    let unsendable =
        |name: &str| wrong(name, "the token in it has spaces, control characters or letters outside ASCII");
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = variable(name)
            && let Some(token) = Token::parse(&text).map_err(|_| unsendable(name))?
        {
            return Ok(Some(token));
        }
    }
    let named = variable("HF_TOKEN_PATH").map(|path| expanded(&path, variable));
    let Some(path) = named.or_else(|| Some(hub_home?.join("token"))) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Token::parse(&text).map_err(|_| unsendable(&path.display().to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FetchError::io("read the token in", &path, error)),
    }
}

/// `HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`.
fn hub_home(variable: Variable<'_>) -> Option<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Some(expanded(&home, variable));
    }
    if let Some(caches) = variable("XDG_CACHE_HOME") {
        return Some(expanded(&caches, variable).join("huggingface"));
    }
    Some(Path::new(&variable("HOME")?).join(".cache/huggingface"))
}

fn cache(variable: Variable<'_>, hub_home: Option<&Path>) -> Option<PathBuf> {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    let path = named.map(|path| expanded(&path, variable)).or_else(|| Some(hub_home?.join("hub")))?;
    // Links in the cache are relative, but the paths that are given out should outlive a change of folder.
    std::path::absolute(path).ok()
}

/// A path with `~` and `$NAME` or `${NAME}` replaced, as Python's `expanduser` and `expandvars` do; what is not set
/// stays as it is written.
fn expanded(path: &str, variable: Variable<'_>) -> PathBuf {
    let path = match (path.strip_prefix('~'), variable("HOME")) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => home + rest,
        _ => path.to_owned(),
    };
    let mut out = String::new();
    let mut rest = path.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let (name, following) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        if let Some(value) = Some(name).filter(|name| !name.is_empty()).and_then(variable) {
            out.push_str(&value);
            rest = following;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out.into()
}

fn is_set(variable: Variable<'_>, name: &str) -> bool {
    variable(name)
        .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_ascii_uppercase().as_str()))
}

fn timeout(variable: Variable<'_>, name: &str) -> Result<Duration, FetchError> {
    let Some(text) = variable(name) else { return Ok(DEFAULT_TIMEOUT) };
    match text.trim().parse::<u64>() {
        Ok(0) => Ok(DEFAULT_TIMEOUT),
        Ok(seconds) => Ok(Duration::from_secs(seconds).min(LONGEST_TIMEOUT)),
        Err(_) => Err(wrong(name, "write a number of seconds")),
    }
}

fn wrong(variable: &str, reason: &str) -> FetchError {
    FetchError::Environment { variable: variable.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    fn hub(pairs: &[(&str, &str)]) -> Result<Hub, FetchError> {
        Hub::from_variables(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let check = |pairs: &[(&str, &str)], expected: &str| {
            assert_eq!(hub(pairs).unwrap().cache, Path::new(expected), "{pairs:?}");
        };
        check(&[("HOME", "/h")], "/h/.cache/huggingface/hub");
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub");
        check(&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub");
        check(&[("HOME", "/h"), ("HF_HOME", "~/f")], "/h/f/hub");
        check(&[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c");
        check(&[("HOME", "/h"), ("HF_HUB_CACHE", "$HOME/c/${HOME}")], "/h/c//h");
        check(&[("HOME", "/h"), ("HF_HUB_CACHE", "/c/$NOT_SET")], "/c/$NOT_SET");
        check(&[("HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old");
        assert!(matches!(hub(&[]), Err(FetchError::NoCache)));
    }

    #[test]
    fn endpoints_and_switches() {
        let with = |name: &str, value: &str| hub(&[("HOME", "/nowhere"), (name, value)]);
        assert_eq!(
            with("HF_ENDPOINT", "https://mirror:8443/hf/").unwrap().endpoint,
            "https://mirror:8443/hf"
        );
        assert_eq!(with("HF_ENDPOINT", "").unwrap().endpoint, DEFAULT_ENDPOINT);
        for wrong in ["mirror", "ftp://mirror", "https://me:secret@mirror", "https://mirror?x"] {
            let error = with("HF_ENDPOINT", wrong).unwrap_err();
            assert!(matches!(error, FetchError::Environment { .. }), "{wrong}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for (value, expected) in [("1", true), ("yes", true), ("True", true), ("0", false), ("", false)] {
            assert_eq!(with("HF_HUB_OFFLINE", value).unwrap().offline, expected, "{value}");
        }
        let seconds =
            |value| with("HF_HUB_DOWNLOAD_TIMEOUT", value).map(|hub| hub.download_timeout.as_secs());
        assert_eq!(seconds("3").unwrap(), 3);
        assert_eq!(seconds("0").unwrap(), 10);
        assert_eq!(seconds("18446744073709551615").unwrap(), 86_400);
        assert!(seconds("soon").is_err());
    }

    #[test]
    fn tokens_are_found_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let check = |pairs: &[(&str, &str)], expected: Option<&str>| {
            let mut all = vec![("HF_HOME", home)];
            all.extend(pairs);
            let hub = hub(&all).unwrap();
            let found = hub.token.as_ref().map(Token::authorization);
            assert_eq!(found, expected.map(|token| format!("Bearer {token}")), "{pairs:?}");
            assert!(!format!("{hub:?}").contains("hf_"), "{hub:?}");
        };
        check(&[], Some("hf_file"));
        check(&[("HF_TOKEN", " hf_variable ")], Some("hf_variable"));
        check(&[("HF_TOKEN", "  ")], Some("hf_file"));
        check(&[("HF_TOKEN_PATH", "/nowhere")], None);
        check(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None);
        let error = hub(&[("HF_HOME", home), ("HF_TOKEN", "hf_a b")]).unwrap_err();
        assert!(!error.to_string().contains("hf_a"), "{error}");
    }
}
