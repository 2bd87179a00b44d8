//! Runs the tests of one cluster in order, and reports as `cargo test` does.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// A test: its name and what it does with what all tests share.
pub type Test<C> = (&'static str, fn(&C) -> Result<()>);

/// Runs the tests whose names contain one of the filters given on the command line, if any; all have to pass.
///
/// `after` is given what the tests shared, and is itself a test: that nothing is left.
pub fn run<C>(tests: &[Test<C>], shared: C, after: impl FnOnce(C) -> Result<()>) -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let (mut passed, mut failed) = (0, 0);
    let mut report = |name: &str, start: Instant, result: Result<()>| match result {
        Ok(()) => {
            passed += 1;
            println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
        }
        Err(error) => {
            failed += 1;
            println!(
                "test {name} ... FAILED ({:.1} s)\n---- {name}\n{error:?}\n----",
                start.elapsed().as_secs_f64()
            );
        }
    };
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| test(&shared)));
        report(name, start, result.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))));
    }
    let start = Instant::now();
    report("nothing_is_left", start, after(shared));
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
