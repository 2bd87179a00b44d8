//! The forms of names, labels and values, with Kubernetes' own messages.
//!
//! Each check returns what is wrong, nothing when all is well.

/// The longest DNS-1123 label, and port and label name.
pub const LABEL_MAX: usize = 63;
/// The longest DNS-1123 subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL_REGEX: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_REGEX: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn regex_message(what: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}'")).collect();
    format!("{what} (e.g. {}, regex used for validation is '{regex}')", examples.join(",  or "))
}

fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_qualified_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A DNS-1123 label: names of namespaces, containers, Services.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if text.contains('.') && text.split('.').all(is_label) {
        wrong.push("must not contain dots".to_owned());
    } else if !is_label(text) {
        wrong.push(regex_message(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            LABEL_REGEX,
            &["my-name", "123-abc"],
        ));
    }
    wrong
}

/// A DNS-1035 label: it starts with a letter.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        wrong.push(regex_message(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    wrong
}

/// A DNS-1123 subdomain: names of most objects.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_label) {
        wrong.push(regex_message(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN_REGEX,
            &["example.com"],
        ));
    }
    wrong
}

/// A DNS-1123 subdomain in which labels may have underscores, as those of SRV records do: search paths of resolvers.
pub fn dns_subdomain_with_underscore(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    // Anywhere but at the end.
    let is_label = |label: &str| {
        let rest = label.strip_prefix('_').unwrap_or(label);
        !rest.starts_with('_') && !rest.ends_with('_') && is_label(&rest.replace('_', "-"))
    };
    if !text.split('.').all(is_label) {
        wrong.push(regex_message(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    wrong
}

/// What is wrong with a text as an IP address of either family in its canonical form.
pub fn canonical_ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
        Ok(address) if address.to_string() != text => {
            vec![format!("must be in canonical form (\"{address}\")")]
        }
        Ok(_) => Vec::new(),
    }
}

/// A path segment: names of RBAC objects and others that may hold any character but a few.
pub fn path_segment(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if matches!(text, "." | "..") {
        wrong.push(format!("may not be '{text}'"));
    }
    for c in ["/", "%"] {
        if text.contains(c) {
            wrong.push(format!("may not contain '{c}'"));
        }
    }
    wrong
}

/// A qualified name, `name` or `example.com/name`: keys of labels and annotations.
pub fn qualified(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let mut wrong = Vec::new();
    let form = || {
        regex_message(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
            &["MyName", "my.name", "123-abc"],
        )
    };
    if name.contains('/') {
        let message = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        let regex = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
        return vec![format!(
            "{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            regex_message(message, regex, &["MyName", "my.name", "123-abc"])
        )];
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            wrong.push("prefix part must be non-empty".to_owned());
        } else {
            wrong.extend(dns_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
        }
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        wrong.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        wrong.push(format!("name part {}", form()));
    }
    wrong
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        wrong.push(regex_message(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

/// The key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        wrong.push(regex_message(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_var(text: &str) -> Vec<String> {
    if text.is_empty() || !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ];
    }
    Vec::new()
}

/// The name of a port: an IANA service name.
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// The number of a port.
pub fn port_number(port: i32) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        type Check = fn(&str) -> Vec<String>;
        let cases: [(Check, &[&str], &[&str]); 8] = [
            (dns_label, &["a", "a-1", "1a"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns1035_label, &["a", "a-1"], &["1a", "", "a."]),
            (dns_subdomain, &["a", "a.b-c.1"], &["", "a..b", ".a", "a.", "A"]),
            (
                dns_subdomain_with_underscore,
                &["a", "_sip._tcp.abc_d.example.com", "a__b"],
                &["", "a_", "__a", "_", "_-a", "a.", "A"],
            ),
            (qualified, &["a", "A_b.c", "x.io/Name"], &["", "/a", "a/", "X/a", "a/b/c", "-a"]),
            (label_value, &["", "a", "A_1.b"], &["-a", "a-", "a b"]),
            (config_key, &["a", "..a".trim_start_matches('.'), "A_b-c.d"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a-1"], &["1", "a--b", "-a", "UPPER", "a-name-that-is-long"]),
        ];
        for (i, (check, good, bad)) in cases.iter().enumerate() {
            for text in *good {
                assert!(check(text).is_empty(), "{i} {text}: {:?}", check(text));
            }
            for text in *bad {
                assert!(!check(text).is_empty(), "{i} {text}");
            }
        }
        assert!(!dns_label(&"a".repeat(64)).is_empty());
        assert!(!dns_subdomain(&"a".repeat(254)).is_empty());
    }
}
