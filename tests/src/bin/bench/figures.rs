//! How figures are taken of processes and told, beside the marks that they are to keep.

use std::time::Duration;

use anyhow::{Context, Result};

/// What a figure is to keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    /// This much at most.
    AtMost(f64),
    /// This much at least.
    AtLeast(f64),
}

impl Mark {
    fn verdict(self, figure: f64) -> String {
        let (sign, limit, kept) = match self {
            Self::AtMost(limit) => ("<=", limit, figure <= limit),
            Self::AtLeast(limit) => (">=", limit, figure >= limit),
        };
        format!("  mark {sign} {limit}: {}", if kept { "kept" } else { "MISSED" })
    }
}

/// One line: what, how much of which unit, and whether it keeps its mark.
pub(crate) fn say(what: &str, figure: f64, unit: &str, mark: Option<Mark>) {
    let verdict = mark.map(|mark| mark.verdict(figure)).unwrap_or_default();
    println!("{what:60} {figure:>9.1} {unit:4}{verdict}");
}

/// A time, in milliseconds.
pub(crate) fn say_time(what: &str, took: Duration) {
    say(what, took.as_secs_f64() * 1000.0, "ms", None);
}

/// The middle and the slowest of a hundred, in milliseconds.
pub(crate) fn percentiles(what: &str, mut times: Vec<Duration>, p50: Option<Mark>, p99: Option<Mark>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    say(&format!("{what}, p50"), at(0.5), "ms", p50);
    say(&format!("{what}, p99"), at(0.99), "ms", p99);
}

/// The proportional set size of a process, in KiB.
pub(crate) fn pss(pid: i64) -> Result<u64> {
    mapped(pid, "Pss:")
}

/// What a process has for itself alone, in KiB.
pub(crate) fn private(pid: i64) -> Result<u64> {
    mapped(pid, "Private_")
}

/// The sum of some lines of what is mapped, by how they begin.
fn mapped(pid: i64, lines: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = text.lines().filter(|line| line.starts_with(lines));
    lines.map(|line| Ok(line.split_whitespace().nth(1).context("no figure")?.parse::<u64>()?)).sum()
}

/// CPU time that a process has used so far.
pub(crate) fn cpu(pid: i64) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on Linux.
    Ok(Duration::from_millis(ticks * 10))
}
