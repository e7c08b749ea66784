//! What a remote is called, and how it is reached.
//!
//! Credentials come from the environment, from files that it names, or from the instance's metadata. An address
//! with some in it is refused: it would be in the process list and in every log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model_store::{Digest, VersionName};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::ClientConfigKey;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::credentials;
use crate::error::SyncError;
use crate::scrub::scrub;

/// The variable that names the remote.
pub const REMOTE_VARIABLE: &str = "MODEL_STORE_REMOTE";
/// One request takes no longer: a part of 16 MiB at 28 kB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(10);

/// The address of a remote: `s3://bucket/prefix`, `gs://…`, `az://…`, `https://…`, `file:///…` or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    url: Url,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Folder(PathBuf),
    S3,
    Google,
    Azure,
    Http,
}

impl Address {
    /// Reads an address. What has no scheme is a folder.
    pub fn parse(text: &str) -> Result<Self, SyncError> {
        let refused = |what: String| SyncError::Address { url: scrub(text), what };
        if text.is_empty() {
            return Err(refused("an address is missing".to_owned()));
        }
        if !text.contains("://") {
            let folder = std::path::absolute(text).map_err(|e| refused(e.to_string()))?;
            let url = Url::from_file_path(&folder).map_err(|()| refused("is no folder's path".to_owned()))?;
            return Ok(Self { url, kind: Kind::Folder(folder) });
        }
        let url: Url = text.parse().map_err(|e| refused(format!("is no address: {e}")))?;
        let is_azure = matches!(url.scheme(), "abfs" | "abfss");
        if url.password().is_some() || !(url.username().is_empty() || is_azure) {
            let what =
                "must not contain a name or password: credentials come from the environment or from files";
            return Err(refused(what.to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("must end with the path: a query may contain a secret".to_owned()));
        }
        let (scheme, _) = ObjectStoreScheme::parse(&url).map_err(|_| {
            refused("is of no known kind: s3, gs, az, http, https, file, or a folder".to_owned())
        })?;
        let kind = match scheme {
            ObjectStoreScheme::Local => {
                let folder = url.to_file_path().map_err(|()| refused("is no folder's path".to_owned()))?;
                Kind::Folder(folder)
            }
            ObjectStoreScheme::AmazonS3 => Kind::S3,
            ObjectStoreScheme::GoogleCloudStorage => Kind::Google,
            ObjectStoreScheme::MicrosoftAzure => Kind::Azure,
            ObjectStoreScheme::Http => Kind::Http,
            _ => return Err(refused("is of a kind that is not kept anywhere".to_owned())),
        };
        Ok(Self { url, kind })
    }

    /// The folder, where it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    /// Whether nothing can be written there: plain HTTP is for reading.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.kind == Kind::Http
    }

    /// A short name for the notes about this remote.
    #[must_use]
    pub(crate) fn id(&self) -> Option<VersionName> {
        let digest = Digest::of(self.to_string().trim_end_matches('/').as_bytes()).to_string();
        VersionName::try_from(&digest[..16]).ok()
    }

    /// Connects; nothing is asked of the server yet. A failing request is made again for so long as `retry`. With `stall`
    /// one also fails on which nothing comes for so long, be it the answer's first byte: that is for reading, since nothing
    /// comes while a large body is sent.
    pub(crate) fn connect(
        &self,
        retry: Duration,
        stall: Option<Duration>,
    ) -> Result<Arc<dyn ObjectStore>, SyncError> {
        let failed = |e: object_store::Error| SyncError::Address {
            url: self.to_string(),
            what: scrub(&model_store::with_causes(&e)),
        };
        let (_, prefix) = ObjectStoreScheme::parse(&self.url)
            .map_err(|e| SyncError::Address { url: self.to_string(), what: e.to_string() })?;
        let url = self.url.to_string();
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(15),
                base: 2.0,
            },
            max_retries: 20,
            retry_timeout: retry,
        };
        let mut timeouts = vec![(ClientConfigKey::Timeout, in_words(REQUEST_TIMEOUT))];
        timeouts.extend(stall.map(|stall| (ClientConfigKey::ReadTimeout, in_words(stall))));
        crate::tls::choose();
        let store: Box<dyn ObjectStore> = match &self.kind {
            Kind::Folder(folder) => {
                return Ok(Arc::new(
                    LocalFileSystem::new_with_prefix(folder).map_err(failed)?.with_fsync(true),
                ));
            }
            Kind::S3 => {
                let mut builder = AmazonS3Builder::from_env().with_url(url).with_retry(retry);
                for (key, time) in timeouts {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), time);
                }
                if let Some(keys) = credentials::of_aws_file()? {
                    builder = keys
                        .into_iter()
                        .fold(builder, |builder, (key, value)| builder.with_config(key, value));
                }
                Box::new(builder.build().map_err(failed)?)
            }
            Kind::Google => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry);
                for (key, time) in timeouts {
                    builder = builder.with_config(GoogleConfigKey::Client(key), time);
                }
                Box::new(builder.build().map_err(failed)?)
            }
            Kind::Azure => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry);
                for (key, time) in timeouts {
                    builder = builder.with_config(AzureConfigKey::Client(key), time);
                }
                Box::new(builder.build().map_err(failed)?)
            }
            Kind::Http => {
                let base = &self.url[..url::Position::BeforePath];
                let mut options = ClientOptions::new().with_allow_http(true);
                for (key, time) in timeouts {
                    options = options.with_config(key, time);
                }
                let builder =
                    HttpBuilder::new().with_url(base).with_retry(retry).with_client_options(options);
                Box::new(builder.build().map_err(failed)?)
            }
        };
        Ok(Arc::new(PrefixStore::new(store, prefix)))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url.as_str())
    }
}

/// A time as the clients' options have it.
fn in_words(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_place_and_no_secret() {
        let rows = [
            ("s3://models/fleet", true),
            ("s3://models", true),
            ("gs://models/fleet", true),
            ("az://models", true),
            ("https://mirror.example/models", true),
            ("http://127.0.0.1:9000/models", true),
            ("file:///srv/backup", true),
            ("/srv/backup", true),
            ("backup", true),
            ("", false),
            ("s3://AKIA:hunter2@models/fleet", false),
            ("https://user@mirror.example/models", false),
            ("https://mirror.example/models?sig=abc", false),
            ("https://mirror.example/models#x", false),
            ("ftp://mirror.example/models", false),
            ("memory:///", false),
            ("s3://", false),
        ];
        for (text, expected) in rows {
            let parsed = Address::parse(text);
            assert_eq!(parsed.is_ok(), expected, "{text}: {parsed:?}");
            if let Err(error) = parsed {
                let shown = error.to_string();
                assert!(!shown.contains("hunter2") && !shown.contains("sig=abc"), "{shown}");
            }
        }
    }

    #[test]
    fn one_place_has_one_name() -> Result<(), SyncError> {
        let id = |text| Address::parse(text).map(|address| address.id());
        assert_eq!(id("s3://models/fleet")?, id("s3://models/fleet/")?);
        assert_ne!(id("s3://models/fleet")?, id("s3://models/fleet2")?);
        assert!(id("/srv/backup")?.is_some());
        Ok(())
    }
}
