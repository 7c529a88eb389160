//! The style sheet, the script and the icon, in the program. Their names contain their hash, so that a
//! browser keeps them for ever and asks for new ones after an upgrade.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// A file of the page.
pub struct Asset {
    /// Last part of its address.
    pub name: String,
    kind: &'static str,
    content: &'static str,
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, content: &'static str) -> Self {
        let hash = blake3::hash(content.as_bytes()).to_hex();
        Self { name: format!("{stem}.{:.16}.{extension}", hash.as_str()), kind, content }
    }

    pub fn address(&self) -> String {
        format!("/page/{}", self.name)
    }
}

pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("page", "css", "text/css; charset=utf-8", include_str!("page.css")));
pub static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("page", "js", "text/javascript; charset=utf-8", include_str!("page.js")));
pub static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("icon.svg")));

/// Name of this edition of the page. A page of another edition loads itself again.
pub static EDITION: LazyLock<String> = LazyLock::new(|| {
    let all = [&STYLE.name, &SCRIPT.name, env!("CARGO_PKG_VERSION")].concat();
    blake3::hash(all.as_bytes()).to_hex().as_str().get(..16).unwrap_or_default().to_owned()
});

/// The answer to `GET /page/NAME`.
pub async fn answer(Path(name): Path<String>) -> Response {
    let known = [&*STYLE, &*SCRIPT, &*ICON];
    match known.into_iter().find(|asset| asset.name == name) {
        Some(asset) => {
            let headers = [("content-type", asset.kind), ("cache-control", "max-age=31536000, immutable")];
            (headers, asset.content).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
