//! What a client may ask of a log (`PodLogOptions`).

use decapod_api::field::{self, Path};
use decapod_api::status::Error;

use crate::http::query::Query;

/// The streams that a log has.
const STREAMS: [&str; 3] = ["All", "Stderr", "Stdout"];

/// Checks the options, all at once.
pub(super) fn check(pod: &str, query: &Query) -> Result<(), Error> {
    let mut errors = Vec::new();
    let tail = number(query, "tailLines")?;
    if let Some(lines) = tail.filter(|n| *n < 0) {
        errors.push(field::Error::invalid(
            &Path::new("tailLines"),
            lines,
            "must be greater than or equal to 0",
        ));
    }
    let seconds = number(query, "sinceSeconds")?;
    for (name, value) in [("limitBytes", number(query, "limitBytes")?), ("sinceSeconds", seconds)] {
        let both = name == "sinceSeconds" && query.get("sinceTime").is_some();
        if let Some(value) = value.filter(|n| *n < 1 && !both) {
            errors.push(field::Error::invalid(&Path::new(name), value, "must be greater than 0"));
        }
    }
    if seconds.is_some() && query.get("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(field::Error::forbidden(&Path::root(), why));
    }
    if let Some(stream) = query.get("stream") {
        if !STREAMS.contains(&stream) {
            errors.push(field::Error::not_supported(&Path::new("stream"), stream, &STREAMS));
        }
        if stream != "All" && tail.is_some() {
            let why = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(field::Error::forbidden(&Path::root(), why));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid { group: String::new(), kind: "PodLogOptions".into(), name: pod.into(), errors })
}

fn number(query: &Query, name: &str) -> Result<Option<i64>, Error> {
    let Some(text) = query.get(name) else { return Ok(None) };
    let number = text.parse();
    number.map(Some).map_err(|_| Error::BadRequest(format!("{name}: {text:?} is not a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_all_at_once() {
        let of = |query| check("p", &Query::parse(Some(query)));
        of("follow=true&tailLines=0&limitBytes=1&sinceSeconds=1&stream=All").unwrap();
        let error = of("tailLines=-1&limitBytes=0&stream=both").unwrap_err().to_string();
        assert!(error.starts_with("PodLogOptions \"p\" is invalid: ["), "{error}");
        for part in
            ["tailLines: Invalid value: -1", "limitBytes: Invalid value: 0", "stream: Unsupported value"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(of("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z").is_err());
        assert!(of("tailLines=1&stream=Stdout").is_err());
        assert!(matches!(of("tailLines=x"), Err(Error::BadRequest(_))));
    }
}
