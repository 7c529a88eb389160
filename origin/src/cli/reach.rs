//! Finds who answers a command: the origin that serves DATA, or DATA itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use syncd_runtime::local_socket::{self, LocalSocketError, Responses};
use tokio::time::{Instant, sleep};

use crate::admin;
use crate::admin::offline::{DataDirectory, OpenDataError};
use crate::admin::protocol::{Reply, Request};
use crate::store::OpenStoreError;

/// Time within which an origin that holds DATA begins to answer: it starts, was promoted, or stops.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// The side that answers a request.
pub(super) enum Reached {
    /// An origin, which has the request. `first` is its first line; `None`: it stopped without one.
    Served { first: Option<Box<Reply>>, replies: Responses<Reply> },
    /// Nobody else: DATA is open, and locked.
    Opened(Box<DataDirectory>),
}

/// Sends the request to the origin that serves `data`, or opens `data` if none does. One that only reads
/// is sent again if the origin stops without an answer.
pub(super) async fn reach(data: &Path, request: &Request) -> anyhow::Result<Reached> {
    let until = Instant::now() + ANSWERS_WITHIN;
    loop {
        match local_socket::request(&admin::socket_path(data), request).await {
            Ok(mut replies) => match replies.next().await {
                Ok(None) | Err(LocalSocketError::Io(_) | LocalSocketError::Closed)
                    if request.only_reads() && Instant::now() < until =>
                {
                    sleep(LOOK).await;
                    continue;
                }
                first => return Ok(Reached::Served { first: first?.map(Box::new), replies }),
            },
            Err(LocalSocketError::NotServed { .. }) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("ask the origin that serves {}", data.display()));
            }
        }
        let path = data.to_owned();
        match tokio::task::spawn_blocking(move || DataDirectory::open(&path)).await? {
            Err(OpenDataError::Store(OpenStoreError::Held { .. })) if Instant::now() < until => {
                sleep(LOOK).await;
            }
            opened => return Ok(Reached::Opened(Box::new(opened?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service;
    use crate::store::Store;

    #[tokio::test]
    async fn data_that_is_open_elsewhere_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        service::init_sealed(&data, || Ok(None)).unwrap();
        let held = Store::open(&data).unwrap();
        let reaching = tokio::spawn(async move { reach(&data, &Request::Status).await });
        tokio::time::sleep(LOOK * 3).await;
        assert!(!reaching.is_finished());
        drop(held);
        assert!(matches!(reaching.await.unwrap().unwrap(), Reached::Opened(_)));
    }
}
