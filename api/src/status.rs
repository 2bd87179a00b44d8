//! The errors of the API, from which the `Status` object is made once, at the edge.

use serde_json::{Value, json};

use crate::field;

/// What an API request failed with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The request cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// Who asks is not known.
    #[error("Unauthorized")]
    Unauthorized,
    /// Who asks may not.
    #[error("{}", qualified(.resource, .name) + " is forbidden: " + .why)]
    Forbidden {
        /// The qualified resource, `deployments.apps`; empty for a path.
        resource: String,
        /// The object's name.
        name: String,
        /// Why.
        why: String,
    },
    /// Nothing new is made in a namespace that is going. Clients know it by its cause.
    #[error("{} is forbidden: unable to create new content in namespace {namespace} because it is being terminated", qualified(.resource, .name))]
    NamespaceTerminating {
        /// The qualified resource.
        resource: String,
        /// The object's name.
        name: String,
        /// The namespace that is going.
        namespace: String,
    },
    /// The object is not there.
    #[error("{resource} \"{name}\" not found")]
    NotFound {
        /// The qualified resource.
        resource: String,
        /// The object's name.
        name: String,
    },
    /// Nothing is served at this path.
    #[error("the server could not find the requested resource")]
    UnknownPath,
    /// The verb is not served on this resource.
    #[error("{verb} is not supported on resources of kind \"{resource}\"")]
    MethodNotSupported {
        /// The qualified resource.
        resource: String,
        /// The verb.
        verb: String,
    },
    /// The object is there already.
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists {
        /// The qualified resource.
        resource: String,
        /// The object's name.
        name: String,
    },
    /// All names that were generated for the object are taken (reason `AlreadyExists`).
    #[error(
        "{resource} \"{name}\" already exists, the server was not able to generate a unique name for the object"
    )]
    NoUniqueName {
        /// The qualified resource.
        resource: String,
        /// The name that was tried last.
        name: String,
    },
    /// The object is not what the request took it for.
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {why}")]
    Conflict {
        /// The qualified resource.
        resource: String,
        /// The object's name.
        name: String,
        /// Why.
        why: String,
    },
    /// What is applied contradicts other managers (reason `Conflict`).
    #[error("{message}")]
    Apply {
        /// All conflicts, in words.
        message: String,
        /// Each conflict.
        conflicts: Vec<ApplyConflict>,
    },
    /// The object does not hold what its kind demands.
    #[error("{} \"{name}\" is invalid: {}", qualified_kind(.kind, .group), aggregate(.errors))]
    Invalid {
        /// The API group.
        group: String,
        /// The kind.
        kind: String,
        /// The object's name.
        name: String,
        /// All that is wrong.
        errors: Vec<field::Error>,
    },
    /// The revision is gone; the reason is `Expired`.
    #[error("{message}")]
    Expired {
        /// Why.
        message: String,
        /// A token with which a list goes on at a newer revision.
        continue_token: Option<String>,
    },
    /// The revision is newer than what can be served yet.
    #[error("Too large resource version: {requested}, current: {current}")]
    ResourceVersionTooLarge {
        /// What was asked for.
        requested: u64,
        /// What is there.
        current: u64,
    },
    /// The body has a form that is not understood.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// No form of answer that the client accepts can be made.
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(String),
    /// The body is too large.
    #[error("Request entity too large: limit is {limit}")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Too much at once.
    #[error("{message}")]
    TooManyRequests {
        /// Why.
        message: String,
        /// When to try again.
        retry_after_seconds: u32,
    },
    /// A disruption budget does not allow an eviction now.
    #[error("Cannot evict pod as it would violate the pod's disruption budget.")]
    DisruptionBudget {
        /// What the budget lacks.
        cause: String,
        /// When to try again; 0 where nobody knows.
        retry_after_seconds: u32,
    },
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
    /// It cannot be served now.
    #[error("{0}")]
    Unavailable(String),
    /// Something is wrong that is not the client's fault.
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// It failed for a reason that Kubernetes gives no name (code 500).
    #[error("{0}")]
    Failed(String),
    /// A JSON patch that does not fit the object: 422 with the cause in its details.
    #[error("the server rejected our request due to an error in our request")]
    PatchRejected(String),
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyConflict {
    /// The manager, as it is shown.
    pub manager: String,
    /// The field.
    pub path: String,
}

fn qualified_kind(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

fn qualified(resource: &str, name: &str) -> String {
    match (resource, name) {
        ("", _) => "request".to_owned(),
        (_, "") => resource.to_owned(),
        _ => format!("{resource} \"{name}\""),
    }
}

fn aggregate(errors: &[field::Error]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for e in errors {
        let text = e.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

impl Error {
    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized => 401,
            Self::Forbidden { .. } | Self::NamespaceTerminating { .. } => 403,
            Self::NotFound { .. } | Self::UnknownPath => 404,
            Self::MethodNotSupported { .. } => 405,
            Self::NotAcceptable(_) => 406,
            Self::AlreadyExists { .. }
            | Self::NoUniqueName { .. }
            | Self::Conflict { .. }
            | Self::Apply { .. } => 409,
            Self::Expired { .. } => 410,
            Self::TooLarge { .. } => 413,
            Self::UnsupportedMediaType(_) => 415,
            Self::Invalid { .. } | Self::PatchRejected(_) => 422,
            Self::TooManyRequests { .. } | Self::DisruptionBudget { .. } => 429,
            Self::Internal(_) | Self::Failed(_) => 500,
            Self::Unavailable(_) => 503,
            Self::Timeout(_) | Self::ResourceVersionTooLarge { .. } => 504,
        }
    }

    /// The `reason` of the `Status`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } | Self::NamespaceTerminating { .. } => "Forbidden",
            Self::NotFound { .. } | Self::UnknownPath => "NotFound",
            Self::MethodNotSupported { .. } => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::AlreadyExists { .. } | Self::NoUniqueName { .. } => "AlreadyExists",
            Self::Conflict { .. } | Self::Apply { .. } => "Conflict",
            Self::Expired { .. } => "Expired",
            Self::TooLarge { .. } => "RequestEntityTooLarge",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Self::Invalid { .. } | Self::PatchRejected(_) => "Invalid",
            Self::TooManyRequests { .. } | Self::DisruptionBudget { .. } => "TooManyRequests",
            Self::Internal(_) => "InternalError",
            Self::Failed(_) => "",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Timeout(_) | Self::ResourceVersionTooLarge { .. } => "Timeout",
        }
    }

    /// The `Status` object that a client gets.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(), "code": self.code(),
        });
        if self.reason().is_empty()
            && let Some(map) = status.as_object_mut()
        {
            map.remove("reason");
        }
        if let Self::Expired { continue_token: Some(token), .. } = self {
            status["metadata"] = json!({ "continue": token });
        }
        let details = self.details();
        if !details.is_null() {
            status["details"] = details;
        }
        status
    }

    fn details(&self) -> Value {
        let object = |resource: &str, name: &str| {
            let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
            let mut details = serde_json::Map::new();
            for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
                if !value.is_empty() {
                    details.insert(key.to_owned(), value.into());
                }
            }
            Value::Object(details)
        };
        match self {
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. }
            | Self::Forbidden { resource, name, .. } => object(resource, name),
            Self::NamespaceTerminating { resource, name, namespace } => {
                let mut details = object(resource, name);
                let message = format!("namespace {namespace} is being terminated");
                details["causes"] = json!([
                    {"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}]);
                details
            }
            Self::NoUniqueName { resource, name } => {
                let mut details = object(resource, name);
                details["retryAfterSeconds"] = 1.into();
                details
            }
            Self::MethodNotSupported { resource, .. } => object(resource, ""),
            Self::Invalid { group, kind, name, errors } => {
                let causes: Vec<Value> = errors
                    .iter()
                    .map(|e| json!({"reason": e.kind.reason(), "message": e.message(), "field": e.path.to_string()}))
                    .collect();
                let mut details = json!({ "name": name, "kind": kind, "causes": causes });
                if !group.is_empty() {
                    details["group"] = group.as_str().into();
                }
                details
            }
            Self::Apply { conflicts, .. } => {
                let causes: Vec<Value> = conflicts
                    .iter()
                    .map(|c| {
                        json!({"reason": "FieldManagerConflict",
                            "message": format!("conflict with {}", c.manager), "field": c.path})
                    })
                    .collect();
                json!({ "causes": causes })
            }
            Self::PatchRejected(_) => json!({}),
            Self::TooManyRequests { retry_after_seconds, .. } => {
                json!({ "retryAfterSeconds": retry_after_seconds })
            }
            Self::DisruptionBudget { cause, retry_after_seconds } => {
                let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]});
                if *retry_after_seconds > 0 {
                    details["retryAfterSeconds"] = (*retry_after_seconds).into();
                }
                details
            }
            Self::ResourceVersionTooLarge { .. } => json!({
                "retryAfterSeconds": 1,
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            }),
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_kubernetes_words() {
        let e = Error::NotFound { resource: "deployments.apps".into(), name: "web".into() };
        let status = e.to_status();
        assert_eq!(status["message"], "deployments.apps \"web\" not found");
        assert_eq!(status["details"], json!({"name": "web", "group": "apps", "kind": "deployments"}));
        assert_eq!(status["code"], 404);

        let errors = vec![
            field::Error::required(&field::Path::new("spec").child("a"), ""),
            field::Error::invalid(&field::Path::new("spec").child("b"), 3, "must be less"),
        ];
        let e = Error::Invalid { group: String::new(), kind: "Pod".into(), name: "p".into(), errors };
        assert_eq!(
            e.to_string(),
            "Pod \"p\" is invalid: [spec.a: Required value, spec.b: Invalid value: 3: must be less]"
        );
        assert_eq!(e.to_status()["details"]["causes"][1]["field"], "spec.b");
        let e = Error::Forbidden { resource: "pods".into(), name: "x".into(), why: "no".into() };
        assert_eq!(e.to_string(), "pods \"x\" is forbidden: no");
    }
}
