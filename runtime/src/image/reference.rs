//! Image names as users write them, and the one full form in which they are kept.
//!
//! `nginx` means `docker.io/library/nginx:latest`: the names that Kubernetes shows are full.

use super::error::{Error, Result};

/// Longest name that is accepted; registries allow 255 for the repository and 128 for the tag.
const MAX_LENGTH: usize = 512;

/// A full name: registry, repository, and a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `docker.io/library/nginx`
    pub(crate) repository: String,
    /// `latest`, where there is no digest.
    pub(crate) tag: Option<String>,
    /// `sha256:…`
    pub(crate) digest: Option<String>,
}

impl Reference {
    /// Reads a name as users write it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fail = |what| Error::Reference { reference: text.to_owned(), what };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() > MAX_LENGTH {
            return Err(fail("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(fail("the digest is not sha256: and 64 hexadecimal digits")),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fail("the tag has characters that are not allowed"));
        }
        let repository = full_repository(name);
        let (_, path) = repository.split_once('/').ok_or_else(|| fail("it has no repository"))?;
        let (registry, _) = repository.split_once('/').unwrap_or_default();
        if registry.starts_with(['.', ':', '-']) {
            return Err(fail("the registry is not a host name"));
        }
        if !path.split('/').all(is_component) {
            return Err(fail("repository names are lower case letters, digits, and . _ - between them"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { repository, tag, digest })
    }

    /// `repository:tag`, if it has a tag.
    pub(crate) fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository))
    }
}

/// The full name of the repository in an image's name: `docker.io/library/nginx` for `nginx:1`.
///
/// # Errors
/// What is wrong with the name.
pub fn repository_of(name: &str) -> crate::Result<String> {
    Reference::parse(name)
        .map(|reference| reference.repository)
        .map_err(|error| crate::Error::Image { reference: name.to_owned(), source: error.into() })
}

/// True for `sha256:` and 64 lower case hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// True for 64 lower case hexadecimal digits.
pub(crate) fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn full_repository(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_component(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !part.is_empty()
        && part.bytes().all(|b| inner(b) || matches!(b, b'.' | b'_' | b'-'))
        && part.bytes().next().is_some_and(inner)
        && part.bytes().last().is_some_and(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_full() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("localhost/a:b", "localhost/a:b"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("decapod.internal/decapod:self", "decapod.internal/decapod:self"),
        ] {
            let reference = Reference::parse(short).unwrap();
            assert_eq!(reference.tagged().as_deref(), Some(full), "{short}");
        }
    }

    #[test]
    fn digests_need_no_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference = Reference::parse(&format!("registry.example/x/y@{digest}")).unwrap();
        assert_eq!(reference.tag, None);
        assert_eq!(reference.digest.as_deref(), Some(digest.as_str()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "UPPER", "a//b", "x@sha256:zz", "a:!", "-a", "../etc", "a/../b"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
