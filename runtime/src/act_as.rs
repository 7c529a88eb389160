//! Lets root work on the files of a service as the service's own user.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Starts this program again, with the same arguments, as the user and group that own `directory`. Returns
/// without doing so if this is not root, or if root owns `directory` or it does not exist.
///
/// Files that root created there would stop the service, which could not open them. Must be called before
/// anything is read from standard input.
pub fn owner_of(directory: &Path) -> io::Result<()> {
    let Ok(owner) = directory.metadata() else { return Ok(()) };
    if owner.uid() == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Supplementary groups are dropped along with the user.
    Err(command.args(arguments).uid(owner.uid()).gid(owner.gid()).exec())
}
