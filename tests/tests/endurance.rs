//! A short run of `syncd-endurance`: continuous commits, an agent that is killed repeatedly, and everything
//! stays bounded.

use std::process::Command;
use std::time::Duration;

use syncd_tests::binary;
use syncd_tests::process::run_within;

#[test]
fn memory_descriptors_data_and_root_stay_bounded_under_commits_and_kills() {
    let mut command = Command::new(binary("syncd-endurance"));
    command.args(["--duration", "20s", "--kill-every", "4s"]).env("SYNCD_TESTS_BUILT", "1");
    // It exits with 1 if a bound is exceeded, and panics if an agent does not converge.
    let outcome = run_within(&mut command, Duration::from_secs(300)).expect_success();
    println!("{}", outcome.stdout);
    let kills = outcome.stdout.split_once(" commits and ").and_then(|(_, rest)| rest.split(' ').next());
    assert!(kills.is_some_and(|kills| kills.parse::<u32>().is_ok_and(|kills| kills >= 3)), "{outcome:#?}");
}
