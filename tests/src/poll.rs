//! Waiting for a state: level-triggered, bounded, and telling the last state when it never came.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often the state is looked at.
const STEP: Duration = Duration::from_millis(100);

/// Waits until `look` returns a value.
///
/// # Errors
/// What was waited for and the last answer, when it did not come within `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look()? {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}; last: {last}");
        }
        std::thread::sleep(STEP);
    }
}

/// Waits until a text fulfils a condition.
///
/// # Errors
/// As [`until`].
pub fn text(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<String>,
    holds: impl Fn(&str) -> bool,
) -> Result<String> {
    until(what, limit, || {
        let text = look()?;
        Ok(if holds(&text) { Ok(text) } else { Err(text) })
    })
}
