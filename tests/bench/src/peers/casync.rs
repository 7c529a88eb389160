//! casync: the source is split into chunks once, then extracted from them; on one machine, without a network.

use std::path::Path;
use std::process::Command;

use super::Cost;
use crate::processes::complete;

/// Runs `casync make` of `source` into `store`, a new directory.
pub fn make(source: &Path, store: &Path) -> Cost {
    std::fs::create_dir_all(store).expect("create a store");
    let mut command = Command::new("casync");
    command.args(["make", "--with=best"]).arg(store_option(store)).arg(store.join("tree.caidx")).arg(source);
    Cost::of(store, || {
        complete(&mut command);
    })
}

/// Runs `casync extract` into `destination`.
pub fn extract(store: &Path, destination: &Path) -> Cost {
    let mut command = Command::new("casync");
    command.arg("extract").arg(store_option(store)).arg(store.join("tree.caidx")).arg(destination);
    Cost::of(destination.parent().unwrap_or(destination), || {
        complete(&mut command);
    })
}

fn store_option(store: &Path) -> String {
    format!("--store={}", store.join("tree.castr").display())
}
