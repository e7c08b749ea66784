//! What a commit has: the Hub's list of files, also as `huggingface_hub` keeps it in `trees/<commit>.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::FetchError;
use crate::names::{blob_name, is_hex, is_safe_path};
use crate::request::Graphs;
use crate::selection;

/// The number of the format of `trees/<commit>.json` that is written and read here.
const TREE_FORMAT: u32 = 1;

/// A commit's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) files: BTreeMap<String, Facts>,
}

/// What is known of a file before it is here. A mirror may know less than the Hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) size: Option<u64>,
    /// What git calls it; for an LFS file its pointer.
    pub(crate) blob_id: Option<String>,
    pub(crate) sha256: Option<String>,
}

/// A file that is wanted, with the name its bytes have in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) path: String,
    pub(crate) size: Option<u64>,
    pub(crate) blob: String,
    /// `None` where the name is no digest.
    pub(crate) digest: Option<Digest>,
}

impl Facts {
    /// The name of the file's bytes in the cache, if it follows from what is known.
    pub(crate) fn etag(&self) -> Option<&str> {
        self.sha256.as_deref().or(self.blob_id.as_deref())
    }
}

impl Wanted {
    /// `None` for an entity tag that makes no file name.
    pub(crate) fn new(path: &str, size: Option<u64>, etag: &str) -> Option<Self> {
        let blob = blob_name(etag)?;
        let digest = Digest::of_etag(&blob);
        Some(Self { path: path.to_owned(), size, blob, digest })
    }

    /// A file of a commit by its entity tag, whatever that is. One that is no digest may stand for several files, so the
    /// name of the bytes is made of the commit and the path too.
    pub(crate) fn of_tag(path: &str, size: Option<u64>, etag: &str, commit: &str) -> Self {
        let known = Self::new(path, size, etag).filter(|file| file.digest.is_some());
        known.unwrap_or_else(|| {
            let named = Sha256::digest(format!("{path}\0{}", etag.trim()));
            let blob = format!("{commit}-{}", hex::encode(&named[..16]));
            Self { path: path.to_owned(), size, blob, digest: None }
        })
    }
}

impl Listing {
    /// The paths that are wanted. `Err` for a repository that has nothing to be wanted, and for one whose names lead
    /// out of its folder.
    pub(crate) fn wanted(&self, about: &About<'_>, graphs: Graphs) -> Result<Vec<String>, FetchError> {
        let all: Vec<&str> = self.files.keys().map(String::as_str).collect();
        let wanted: Vec<String> = all
            .iter()
            .filter(|path| selection::is_wanted(path, graphs, &all))
            .map(|path| (*path).to_owned())
            .collect();
        if let Some(path) = wanted.iter().find(|path| !is_safe_path(path)) {
            let what = format!("it lists a file {path:?}, which leads out of its folder");
            return Err(FetchError::Protocol { url: format!("{}/{}", about.endpoint, about.model_id), what });
        }
        let has = |ending: &str| wanted.iter().any(|path| path.ends_with(ending));
        if has(".safetensors") || graphs == Graphs::Take && has(".onnx") {
            return Ok(wanted);
        }
        let graph = self.graph();
        let pickles = selection::pickles(&all);
        if pickles.is_empty() {
            let (model_id, commit) = (about.model_id.to_owned(), about.commit.to_owned());
            return Err(FetchError::NoWeights { model_id, commit, graph });
        }
        let more = pickles.len().saturating_sub(3);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(FetchError::OnlyPickles {
            model_id: about.model_id.to_owned(),
            endpoint: about.endpoint.to_owned(),
            files: format!("{}{more}", pickles[..pickles.len().min(3)].join(", ")),
            graph,
        })
    }

    /// The repository's own graph.
    pub(crate) fn graph(&self) -> Option<String> {
        selection::GRAPHS.into_iter().find(|path| self.files.contains_key(*path)).map(str::to_owned)
    }
}

/// What a listing is of, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub(crate) model_id: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) endpoint: &'a str,
}

/// The answer of `/api/models/{id}/revision/{revision}?blobs=true`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    pub(crate) id: Option<String>,
    pub(crate) sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Info {
    pub(crate) fn listing(&self) -> Listing {
        let facts = |file: &Sibling| Facts {
            size: file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size),
            blob_id: file.blob_id.clone().filter(|id| is_hex(id, 40)),
            // Without its SHA-256 the name of an LFS file's bytes is not known: the blob id is its pointer's.
            sha256: file.lfs.as_ref().and_then(|lfs| lfs.sha256.clone()).filter(|sha| is_hex(sha, 64)),
        };
        let clean = |file: &Sibling| {
            let mut facts = facts(file);
            if file.lfs.is_some() && facts.sha256.is_none() {
                facts.blob_id = None;
            }
            facts
        };
        Listing { files: self.siblings.iter().map(|file| (file.rfilename.clone(), clean(file))).collect() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, Leaf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Leaf {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

/// A listing as it is kept beside the snapshots. `None` if too little is known for that.
pub(crate) fn to_tree(listing: &Listing) -> Option<Vec<u8>> {
    let leaf = |facts: &Facts| {
        let (size, blob_id) = (facts.size?, facts.blob_id.clone()?);
        let lfs_size = facts.sha256.as_ref().map(|_| size);
        Some(Leaf { size, blob_id, lfs_sha256: facts.sha256.clone(), lfs_size })
    };
    let files = listing.files.iter().map(|(path, facts)| Some((path.clone(), leaf(facts)?)));
    let tree = Tree { format_version: TREE_FORMAT, files: files.collect::<Option<_>>()? };
    serde_json::to_vec_pretty(&tree).ok()
}

/// Reads what [`to_tree`] and `huggingface_hub` write. `None` for another format, and for what is damaged.
pub(crate) fn from_tree(json: &[u8]) -> Option<Listing> {
    let tree: Tree = serde_json::from_slice(json).ok()?;
    let facts = |leaf: Leaf| Facts {
        size: Some(leaf.lfs_size.unwrap_or(leaf.size)),
        blob_id: Some(leaf.blob_id),
        sha256: leaf.lfs_sha256,
    };
    let files = tree.files.into_iter().map(|(path, leaf)| (path, facts(leaf))).collect();
    (tree.format_version == TREE_FORMAT).then_some(Listing { files })
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use super::{About, Info, Listing, from_tree, to_tree};
    use crate::names::is_safe_path;
    use crate::request::Graphs;

    /// Any answer of a Hub, and any list in the cache: what is wanted lies in the folder, and what is kept is read again.
    pub fn listing(json: &[u8]) {
        let info = serde_json::from_slice::<Info>(json).ok();
        for listing in info.iter().map(Info::listing).chain(from_tree(json)) {
            check(&listing);
        }
    }

    fn check(listing: &Listing) {
        let about = About { model_id: "org/name", commit: "0123", endpoint: "https://hub" };
        for graphs in [Graphs::Leave, Graphs::Take] {
            if let Ok(paths) = listing.wanted(&about, graphs) {
                assert!(paths.iter().all(|path| is_safe_path(path)), "{paths:?}");
            }
        }
        if let Some(tree) = to_tree(listing) {
            assert_eq!(from_tree(&tree).as_ref(), Some(listing), "what was written is read");
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    const ABOUT: About<'static> =
        About { model_id: "acme/tiny", commit: "0123", endpoint: "https://huggingface.co" };

    fn listing(paths: &[&str]) -> Listing {
        Listing { files: paths.iter().map(|path| ((*path).to_owned(), Facts::default())).collect() }
    }

    #[test]
    fn repositories_without_what_is_wanted() {
        let check = |paths: &[&str], expected: &str| {
            let error = listing(paths).wanted(&ABOUT, Graphs::Leave).unwrap_err();
            assert!(error.to_string().contains(expected), "{paths:?}: {error}");
        };
        check(&["config.json", "pytorch_model.bin"], "pickles only (pytorch_model.bin)");
        check(&["a.pt", "b.pt", "c.pt", "d.pt", "e.pt"], "(a.pt, b.pt, c.pt and 2 more)");
        check(&["config.json"], "no *.safetensors");
        check(&["onnx/model.onnx"], "its weights are in onnx/model.onnx");
        check(&[], "no *.safetensors");
        check(&["model.safetensors", "1_Pooling/../../x.json"], "leads out of its folder");
        assert!(listing(&["onnx/model.onnx"]).wanted(&ABOUT, Graphs::Take).is_ok());
    }

    #[test]
    fn what_bytes_are_called() {
        let (sha, git) = ("5".repeat(64), "c".repeat(40));
        let blob = |path: &str, tag: &str, commit: &str| Wanted::of_tag(path, None, tag, commit).blob;
        assert_eq!(blob("a.json", &format!("\"{sha}\""), "0123"), sha);
        assert_eq!(blob("a.json", &format!("W/\"{git}\""), "0123"), git);
        let odd = blob("a.json", "\"1-2f\"", "0123");
        assert!(odd.starts_with("0123-") && is_safe_path(&odd), "{odd}");
        for other in [
            blob("b.json", "\"1-2f\"", "0123"),
            blob("a.json", "\"1-2f\"", "4567"),
            blob("a.json", "\"../x\"", "0123"),
        ] {
            assert_ne!(odd, other);
        }
        assert_eq!(odd, blob("a.json", "\"1-2f\"", "0123"));
    }

    #[test]
    fn a_tree_is_read_as_it_was_written() {
        let json = br#"{"sha": "x", "siblings": [
            {"rfilename": "config.json", "size": 2, "blobId": "ce013625030ba8dba906f756967f9e9ca394464a"},
            {"rfilename": "model.safetensors", "size": 6, "blobId": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
             "lfs": {"sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "size": 6, "pointerSize": 130}}
        ]}"#;
        let info: Info = serde_json::from_slice(json).unwrap();
        let listing = info.listing();
        assert_eq!(listing.files["model.safetensors"].etag().unwrap().len(), 64);
        assert_eq!(from_tree(&to_tree(&listing).unwrap()), Some(listing));
        assert_eq!(from_tree(br#"{"format_version": 2, "files": {}}"#), None);
        assert_eq!(from_tree(b"{"), None);
    }

    #[test]
    fn a_mirror_that_knows_little() {
        let json = br#"{"sha": "x", "siblings": [{"rfilename": "config.json"}, {"rfilename": "m.safetensors", "blobId": "ce013625030ba8dba906f756967f9e9ca394464a", "lfs": {}}]}"#;
        let info: Info = serde_json::from_slice(json).unwrap();
        let listing = info.listing();
        assert!(listing.files.values().all(|facts| facts.etag().is_none()));
        assert_eq!(to_tree(&listing), None);
    }
}
