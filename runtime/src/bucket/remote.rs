//! Object stores with an HTTP interface, by the crate `object_store`: S3 and what speaks like it, and plain
//! web servers and caches, which can only be read.
//!
//! Requests run on one thread of their own, so that calls can block wherever they are made.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::client::HttpError;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ClientOptions, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};
use tokio::runtime::Runtime;

use super::{Bucket, BucketError, Fault, Listed, s3};

/// Time for one request, a pack of 16 MiB included.
const REQUEST: Duration = Duration::from_secs(180);
const CONNECT: Duration = Duration::from_secs(5);
/// Time without a byte of an answer.
const READ: Duration = Duration::from_secs(15);
/// Time after which a request is not repeated any more: the caller tries again later, and says so.
const RETRY: Duration = Duration::from_secs(20);
/// Every object but `head` has one content for ever.
const FOREVER: &str = "public, max-age=31536000, immutable";
const ASK: &str = "no-cache";

#[derive(Debug)]
pub(super) struct RemoteBucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Settings to look at when access is refused.
    access: &'static str,
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
    ClientOptions::new()
        .with_timeout(REQUEST)
        .with_connect_timeout(CONNECT)
        .with_read_timeout(READ)
        .with_user_agent(agent)
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: RETRY, ..RetryConfig::default() }
}

impl RemoteBucket {
    /// `s3://BUCKET/PREFIX`. Credentials, region and endpoint come from the variables `AWS_*`.
    pub(super) fn s3(bucket: &str, prefix: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        requests();
        let (builder, is_plain) = s3::builder(bucket)?;
        let client = client().with_allow_http(is_plain);
        let store = builder.with_client_options(client).with_retry(retry()).build()?;
        let access = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN";
        Ok(Self { store: Arc::new(store), prefix: Path::parse(prefix)?, access })
    }

    /// A web server that has the objects below `url`.
    pub(super) fn web(url: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        requests();
        let client = client().with_allow_http(url.starts_with("http://"));
        let store =
            HttpBuilder::new().with_url(url).with_client_options(client).with_retry(retry()).build()?;
        let access = "the web server has to serve these objects to everybody";
        Ok(Self { store: Arc::new(store), prefix: Path::default(), access })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .filter(|part| !part.is_empty())
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Runs a request to its end. A missing object gives `None`.
    fn ask<T>(
        &self,
        doing: &'static str,
        name: &str,
        request: impl Future<Output = Result<T, Asked>>,
    ) -> Result<Option<T>, BucketError> {
        match requests().block_on(request) {
            Ok(answer) => Ok(Some(answer)),
            Err(Asked::Store(Error::NotFound { .. })) => Ok(None),
            Err(Asked::Store(error)) => Err(BucketError::new(doing, name, self.fault(error))),
            Err(Asked::Fault(fault)) => Err(BucketError::new(doing, name, fault)),
        }
    }

    fn fault(&self, error: Error) -> Fault {
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Fault::Refused { next: self.access, source: error.into() }
            }
            error if is_down(&error) => Fault::Down(error.into()),
            error => Fault::Failed(error.into()),
        }
    }

    /// Writes an object. `false`: there is one, and it was to be created.
    fn write(
        &self,
        doing: &'static str,
        name: &str,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<bool, BucketError> {
        let cache = if name == syncd_shared::published::HEAD { ASK } else { FOREVER };
        let attributes = Attributes::from_iter([(Attribute::CacheControl, cache)]);
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        let written = self.ask(doing, name, async {
            match self.store.put_opts(&self.path(name), bytes.into(), options).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                // The bucket itself.
                Err(error @ Error::NotFound { .. }) => Err(Asked::Fault(Fault::Failed(error.into()))),
                Err(error) => Err(error.into()),
            }
        })?;
        Ok(written.unwrap_or(false))
    }
}

/// Why a request has no answer.
enum Asked {
    Store(Error),
    Fault(Fault),
}

impl From<Error> for Asked {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Whether the store may answer the same request later: it can't be reached, or says that it has trouble. The
/// library gives the status of an answer only in its text.
fn is_down(error: &Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<HttpError>() {
            return true;
        }
        let text = error.to_string();
        if ["status code: 5", "status code: 429"].iter().any(|status| text.contains(status)) {
            return true;
        }
        next = error.source();
    }
    false
}

impl Bucket for RemoteBucket {
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError> {
        self.ask("read", name, async {
            let found = self.store.get(&self.path(name)).await?;
            if found.meta.size > limit as u64 {
                return Err(Asked::Fault(Fault::Long { limit }));
            }
            Ok(found.bytes().await?)
        })
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let wanted = range.end.saturating_sub(range.start);
        self.ask("read", name, async {
            let bytes = self.store.get_range(&self.path(name), range).await?;
            let has = bytes.len() as u64;
            if has == wanted { Ok(bytes) } else { Err(Asked::Fault(Fault::Short { wanted, has })) }
        })
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        self.write("write", name, bytes, PutMode::Overwrite).map(drop)
    }

    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        self.write("create", name, bytes, PutMode::Create)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        let below = self.path(prefix);
        let found =
            self.ask("list", prefix, async { Ok(self.store.list_with_delimiter(Some(&below)).await?) })?;
        let objects = found.map(|found| found.objects).unwrap_or_default();
        let mut listed: Vec<Listed> = objects
            .into_iter()
            .filter_map(|object| {
                let name = format!("{prefix}{}", object.location.filename()?);
                Some(Listed { name, bytes: object.size, modified: object.last_modified.into() })
            })
            .collect();
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn delete(&self, name: &str) -> Result<(), BucketError> {
        self.ask("delete", name, async { Ok(self.store.delete(&self.path(name)).await?) }).map(drop)
    }
}
