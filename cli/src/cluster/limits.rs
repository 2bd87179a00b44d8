//! The flags that limit what the API server works on at once, and for how long: kube-apiserver's, by their names.

use std::time::Duration;

use clap::{ArgAction, Args};
use decapod_apiserver::Limits;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::failure::Failure;

/// What the API server works on at once, and for how long.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LimitFlags {
    /// How many requests that only read are worked on at once. Together with --max-mutating-requests-inflight these are
    /// the seats that priority and fairness divides among the priority levels.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = count)]
    max_requests_inflight: usize,
    /// How many requests that write are worked on at once.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = count)]
    max_mutating_requests_inflight: usize,
    /// Requests wait for their turn as flow schemas and priority levels say; without, those beyond the two limits are
    /// turned away.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    enable_priority_and_fairness: bool,
    /// A request that is no watch and no stream is answered by then.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = positive)]
    request_timeout: String,
    /// Watches are ended after at least this many seconds, and at most twice as many.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = seconds)]
    min_request_timeout: u64,
    /// A request with a body of more bytes is refused. The store takes objects of 1.5 MiB at most.
    #[arg(long, value_name = "BYTES", default_value_t = BODY, value_parser = body)]
    max_request_body_bytes: usize,
    /// How many streams one HTTP/2 connection may have at once.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = streams)]
    http2_max_streams_per_connection: u32,
    /// When told to stop, the API server fails /readyz for this long before it takes no more connections.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = any)]
    shutdown_delay_duration: String,
}

impl Default for LimitFlags {
    fn default() -> Self {
        Self {
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            enable_priority_and_fairness: true,
            request_timeout: "1m".to_owned(),
            min_request_timeout: 1800,
            max_request_body_bytes: BODY,
            http2_max_streams_per_connection: 4096,
            shutdown_delay_duration: "0s".to_owned(),
        }
    }
}

/// Kubernetes' limit of a request's body, and the least and most that it may be set to: an object of the largest size
/// that the store takes must fit, and each request in flight may take as much memory.
const BODY: usize = 3 << 20;
const BODIES: std::ops::RangeInclusive<usize> = 1 << 20..=64 << 20;

fn body(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| BODIES.contains(n));
    number.ok_or_else(|| format!("expected a number of bytes from {} to {}", BODIES.start(), BODIES.end()))
}

/// The most requests at once: far more than a machine has memory for.
const MOST: usize = 1 << 20;

fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| *n <= MOST);
    number.ok_or_else(|| format!("expected a number of requests from 0 to {MOST}"))
}

fn streams(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| (1..=65_536).contains(n));
    number.ok_or_else(|| "expected a number of streams from 1 to 65536".to_owned())
}

fn seconds(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|n| (1..=86_400).contains(n));
    number.ok_or_else(|| "expected a number of seconds from 1 to 86400".to_owned())
}

fn any(text: &str) -> Result<String, String> {
    duration::parse(text)
        .map(|_| text.to_owned())
        .map_err(|_| "expected a duration such as 500ms, 30s or 2m".to_owned())
}

fn positive(text: &str) -> Result<String, String> {
    match duration::parse(text) {
        Ok(duration) if !duration.is_zero() => Ok(text.to_owned()),
        _ => Err("expected a duration longer than 0s, such as 30s or 2m".to_owned()),
    }
}

impl LimitFlags {
    /// The flags that say the same to a server.
    pub(super) fn flags(&self) -> Vec<String> {
        vec![
            format!("--max-requests-inflight={}", self.max_requests_inflight),
            format!("--max-mutating-requests-inflight={}", self.max_mutating_requests_inflight),
            format!("--enable-priority-and-fairness={}", self.enable_priority_and_fairness),
            format!("--request-timeout={}", self.request_timeout),
            format!("--min-request-timeout={}", self.min_request_timeout),
            format!("--max-request-body-bytes={}", self.max_request_body_bytes),
            format!("--http2-max-streams-per-connection={}", self.http2_max_streams_per_connection),
            format!("--shutdown-delay-duration={}", self.shutdown_delay_duration),
        ]
    }

    /// What the API server is told.
    ///
    /// # Errors
    /// If priority and fairness has no seat to give, so that nobody but administrators would be served.
    pub(super) fn limits(&self) -> Result<Limits, Failure> {
        let (reads, writes) = (self.max_requests_inflight, self.max_mutating_requests_inflight);
        if self.enable_priority_and_fairness && reads + writes == 0 {
            return Err(Failure::new(
                "--max-requests-inflight 0 and --max-mutating-requests-inflight 0: expected more than 0 together",
            )
            .hint("priority and fairness divides them among the priority levels; --enable-priority-and-fairness=false goes without"));
        }
        Ok(Limits {
            reads,
            writes,
            fairness: self.enable_priority_and_fairness,
            timeout: duration::parse(&self.request_timeout)?,
            watch: Duration::from_secs(self.min_request_timeout),
            body: self.max_request_body_bytes,
            streams: self.http2_max_streams_per_connection,
            shutdown_delay: duration::parse(&self.shutdown_delay_duration)?,
            ..Limits::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        limits: LimitFlags,
    }

    fn parse(flags: &[&str]) -> Result<LimitFlags, String> {
        let all = [&["x"], flags].concat();
        Flags::try_parse_from(all).map(|flags| flags.limits).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_survive_being_handed_on() {
        assert_eq!(parse(&[]), Ok(LimitFlags::default()));
        let flags = [
            "--max-requests-inflight=7",
            "--enable-priority-and-fairness=false",
            "--request-timeout=5s",
            "--shutdown-delay-duration=250ms",
        ];
        let parsed = parse(&flags).unwrap();
        let handed_on = parsed.flags();
        assert_eq!(parse(&handed_on.iter().map(String::as_str).collect::<Vec<_>>()), Ok(parsed.clone()));
        let limits = parsed.limits().unwrap();
        assert_eq!((limits.reads, limits.fairness, limits.timeout), (7, false, Duration::from_secs(5)));
        assert_eq!(limits.shutdown_delay, Duration::from_millis(250));
    }

    #[test]
    fn errors_name_flag_value_and_what_was_expected() {
        for (flag, expected) in [
            ("--max-requests-inflight=many", "expected a number of requests"),
            ("--max-mutating-requests-inflight=9999999", "expected a number of requests from 0 to 1048576"),
            ("--request-timeout=0s", "expected a duration longer than 0s"),
            ("--min-request-timeout=0", "expected a number of seconds from 1"),
            ("--max-request-body-bytes=10", "expected a number of bytes from 1048576 to 67108864"),
            ("--http2-max-streams-per-connection=0", "expected a number of streams from 1"),
            ("--shutdown-delay-duration=5", "expected a duration such as"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            let (name, value) = flag.split_once('=').unwrap();
            assert!(
                error.contains(name) && error.contains(&format!("'{value}'")) && error.contains(expected),
                "{error}"
            );
        }
        let none = parse(&["--max-requests-inflight=0", "--max-mutating-requests-inflight=0"]).unwrap();
        assert!(none.limits().unwrap_err().to_string().contains("expected more than 0"));
    }
}
