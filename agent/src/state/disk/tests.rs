use super::content::is_damage;
use super::*;

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", temp.path().join("out")).unwrap();
    let dir = Dir::open_path(temp.path()).unwrap();
    assert!(dir.open_dir(b"..").is_err());
    assert!(dir.open_dir(b"/etc").is_err());
    assert!(dir.open_dir(b"out").is_err());
    assert!(dir.open_file(b"out/passwd").is_err());
}

#[test]
fn metadata_is_never_set_through_a_symlink() {
    use std::os::unix::fs::MetadataExt;
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink("secret", temp.path().join("name")).unwrap();
    let before = std::fs::metadata(temp.path().join("secret")).unwrap().mode();
    let dir = Dir::open_path(temp.path()).unwrap();
    let metadata = Metadata { mode: 0o777, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 } };
    assert!(dir.set_metadata(b"name", &metadata, Owners::new(None), false).is_err());
    assert_eq!(std::fs::metadata(temp.path().join("secret")).unwrap().mode(), before);
}

#[test]
fn a_reflink_is_done_without_unless_the_disk_is_damaged() {
    let temp = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create_new(temp.path().join(name)).unwrap();
    std::fs::write(temp.path().join("from"), "content").unwrap();
    let from = File::open(temp.path().join("from")).unwrap();
    copy(&from, &file("to")).unwrap();
    assert_eq!(std::fs::read(temp.path().join("to")).unwrap(), b"content");
    for error in [Errno::IO, Errno::ROFS] {
        assert!(is_damage(error), "{error}");
    }
    for error in [Errno::OPNOTSUPP, Errno::XDEV, Errno::INVAL, Errno::NOTTY, Errno::NOSPC, Errno::AGAIN] {
        assert!(!is_damage(error), "{error}");
    }
}

#[test]
fn a_file_that_somebody_else_has_a_lease_on_is_an_error_soon() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    const LEASE: &str = "import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('leased', flush=True)
sys.stdin.read()";
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("leased");
    std::fs::write(&path, "x").unwrap();
    let mut holder = Command::new("python3");
    holder.args(["-c", LEASE]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut holder) = holder.spawn() else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "leased\n");
    let dir = Dir::open_path(temp.path()).unwrap();
    let error = dir.open_file(b"leased").unwrap_err();
    // The lease has not ended: the kernel did not wait for it.
    assert_eq!(error.source.raw_os_error(), Some(Errno::AGAIN.raw_os_error()));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(dir.open_file(b"leased").is_ok());
}

#[test]
fn a_call_that_is_told_to_try_again_is_retried_a_number_of_times() {
    let mut calls = 0;
    let mut fails = |times| {
        calls = 0;
        let result = retry(|| {
            calls += 1;
            if calls <= times { Err(Errno::AGAIN) } else { Ok(()) }
        });
        (result, calls)
    };
    assert_eq!(fails(AGAIN_RETRIES), (Ok(()), AGAIN_RETRIES + 1));
    assert_eq!(fails(u32::MAX), (Err(Errno::AGAIN), AGAIN_RETRIES + 1));
}

#[test]
fn a_missing_name_is_no_error_where_it_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open_path(temp.path()).unwrap();
    assert!(!dir.unlink(b"nothing").unwrap());
    assert!(dir.create_dir(b"a", 0o755).is_ok());
    assert!(dir.remove_dir(b"a").unwrap());
    assert!(dir.stat(b"a").unwrap().is_none());
}
