//! A small site to start with.

use std::fs;
use std::path::Path;

/// Writes a few pages, a style sheet and an image into a new directory.
pub fn write(tree: &Path) -> std::io::Result<()> {
    fs::create_dir_all(tree.join("articles"))?;
    fs::create_dir_all(tree.join("assets"))?;
    fs::write(tree.join("index.html"), page("Hello from syncd", "Edit this file and reload both replicas."))?;
    for number in 1..=20 {
        let text = "Every node has a complete copy of its own. ".repeat(number * 10);
        fs::write(
            tree.join(format!("articles/{number:02}.html")),
            page(&format!("Article {number}"), &text),
        )?;
    }
    fs::write(
        tree.join("assets/style.css"),
        "body { font: 16px/1.5 sans-serif; max-width: 40em; margin: 2em auto }\n",
    )?;
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(tree.join("assets/photo.bin"), noise)
}

fn page(title: &str, text: &str) -> String {
    format!(
        "<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<link rel=stylesheet href=/assets/style.css>\n<h1>{title}</h1>\n<p>{text}</p>\n"
    )
}
