//! Which files a version's signature is of: every payload file, every link to one, and `manifest.json`.
//!
//! The manifest names every payload file and link with what it is, so whoever signs it signs them all: what a
//! checkout's own files are ([`GIT_PATHS`]), which `model_signing` never looks at, is covered by that alone.

use std::collections::BTreeMap;

use model_signing::{Bundle, GIT_PATHS, Statement};

use crate::digest::Digest;
use crate::manifest::{Generation, LinkEntry, Manifest};
use crate::names::{AgentName, MANIFEST_FILE, PayloadPath, VersionName};

/// As many links as the kernel follows on one path.
const MAX_HOPS: usize = 40;

/// A version as its manifest describes it: what a signature is compared with. No payload file is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'a> {
    pub(crate) agent: &'a AgentName,
    pub(crate) version: &'a VersionName,
    pub(crate) manifest: &'a Manifest,
    /// The SHA-256 of `manifest.json`.
    pub(crate) sha256: Digest,
}

impl Described<'_> {
    /// The statement that is signed.
    pub(crate) fn statement(&self) -> Result<Statement, String> {
        self.check_place()?;
        let links = self.links();
        let name = format!("{}/{}", self.agent, self.version);
        let statement = Statement::new(name, self.files(&links)).map_err(|e| e.to_string())?;
        Ok(statement.leaving_out(GIT_PATHS).following_links(!links.is_empty()))
    }

    /// Whether a signature is of this version, by what it claims; whose it is is another question.
    pub(crate) fn check_claims(&self, bundle: &[u8]) -> Result<(), String> {
        let claims = Bundle::parse(bundle).and_then(|bundle| bundle.claims()).map_err(|e| e.to_string())?;
        self.check(&claims)
    }

    /// Whether a statement is about this version.
    pub(crate) fn check(&self, statement: &Statement) -> Result<(), String> {
        self.check_place()?;
        statement.matches(self.files(&self.links())).map_err(|e| format!("is not of this version: {e}"))?;
        // What was left out is vouched for by the manifest, so that must not be.
        let covers_manifest = statement.resources.iter().any(|resource| resource.path == MANIFEST_FILE);
        if covers_manifest { Ok(()) } else { Err("leaves manifest.json out".to_owned()) }
    }

    /// A manifest without a list of files vouches for nothing, and one of another version for that one: a
    /// signed version that was copied to another name is not signed there.
    fn check_place(&self) -> Result<(), String> {
        let Self { agent, version, manifest, .. } = self;
        match manifest.generation() {
            Generation::Legacy => {
                return Err(
                    "cannot be of a version of the old Python tools, whose manifest lists no files; publish \
                            the version again"
                        .to_owned(),
                );
            }
            Generation::Newer(format) => {
                return Err(format!(
                    "cannot be of a version of format {format}, which this program does not know"
                ));
            }
            Generation::Current => {}
        }
        let of = manifest.agent.as_ref().unwrap_or(agent);
        if (of, &manifest.version) != (agent, version) {
            return Err(format!("is of {of}/{}, and this is {agent}/{version}", manifest.version));
        }
        Ok(())
    }

    fn files(&self, links: &[(String, Digest)]) -> Vec<(String, [u8; 32])> {
        let payload = self.manifest.files.iter().map(|file| (file.path.to_string(), file.sha256));
        let manifest = (MANIFEST_FILE.to_owned(), self.sha256);
        let all = payload.chain(links.iter().cloned()).chain([manifest]);
        all.map(|(path, sha256)| (path, *sha256.as_bytes())).collect()
    }

    /// The links that lead to a file, with the digest of that file.
    fn links(&self) -> Vec<(String, Digest)> {
        let by_path: BTreeMap<&str, &LinkEntry> =
            self.manifest.links.iter().map(|link| (link.path.as_str(), link)).collect();
        let to_file = |link: &LinkEntry| {
            let path = resolve(link.path.as_str(), &by_path)?;
            let sha256 = match path.as_str() {
                MANIFEST_FILE => self.sha256,
                path => self.manifest.file(&PayloadPath::try_from(path).ok()?)?.sha256,
            };
            Some((link.path.to_string(), sha256))
        };
        self.manifest.links.iter().filter_map(to_file).collect()
    }
}

/// Where a path leads when every link on it is followed; `None` out of the version or in a circle.
fn resolve(path: &str, links: &BTreeMap<&str, &LinkEntry>) -> Option<String> {
    let mut ahead: Vec<&str> = path.split('/').rev().collect();
    let mut walked: Vec<&str> = Vec::new();
    let mut hops = 0;
    while let Some(component) = ahead.pop() {
        match component {
            "" | "." => continue,
            ".." => {
                walked.pop()?;
                continue;
            }
            name => walked.push(name),
        }
        if let Some(link) = links.get(walked.join("/").as_str()) {
            hops += 1;
            if hops > MAX_HOPS || link.target.starts_with('/') {
                return None;
            }
            walked.pop();
            ahead.extend(link.target.split('/').rev());
        }
    }
    Some(walked.join("/"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_the_kernel_does() {
        let entries = [
            ("a", "dir/file"),
            ("back", "dir"),
            ("dir/up", "../file"),
            ("dir/deep/far", "../../back/./file"),
            ("one", "two"),
            ("two", "one"),
            ("out", "../file"),
            ("absolute", "/file"),
        ];
        let entries: Vec<LinkEntry> = entries
            .iter()
            .map(|(path, target)| LinkEntry {
                path: (*path).try_into().unwrap(),
                target: (*target).to_owned(),
            })
            .collect();
        let links = entries.iter().map(|link| (link.path.as_str(), link)).collect();
        for (path, expected) in [
            ("file", Some("file")),
            ("a", Some("dir/file")),
            ("back", Some("dir")),
            ("back/up", Some("file")),
            ("dir/deep/far", Some("dir/file")),
            ("one", None),
            ("out", None),
            ("absolute", None),
        ] {
            assert_eq!(resolve(path, &links).as_deref(), expected, "{path}");
        }
    }
}
