use std::fs;
use std::sync::Arc;
use std::thread;

use super::*;

fn occasion(generation: u64) -> Occasion {
    Occasion {
        generation,
        root: "ab".repeat(32),
        label: "release".into(),
        previous: generation.checked_sub(1),
        tree: format!("/replica/slots/{generation}").into(),
        live: "/replica/live".into(),
    }
}

fn changed<'a>(all: &'a Paths<'a>) -> Changed<'a> {
    Changed { all, slot: all, tree: Path::new("/srv/slots/1") }
}

fn paths<'a>(names: &[&[u8]]) -> Box<Paths<'a>> {
    let paths: Vec<_> = names.iter().map(|name| TreePath::from_bytes(name).unwrap()).collect();
    Box::new(move |show| {
        paths.iter().for_each(&mut *show);
        Ok(())
    })
}

fn hook(command: &str, state: &Path) -> Hook {
    Hook::new(HookName::OnActivate, command.into(), Duration::from_secs(20), state)
}

#[test]
fn another_generation_with_the_live_tree_takes_over_what_is_due_and_what_succeeded() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let broken = temp.path().join("broken");
    let command = format!(
        "test ! -e {} && cat >> {} && echo $SYNCD_GENERATION >> {1}",
        broken.display(),
        out.display()
    );
    let hook = DurableHook::new(hook(&command, temp.path()), Some(4));
    let at = |generation| Occasion { tree: "/srv/slots/1".into(), ..occasion(generation) };
    fs::write(&broken, "").unwrap();
    hook.note(at(5), &changed(&*paths(&[b"a"]))).unwrap();
    hook.settle(true);
    assert!(hook.run_due(Some(at(5))).is_err());
    hook.renamed(&at(6));
    assert_eq!(hook.state().borrow().due, Some(6));
    fs::remove_file(&broken).unwrap();
    assert!(hook.run_due(Some(at(6))).unwrap());
    assert_eq!(fs::read_to_string(&out).unwrap(), "a\n6\n");
    hook.renamed(&at(7));
    assert_eq!(hook.state().borrow().due, None);
    assert_eq!(hook.state().borrow().succeeded, Some(7));
    assert!(!hook.is_missing(&at(7)), "it does not run again at a start");
}

#[test]
fn a_hook_gets_paths_and_environment() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let command = format!(
        "cat > {0}; echo $SYNCD_GENERATION,$SYNCD_PREVIOUS,$SYNCD_LABEL,$SYNCD_TREE,$SYNCD_LIVE >> {0}",
        out.display()
    );
    let changed = paths(&[b"a/b.html", b"two\nlines", b"back\\slash", b"\xff"]);
    let state = tempfile::tempdir().unwrap();
    hook(&command, state.path()).run(&occasion(42), &changed).unwrap();
    let mut expected = b"a/b.html\ntwo\\nlines\nback\\\\slash\n\xff\n".to_vec();
    expected.extend(b"42,41,release,/replica/slots/42,/replica/live\n");
    assert_eq!(fs::read(out).unwrap(), expected);
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn a_hook_that_reads_nothing_of_a_long_list_succeeds() {
    let names = |show: &mut dyn FnMut(&TreePath)| {
        (0..20_000).for_each(|n| show(&TreePath::from_bytes(format!("{n}.html").as_bytes()).unwrap()));
        Ok(())
    };
    let state = tempfile::tempdir().unwrap();
    hook("exec true", state.path()).run(&occasion(1), &names).unwrap();
}

#[test]
fn a_failure_tells_exit_code_and_last_words() {
    let state = tempfile::tempdir().unwrap();
    for to in ["1", "2"] {
        let hook = hook(&format!("echo syntax error >&{to}; exit 3"), state.path());
        let error = hook.run(&occasion(1), &paths(&[])).unwrap_err();
        assert_eq!(error.to_string(), "on-activate hook failed: exit status: 3: syntax error");
    }
}

fn assert_gone(pid: &str) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "a child is still there: {stat}");
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_children() {
    let scratch = tempfile::tempdir().unwrap();
    let pids = scratch.path().join("pids");
    let command = format!("sleep 600 & echo $! >> {}; sleep 600", pids.display());
    // On a busy machine the child may not have started within the limit.
    let started = [100, 2_000, 8_000, 32_000].into_iter().find_map(|limit_ms| {
        let hook =
            Hook::new(HookName::OnActivate, command.clone(), Duration::from_millis(limit_ms), scratch.path());
        let error = hook.run(&occasion(1), &paths(&[])).unwrap_err();
        assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
        fs::read_to_string(&pids).ok().filter(|pids| pids.ends_with('\n'))
    });
    for pid in started.expect("the child starts within half a minute").lines() {
        assert_gone(pid);
    }
}

#[test]
fn a_hook_that_hangs_is_killed_with_children_that_left_its_session() {
    let scratch = tempfile::tempdir().unwrap();
    let pids = scratch.path().join("pids");
    let child = format!("echo $$ >> {}; exec sleep 600", pids.display());
    let command = format!(
        "setsid -f sh -c '{child}'; setsid nohup sh -c '{child}' & setsid sh -c '{child}; :' & sleep 600"
    );
    // On a busy machine the children may not have started within the limit, so the limit is raised.
    let started = [500, 2_000, 8_000, 32_000].into_iter().find_map(|limit_ms| {
        let hook =
            Hook::new(HookName::OnActivate, command.clone(), Duration::from_millis(limit_ms), scratch.path());
        let error = hook.run(&occasion(1), &paths(&[])).unwrap_err();
        assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
        let pids = fs::read_to_string(&pids).unwrap_or_default();
        (pids.lines().count() >= 3).then_some(pids)
    });
    for pid in started.expect("the children start within half a minute").lines() {
        assert_gone(pid);
    }
}

#[test]
fn what_failed_stays_due_with_the_paths_of_every_activation() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let failing = DurableHook::new(hook("exit 1", scratch.path()), None);
    failing.note(occasion(1), &changed(&*paths(&[b"a", b"b"]))).unwrap();
    assert!(!failing.run_due(None).unwrap(), "not before the switch");
    failing.settle(true);
    assert!(failing.run_due(Some(occasion(1))).is_err());
    // The agent starts again, and activates another generation.
    let command = format!("cat > {0}; echo $SYNCD_GENERATION >> {0}", out.display());
    let working = DurableHook::new(hook(&command, scratch.path()), Some(1));
    working.note(occasion(2), &changed(&*paths(&[b"a/x", b"b", b"two\nlines"]))).unwrap();
    working.settle(false);
    working.note(occasion(3), &changed(&*paths(&[b"b", b"c"]))).unwrap();
    working.settle(true);
    assert!(working.run_due(Some(occasion(3))).unwrap());
    assert_eq!(fs::read_to_string(&out).unwrap(), "a\nb\nc\n3\n");
    assert_eq!(names(scratch.path()), ["out"]);
    assert!(!working.run_due(Some(occasion(3))).unwrap());
}

#[test]
fn paths_are_merged_in_their_order() {
    let merged = |earlier: &[u8], new: &[&[u8]]| {
        let mut out = Vec::new();
        write_lines(&mut out, &*paths(new), Some(&mut &*earlier)).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    };
    assert_eq!(merged(b"a\na/b\nz\n", &[b"a", b"a/c", b"b"]), "a\na/b\na/c\nb\nz\n");
    assert_eq!(merged(b"", &[b"x\ny", b"z\\"]), "x\\ny\nz\\\\\n");
    assert_eq!(merged(b"x\\ny\nz\\\\\n", &[b"x\ny", b"z\\"]), "x\\ny\nz\\\\\n");
    // Lines that are no valid paths are kept, and so are lines in another order.
    assert_eq!(merged(b"../up\nb\na\nb", &[b"a"]), "../up\na\nb\na\nb");
}

#[test]
fn a_hook_that_ran_while_an_activation_failed_is_not_run_again() {
    let scratch = tempfile::tempdir().unwrap();
    let slow =
        format!("touch {0}; while [ -e {0} ]; do sleep 0.01; done", scratch.path().join("runs").display());
    let after = Arc::new(DurableHook::new(hook(&slow, scratch.path()), None));
    after.note(occasion(1), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(true);
    let running = thread::spawn({
        let after = after.clone();
        move || after.run_due(Some(occasion(1)))
    });
    while !scratch.path().join("runs").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(after.state().borrow().run.as_ref().unwrap().outcome, RunOutcome::Running);
    after.note(occasion(2), &changed(&*paths(&[b"b"]))).unwrap();
    assert_eq!(after.protected(), Some(0));
    fs::remove_file(scratch.path().join("runs")).unwrap();
    assert!(running.join().unwrap().unwrap());
    assert_eq!(after.protected(), Some(1));
    after.settle(false);
    assert_eq!((after.protected(), after.state().borrow().due), (None, None));
    assert_eq!(names(scratch.path()), [""; 0]);
}

/// Names in `directory` but for that of the last success.
fn names(directory: &Path) -> Vec<String> {
    let items = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = items.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "on-activate.succeeded");
    names
}

#[test]
fn what_a_web_server_may_still_serve_is_known_until_the_hook_succeeds_also_after_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let activate = |after: &DurableHook, number: u64| {
        after.note(occasion(number), &changed(&*paths(&[b"a"]))).unwrap();
        let under_way = after.protected();
        after.settle(true);
        under_way
    };
    let failing = DurableHook::new(hook("echo no >&2; exit 1", scratch.path()), Some(5));
    assert_eq!((failing.protected(), protected(scratch.path())), (None, None));
    assert_eq!(activate(&failing, 6), Some(5), "from before the switch");
    for attempt in 1..3 {
        failing.run_due(Some(occasion(6))).unwrap_err();
        let state = failing.state().borrow().clone();
        assert_eq!((state.due, state.succeeded, state.failing), (Some(6), Some(5), true));
        let run = state.run.unwrap();
        assert_eq!((run.generation, run.outcome, run.attempt), (6, RunOutcome::Failed, attempt));
        assert_eq!(run.output, "exit status: 1: no");
    }
    assert_eq!(activate(&failing, 7), Some(5));
    // The agent starts again with a repaired hook.
    assert_eq!(protected(scratch.path()), Some(5));
    let mended = DurableHook::new(hook("exit 0", scratch.path()), Some(7));
    assert!(mended.state().borrow().failing, "until it is known better");
    assert_eq!(mended.protected(), Some(5));
    assert!(mended.run_due(Some(occasion(7))).unwrap());
    let state = mended.state().borrow().clone();
    assert_eq!((state.due, state.succeeded, state.failing), (None, Some(7), false));
    assert_eq!((mended.protected(), protected(scratch.path())), (None, None));
    assert_eq!(activate(&mended, 8), Some(7));
}

#[test]
fn a_record_that_is_damaged_protects_everything_and_without_a_hook_it_is_dropped() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("on-activate.pending"), "{").unwrap();
    assert_eq!(protected(scratch.path()), Some(0));
    let after = DurableHook::new(hook("exit 0", scratch.path()), Some(6));
    assert_eq!(after.protected(), Some(0));
    after.run_due(Some(occasion(6))).unwrap_err();
    assert_eq!(after.state().borrow().run.as_ref().unwrap().outcome, RunOutcome::Failed);
    let blocked = after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap_err().to_string();
    let record = scratch.path().join("on-activate.pending");
    assert!(blocked.contains(&format!("{}", record.display())), "{blocked}");
    assert!(blocked.contains("remove the file and run the hook's command by hand"), "{blocked}");
    fs::remove_file(&record).unwrap();
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(false);
    fs::write(&record, "{").unwrap();
    fs::write(scratch.path().join("on-activate.earlier"), "{").unwrap();
    forget(scratch.path(), HookName::OnActivate).unwrap();
    assert_eq!((protected(scratch.path()), names(scratch.path()).len()), (None, 0));
}

#[test]
fn after_a_switch_that_never_came_the_hook_is_told_what_is_live() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let after = DurableHook::new(
        hook(&format!("echo $SYNCD_GENERATION > {}", out.display()), scratch.path()),
        Some(6),
    );
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    // After a crash the agent starts again.
    let after = DurableHook::new(after.hook.clone(), Some(6));
    after.run_due(Some(occasion(6))).unwrap();
    assert_eq!(fs::read_to_string(out).unwrap(), "6\n");
}

#[test]
fn a_hook_that_is_due_is_told_where_a_change_of_swap_has_moved_the_tree() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let command = format!("echo $SYNCD_TREE $(wc -c < $SYNCD_SLOT_PATHS) > {}; false", out.display());
    let told = |live: &str| {
        let after = DurableHook::new(hook(&command, scratch.path()), Some(7));
        after.run_due(Some(Occasion { tree: live.into(), ..occasion(7) })).unwrap_err();
        fs::read_to_string(&out).unwrap()
    };
    let after = DurableHook::new(hook(&command, scratch.path()), Some(6));
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(true);
    assert_eq!(told("/srv/slots/1"), "/srv/slots/1 2\n");
    assert_eq!(told("/srv/live"), "/srv/live 0\n", "nothing is known about the other path");
}

#[test]
fn what_a_hook_left_due_is_protected_although_nothing_is_live() {
    let scratch = tempfile::tempdir().unwrap();
    let after = DurableHook::new(hook("false", scratch.path()), Some(5));
    after.note(occasion(6), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(true);
    // The live tree is lost, and the agent starts again.
    let after = DurableHook::new(hook("true", scratch.path()), None);
    assert!(!after.run_due(None).unwrap());
    assert_eq!(after.protected(), Some(5));
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(false);
    assert_eq!(after.protected(), Some(5), "an activation that failed changes nothing");
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(true);
    assert!(after.run_due(Some(occasion(7))).unwrap());
    assert_eq!(after.protected(), None);
}

#[test]
fn a_hook_that_runs_for_what_is_live_protects_from_its_last_success() {
    let scratch = tempfile::tempdir().unwrap();
    let again = |command: &str| {
        let after = DurableHook::new(hook(command, scratch.path()), Some(6));
        let live = Occasion { previous: Some(6), ..occasion(6) };
        assert!(after.is_missing(&live));
        after.note(live, &changed(&*paths(&[b"a"]))).unwrap();
        after.settle(true);
        let protected = after.protected();
        after.run_due(Some(occasion(6))).unwrap();
        protected
    };
    assert_eq!(again("true"), Some(0), "nobody knows whether it ever succeeded");
    assert_eq!(again("exit 0"), Some(6), "another command, for what an earlier one succeeded for");
}

#[test]
fn an_activation_that_fails_leaves_nothing_due() {
    let scratch = tempfile::tempdir().unwrap();
    let after = DurableHook::new(hook("true", scratch.path()), Some(6));
    after.note(occasion(7), &changed(&*paths(&[b"a"]))).unwrap();
    after.settle(false);
    assert!(!after.run_due(Some(occasion(6))).unwrap());
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn an_after_activate_hook_waits_for_on_activate_and_gets_the_paths_of_all_activations() {
    let temp = tempfile::tempdir().unwrap();
    let state = temp.path().join("state");
    fs::create_dir(&state).unwrap();
    let (broken, out) = (temp.path().join("broken"), temp.path().join("out"));
    let on_command = format!("test ! -e {}", broken.display());
    let after_command =
        format!("cat >> {0}; echo $SYNCD_GENERATION ${{SYNCD_SLOT_PATHS-none}} >> {0}", out.display());
    let start = |live| {
        let on = DurableHook::new(hook(&on_command, &state), Some(live));
        let after =
            Hook::new(HookName::AfterActivate, after_command.clone(), Duration::from_secs(20), &state);
        let after = DurableHook::new(after, Some(live)).following(Some(on.state()));
        (on, after)
    };
    let (on, after) = start(4);
    let note = |number, path: &[u8], activated| {
        for hook in [&on, &after] {
            hook.note(occasion(number), &changed(&*paths(&[path]))).unwrap();
        }
        [&on, &after].into_iter().for_each(|hook| hook.settle(activated));
    };
    fs::write(&broken, "").unwrap();
    for (number, path) in [(5, b"a"), (6, b"b")] {
        note(number, path, true);
        on.run_due(Some(occasion(number))).unwrap_err();
        assert!(!after.run_due(Some(occasion(number))).unwrap(), "{number} is not live");
    }
    note(7, b"c", false);
    fs::remove_file(&broken).unwrap();
    drop((on, after));
    let (on, after) = start(6);
    assert!(!after.run_due(Some(occasion(6))).unwrap());
    assert!(on.run_due(Some(occasion(6))).unwrap());
    assert!(after.run_due(Some(occasion(6))).unwrap());
    assert_eq!(fs::read_to_string(&out).unwrap(), "a\nb\n6 none\n");
    assert!(!after.run_due(Some(occasion(6))).unwrap(), "once");
    assert!(names(&state).is_empty());
    // Without the option, what is due is dropped, and nothing of the other hook.
    after.note(occasion(7), &changed(&*paths(&[b"d"]))).unwrap();
    forget(&state, HookName::AfterActivate).unwrap();
    assert!(names(&state).is_empty() && state.join("on-activate.succeeded").exists());
}
