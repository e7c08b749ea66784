//! The in-toto statement: which files a signature is of.

use std::cmp::Ordering;
use std::collections::HashSet;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bundle;
use crate::error::{SignatureError, StatementError};
use crate::json::{Json, malformed};
use crate::key::SigningKey;

/// in-toto Attestation Framework v1.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// OpenSSF model signing v1.0.
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// What version 0.2 of `model_signing` wrote.
const OLD_PREDICATE_TYPE: &str = "https://model_signing/Digests/v0.1";
/// How the model was made into a list: a digest a file.
const METHOD: &str = "files";
/// The only digest that is supported.
const ALGORITHM: &str = "sha256";

/// What `model_signing` leaves out of a model unless told otherwise: a checkout's own files.
pub const GIT_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A file that is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its path within the model, `/` between components.
    pub path: String,
    /// The SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// Which files a model is made of. Signed, it is a signature; out of a signature, it is what was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What the signer called the model. Nothing is checked by it: a model may be renamed.
    pub name: String,
    /// Every file, each path once, in the order in which they were signed.
    pub resources: Vec<Resource>,
    /// Files and folders at these paths were left out, and may be there or not.
    pub ignored: Vec<String>,
    /// Whether symbolic links to files were signed like files, by the bytes that they lead to.
    pub follows_links: bool,
}

impl Statement {
    /// The statement about some files, given by path and SHA-256.
    pub fn new<P: Into<String>>(
        name: impl Into<String>,
        files: impl IntoIterator<Item = (P, [u8; 32])>,
    ) -> Result<Self, StatementError> {
        let files = files.into_iter();
        let mut resources: Vec<Resource> =
            files.map(|(path, sha256)| Resource { path: path.into(), sha256 }).collect();
        // The digest of the whole is over the digests in this order, which is that of `pathlib`.
        resources.sort_by(|a, b| by_components(&a.path, &b.path));
        if resources.is_empty() {
            return Err(StatementError::Empty);
        }
        check_paths(&resources)?;
        Ok(Self { name: name.into(), resources, ignored: Vec::new(), follows_links: false })
    }

    /// Leaves out the files at or below these paths, and says so in the statement.
    #[must_use]
    pub fn leaving_out<P: Into<String>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.ignored = paths.into_iter().map(Into::into).collect();
        let ignored = &self.ignored;
        self.resources.retain(|resource| !ignored.iter().any(|path| is_at_or_below(&resource.path, path)));
        self
    }

    /// Says that some of the files are symbolic links, which were followed.
    #[must_use]
    pub fn following_links(mut self, follows: bool) -> Self {
        self.follows_links = follows;
        self
    }

    /// Whether a path was left out.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        self.ignored.iter().any(|ignored| is_at_or_below(path, ignored))
    }

    /// Signs the statement; what comes out is a bundle, to be kept in a file.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, StatementError> {
        if self.resources.is_empty() {
            return Err(StatementError::Empty);
        }
        bundle::seal(&self.to_json()?, key)
    }

    /// The digest of the whole: the SHA-256 of the files' digests, one after the other.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        self.resources.iter().for_each(|resource| hasher.update(resource.sha256));
        hasher.finalize().into()
    }

    fn to_json(&self) -> Result<Vec<u8>, StatementError> {
        let resources = self.resources.iter().map(|resource| ResourceOut {
            name: &resource.path,
            algorithm: ALGORITHM,
            digest: hex::encode(resource.sha256),
        });
        let statement = StatementOut {
            kind: STATEMENT_TYPE,
            subject: [SubjectOut {
                name: &self.name,
                digest: DigestOut { sha256: hex::encode(self.digest()) },
            }],
            predicate_type: PREDICATE_TYPE,
            predicate: PredicateOut {
                serialization: SerializationOut {
                    method: METHOD,
                    hash_type: ALGORITHM,
                    allow_symlinks: self.follows_links,
                    ignore_paths: &self.ignored,
                },
                resources: resources.collect(),
            },
        };
        serde_json::to_vec(&statement).map_err(|e| StatementError::Json(e.to_string()))
    }

    /// Reads a statement.
    pub(crate) fn from_json(text: &[u8]) -> Result<Self, SignatureError> {
        let unsupported = |what: String| Err(SignatureError::Unsupported(what));
        let mut statement = Json::parse(text, "the signed statement")?.into_fields("the statement")?;
        match statement.text("_type")?.as_str() {
            STATEMENT_TYPE => {}
            other => {
                return unsupported(format!("the statement's type is {other:?} and not {STATEMENT_TYPE:?}"));
            }
        }
        match statement.text("predicateType")?.as_str() {
            PREDICATE_TYPE => {}
            OLD_PREDICATE_TYPE => {
                return unsupported(
                    "it was made by a model_signing before 1.0; sign the model again".to_owned(),
                );
            }
            other => {
                return unsupported(format!("the predicate's type is {other:?} and not {PREDICATE_TYPE:?}"));
            }
        }
        let mut subject = statement.only("subject")?;
        let name = subject.optional_text("name")?.unwrap_or_default();
        let whole = digest(&subject.object("digest")?.text(ALGORITHM)?, "the subject's digest")?;
        // The predicate's other fields are for later versions, which say that they may be passed over.
        let mut predicate = statement.object("predicate")?;
        let mut serialization = predicate.object("serialization")?;
        match serialization.text("method")?.as_str() {
            METHOD => {}
            other => {
                return unsupported(format!("it signs by {other:?} and not by {METHOD:?}; sign whole files"));
            }
        }
        match serialization.text("hash_type")?.as_str() {
            ALGORITHM => {}
            other => return unsupported(format!("its digests are {other:?} and not {ALGORITHM:?}")),
        }
        let follows_links = serialization.flag("allow_symlinks")?;
        let ignored = serialization.texts("ignore_paths")?;
        let resources =
            predicate.list("resources")?.into_iter().map(resource).collect::<Result<Vec<_>, _>>()?;
        if resources.is_empty() {
            return Err(malformed("it signs no file".to_owned()));
        }
        check_paths(&resources).map_err(|e| malformed(e.to_string()))?;
        let read = Self { name, resources, ignored, follows_links };
        if read.digest() != whole {
            return Err(malformed("the subject's digest is not that of its files".to_owned()));
        }
        Ok(read)
    }
}

fn resource(value: Json) -> Result<Resource, SignatureError> {
    let mut resource = value.into_fields("a resource")?;
    let path = resource.text("name")?;
    match resource.text("algorithm")?.as_str() {
        ALGORITHM => {}
        other => {
            let what = format!("the digest of {path:?} is {other:?} and not {ALGORITHM:?}");
            return Err(SignatureError::Unsupported(what));
        }
    }
    let sha256 = digest(&resource.text("digest")?, &format!("the digest of {path:?}"))?;
    Ok(Resource { path, sha256 })
}

fn digest(text: &str, what: &str) -> Result<[u8; 32], SignatureError> {
    let mut bytes = [0; 32];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    match hex::decode_to_slice(text, &mut bytes) {
        Ok(()) if lower => Ok(bytes),
        _ => Err(malformed(format!("{what} is not 64 lower-case hexadecimal digits"))),
    }
}

/// The order of `pathlib`: component by component, and not byte by byte.
fn by_components(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// Whether a path is another one, or something in it.
fn is_at_or_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_paths(resources: &[Resource]) -> Result<(), StatementError> {
    let mut seen = HashSet::new();
    for Resource { path, .. } in resources {
        if let Some(reason) = flaw(path) {
            return Err(StatementError::Path { path: path.clone(), reason });
        }
        if !seen.insert(path) {
            return Err(StatementError::Twice { path: path.clone() });
        }
    }
    Ok(())
}

fn flaw(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.starts_with('/') {
        return Some("is absolute; it must be relative to the model");
    }
    if path.contains('\0') {
        return Some("contains a NUL");
    }
    path.split('/').find_map(|component| match component {
        "" => Some("has an empty component"),
        "." | ".." => Some("contains '.' or '..'"),
        _ => None,
    })
}

#[derive(Serialize)]
struct StatementOut<'a> {
    #[serde(rename = "_type")]
    kind: &'a str,
    subject: [SubjectOut<'a>; 1],
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    predicate: PredicateOut<'a>,
}

#[derive(Serialize)]
struct SubjectOut<'a> {
    name: &'a str,
    digest: DigestOut,
}

#[derive(Serialize)]
struct DigestOut {
    sha256: String,
}

#[derive(Serialize)]
struct PredicateOut<'a> {
    serialization: SerializationOut<'a>,
    resources: Vec<ResourceOut<'a>>,
}

#[derive(Serialize)]
struct SerializationOut<'a> {
    method: &'a str,
    hash_type: &'a str,
    allow_symlinks: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ignore_paths: &'a [String],
}

#[derive(Serialize)]
struct ResourceOut<'a> {
    name: &'a str,
    algorithm: &'a str,
    digest: String,
}
