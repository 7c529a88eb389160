//! The part of fuzzing that CI runs, on stable Rust: all committed inputs, and a fixed number of generated
//! ones.
//!
//! `SYNCD_FUZZ_RUNS=N` sets the number of inputs for each target, and `SYNCD_SEED=N` selects other ones. A
//! failure prints the input, which belongs in `fuzz/regressions/TARGET` once it is fixed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use syncd_fuzz::{TARGETS, Target};

fn inputs(kind: &str, target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name);
    let Ok(listed) = fs::read_dir(&directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = listed.map(|item| item.expect("list inputs").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("read an input"))).collect()
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Noise for one run, determined by its number.
fn noise(seed: u64, target: &Target, run: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(target.name.as_bytes()).update(&run.to_le_bytes());
    let mut reader = hasher.finalize_xof();
    let mut length = [0; 2];
    reader.fill(&mut length);
    let mut bytes = vec![0; 16 + usize::from(u16::from_le_bytes(length) % 1500)];
    reader.fill(&mut bytes);
    bytes
}

/// A committed input with one change chosen by the noise, otherwise a generated one or the noise itself.
fn input(noise: &[u8], committed: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let [choice, a, b, c, ..] = *noise else { return Vec::new() };
    let mut out = match committed.len() {
        count if count > 0 && choice % 2 == 0 => committed[usize::from(a) % count].1.clone(),
        _ => {
            let mut structured = noise.to_vec();
            structured[0] = u8::from(choice % 16 != 1);
            return structured;
        }
    };
    if out.len() > 1 {
        let at = 1 + usize::from(u16::from_le_bytes([b, c])) % (out.len() - 1);
        match noise[4] % 5 {
            0 => out[at] ^= 1 << (noise[5] % 8),
            1 => out[at] = noise[5],
            2 => out.truncate(at),
            3 => out.insert(at, noise[5]),
            _ => out[at] = [0, 1, 0x7f, 0x80, 0xff][usize::from(noise[5]) % 5],
        }
    }
    out
}

fn must_hold(target: &Target, what: &dyn std::fmt::Display, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target.execute(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {} fails on {what}: {hex}", target.name);
    }
}

#[test]
fn committed_inputs_hold() {
    for target in TARGETS {
        let corpus = inputs("corpus", target);
        assert!(!corpus.is_empty(), "no corpus of {}", target.name);
        for (path, input) in corpus.into_iter().chain(inputs("regressions", target)) {
            must_hold(target, &path.display(), &input);
        }
    }
}

#[test]
fn generated_and_mutated_inputs_hold() {
    let (runs, seed) = (number("SYNCD_FUZZ_RUNS", 4_000), number("SYNCD_SEED", 1));
    for target in TARGETS {
        let started = Instant::now();
        let committed = inputs("corpus", target);
        for run in 0..runs {
            let input = input(&noise(seed, target, run), &committed);
            must_hold(target, &format_args!("run {run} of seed {seed}"), &input);
        }
        println!("{}: {runs} inputs in {:.1} s", target.name, started.elapsed().as_secs_f64());
    }
}
