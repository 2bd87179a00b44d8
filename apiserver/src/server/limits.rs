//! How much is worked on at once, and for how long.

use std::time::Duration;

use decapod_api::status::Error;

use crate::http::query::Query;

/// A request that is not a watch or stream is answered by then, Kubernetes' default; a client may ask
/// for less.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How many requests are worked on at once. Watches and streams do not count.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that only read.
    pub reads: usize,
    /// Requests that write.
    pub writes: usize,
}

impl Default for Limits {
    /// Kubernetes' defaults.
    fn default() -> Self {
        Self { reads: 400, writes: 200 }
    }
}

/// How long a request may take: what its `timeout` says, but no longer than the server allows.
pub(super) fn timeout(query: &Query) -> Result<Duration, Error> {
    let Some(text) = query.get("timeout") else { return Ok(TIMEOUT) };
    let Some(asked) = duration(text) else {
        return Err(Error::BadRequest(format!(
            "invalid timeout specified in the request URL - time: invalid duration {text:?}"
        )));
    };
    // No timeout on the client's part is the server's.
    Ok(if asked.is_zero() { TIMEOUT } else { asked.min(TIMEOUT) })
}

/// A duration as Go writes it: `1m30s`, `0.5s`, `300ms`, `0`. Negative ones are none.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let seconds = match &tail[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = &tail[unit..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_ask_for_less() {
        let of = |query: &str| timeout(&Query::parse(Some(query))).map_err(|e| e.to_string());
        for (query, seconds) in [
            ("", 60.0),
            ("timeout=34s", 34.0),
            ("timeout=1.5s", 1.5),
            ("timeout=0", 60.0),
            ("timeout=0s", 60.0),
            ("timeout=2h", 60.0),
            ("timeout=300ms", 0.3),
            ("timeout=0m1s1us", 1.000_001),
        ] {
            assert_eq!(of(query), Ok(Duration::from_secs_f64(seconds)), "{query}");
        }
        for bad in ["5", "s", "-1s", "1y", "1s2", "1..2s", "+", "99999999999999999999h"] {
            let told = of(&format!("timeout={bad}"));
            assert!(told.is_err_and(|e| e.contains("invalid timeout specified in the request URL")), "{bad}");
        }
    }
}
