//! The error sweep: calls by which the real agent changes its disk fail, once or until the fault ends.
//!
//! As in the crash sweep each call of a counted run is a case, with each error that it can give. A share of the cases runs
//! by default; `SYNCD_SEED=N` repeats the choice, `SYNCD_SWEEP=N` takes N cases, `SYNCD_SWEEP=full` all:
//!
//! ```text
//! SYNCD_SWEEP=full ./tests/run errors
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use syncd_tests::faults::{Failing, Fault};
use syncd_tests::mounts::Mount;
use syncd_tests::node::{Node, Scenario};
use syncd_tests::{Scene, Seeded};

/// Cases unless `SYNCD_SWEEP` says otherwise.
const SHARE: usize = 90;

fn share() -> Option<usize> {
    match std::env::var("SYNCD_SWEEP") {
        Ok(text) if text == "full" => None,
        Ok(text) => Some(text.parse().expect("SYNCD_SWEEP is a number or full")),
        Err(_) => Some(SHARE),
    }
}

/// Every call with every fault that can hit it, by fault and kind of call.
fn cases(node: &mut Node, scenario: &Scenario) -> BTreeMap<String, Vec<Failing>> {
    let mut kinds = BTreeMap::<String, Vec<Failing>>::new();
    for point in node.count(scenario) {
        for fault in Fault::ALL {
            if fault.verdict(&point).is_some() {
                for lasts in [false, true] {
                    let failing = Failing { fault, ordinal: point.ordinal, lasts };
                    kinds.entry(format!("{fault:?} {}", point.label())).or_default().push(failing);
                }
            }
        }
    }
    kinds
}

#[test]
fn no_error_of_the_disk_is_lost_or_lasts() {
    let mut random = Seeded::announced("errors");
    let scene = Scene::new("errors");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let started = Instant::now();
    let (mut node, scenarios) = Node::new(&scene, mount);
    let mut complaints = Vec::new();
    let mut all = 0;
    let scenarios: Vec<Scenario> = scenarios.into_iter().filter(|s| s.origin_answers).collect();
    for scenario in &scenarios {
        let mut kinds = cases(&mut node, scenario);
        let counted: usize = kinds.values().map(Vec::len).sum();
        let (mut tried, mut failed, mut logged, mut reported, mut ended) = (0, 0, 0, 0, 0);
        let most = share().map_or(usize::MAX, |share| share.div_ceil(scenarios.len()));
        while tried < most && !kinds.is_empty() {
            let names: Vec<String> = kinds.keys().cloned().collect();
            let Some(name) = random.pick(&names) else { break };
            let Some(cases) = kinds.get_mut(name) else { break };
            let failing = cases.swap_remove(random.below(cases.len() as u64) as usize);
            if cases.is_empty() {
                kinds.remove(name);
            }
            tried += 1;
            match node.fail(scenario, failing) {
                Ok(seen) => {
                    failed += seen.failed;
                    logged += usize::from(seen.logged);
                    reported += usize::from(seen.reported);
                    ended += usize::from(seen.ended);
                }
                Err(complaint) => {
                    println!("COMPLAINT {complaint}");
                    complaints.push(complaint);
                }
            }
        }
        all += tried;
        println!(
            "{}: {tried} of {counted} cases, {failed} calls failed; {logged} logged, {reported} at the origin's status, {ended} agents ended",
            scenario.name
        );
    }
    println!("{all} cases in {:.0} s", started.elapsed().as_secs_f64());
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}
