//! Origin and agents in one process, where network, clock and randomness follow from one seed (`syncd-sim`).
//!
//! `SYNCD_SEED=N cargo run -p syncd-sim` repeats a seed and prints its events. The long run is `cargo run
//! --release -p syncd-sim -- --seeds 10000`.

use std::process::Command;
use std::time::Duration;

use syncd_tests::binary;
use syncd_tests::process::run_within;

const DEADLINE: Duration = Duration::from_secs(900);

#[track_caller]
fn simulate(arguments: &[&str]) -> String {
    let mut command = Command::new(binary("syncd-sim"));
    // `SYNCD_SEED` may be meant for another suite.
    command.args(arguments).env_remove("SYNCD_SEED");
    let outcome = run_within(&mut command, DEADLINE).expect_success();
    println!("{}", outcome.stdout);
    outcome.stdout
}

#[test]
fn two_hundred_and_fifty_seeds_keep_every_promise() {
    simulate(&["--seeds", "250"]);
}

/// An object store between two origins and followers, with its lost answers and late writes.
#[test]
fn no_seed_with_an_object_store_forks_the_log_or_loses_a_commit() {
    simulate(&["--store", "--seeds", "40"]);
}

/// A promoted origin died before it knew of its first generation, and took it for another origin's.
#[test]
fn a_seed_with_an_object_store_that_once_failed_holds() {
    simulate(&["--store", "--first", "459", "--seeds", "1"]);
}

/// A node that was cut off returns to a restored origin after the last commit. Two of 10,000 seeds found it.
#[test]
fn seeds_that_once_failed_hold() {
    for seed in ["5339", "8598"] {
        simulate(&["--first", seed, "--seeds", "1"]);
    }
}

#[test]
fn an_origin_that_is_killed_at_any_durable_step_of_a_rollout_ends_with_one_generation_everywhere() {
    simulate(&["--sweep"]);
}

#[test]
fn uploads_are_neither_lost_nor_brought_back() {
    simulate(&["--uploads", "--seeds", "25"]);
}

#[test]
fn a_seed_gives_the_same_trace_every_time() {
    simulate(&["--seeds", "20", "--twice"]);
}

/// The simulation succeeds if it finds the bug that it was told to plant.
#[test]
fn planted_bugs_are_found() {
    for bug in ["accepts-lower", "reports-early", "unverified", "forgets-accepted", "litters", "wrong-update"]
    {
        simulate(&["--seeds", "100", "--plant", bug]);
    }
}

#[test]
fn no_order_of_events_in_a_rollout_breaks_a_promise() {
    simulate(&["--model"]);
}

#[test]
fn bugs_that_are_planted_in_the_model_are_found() {
    for flaw in [
        "forgets-accepted",
        "forgets-refused",
        "passes-untried",
        "stages-once",
        "never-behind",
        "no-stragglers",
        "unsaved-state",
    ] {
        simulate(&["--model", "--flaw", flaw]);
    }
}
