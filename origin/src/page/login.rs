//! Logins, where the page is served to other machines.
//!
//! `syncd-origin page` makes a link with a secret that is good once and for [`LINK_LIFE`]. It is exchanged
//! for a session, whose secret is new and lies in a cookie. Only hashes of secrets are kept, and in memory
//! alone: a restart of the origin ends all sessions. No secret that a browser brings along is ever made
//! valid, so a planted cookie opens nothing (session fixation).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;

use super::document;

/// Life of a link that nobody opens.
pub const LINK_LIFE: Duration = Duration::from_secs(10 * 60);
/// Life of a session.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Maximum numbers of links and sessions. The oldest gives way.
const LINKS_MAX: usize = 16;
const SESSIONS_MAX: usize = 64;
/// Wrong links that are answered as such within [`FAILURES_TIME`]. Right ones are always taken.
const FAILURES_MAX: usize = 10;
const FAILURES_TIME: Duration = Duration::from_secs(60);
const SECRET_BYTES: usize = 32;
/// The prefix binds it to this host, TLS and all paths.
const COOKIE_NAME: &str = "__Host-syncd";

/// Errors of opening a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginError {
    /// Never made, used already, or too old.
    Unknown,
    TooMany,
}

/// Links and sessions. See the module.
#[derive(Default)]
pub struct Logins {
    state: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    links: Secrets,
    sessions: Secrets,
    failures: VecDeque<Instant>,
}

/// Hashes of secrets with their ends, oldest first.
#[derive(Default)]
struct Secrets {
    kept: VecDeque<(blake3::Hash, Instant)>,
}

impl Secrets {
    fn add(&mut self, secret: &str, end: Instant, limit: usize) {
        while self.kept.len() >= limit {
            self.kept.pop_front();
        }
        self.kept.push_back((blake3::hash(secret.as_bytes()), end));
    }

    fn place(&mut self, secret: &str, now: Instant) -> Option<usize> {
        self.kept.retain(|(_, end)| *end > now);
        // Compares in constant time.
        let wanted = blake3::hash(secret.as_bytes());
        self.kept.iter().position(|(hash, _)| *hash == wanted)
    }
}

impl Logins {
    /// The secret of a new link.
    pub fn link(&self, now: Instant) -> Result<String, getrandom::Error> {
        let secret = secret()?;
        self.known(|known| known.links.add(&secret, now + LINK_LIFE, LINKS_MAX));
        Ok(secret)
    }

    /// Exchanges the secret of a link for that of a new session.
    fn open(&self, link: &str, now: Instant) -> Result<String, LoginError> {
        let session = secret().map_err(|_| LoginError::TooMany)?;
        self.known(|known| {
            let Some(place) = known.links.place(link, now) else { return Err(known.failed(now)) };
            known.links.kept.remove(place);
            known.sessions.add(&session, now + SESSION_LIFE, SESSIONS_MAX);
            Ok(())
        })?;
        Ok(session)
    }

    fn admits(&self, session: &str, now: Instant) -> bool {
        self.known(|known| known.sessions.place(session, now).is_some())
    }

    fn known<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    fn failed(&mut self, now: Instant) -> LoginError {
        self.failures.retain(|failure| now.duration_since(*failure) < FAILURES_TIME);
        if self.failures.len() >= FAILURES_MAX {
            return LoginError::TooMany;
        }
        self.failures.push_back(now);
        LoginError::Unknown
    }
}

fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(HEXLOWER.encode(&bytes))
}

/// The answer to `GET /login/SECRET`.
pub async fn login(State(logins): State<Arc<Logins>>, Path(link): Path<String>) -> Response {
    match logins.open(&link, Instant::now()) {
        Ok(session) => {
            let age = SESSION_LIFE.as_secs();
            let cookie =
                format!("{COOKIE_NAME}={session}; Path=/; Max-Age={age}; Secure; HttpOnly; SameSite=Strict");
            let mut answer = super::html(StatusCode::OK, document::logged_in());
            // Hexadecimal digits and the text above are always a header's value.
            if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                answer.headers_mut().insert(SET_COOKIE, cookie);
            }
            answer
        }
        Err(LoginError::Unknown) => super::html(StatusCode::UNAUTHORIZED, document::log_in(true)),
        Err(LoginError::TooMany) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "60")], "too many wrong links\n").into_response()
        }
    }
}

/// Passes on requests of a session, and for the page's own files.
pub async fn require(State(logins): State<Arc<Logins>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/login/") || path.starts_with("/page/") {
        return next.run(request).await;
    }
    let now = Instant::now();
    if !sessions(request.headers()).any(|session| logins.admits(session, now)) {
        return super::html(StatusCode::UNAUTHORIZED, document::log_in(false));
    }
    next.run(request).await
}

/// Values of the cookie, of which a browser may send several.
fn sessions(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_good_once_and_a_session_is_new() {
        let (logins, now) = (Logins::default(), Instant::now());
        let link = logins.link(now).unwrap();
        assert!(!logins.admits(&link, now));
        let session = logins.open(&link, now).unwrap();
        assert_ne!(session, link);
        assert!(logins.admits(&session, now));
        assert_eq!(logins.open(&link, now), Err(LoginError::Unknown));
        assert!(!logins.admits("planted", now) && !logins.admits("", now));
    }

    #[test]
    fn links_and_sessions_end() {
        let (logins, now) = (Logins::default(), Instant::now());
        let link = logins.link(now).unwrap();
        assert_eq!(logins.open(&link, now + LINK_LIFE), Err(LoginError::Unknown));
        let link = logins.link(now).unwrap();
        let session = logins.open(&link, now).unwrap();
        assert!(!logins.admits(&session, now + SESSION_LIFE));
        let first = logins.link(now).unwrap();
        (0..LINKS_MAX).for_each(|_| drop(logins.link(now).unwrap()));
        assert_eq!(logins.open(&first, now), Err(LoginError::Unknown));
    }

    #[test]
    fn guesses_are_limited_and_lock_nobody_out() {
        let (logins, now) = (Logins::default(), Instant::now());
        let link = logins.link(now).unwrap();
        let guesses: Vec<_> = (0..=FAILURES_MAX).map(|_| logins.open("guess", now).unwrap_err()).collect();
        assert_eq!(guesses.iter().filter(|guess| **guess == LoginError::TooMany).count(), 1);
        assert!(logins.open(&link, now).is_ok());
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=b; __Host-syncd=one; x=__Host-syncd=no"));
        headers.append(COOKIE, HeaderValue::from_static("__Host-syncd=two"));
        assert_eq!(sessions(&headers).collect::<Vec<_>>(), ["one", "two"]);
    }
}
