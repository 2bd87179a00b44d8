//! Numbers that users give as such or as a percentage of something.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What becomes of a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `total`. What is neither was refused by validation, and counts as nothing.
pub(crate) fn resolve(value: &IntOrString, total: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => percent(text.trim_end_matches('%').parse().unwrap_or(0), total, round),
    }
}

/// So many hundredths of `total`.
pub(crate) fn percent(percent: i64, total: i32, round: Round) -> i32 {
    let hundredths = percent.max(0) * i64::from(total);
    let whole = match round {
        Round::Up => (hundredths + 99).div_euclid(100),
        Round::Down => hundredths.div_euclid(100),
    };
    i32::try_from(whole).unwrap_or(i32::MAX)
}
