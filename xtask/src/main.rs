//! What developers run: `cargo xtask tidy`, `cargo xtask chaos`, `cargo xtask conformance`,
//! `cargo xtask fuzz`, `cargo xtask kills`, `cargo xtask soak`.

mod chaos;
mod clones;
mod conformance;
mod fuzz;
mod graph;
mod sizes;
mod soak;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(root),
        Some("chaos") => told("chaos", chaos::run(root, std::env::args().nth(2).as_deref())),
        Some("conformance") => {
            let reports: Vec<String> = std::env::args().skip(2).collect();
            told("conformance", conformance::write(root, &reports))
        }
        Some("fuzz") => told("fuzz", fuzz::run(root, std::env::args().skip(2))),
        Some("soak") => told("soak", soak::run(root, std::env::args().skip(2))),
        Some("kills") => told("kills", soak::kills(root, std::env::args().skip(2))),
        other => {
            eprintln!(
                "xtask: {}: expected tidy, chaos, conformance, fuzz, kills or soak",
                other.unwrap_or("no command")
            );
            ExitCode::FAILURE
        }
    }
}

fn told(command: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Checks what no compiler checks: sizes of files and functions, clones, the crate graph.
fn tidy(root: &Path) -> ExitCode {
    let report = || -> anyhow::Result<Vec<String>> {
        let files = sizes::sources(root)?;
        let mut wrong = sizes::check(&files);
        wrong.extend(clones::check(&files));
        wrong.extend(graph::check(root)?);
        Ok(wrong)
    };
    match report() {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            for line in wrong {
                eprintln!("tidy: {line}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
