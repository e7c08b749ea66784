//! The AWS credentials file, which `object_store` does not read.

use std::path::PathBuf;

use object_store::aws::AmazonS3ConfigKey;

use crate::error::SyncError;

/// Variables that say where credentials come from. Where one of them is set, the file is not looked at.
const OTHER_SOURCES: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

type Keys = Vec<(AmazonS3ConfigKey, String)>;

/// The keys of the profile `AWS_PROFILE`, or `default`, in `AWS_SHARED_CREDENTIALS_FILE`, or
/// `~/.aws/credentials`; `None` where there is no such file, or credentials come from elsewhere.
pub(crate) fn of_aws_file() -> Result<Option<Keys>, SyncError> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if OTHER_SOURCES.iter().any(|name| is_set(name)) || is_set("AWS_SKIP_SIGNATURE") {
        return Ok(None);
    }
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").filter(|name| !name.is_empty());
    let path = match (&named, std::env::home_dir()) {
        (Some(named), _) => PathBuf::from(named),
        (None, Some(home)) => home.join(".aws/credentials"),
        (None, None) => return Ok(None),
    };
    let refused = |what: String| SyncError::Address { url: path.display().to_string(), what };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(None),
        Err(e) => return Err(refused(format!("could not be read for AWS credentials: {e}"))),
    };
    let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    match keys_of(&text, &profile) {
        keys if !keys.is_empty() => Ok(Some(keys)),
        _ if named.is_none() && profile == "default" => Ok(None),
        _ => Err(refused(format!("has no profile [{profile}] with an access key"))),
    }
}

fn keys_of(text: &str, profile: &str) -> Keys {
    let mut keys = Vec::new();
    let mut is_ours = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_ours = section.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_ours) {
            let key = match key.trim() {
                "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
                "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
                "aws_session_token" => AmazonS3ConfigKey::Token,
                _ => continue,
            };
            keys.push((key, value.trim().to_owned()));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_its_section() {
        let text = "# ours\n[default]\naws_access_key_id = A\naws_secret_access_key=B=\n\n[ fleet ]\n\
                    aws_access_key_id=C\nregion = x\naws_session_token = D\n";
        let rows = [("default", "A B="), ("fleet", "C D"), ("other", ""), ("", "")];
        for (profile, expected) in rows {
            let keys = keys_of(text, profile);
            let values: Vec<_> = keys.iter().map(|(_, value)| value.as_str()).collect();
            assert_eq!(values.join(" "), expected, "{profile}");
        }
    }
}
