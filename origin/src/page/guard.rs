//! Headers that every answer has, and names under which the page answers.

use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Headers of every answer. The policy allows the page's own files alone, and nobody may frame it.
const RESTRICTIONS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// Added by proxies, which would show the page to others under a name of this machine.
const PROXIED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Adds the headers that restrict what a browser does with an answer.
pub async fn restrict(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    for (name, value) in RESTRICTIONS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Refuses requests for another name than this machine's loopback names. A page of a stranger, whose name is
/// made to lead to 127.0.0.1, is thus not answered (DNS rebinding).
pub async fn answers_loopback_names(request: Request, next: Next) -> Response {
    if !is_loopback_name(request.headers()) {
        let text = "the page answers to 127.0.0.1, [::1] and localhost alone\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    if PROXIED.iter().any(|name| request.headers().contains_key(*name)) {
        let text = "the page is not shown through a proxy: it has no password here\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

/// Any port is accepted, because a tunnel has one of its own.
fn is_loopback_name(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "[::1]" | "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_answered() {
        let of = |hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, HeaderValue::from_static(host));
            }
            is_loopback_name(&headers)
        };
        for good in ["127.0.0.1:8874", "127.0.0.1", "localhost:9000", "[::1]:8874", "[::1]"] {
            assert!(of(&[good]), "{good}");
        }
        for bad in
            ["evil.example", "evil.example:8874", "localhost.evil.example", "127.0.0.1.evil.example:1", ""]
        {
            assert!(!of(&[bad]), "{bad}");
        }
        assert!(!of(&[]));
        assert!(!of(&["localhost", "evil.example"]));
    }
}
