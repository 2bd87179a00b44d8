//! How much is worked on at once, and for how long.

use std::time::Duration;

use decapod_api::status::Error;

use crate::http::body;
use crate::http::query::Query;

/// Streams of one HTTP/2 connection. An agent's requests and watches all share one, and it waits
/// for ever for a stream that never gets free: a watch for each ConfigMap and Secret of 110 pods fits.
const MAX_STREAMS: u32 = 4096;
/// How long open requests may take to end at shutdown: longer than any that is not stuck.
const DRAIN: Duration = Duration::from_secs(5);

/// How many requests are worked on at once, and for how long. Watches and streams do not count once they began.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that only read. With priority and fairness, these and `writes` together are divided among the priority
    /// levels.
    pub reads: usize,
    /// Requests that write.
    pub writes: usize,
    /// Whether requests wait for their turn by priority and fairness; otherwise those beyond the limits are turned away.
    pub fairness: bool,
    /// A request that is not a watch or stream is answered by then; a client may ask for less.
    pub timeout: Duration,
    /// Watches end after at least this long and at most twice, so that they spread over servers.
    pub watch: Duration,
    /// Bytes of a request's body.
    pub body: usize,
    /// Streams of one HTTP/2 connection.
    pub streams: u32,
    /// When the server stops, it fails `/readyz` for this long before it takes no more connections, so that load
    /// balancers learn of it.
    pub shutdown_delay: Duration,
    /// When the server stops, open requests get this long to end.
    pub drain: Duration,
}

impl Default for Limits {
    /// Kubernetes' defaults, except for the streams of a connection and the time to drain.
    fn default() -> Self {
        Self {
            reads: 400,
            writes: 200,
            fairness: true,
            timeout: Duration::from_secs(60),
            watch: Duration::from_secs(30 * 60),
            body: body::MAX_REQUEST,
            streams: MAX_STREAMS,
            shutdown_delay: Duration::ZERO,
            drain: DRAIN,
        }
    }
}

/// How long a request may take: what its `timeout` says, but no longer than the server allows.
pub(super) fn timeout(query: &Query, limit: Duration) -> Result<Duration, Error> {
    let Some(text) = query.get("timeout") else { return Ok(limit) };
    let Some(asked) = duration(text) else {
        return Err(Error::BadRequest(format!(
            "invalid timeout specified in the request URL - time: invalid duration {text:?}"
        )));
    };
    // No timeout on the client's part is the server's.
    Ok(if asked.is_zero() { limit } else { asked.min(limit) })
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
        let limit = Duration::from_secs(60);
        let of = |query: &str| timeout(&Query::parse(Some(query)), limit).map_err(|e| e.to_string());
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
