//! Object stores with an HTTP interface, by the crate `object_store`: S3 and what speaks like it, and plain
//! web servers and caches, which can only be read.
//!
//! Requests run on one thread of their own, so that calls can block wherever they are made.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ClientOptions, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};
use tokio::runtime::Runtime;

use super::{Bucket, BucketError, Listed};

/// Time for one request, a pack of 16 MiB included.
const REQUEST: Duration = Duration::from_secs(180);
const CONNECT: Duration = Duration::from_secs(10);
/// Time after which a request is not repeated any more: the caller tries again later, and says so.
const RETRY: Duration = Duration::from_secs(20);
/// Every object but `head` has one content for ever.
const FOREVER: &str = "public, max-age=31536000, immutable";
const ASK: &str = "no-cache";

#[derive(Debug)]
pub(super) struct RemoteBucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// The thread of all requests.
fn requests() -> &'static Runtime {
    static REQUESTS: OnceLock<Runtime> = OnceLock::new();
    REQUESTS.get_or_init(|| {
        // The programs have no other provider, so one that is installed already is this one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("object-store").enable_all();
        builder.build().expect("a process can start a thread when it opens a store")
    })
}

fn client() -> ClientOptions {
    let agent = concat!("syncd/", env!("CARGO_PKG_VERSION"));
    let agent = http::HeaderValue::from_static(agent);
    ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_user_agent(agent)
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: RETRY, ..RetryConfig::default() }
}

impl RemoteBucket {
    /// `s3://BUCKET/PREFIX`. Credentials, region and endpoint come from the variables `AWS_*`.
    pub(super) fn s3(bucket: &str, prefix: &str) -> Result<Self, Error> {
        requests();
        let allow_http = std::env::var("AWS_ENDPOINT_URL").or_else(|_| std::env::var("AWS_ENDPOINT"));
        let allow_http = allow_http.is_ok_and(|endpoint| endpoint.starts_with("http://"));
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(client().with_allow_http(allow_http))
            .with_retry(retry())
            .build()?;
        Ok(Self { store: Arc::new(store), prefix: Path::parse(prefix)? })
    }

    /// A web server that has the objects below `url`.
    pub(super) fn web(url: &str) -> Result<Self, Error> {
        requests();
        let client = client().with_allow_http(url.starts_with("http://"));
        let store =
            HttpBuilder::new().with_url(url).with_client_options(client).with_retry(retry()).build()?;
        Ok(Self { store: Arc::new(store), prefix: Path::default() })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .filter(|part| !part.is_empty())
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Writes an object. `false`: there is one, and it was to be created.
    fn write(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<bool, Error> {
        let cache = if name == syncd_shared::published::HEAD { ASK } else { FOREVER };
        let attributes = Attributes::from_iter([(Attribute::CacheControl, cache)]);
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        match requests().block_on(self.store.put_opts(&self.path(name), bytes.into(), options)) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn fetch(&self, name: &str, limit: usize) -> Result<Option<Bytes>, Error> {
        requests().block_on(async {
            let Some(found) = missing_is_none(self.store.get(&self.path(name)).await)? else {
                return Ok(None);
            };
            if found.meta.size > limit as u64 {
                let text = format!("{name} is longer than {limit} bytes");
                return Err(Error::Generic { store: "published tree", source: text.into() });
            }
            Ok(Some(found.bytes().await?))
        })
    }

    fn all(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let below = self.path(prefix);
        let found = requests().block_on(self.store.list_with_delimiter(Some(&below)))?;
        let mut listed: Vec<Listed> = found
            .objects
            .into_iter()
            .filter_map(|object| {
                let name = format!("{prefix}{}", object.location.filename()?);
                Some(Listed { name, bytes: object.size, modified: object.last_modified.into() })
            })
            .collect();
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }
}

fn missing_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::NotFound { .. }) => Ok(None),
        result => result.map(Some),
    }
}

impl Bucket for RemoteBucket {
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError> {
        self.fetch(name, limit).map_err(|source| BucketError::new("read", name, source))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let failed = |source| BucketError::new("read", name, source);
        let expected = range.end.saturating_sub(range.start);
        let read = requests().block_on(self.store.get_range(&self.path(name), range));
        let Some(bytes) = missing_is_none(read).map_err(failed)? else { return Ok(None) };
        if bytes.len() as u64 == expected {
            return Ok(Some(bytes));
        }
        let text = format!("{} bytes came where {expected} were asked for", bytes.len());
        Err(BucketError::new("read", name, text))
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        let written = self.write(name, bytes, PutMode::Overwrite);
        written.map(drop).map_err(|source| BucketError::new("write", name, source))
    }

    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        self.write(name, bytes, PutMode::Create).map_err(|source| BucketError::new("create", name, source))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.all(prefix).map_err(|source| BucketError::new("list", prefix, source))
    }

    fn delete(&self, name: &str) -> Result<(), BucketError> {
        let deleted = missing_is_none(requests().block_on(self.store.delete(&self.path(name))));
        deleted.map(drop).map_err(|source| BucketError::new("delete", name, source))
    }
}
