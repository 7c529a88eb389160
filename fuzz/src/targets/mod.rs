//! The targets, by the module that they decode for.

mod delta;
mod dialogue;
mod disk;
mod names;
mod trees;
mod wire;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "token", decode: names::token, generate: names::any_token },
    Target { name: "path", decode: names::path, generate: names::any_path },
    Target { name: "directory", decode: trees::directory, generate: trees::any_directory },
    Target { name: "generation", decode: trees::generation, generate: trees::any_generation },
    Target { name: "fetch_frame", decode: wire::fetch_frame, generate: wire::any_fetch_frame },
    Target { name: "stored_frame", decode: wire::stored_frame, generate: wire::any_stored_frame },
    Target { name: "patches", decode: wire::patches, generate: wire::any_patches },
    Target { name: "fetch_request", decode: wire::fetch_request, generate: wire::any_fetch_request },
    Target { name: "delta_places", decode: delta::places, generate: delta::any_places },
    Target { name: "delta_restore", decode: delta::restore, generate: delta::any_encoded },
    Target { name: "chunk_list", decode: disk::chunk_list, generate: disk::any_chunk_list },
    Target { name: "pack", decode: disk::pack, generate: disk::any_pack },
    Target { name: "index_entry", decode: disk::index_entry, generate: disk::any_index_entry },
    Target { name: "stat_record", decode: disk::stat_record, generate: disk::any_stat_record },
    Target { name: "agent_record", decode: disk::record_value, generate: disk::any_record_value },
    Target { name: "session", decode: dialogue::session, generate: dialogue::any_session },
    Target { name: "agent_message", decode: dialogue::agent_message, generate: dialogue::any_agent_message },
    Target { name: "certificate", decode: dialogue::certificate, generate: dialogue::any_certificate },
    Target { name: "config", decode: dialogue::config, generate: dialogue::any_config },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
