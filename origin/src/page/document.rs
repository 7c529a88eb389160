//! The document around a board.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::assets::{EDITION, ICON, SCRIPT, STYLE};
use super::board::{Board, View};
use super::command::command;

/// A board as a whole document.
pub fn document(board: &Board) -> Markup {
    let live = format!("{}?{}", board.view.live_address(), board.version());
    let content = html! {
        @for fragment in board.outermost() {
            (PreEscaped(&fragment.html))
        }
    };
    let about = html! { "syncd " (board.origin_version) " · tree " code { (board.tree_id) } };
    let place = match board.view {
        View::Fleet | View::Nodes(_) | View::Node(_) | View::Collected(_) => Place::Fleet,
    };
    Shell { title: &board.title, tree: &board.tree, place, live: Some(&live), about }.around(&content)
}

/// A document that does not change by itself.
pub fn still(title: &str, tree: &str, place: Place, content: &Markup) -> Markup {
    Shell { title, tree, place, live: None, about: html! { "As of loading." } }.around(content)
}

/// Answer if the store can't be read.
pub fn failed(reason: &str) -> Markup {
    let content = html! {
        section.card {
            h1 { "This can't be read" }
            p { (reason) }
        }
    };
    still("Failed", "", Place::Nowhere, &content)
}

/// Answer for an address that shows nothing.
pub fn missing() -> Markup {
    let content = html! {
        section.card {
            h1 { "Nothing is here" }
            p {
                "No node, no collected directory and no retained generation has this address. "
                a href="/" { "Go to the fleet" } "."
            }
        }
    };
    still("Not found", "", Place::Nowhere, &content)
}

/// Answer to a login. The page goes on by itself, so that the browser counts it as coming from here and sends
/// the cookie.
pub fn logged_in() -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Logged in · syncd" }
                // Without it, browsers ask for /favicon.ico.
                link rel="icon" href=(ICON.address());
                link rel="stylesheet" href=(STYLE.address());
                meta http-equiv="refresh" content="0; url=/";
            }
            body { main { p { "Logged in. " a href="/" { "Go to the fleet" } } } }
        }
    }
}

/// Answer without a session.
pub fn log_in(is_wrong_link: bool) -> Markup {
    let content = html! {
        section.card {
            h1 { "Log in" }
            @if is_wrong_link { p { "This link was used before, or is too old." } }
            p { "A command on the origin's machine prints a link that is good once:" }
            p { (command("syncd-origin page")) }
        }
    };
    still("Log in", "", Place::Nowhere, &content)
}

/// Entry of the navigation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Fleet,
    History,
    Nowhere,
}

struct Shell<'a> {
    title: &'a str,
    tree: &'a str,
    place: Place,
    /// Address of the events.
    live: Option<&'a str>,
    about: Markup,
}

impl Shell<'_> {
    fn around(self, content: &Markup) -> Markup {
        let Self { title, tree, place, live, about } = self;
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · syncd" }
                    link rel="icon" href=(ICON.address());
                    link rel="stylesheet" href=(STYLE.address());
                    script defer src=(SCRIPT.address()) {}
                    @if live.is_some() {
                        noscript { meta http-equiv="refresh" content="15"; }
                    }
                }
                body data-live=[live] data-edition=(*EDITION) {
                    a.skip href="#content" { "Skip to content" }
                    header.top {
                        a.brand href="/" { "syncd" }
                        span.tree { (tree) }
                        nav aria-label="Pages" {
                            (entry("/", "Fleet", place == Place::Fleet))
                            (entry("/history", "History", place == Place::History))
                        }
                        @if live.is_some() {
                            span #link { "as of loading" }
                        }
                    }
                    main #content tabindex="-1" { (content) }
                    footer {
                        p { (about) }
                        p { "This page only shows. Commands, run on the machine that each one names, act." }
                    }
                    div.quiet #spoken role="status" aria-live="polite" {}
                }
            }
        }
    }
}

fn entry(address: &str, name: &str, is_here: bool) -> Markup {
    html! { a href=(address) aria-current=[is_here.then_some("page")] { (name) } }
}
