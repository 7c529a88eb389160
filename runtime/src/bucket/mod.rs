//! Object stores that carry a published tree: a directory, or whatever else a URL names.
//!
//! All calls block and must not be made from an async task. Names are those of
//! [`syncd_shared::published`]; an object that is missing is not an error.

mod directory;
mod error;
mod remote;
mod s3;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use syncd_shared::text::one_line;

use self::directory::DirectoryBucket;
pub use self::error::{BucketError, Fault};
use self::remote::RemoteBucket;

/// Bytes of a URL that are shown.
const SHOWN_BYTES: usize = 200;

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// The place of a published tree.
pub trait Bucket: fmt::Debug + Send + Sync {
    /// A whole object of at most `limit` bytes.
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError>;

    /// A part of an object. A shorter object gives an error.
    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError>;

    /// Writes an object, and replaces the one that is there. Readers see either.
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError>;

    /// Writes an object unless there is one. `false`: there is one. After an error the object may have been
    /// written, or may yet be.
    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError>;

    /// All objects whose names begin with `prefix`, which ends with a slash, in order of their names.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError>;

    /// Removes an object, if it is there.
    fn delete(&self, name: &str) -> Result<(), BucketError>;
}

/// The URL names no object store that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketUrlError {
    #[error(
        "\"{url}\" is not the URL of an object store: file:///DIRECTORY, s3://BUCKET/PREFIX, or https:// to read"
    )]
    Scheme { url: String },
    #[error("\"{url}\": the path of a file:// URL is absolute, as in file:///srv/published")]
    Relative { url: String },
    #[error("\"{url}\" can only be read: publish to s3:// or file://, and give it to --publish-read")]
    ReadOnly { url: String },
    #[error("\"{url}\" is a directory of this machine: name https:// or s3://, which agents can read")]
    Local { url: String },
    #[error("\"{url}\": a password in a URL shows in logs, and a query or fragment names no directory")]
    Parts { url: String },
}

/// The settings of an object store do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("can't use the object store {url}")]
pub struct OpenBucketError {
    pub url: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// URL of an object store, checked for its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl(String);

impl BucketUrl {
    /// The store at this URL. Makes no connection yet.
    pub fn open(&self) -> Result<Arc<dyn Bucket>, OpenBucketError> {
        if let Some(path) = self.0.strip_prefix("file://") {
            return Ok(Arc::new(DirectoryBucket::new(path.into())));
        }
        let opened = match self.0.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                RemoteBucket::s3(bucket, prefix)
            }
            None => RemoteBucket::web(&self.0),
        };
        match opened {
            Ok(bucket) => Ok(Arc::new(bucket)),
            Err(source) => Err(OpenBucketError { url: self.to_string(), source }),
        }
    }

    /// The URL of a store that objects can be put into.
    pub fn writable(text: &str) -> Result<Self, BucketUrlError> {
        let url: Self = text.parse()?;
        if url.0.starts_with("http") {
            Err(BucketUrlError::ReadOnly { url: url.to_string() })
        } else {
            Ok(url)
        }
    }

    /// The URL of a store that other machines can read, too.
    pub fn remote(text: &str) -> Result<Self, BucketUrlError> {
        let url: Self = text.parse()?;
        if url.is_remote() { Ok(url) } else { Err(BucketUrlError::Local { url: url.to_string() }) }
    }

    /// Whether it names no directory of this machine.
    pub fn is_remote(&self) -> bool {
        !self.0.starts_with("file:")
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.0, SHOWN_BYTES))
    }
}

impl std::str::FromStr for BucketUrl {
    type Err = BucketUrlError;

    fn from_str(text: &str) -> Result<Self, BucketUrlError> {
        let url = || one_line(text, SHOWN_BYTES);
        match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Ok(Self(text.to_owned())),
            Some(("file", _)) => Err(BucketUrlError::Relative { url: url() }),
            Some(("s3" | "https" | "http", rest)) if rest.contains(['@', '?', '#']) => {
                // The password is not repeated.
                Err(BucketUrlError::Parts {
                    url: rest.rsplit('@').next().map(|r| one_line(r, SHOWN_BYTES)).unwrap_or_default(),
                })
            }
            Some(("s3" | "https" | "http", rest)) if !rest.starts_with('/') && !rest.is_empty() => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BucketUrlError::Scheme { url: url() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_passwords_not_repeated() {
        for good in
            ["file:///srv/x", "s3://bucket", "s3://bucket/a/b", "https://cdn.example.org/x", "http://h:8/x"]
        {
            assert_eq!(good.parse::<BucketUrl>().map(|url| url.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "srv/x", "file://srv/x", "ftp://x/y", "s3:///x", "https://a/b?c=d"] {
            assert!(bad.parse::<BucketUrl>().is_err(), "{bad}");
        }
        let told = "https://me:secret@host/x".parse::<BucketUrl>().unwrap_err().to_string();
        assert!(!told.contains("secret"), "{told}");
    }
}
