//! The scenarios, one file each.

mod big;
mod every_file;
mod fan_out;
mod first_seal;
mod first_sync;
mod growth;
mod no_change;
mod one_file;
mod release;
mod rename;
mod sustained;
mod update;
mod uploads;

use crate::bench::{Bench, Scenario};
use crate::report::Report;

/// Measures a scenario.
pub fn measure(scenario: Scenario, bench: &Bench) -> Report {
    match scenario {
        Scenario::FirstSync => first_sync::measure(bench),
        Scenario::FirstSeal => first_seal::measure(bench),
        Scenario::Update => update::measure(bench),
        Scenario::Release => release::measure(bench),
        Scenario::NoChange => no_change::measure(bench),
        Scenario::OneFile => one_file::measure(bench),
        Scenario::Sustained => sustained::measure(bench),
        Scenario::Rename => rename::measure(bench),
        Scenario::EveryFile => every_file::measure(bench),
        Scenario::Big => big::measure(bench),
        Scenario::FanOut => fan_out::measure(bench),
        Scenario::Growth => growth::measure(bench),
        Scenario::Uploads => uploads::measure(bench),
    }
}
