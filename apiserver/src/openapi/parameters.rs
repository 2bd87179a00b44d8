//! The parameters of operations.

use serde_json::{Value, json};

use super::Format;

/// A parameter: its name, its type, and what it says to the server.
type Parameter = (&'static str, &'static str, &'static str);

const ALLOW_BOOKMARKS: Parameter = (
    "allowWatchBookmarks",
    "boolean",
    "Whether the server may send events of type BOOKMARK, which only say how far the watch is.",
);
const CONTINUE: Parameter = (
    "continue",
    "string",
    "Goes on with a list where its last page ended: the token that came with that page. It expires with the state that the list is of.",
);
const DRY_RUN: Parameter =
    ("dryRun", "string", "If All, the request passes all stages but nothing is persisted.");
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name under which the changes are recorded in managedFields, at most 128 printable characters. Required to apply.",
);
const FIELD_SELECTOR: Parameter =
    ("fieldSelector", "string", "Restricts the objects by their fields. Defaults to everything.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do about unknown and duplicate fields: Ignore drops them, Warn (the default) drops them with a warning, Strict refuses the request.",
);
const FORCE: Parameter = ("force", "boolean", "Takes over fields that others apply. Only for apply patches.");
const GRACE: Parameter = (
    "gracePeriodSeconds",
    "integer",
    "Seconds before the object is deleted; zero deletes at once. Defaults to what the object says.",
);
const IGNORE_ERRORS: Parameter = (
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Deletes an object that cannot be read from the store, without its finalizers.",
);
const LABEL_SELECTOR: Parameter =
    ("labelSelector", "string", "Restricts the objects by their labels. Defaults to everything.");
const LIMIT: Parameter = (
    "limit",
    "integer",
    "The most objects to return at once. If there are more, the list comes with a continue token; all its pages are of one state.",
);
const ORPHAN: Parameter =
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy. Whether dependents stay.");
const PRETTY: Parameter = ("pretty", "string", "If true, the output is indented for people.");
const PROPAGATION: Parameter =
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground.");
const VERSION: Parameter =
    ("resourceVersion", "string", "Which state of the objects is read, or after which a watch begins.");
const VERSION_MATCH: Parameter =
    ("resourceVersionMatch", "string", "How resourceVersion is meant for a list: Exact or NotOlderThan.");
const INITIAL: Parameter = (
    "sendInitialEvents",
    "boolean",
    "Whether a watch begins with the objects that are there, ended by a bookmark with the annotation k8s.io/initial-events-end. Requires resourceVersionMatch.",
);
const TIMEOUT: Parameter =
    ("timeoutSeconds", "integer", "Seconds after which the call ends, whatever goes on.");
const WATCH: Parameter = ("watch", "boolean", "Whether to follow the objects: their changes come as events.");

const SELECTING: [Parameter; 8] =
    [CONTINUE, FIELD_SELECTOR, LABEL_SELECTOR, LIMIT, VERSION, VERSION_MATCH, INITIAL, TIMEOUT];
const DELETING: [Parameter; 5] = [DRY_RUN, GRACE, IGNORE_ERRORS, ORPHAN, PROPAGATION];

/// The query parameters of a verb on objects.
pub(super) fn of_verb(verb: &str, format: Format) -> Vec<Value> {
    let all: Vec<Parameter> = match verb {
        "list" | "watch" => [&[ALLOW_BOOKMARKS][..], &SELECTING, &[WATCH]].concat(),
        "deletecollection" => [&SELECTING[..], &DELETING].concat(),
        "create" | "update" => vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
        "patch" => vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
        "delete" => DELETING.to_vec(),
        _ => Vec::new(),
    };
    query(&all, format)
}

/// `pretty`, which all operations on objects take.
pub(super) fn pretty(format: Format) -> Value {
    parameter(PRETTY, "query", format)
}

const CONTAINER: Parameter = ("container", "string", "The container. Defaults to the only one.");
const STDIN: Parameter = ("stdin", "boolean", "Whether standard input is redirected.");
const STDOUT: Parameter = ("stdout", "boolean", "Whether standard output is redirected. Defaults to true.");
const STDERR: Parameter = ("stderr", "boolean", "Whether standard error is redirected. Defaults to true.");
const TTY: Parameter = ("tty", "boolean", "Whether a terminal is allocated.");

/// The query parameters of a connection, or of the log.
pub(super) fn of_connection(subresource: &str, kind: &str, format: Format) -> Vec<Value> {
    let all: &[Parameter] = match subresource {
        "exec" => &[
            ("command", "string", "The command and its arguments, one a time; not run by a shell."),
            CONTAINER,
            STDERR,
            STDIN,
            STDOUT,
            TTY,
        ],
        "attach" => &[CONTAINER, STDERR, STDIN, STDOUT, TTY],
        "portforward" => &[("ports", "integer", "The ports to forward; required over WebSocket.")],
        "proxy" if kind == "ServiceProxyOptions" => {
            &[("path", "string", "The service, its port and the path to request of it.")]
        }
        "proxy" => &[("path", "string", "The path to request.")],
        "log" => &[
            CONTAINER,
            ("follow", "boolean", "Whether to follow the log. Defaults to false."),
            ("insecureSkipTLSVerifyBackend", "boolean", "Whether the node's certificate is taken unseen."),
            ("limitBytes", "integer", "The most bytes to return."),
            ("previous", "boolean", "The log of the container before its last restart."),
            ("sinceSeconds", "integer", "Only lines that are at most this many seconds old."),
            ("stream", "string", "All, Stdout or Stderr. Defaults to All."),
            ("tailLines", "integer", "Only this many lines from the end."),
            ("timestamps", "boolean", "Whether each line begins with the time of its writing."),
        ],
        _ => &[],
    };
    query(all, format)
}

/// The name in the path.
pub(super) fn name(kind: &str, format: Format) -> Value {
    let mut name = parameter(("name", "string", ""), "path", format);
    name["description"] = format!("name of the {kind}").into();
    name
}

/// The namespace in the path.
pub(super) fn namespace(format: Format) -> Value {
    let said = "object name and auth scope, such as for teams and projects";
    parameter(("namespace", "string", said), "path", format)
}

/// What follows a proxy in the path.
pub(super) fn path(format: Format) -> Value {
    parameter(("path", "string", "path to the resource"), "path", format)
}

fn query(all: &[Parameter], format: Format) -> Vec<Value> {
    all.iter().map(|one| parameter(*one, "query", format)).collect()
}

fn parameter((name, kind, said): Parameter, place: &str, format: Format) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": said});
    match format {
        Format::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
        Format::V2 => {
            parameter["type"] = kind.into();
            parameter["uniqueItems"] = true.into();
        }
    }
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}
