//! Resource quantities (`500m`, `1Gi`, `12e6`): one parser, exact arithmetic, the canonical form.
//!
//! A quantity is a whole number of billionths, so sums and comparisons lose nothing. What is finer
//! than a billionth is rounded up when it is parsed, as Kubernetes does.
//! See the Kubernetes concept *resource.Quantity*.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;

/// Which family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `m`, none, `k`, `M`, `G`, … (powers of 1000).
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, … (powers of 1024).
    BinarySi,
    /// `e3`, `e6`, … (powers of 1000).
    DecimalExponent,
}

/// An exact amount of a resource, with the family of suffixes that it was written with.
///
/// Two quantities are equal when they are the same amount, however they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text does not have the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The suffix is none of those that are known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// No amount at all.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number of units, written with decimal suffixes.
    pub const fn from_units(units: i64) -> Self {
        Self { nanos: units as i128 * NANO, format: Format::DecimalSi }
    }

    /// A whole number of thousandths (for CPU: millicores), written with decimal suffixes.
    pub const fn from_millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * 1_000_000, format: Format::DecimalSi }
    }

    /// A whole number of bytes, written with binary suffixes.
    pub const fn from_bytes(bytes: i64) -> Self {
        Self { nanos: bytes as i128 * NANO, format: Format::BinarySi }
    }

    /// The amount in whole units, rounded up; beyond the range of `i64` the nearest end of it.
    pub fn units(&self) -> i64 {
        clamp(div_ceil(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded up; beyond the range of `i64` the nearest end of it.
    pub fn millis(&self) -> i64 {
        clamp(div_ceil(self.nanos, 1_000_000))
    }

    /// Whether the amount is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The amount as a floating-point number, for ratios and metrics only.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
}

fn clamp(n: i128) -> i64 {
    n.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

fn div_ceil(n: i128, d: i128) -> i128 {
    n.div_euclid(d) + i128::from(n.rem_euclid(d) != 0)
}

/// Away from zero, as Kubernetes rounds what is too fine.
fn div_away(n: i128, d: i128) -> i128 {
    if n < 0 { -div_ceil(-n, d) } else { div_ceil(n, d) }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError::Form);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let nanos = scaled(whole, fraction, scale);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let decimal = |e| Ok((Scale::Ten(e), Format::DecimalSi));
    let binary = |e| Ok((Scale::Two(e), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match suffix.strip_prefix(['e', 'E']) {
            Some(exponent) => {
                let exponent: i32 = exponent.parse().map_err(|_| ParseError::Suffix)?;
                Ok((Scale::Ten(exponent), Format::DecimalExponent))
            }
            None => Err(ParseError::Suffix),
        },
    }
}

/// `whole.fraction` times the scale, in billionths; saturates far beyond what Kubernetes accepts.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    match scale {
        Scale::Ten(exponent) => scaled_ten(whole, fraction, exponent),
        Scale::Two(bits) => scaled_two(whole, fraction, bits),
    }
}

fn value(digits: &str) -> i128 {
    digits.bytes().fold(0, |n, b| n * 10 + i128::from(b - b'0'))
}

fn scaled_ten(whole: &str, fraction: &str, exponent: i32) -> i128 {
    // More significant digits than these are beyond the range, or below a billionth.
    const DIGITS: usize = 36;
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let (kept, rest) = digits.split_at(digits.len().min(DIGITS));
    let power = i64::from(exponent) + 9 - fraction.len() as i64 + rest.len() as i64;
    let lost = rest.bytes().any(|b| b != b'0');
    match u32::try_from(power) {
        Ok(up) => 10i128.checked_pow(up).map_or(i128::MAX, |unit| value(kept).saturating_mul(unit)),
        Err(_) => {
            let down = u32::try_from(-power).unwrap_or(u32::MAX);
            let unit = 10i128.checked_pow(down).unwrap_or(i128::MAX);
            let exact = lost && value(kept) % unit == 0;
            div_ceil(value(kept), unit) + i128::from(exact)
        }
    }
}

fn scaled_two(whole: &str, fraction: &str, bits: u32) -> i128 {
    // 18 digits times 2^60 stay within the range.
    const DIGITS: usize = 18;
    let whole = whole.trim_start_matches('0');
    if whole.len() > DIGITS {
        return i128::MAX;
    }
    let (fraction, rest) = fraction.split_at(fraction.len().min(DIGITS));
    let lost = rest.bytes().any(|b| b != b'0');
    let unit = 10i128.pow(fraction.len() as u32);
    let part = (value(fraction) + i128::from(lost)) << bits;
    let part = part / unit * NANO + div_ceil(part % unit * NANO, unit);
    (value(whole) << bits).saturating_mul(NANO).saturating_add(part)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO || !self.is_integer();
        match self.format {
            Format::BinarySi if !small => self.fmt_binary(f),
            Format::BinarySi | Format::DecimalSi => self.fmt_decimal(f, false),
            Format::DecimalExponent => self.fmt_decimal(f, true),
        }
    }
}

impl Quantity {
    fn fmt_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut n = self.nanos / NANO;
        let mut power = 0;
        while n % 1024 == 0 && power < 6 {
            n /= 1024;
            power += 1;
        }
        write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power])
    }

    fn fmt_decimal(&self, f: &mut fmt::Formatter<'_>, exponent: bool) -> fmt::Result {
        let mut n = self.nanos;
        let mut power: usize = 0;
        while n % 1000 == 0 && power < 9 {
            n /= 1000;
            power += 1;
        }
        let thousands = power as i32 - 3;
        match (exponent, thousands) {
            (true, 0) => write!(f, "{n}"),
            (true, e) => write!(f, "{n}e{}", e * 3),
            (false, _) => write!(f, "{n}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power]),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}
impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}
impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Self::add)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    type Error = ParseError;
    fn try_from(q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<Self, ParseError> {
        q.0.parse()
    }
}
impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(q: Quantity) -> Self {
        Self(q.to_string())
    }
}

/// `n` rounded away from zero to a multiple of ten to the `-digits`: used where Kubernetes rounds.
impl Quantity {
    /// The amount rounded away from zero to whole units.
    pub fn rounded_to_units(&self) -> Self {
        Self { nanos: div_away(self.nanos, NANO) * NANO, format: self.format }
    }

    /// The amount rounded away from zero to whole thousandths.
    pub fn rounded_to_millis(&self) -> Self {
        Self { nanos: div_away(self.nanos, 1_000_000) * 1_000_000, format: self.format }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn canonical_forms() {
        for (given, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("100k", "100k"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("1e0", "1"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1Ei", "1Ei"),
            ("3.", "3"),
            ("123456789.123456789", "123456789123456789n"),
            ("100m", "100m"),
            ("0.25Mi", "256Ki"),
        ] {
            assert_eq!(canonical(given), want, "{given}");
        }
    }

    #[test]
    fn not_quantities() {
        for text in ["", "-", "abc", "1.2.3", "1 Gi", "1gi", "1KiB", "e3", "0x10", "1ee3", "--1", "1mm"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn rounding_is_up() {
        assert_eq!("1m".parse::<Quantity>().unwrap().units(), 1);
        assert_eq!("1500u".parse::<Quantity>().unwrap().millis(), 2);
        assert_eq!("-1500m".parse::<Quantity>().unwrap().units(), -1);
    }

    proptest! {
        #[test]
        fn canonical_is_stable_and_exact(n in -1_000_000_000_000i64..1_000_000_000_000, s in prop::sample::select(
            vec!["", "n", "u", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e6", "e-3"])) {
            let q: Quantity = format!("{n}{s}").parse().unwrap();
            let again: Quantity = q.to_string().parse().unwrap();
            prop_assert_eq!(q, again);
            prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn addition_undoes_subtraction(a in any::<i32>(), b in any::<i32>()) {
            let (a, b) = (Quantity::from_millis(a.into()), Quantity::from_millis(b.into()));
            prop_assert_eq!(a + b - b, a);
            prop_assert_eq!((a + b).millis(), a.millis() + b.millis());
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Quantity>();
        }
        #[test]
        fn never_panics_on_numbers(text in "[+-]?[0-9]{0,45}\\.?[0-9]{0,45}(Ki|Ei|E|e-?[0-9]{0,12}|n)?") {
            let _ = text.parse::<Quantity>().map(|q| (q.to_string(), q.units(), q.millis()));
        }
    }
}
