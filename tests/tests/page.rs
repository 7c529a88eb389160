//! The page of the origin: who is answered, what an answer allows, and what a browser makes of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use syncd_tests::process::Daemon;
use syncd_tests::{Origin, Scene, http, wait};

fn scene(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.new_directory("tree");
    std::fs::write(tree.join("index.html"), "hello").unwrap();
    let origin = Origin::started(&scene, &tree);
    (scene, origin)
}

fn address_of(origin: &Origin) -> String {
    origin.status().http_address.expect("an address")
}

/// Sends a request with these headers and returns the beginning of the answer.
fn answer(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.take(64 * 1024).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn only_this_machine_is_answered_and_nothing_may_be_embedded() {
    let (_scene, origin) = scene("page-names");
    let address = address_of(&origin);
    for (headers, status) in [
        ("Host: 127.0.0.1:8874\r\n", "200"),
        ("Host: localhost\r\n", "200"),
        ("Host: evil.example\r\n", "421"),
        ("Host: localhost.evil.example:8874\r\n", "421"),
        ("Host: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n", "403"),
    ] {
        for path in ["/", "/live/fleet", "/nodes/1", "/node/web1"] {
            if status == "200" && path != "/" {
                continue;
            }
            let answer = answer(&address, path, headers);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {answer}");
        }
    }
    let page = http::get(&address, "/").expect("the page");
    for (name, value) in [
        ("content-security-policy", "frame-ancestors 'none'"),
        ("content-security-policy", "default-src 'none'"),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        let header = page.header(name).unwrap_or_default();
        assert!(header.contains(value), "{name}: {header}");
    }
    let html = String::from_utf8(page.body).expect("text");
    assert!(!html.contains("http://") && !html.contains("https://"), "asks elsewhere: {html}");
    assert!(!html.contains(" style=") && !html.contains(" onclick="), "{html}");
    // Health is asked by balancers, under any name.
    assert!(answer(&address, "/healthz", "Host: origin.example\r\n").contains(" 503 "));
}

#[test]
fn elsewhere_than_on_loopback_there_is_no_page() {
    let scene = Scene::new("page-elsewhere");
    let tree = scene.new_directory("tree");
    let origin = Origin::create(&scene, &tree);
    let tree = tree.to_str().expect("text");
    let options = ["--tree", tree, "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"];
    let mut serve = origin.command("serve", &options);
    let _daemon = Daemon::start(&mut serve, scene.directory(), "elsewhere");
    let address = wait::until("the address", || {
        let bound = origin.try_status()?.http_address?;
        Some(bound.replace("0.0.0.0", "127.0.0.1"))
    });
    assert!(answer(&address, "/healthz", "Host: localhost\r\n").starts_with("HTTP/1.1 "));
    for path in ["/", "/live/fleet"] {
        assert!(answer(&address, path, "Host: localhost\r\n").starts_with("HTTP/1.1 404 "), "{path}");
    }
}
