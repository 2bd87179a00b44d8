//! Clones: the share of lines that stand in more than one place.

use std::collections::HashMap;

use crate::sizes::Source;

/// How many lines in a row make a clone.
const WINDOW: usize = 6;
/// The largest share of cloned lines, in percent.
const MAX_SHARE: f64 = 8.0;

/// Prints the share, and complains when it is too large.
pub(crate) fn check(files: &[Source]) -> Vec<String> {
    let files: Vec<(String, Vec<(usize, &str)>)> =
        files.iter().map(|f| (f.path.display().to_string(), significant(&f.text))).collect();
    let mut windows: HashMap<Vec<&str>, Vec<(usize, usize)>> = HashMap::new();
    for (f, (_, lines)) in files.iter().enumerate() {
        for (start, window) in lines.windows(WINDOW).enumerate() {
            windows.entry(window.iter().map(|l| l.1).collect()).or_default().push((f, start));
        }
    }
    let mut cloned: Vec<Vec<bool>> = files.iter().map(|(_, lines)| vec![false; lines.len()]).collect();
    let mut pairs: HashMap<(usize, usize), usize> = HashMap::new();
    for places in windows.values().filter(|p| p.len() > 1) {
        for (f, start) in places {
            cloned[*f][*start..start + WINDOW].fill(true);
        }
        *pairs.entry((places[0].0, places[1].0)).or_default() += 1;
    }
    let total: usize = cloned.iter().map(Vec::len).sum();
    let count: usize = cloned.iter().flatten().filter(|c| **c).count();
    let share = 100.0 * count as f64 / total.max(1) as f64;
    println!("clones: {count} of {total} significant lines, {share:.1} %");
    if share <= MAX_SHARE {
        return Vec::new();
    }
    let mut worst: Vec<_> = pairs.into_iter().collect();
    worst.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let mut wrong = vec![format!("{share:.1} % of the lines are clones, at most {MAX_SHARE} %")];
    wrong.extend(
        worst.iter().take(5).map(|((a, b), n)| format!("  {n} windows: {} and {}", files[*a].0, files[*b].0)),
    );
    wrong
}

/// The lines that say something, with their numbers: no blank ones, comments, imports, lone punctuation.
fn significant(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, l)| !l.starts_with("//") && !l.starts_with("use ") && !l.starts_with("#["))
        .filter(|(_, l)| l.chars().filter(|c| c.is_alphanumeric()).count() > 2)
        .collect()
}
