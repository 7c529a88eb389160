//! Asserts what an idle agent's ROOT contains.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use walkdir::WalkDir;

use crate::{Agent, AgentStatus, wait};

fn names(directory: &Path) -> Result<BTreeSet<String>, String> {
    let items = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    items
        .map(|item| {
            item.map(|i| i.file_name().to_string_lossy().into_owned()).map_err(|error| error.to_string())
        })
        .collect()
}

/// Waits until ROOT contains exactly what docs/reference.md and `status` list: slots for the listed
/// generations and spares, a link for each generation, an empty trash (which drains in the background), and
/// nothing else. Panics with the names that are left over. The agent must run.
#[track_caller]
pub fn assert_no_litter(agent: &Agent) {
    wait::until_ok(&format!("no litter in the root of {}", agent.name), || {
        let status = agent.try_status().ok_or("no status")?;
        litter(&agent.root, &status)?;
        let trash = names(&agent.root.join("trash"))?;
        if trash.is_empty() { Ok(()) } else { Err(format!("trash {trash:?}")) }
    });
}

/// Err: names in ROOT that `status` does not explain, except in the trash.
pub fn litter(root: &Path, status: &AgentStatus) -> Result<(), String> {
    let known = ["generations", "live", "lost+found", "previous", "slots", "staging", "state", "trash"];
    if let Some(name) = names(root)?.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("{name} in the root"));
    }
    let generations: BTreeSet<String> = status.generations.iter().map(u64::to_string).collect();
    let on_disk = names(&root.join("generations"))?;
    if generations != on_disk {
        return Err(format!("generations {on_disk:?}, status says {generations:?}"));
    }
    let mut slots = names(&root.join("slots"))?;
    let live = root.join("live");
    slots.extend((live.is_dir() && !live.is_symlink()).then(|| "live".to_owned()));
    if slots.len() as u64 != generations.len() as u64 + status.spares {
        let spares = status.spares;
        return Err(format!("slots {slots:?}, status says {generations:?} and {spares} spares"));
    }
    if let Some(link) = generations.iter().find(|number| !root.join("generations").join(number).is_dir()) {
        return Err(format!("the link of generation {link} leads nowhere"));
    }
    let mut staging = names(&root.join("staging"))?;
    // The directories for arriving content stay, but must be empty.
    let incoming = root.join("staging/incoming");
    if staging.remove("incoming") {
        let mut left =
            WalkDir::new(&incoming).into_iter().filter_map(Result::ok).filter(|i| !i.file_type().is_dir());
        if let Some(item) = left.next() {
            return Err(format!("{} was left", item.path().display()));
        }
    }
    if !staging.is_empty() {
        return Err(format!("staging {staging:?}"));
    }
    Ok(())
}

/// Whether the trash is empty.
pub fn trash_is_empty(root: &Path) -> bool {
    names(&root.join("trash")).is_ok_and(|names| names.is_empty())
}
