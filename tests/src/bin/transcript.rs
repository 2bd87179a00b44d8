//! Replays transcripts on any cluster: `transcript KUBECONFIG FILE…`, each in a namespace of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use decapod_tests::tools::program;
use decapod_tests::transcript;

fn main() -> ExitCode {
    let mut failed = false;
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(kubeconfig) = arguments.next() else {
        eprintln!("usage: transcript KUBECONFIG FILE…");
        return ExitCode::FAILURE;
    };
    for file in arguments {
        let start = std::time::Instant::now();
        let result = (|| -> Result<()> {
            let kubectl = program("kubectl")?;
            let name = file.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
            transcript::in_namespace(&kubectl, &kubeconfig, &name, &file)
        })();
        match result {
            Ok(()) => println!("{} ok ({:.1} s)", file.display(), start.elapsed().as_secs_f64()),
            Err(error) => {
                println!("{} FAILED\n{error:?}", file.display());
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
