//! Durations as people write them: `30s`, `2m`, `1h30m`.

use std::time::Duration;

use crate::failure::Failure;

/// Reads a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, Failure> {
    let bad =
        || Failure::new(format!("\"{text}\" is no duration")).hint("write for example 30s, 2m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0).ok_or_else(bad)?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let part = match &rest[digits..unit_end] {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            _ => None,
        };
        total = part.and_then(|p| total.checked_add(p)).ok_or_else(bad)?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("30s", 30), ("2m", 120), ("1h30m", 5400), ("0s", 0)] {
            assert_eq!(parse(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        assert_eq!(parse("1500ms").unwrap(), Duration::from_millis(1500));
        for text in ["", "5", "s", "5x", "-1s", "1.5s", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
