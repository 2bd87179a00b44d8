//! Hostile input: inputs made from a corpus by chance, the same ones on every machine.
//!
//! Each target has a folder in `corpus/`. A run begins with what is there, goes on with mutations of it, and
//! names the seed of the input that failed; put that input into the corpus and it is tried for ever. There
//! is no coverage to guide the mutations: a stable toolchain is all that it takes.
//!
//! `cargo test -p decapod-fuzz` tries some thousand inputs a target; `cargo xtask fuzz SECONDS` as many as it
//! can in that time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Inputs a parser gets where no time is set: a second or two of a slow machine.
pub const PARSER: u64 = 3_000;
/// Inputs a whole server gets where no time is set: some seconds.
pub const SERVER: u64 = 400;
/// Inputs are no longer than this: what is slow with more is found by tests of its own.
const LONGEST: usize = 16 << 10;
/// The variable with the seconds that each target gets.
const SECONDS: &str = "DECAPOD_FUZZ_SECONDS";

/// Texts that parsers stumble over.
const TOKENS: [&str; 24] = [
    "null",
    "{}",
    "[]",
    "\"\"",
    "-1",
    "0",
    "9223372036854775808",
    "1e999",
    "\\u0000",
    "\u{feff}",
    "$patch",
    "apiVersion",
    "metadata",
    "&a [*a]",
    "*a",
    "<<: ",
    "!!binary ",
    "~",
    "/",
    "../",
    ",",
    "=",
    " in (",
    "\0",
];

/// Numbers by chance, from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds are to have nothing in common.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below a bound, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }
}

/// The inputs of a target.
#[derive(Clone, Debug)]
pub struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    /// Reads the corpus of a target.
    ///
    /// # Panics
    /// If there is none: a target without one tries nothing.
    pub fn of(target: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.expect("a folder that can be read").path())
            .collect();
        paths.sort();
        let read = |path: &std::path::PathBuf| std::fs::read(path).expect("a file that can be read");
        let inputs: Vec<_> = paths.iter().map(read).collect();
        assert!(!inputs.is_empty(), "{} is empty", folder.display());
        Self(inputs)
    }

    /// The input of a seed: the first are the corpus itself, the others mutations of it.
    pub fn input(&self, seed: u64) -> Vec<u8> {
        if let Some(input) = usize::try_from(seed).ok().and_then(|seed| self.0.get(seed)) {
            return input.clone();
        }
        let mut random = Random::new(seed);
        let mut input = self.0[random.below(self.0.len())].clone();
        for _ in 0..=random.below(6) {
            self.mutate(&mut random, &mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn mutate(&self, random: &mut Random, input: &mut Vec<u8>) {
        let at = random.below(input.len() + 1);
        let end = at + random.below(input.len() - at + 1);
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.number() as u8,
            2 => drop(input.drain(at..end)),
            3 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            4 => input.truncate(at),
            5 => {
                let other = &self.0[random.below(self.0.len())];
                let from = random.below(other.len() + 1);
                input.splice(at..end, other[from..].iter().copied());
            }
            6 => {
                let part = input[at..end].to_vec();
                let again = (0..random.below(50)).flat_map(|_| part.iter().copied());
                input.splice(at..at, again.take(LONGEST).collect::<Vec<_>>());
            }
            _ => {
                let token = TOKENS[random.below(TOKENS.len())];
                input.splice(at..at, token.bytes());
            }
        }
    }
}

/// The seeds of one run: so many, or as many as there is time for.
pub fn seeds(rounds: u64) -> impl Iterator<Item = u64> {
    let time = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let start = Instant::now();
    (0..).take_while(move |seed| match time {
        Some(time) => start.elapsed() < time,
        None => *seed < rounds,
    })
}

/// Hands inputs of a target to it: so many, or as many as there is time for.
///
/// # Panics
/// If the target panics: with the seed and the input.
pub fn run(target: &str, rounds: u64, mut attempt: impl FnMut(&[u8])) {
    let corpus = Corpus::of(target);
    for seed in seeds(rounds) {
        let input = corpus.input(seed);
        if catch_unwind(AssertUnwindSafe(|| attempt(&input))).is_err() {
            panic!("{target} panics on seed {seed}: {:?}", String::from_utf8_lossy(&input));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_the_corpus_and_then_as_different_as_bounded() {
        let corpus = Corpus(vec![b"{\"a\":1}".to_vec(), b"[]".to_vec()]);
        assert_eq!((corpus.input(0), corpus.input(1)), (b"{\"a\":1}".to_vec(), b"[]".to_vec()));
        let made: std::collections::HashSet<_> = (2..500).map(|seed| corpus.input(seed)).collect();
        assert!(made.len() > 300 && made.iter().all(|input| input.len() <= LONGEST), "{}", made.len());
        assert_eq!(corpus.input(77), corpus.input(77));
    }
}
