//! The form of cron schedules: five fields, or one of the names that stand for them.
//!
//! See the Kubernetes concept *CronJob*, "Schedule syntax".

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It does not have five fields.
    #[error("expected exactly 5 fields, found {0}: [{1}]")]
    Fields(usize, String),
    /// `@name` is not known.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    /// A part is no number.
    #[error("failed to parse int from {0}: strconv.Atoi: parsing {0:?}: invalid syntax")]
    Number(String),
    /// A part is beyond its field's range.
    #[error("{0}: {1}")]
    Range(&'static str, String),
}

struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: MONTHS },
    Bounds { low: 0, high: 6, names: DAYS },
];

/// Whether a text is a schedule.
pub fn check(text: &str) -> Result<(), ScheduleError> {
    if let Some(name) = text.strip_prefix('@') {
        let named =
            ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"].contains(&name);
        let every = name.strip_prefix("every ").is_some_and(is_duration);
        let known = named || every;
        return if known { Ok(()) } else { Err(ScheduleError::Descriptor(text.to_owned())) };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(ScheduleError::Fields(fields.len(), fields.join(" ")));
    }
    for (field, bounds) in fields.into_iter().zip(&FIELDS) {
        field.split(',').try_for_each(|part| check_part(part, bounds))?;
    }
    Ok(())
}

/// `1h30m`: numbers with units.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let after = &rest[digits..];
        let unit = ["ms", "us", "ns", "h", "m", "s"].into_iter().find(|unit| after.starts_with(unit));
        match unit {
            Some(unit) if digits > 0 => rest = &after[unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
}

/// `*`, `n`, `n-m`, each with `/step`.
fn check_part(part: &str, bounds: &Bounds) -> Result<(), ScheduleError> {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    if let Some(step) = step
        && number(step, &[])? == 0
    {
        return Err(ScheduleError::Range("step of range should be a positive number", part.to_owned()));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (start, end) = match range.split_once('-') {
        Some((start, end)) => (number(start, bounds.names)?, number(end, bounds.names)?),
        None => {
            let start = number(range, bounds.names)?;
            (start, start)
        }
    };
    let start = if bounds.names.len() == MONTHS.len() && named(range, bounds) { start + 1 } else { start };
    let end = if bounds.names.len() == MONTHS.len() && named(range, bounds) { end + 1 } else { end };
    let wrong = |why| Err(ScheduleError::Range(why, part.to_owned()));
    if start < bounds.low {
        return wrong("beginning of range below minimum");
    }
    if end > bounds.high {
        return wrong("end of range above maximum");
    }
    if start > end {
        return wrong("beginning of range beyond end of range");
    }
    Ok(())
}

fn named(text: &str, bounds: &Bounds) -> bool {
    let first = text.split('-').next().unwrap_or(text).to_ascii_lowercase();
    bounds.names.contains(&first.as_str())
}

/// A number, or the place of a name.
fn number(text: &str, names: &[&str]) -> Result<u32, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    match names.iter().position(|name| *name == lower) {
        Some(place) => Ok(u32::try_from(place).unwrap_or(u32::MAX)),
        None => text.parse().map_err(|_| ScheduleError::Number(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in
            ["* * * * *", "*/5 0-4,8 1 jan-dec sun", "@hourly", "@every 1h30m", "0 0 1 1 ?", "59 23 31 DEC 6"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("60 * * * *", "end of range above maximum: 60"),
            ("5-1 * * * *", "beginning of range beyond end of range: 5-1"),
            ("* * 0 * *", "beginning of range below minimum: 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
            ("@every", "unrecognized descriptor: @every"),
        ] {
            assert_eq!(check(bad).unwrap_err().to_string(), why, "{bad}");
        }
    }
}
