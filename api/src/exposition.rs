//! What components tell at `/metrics`: the classic text format of Prometheus, which every scraper reads, made of
//! OpenMetrics.
//!
//! There a counter's type is told under its name without `_total`; here under the name that its samples
//! have. And Kubernetes has counters without that ending.

use std::collections::HashSet;
use std::fmt::Write;

/// Kubernetes' counters that do not end in `_total`.
const BARE: [&str; 2] = ["authentication_attempts", "authenticated_user_requests"];

/// The same samples in the classic format.
pub fn classic(metrics: &str) -> String {
    let counters: HashSet<&str> = metrics.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(metrics.len());
    for line in metrics.lines() {
        let written = match line.split_once(' ') {
            Some(("#", rest)) => comment(rest, &counters).map(|rest| writeln!(text, "# {rest}")),
            Some((name, rest)) => {
                let end = name.find('{').unwrap_or(name.len());
                let bare = name[..end].strip_suffix("_total").filter(|bare| BARE.contains(bare));
                Some(writeln!(text, "{}{} {rest}", bare.unwrap_or(&name[..end]), &name[end..]))
            }
            None => None,
        };
        written.unwrap_or(Ok(())).expect("text is written to memory");
    }
    text
}

/// The counter whose type this line tells.
fn counter(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// `HELP` and `TYPE` of a counter with its whole name; nothing for the end mark.
fn comment(rest: &str, counters: &HashSet<&str>) -> Option<String> {
    let (what, rest) = rest.split_once(' ')?;
    let (name, rest) = rest.split_once(' ')?;
    let ending = if counters.contains(name) && !BARE.contains(&name) { "_total" } else { "" };
    Some(format!("{what} {name}{ending} {rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_one_name() {
        let open = "# HELP a_requests Requests.\n# TYPE a_requests counter\na_requests_total{x=\"a b\"} 1\n\
                    # HELP g Gauge.\n# TYPE g gauge\ng 3\n\
                    # HELP authentication_attempts Attempts.\n# TYPE authentication_attempts counter\n\
                    authentication_attempts_total{result=\"success\"} 2\n# EOF\n";
        assert_eq!(
            classic(open),
            "# HELP a_requests_total Requests.\n# TYPE a_requests_total counter\na_requests_total{x=\"a b\"} 1\n\
             # HELP g Gauge.\n# TYPE g gauge\ng 3\n\
             # HELP authentication_attempts Attempts.\n# TYPE authentication_attempts counter\n\
             authentication_attempts{result=\"success\"} 2\n"
        );
    }
}
