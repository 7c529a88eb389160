//! Peers that speak the real protocol over real TLS and mean harm: an origin that lies, agents that attack, and a
//! web-server user that tampers with the node. FAULTS: the table of hostile input.

#[path = "hostile/bad_agent.rs"]
mod bad_agent;
#[path = "hostile/bad_origin.rs"]
mod bad_origin;
#[path = "hostile/fake_origin.rs"]
mod fake_origin;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/site.rs"]
mod site;
#[path = "hostile/web_user.rs"]
mod web_user;
