//! Validated names: what may become a component of a path in the store.
//!
//! A string turns into one of these types or into a [`NameError`]; nothing else in this crate joins strings
//! into paths.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest agent or version name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// The longest payload path, in bytes: it leaves room for any root below the kernel's `PATH_MAX` of 4096.
pub const MAX_PAYLOAD_PATH_BYTES: usize = 1024;
/// `NAME_MAX` of the file systems a store lives on.
const MAX_COMPONENT_BYTES: usize = 255;
/// The suffix of a staging directory.
pub(crate) const STAGING_SUFFIX: &str = ".tmp";
/// The manifest's file name; only at the top of a version it is the manifest, deeper down it is payload.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A string that is not the name it was meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} {reason}")]
pub struct NameError {
    kind: &'static str,
    value: String,
    reason: &'static str,
}

impl NameError {
    fn new(kind: &'static str, value: &str, reason: &'static str) -> Self {
        Self { kind, value: value.to_owned(), reason }
    }

    /// A pointer that is neither `current` nor a ref or version by its path.
    pub(crate) fn pointer(value: &str) -> Self {
        Self::new("pointer", value, "is neither current, refs/<name> nor versions/<name>")
    }

    /// What the string was meant to be: `agent name`, `version name`, `ref name` or `payload path`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The string that was refused.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Which rule it breaks.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Always [`exit::USAGE`](crate::exit::USAGE).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        crate::exit::USAGE
    }
}

/// The rule of agent and version names: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`, no `.tmp` at the end, nothing
/// reserved.
fn check_name(value: &str) -> Result<(), &'static str> {
    let bytes = value.as_bytes();
    let Some(first) = bytes.first() else {
        return Err("is empty");
    };
    if !first.is_ascii_alphanumeric() {
        return Err("must begin with a letter or a digit (A-Z, a-z, 0-9)");
    }
    if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)) {
        return Err("may contain only letters, digits, '.', '_' and '-'");
    }
    if bytes.len() > MAX_NAME_BYTES {
        return Err("is longer than 128 bytes");
    }
    if value.ends_with(STAGING_SUFFIX) {
        return Err("ends in '.tmp', which marks a staging directory");
    }
    if matches!(value, "versions" | "current" | "refs") {
        return Err("is reserved by the store's own layout");
    }
    Ok(())
}

/// The rule of payload paths.
///
/// A leading `-` is refused because `sha256sum` would read the path as an option, and no control character or
/// backslash because it would print the path escaped: the checksum stays one that coreutils can compute.
fn check_payload_path(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    if value.len() > MAX_PAYLOAD_PATH_BYTES {
        return Err("is longer than 1024 bytes");
    }
    if value.starts_with('/') {
        return Err("is absolute; it must be relative to the version");
    }
    if value.starts_with('-') {
        return Err("begins with '-', which command-line tools read as an option");
    }
    if value.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if value.contains('\\') {
        return Err("contains a backslash");
    }
    for component in value.split('/') {
        match component {
            "" => return Err("has an empty component (a doubled or trailing '/')"),
            "." | ".." => return Err("contains '.' or '..'"),
            long if long.len() > MAX_COMPONENT_BYTES => return Err("has a component longer than 255 bytes"),
            _ => {}
        }
    }
    if value == MANIFEST_FILE {
        return Err("is the store's own file; a nested one is payload");
    }
    Ok(())
}

macro_rules! validated {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as it is on disk.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                match $check(&value) {
                    Ok(()) => Ok(Self(value)),
                    Err(reason) => Err(NameError::new($kind, &value, reason)),
                }
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(value: &str) -> Result<Self, NameError> {
                Self::try_from(value.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

validated! {
    /// The name of an agent: the owner of models, one directory in the store.
    ///
    /// ```
    /// use model_store::AgentName;
    /// assert!("news-cleaner-agent".parse::<AgentName>().is_ok());
    /// assert!("../x".parse::<AgentName>().is_err());
    /// ```
    AgentName, "agent name", check_name
}

validated! {
    /// The name of a version: one immutable published directory of an agent.
    VersionName, "version name", check_name
}

validated! {
    /// The name of a ref: a pointer of an agent's own, such as `candidate` or `champion`.
    RefName, "ref name", check_name
}

validated! {
    /// The path of a payload file within its version: relative, UTF-8, `/` between components.
    PayloadPath, "payload path", check_payload_path
}

/// What a person calls a version: its name, that of a ref to it, or `current`.
///
/// ```
/// use model_store::Selector;
/// assert_eq!("current".parse(), Ok(Selector::Current));
/// assert!(matches!("champion".parse(), Ok(Selector::Named(_))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// What `current` points at.
    Current,
    /// A version of that name or, where there is none, what the ref of that name points at.
    Named(VersionName),
}

impl FromStr for Selector {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        match value {
            "current" => Ok(Self::Current),
            name => name.parse().map(Self::Named),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.pad("current"),
            Self::Named(name) => name.fmt(f),
        }
    }
}

impl VersionName {
    /// The name of the staging directory this version is built in.
    pub(crate) fn staging_name(&self) -> String {
        format!("{}{STAGING_SUFFIX}", self.0)
    }
}

impl PayloadPath {
    /// The same as a relative [`Path`].
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The directories above the file, outermost first; empty for a file at the top of the version.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        let (directory, _) = self.0.rsplit_once('/').unwrap_or(("", ""));
        directory.split('/').filter(|component| !component.is_empty())
    }
}
