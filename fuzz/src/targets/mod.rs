//! The targets, grouped by the module under test.

mod delta;
mod disk;
mod identity;
mod local;
mod names;
mod session;
mod trees;
mod wire;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "token", decode: names::token, generate: names::any_token },
    Target { name: "path", decode: names::path, generate: names::any_path },
    Target { name: "directory", decode: trees::directory, generate: trees::any_directory },
    Target { name: "edits", decode: trees::edits, generate: trees::any_edits },
    Target { name: "generation", decode: trees::generation, generate: trees::any_generation },
    Target { name: "fetch_frame", decode: wire::fetch_frame, generate: wire::any_fetch_frame },
    Target { name: "stored_frame", decode: wire::stored_frame, generate: wire::any_stored_frame },
    Target { name: "patches", decode: wire::patches, generate: wire::any_patches },
    Target { name: "fetch_request", decode: wire::fetch_request, generate: wire::any_fetch_request },
    Target { name: "update_file", decode: wire::update_file, generate: wire::any_update_file },
    Target { name: "delta_places", decode: delta::places, generate: delta::any_places },
    Target { name: "delta_restore", decode: delta::restore, generate: delta::any_encoded },
    Target { name: "chunk_list", decode: disk::chunk_list, generate: disk::any_chunk_list },
    Target { name: "pack", decode: disk::pack, generate: disk::any_pack },
    Target { name: "index_entry", decode: disk::index_entry, generate: disk::any_index_entry },
    Target { name: "stat_record", decode: disk::stat_record, generate: disk::any_stat_record },
    Target { name: "agent_record", decode: disk::record_value, generate: disk::any_record_value },
    Target { name: "session", decode: session::session, generate: session::any_session },
    Target { name: "agent_message", decode: session::agent_message, generate: session::any_agent_message },
    Target { name: "certificate", decode: identity::certificate, generate: identity::any_certificate },
    Target { name: "config", decode: session::config, generate: session::any_config },
    Target { name: "join_answer", decode: identity::join_answer, generate: identity::any_join_answer },
    Target {
        name: "agent_identity",
        decode: identity::agent_identity,
        generate: identity::any_agent_identity,
    },
    Target { name: "key_file", decode: identity::key_file, generate: identity::any_key_file },
    Target { name: "fleet_records", decode: identity::fleet_records, generate: identity::any_fleet_records },
    Target { name: "local_socket", decode: local::local_socket, generate: local::any_local_socket },
    Target { name: "ignore_rules", decode: local::ignore_rules, generate: local::any_ignore_rules },
    Target { name: "origin_state", decode: local::origin_state, generate: local::any_origin_state },
    Target { name: "agent_state", decode: local::agent_state, generate: local::any_agent_state },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
