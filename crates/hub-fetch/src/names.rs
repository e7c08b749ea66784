//! Names that come from outside: of models, revisions and files.

use crate::error::FetchError;

/// A model's name, as the Hub allows them: `organisation/name`, or an old model's bare `name`.
pub(crate) fn check_model_id(id: &str) -> Result<(), FetchError> {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let mut parts = id.split('/');
    if parts.clone().count() <= 2 && parts.all(part) {
        return Ok(());
    }
    Err(FetchError::Name {
        name: id.to_owned(),
        kind: "model id",
        reason: "write `organisation/name` (or an old model's bare `name`): letters, digits, `.`, `_` and `-`",
    })
}

/// A branch, tag, pull request or commit. It becomes a path below `refs/`.
pub(crate) fn check_revision(revision: &str) -> Result<(), FetchError> {
    let part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 200
            && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    if revision.len() <= 255 && revision.split('/').all(part) {
        return Ok(());
    }
    Err(FetchError::Name {
        name: revision.to_owned(),
        kind: "revision",
        reason: "name a branch, a tag, `refs/pr/<number>` or a commit of 40 hexadecimal digits",
    })
}

/// Whether this is a whole commit: what it names never changes.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// `digits` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a server's name for a file stays below the folder it is put in.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 255
            && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    path.len() <= 1024 && path.split('/').all(part)
}

/// The file name of a blob: an entity tag without its quotes. `None` for one that makes no file name.
pub(crate) fn blob_name(etag: &str) -> Option<String> {
    let name = etag.trim().trim_start_matches("W/").trim_matches('"');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let sound = !name.is_empty() && name.len() <= 128 && name.bytes().all(plain) && !name.starts_with('.');
    (sound && !name.ends_with(".incomplete")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |what: &str, sound: bool, expected: bool| assert_eq!(sound, expected, "{what}");
        for (id, expected) in [
            ("acme/tiny", true),
            ("gpt2", true),
            ("BAAI/bge-small-en-v1.5", true),
            ("a/b/c", false),
            ("../b", false),
            ("acme/", false),
            ("acme/x--y", false),
            ("acme/.x", false),
            ("acme/x y", false),
            ("", false),
        ] {
            check(id, check_model_id(id).is_ok(), expected);
        }
        for (revision, expected) in [
            ("main", true),
            ("refs/pr/3", true),
            ("v1.0", true),
            ("../main", false),
            ("/etc", false),
            ("a\nb", false),
            ("", false),
        ] {
            check(revision, check_revision(revision).is_ok(), expected);
        }
        for (path, expected) in [
            ("config.json", true),
            ("1_Pooling/config.json", true),
            ("../config.json", false),
            ("a/../../b.json", false),
            ("/etc/x.json", false),
            ("a//b.json", false),
            ("a\\b.json", false),
        ] {
            check(path, is_safe_path(path), expected);
        }
        assert_eq!(blob_name("\"abc\"").as_deref(), Some("abc"));
        assert_eq!(blob_name("W/\"abc-1\"").as_deref(), Some("abc-1"));
        assert_eq!(blob_name("\"../x\""), None);
        assert_eq!(blob_name("\".x\""), None);
        assert_eq!(blob_name("\"x.incomplete\""), None);
        assert_eq!(blob_name("\"\""), None);
    }
}
