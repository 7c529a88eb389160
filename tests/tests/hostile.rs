//! Malicious peers that speak the real protocol over real TLS: an origin that lies, agents that attack, and a
//! web server's user who tampers with the node. docs/security.md says what is promised.

#[path = "hostile/announcements.rs"]
mod announcements;
#[path = "hostile/bad_agent.rs"]
mod bad_agent;
#[path = "hostile/bounds.rs"]
mod bounds;
#[path = "hostile/contents.rs"]
mod contents;
#[path = "hostile/fake_origin.rs"]
mod fake_origin;
#[path = "hostile/floods.rs"]
mod floods;
#[path = "hostile/forged_text.rs"]
mod forged_text;
#[path = "hostile/lying_origin.rs"]
mod lying_origin;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/raw_http2.rs"]
mod raw_http2;
#[path = "hostile/site.rs"]
mod site;
#[path = "hostile/trees.rs"]
mod trees;
#[path = "hostile/updates.rs"]
mod updates;
#[path = "hostile/web_user.rs"]
mod web_user;
