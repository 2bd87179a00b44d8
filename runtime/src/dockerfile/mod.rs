//! Dockerfiles: from text to stages of typed instructions.
//!
//! Pure. Variables are not replaced here, since their values come with the build; what the text alone can
//! tell is checked here, so that a build with a typing error in its last line does not begin.
//!
//! **Invariant**: no text makes this panic, and an error names the file, the line and the instruction.

mod lines;
mod parse;
mod words;

use std::fmt;

pub(crate) use parse::{parse, parse_trigger};
pub(crate) use words::expand;

/// Largest Dockerfile; the largest known ones have some hundred kilobytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// What is wrong with a Dockerfile, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub(crate) struct Error {
    /// Where.
    pub(crate) place: Place,
    /// What was found, and what was expected.
    pub(crate) what: String,
}

/// A place in a Dockerfile, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, as the user named it.
    pub(crate) file: String,
    /// From 1.
    pub(crate) line: usize,
    /// In capital letters.
    pub(crate) instruction: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.instruction)
    }
}

impl Place {
    /// An error here.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error { place: self.clone(), what: what.into() }
    }
}

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    /// The character that quotes the next one: a backslash, unless the file says otherwise.
    pub(crate) escape: char,
    /// `ARG` before the first `FROM`: known to `FROM` alone.
    pub(crate) args: Vec<Step>,
    /// At least one.
    pub(crate) stages: Vec<Stage>,
}

/// What begins with `FROM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Where `FROM` is.
    pub(crate) place: Place,
    /// The image or the stage that it begins with, not expanded.
    pub(crate) base: String,
    /// `--platform`, not expanded.
    pub(crate) platform: Option<String>,
    /// `AS name`, in small letters.
    pub(crate) name: Option<String>,
    /// What follows.
    pub(crate) steps: Vec<Step>,
}

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it is.
    pub(crate) place: Place,
    /// As it was written, on one line.
    pub(crate) text: String,
    /// What it says.
    pub(crate) instruction: Instruction,
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `["program", "argument"]`
    Exec(Vec<String>),
    /// A line for the shell.
    Shell(String),
}

impl Command {
    /// The words to execute.
    pub(crate) fn words(&self, shell: &[String]) -> Vec<String> {
        match self {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => shell.iter().cloned().chain([line.clone()]).collect(),
        }
    }
}

/// A name and a value, neither of them expanded.
pub(crate) type Pair = (String, String);

/// What an instruction says. Texts are as they were written: see [`expand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    /// `ARG name[=default]`
    Arg(Vec<(String, Option<String>)>),
    /// `ENV`
    Env(Vec<Pair>),
    /// `LABEL`
    Label(Vec<Pair>),
    /// `RUN`
    Run(Run),
    /// `COPY` or `ADD`
    Copy(Copy),
    /// `WORKDIR`
    Workdir(String),
    /// `USER`
    User(String),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `CMD`
    Cmd(Command),
    /// `EXPOSE`
    Expose(Vec<String>),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `SHELL`
    Shell(Vec<String>),
    /// `HEALTHCHECK`; its test is in the form of an image's configuration.
    Healthcheck(Healthcheck),
    /// `ONBUILD`
    OnBuild(String),
    /// `MAINTAINER`
    Maintainer(String),
}

/// `RUN`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// What to run.
    pub(crate) command: Command,
    /// A script with an interpreter of its own: it is a file, not a line for the shell.
    pub(crate) script: Option<String>,
    /// Directories that are there for this command and leave nothing in the image: the targets
    /// of `--mount=type=cache` and `--mount=type=tmpfs`.
    pub(crate) scratch: Vec<String>,
}

/// `COPY` or `ADD`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Whether archives are unpacked.
    pub(crate) add: bool,
    /// What to copy.
    pub(crate) sources: Vec<String>,
    /// Files that the Dockerfile itself has.
    pub(crate) inline: Vec<Inline>,
    /// Where to.
    pub(crate) target: String,
    /// A stage, its number, or an image.
    pub(crate) from: Option<String>,
    /// `user[:group]`
    pub(crate) chown: Option<String>,
    /// Octal.
    pub(crate) chmod: Option<String>,
    /// Patterns of what is left out.
    pub(crate) exclude: Vec<String>,
}

/// A file whose content is in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inline {
    /// The file's name.
    pub(crate) name: String,
    /// What is in it.
    pub(crate) content: String,
    /// Whether variables in it are replaced.
    pub(crate) expand: bool,
}

/// `HEALTHCHECK`. Durations are in nanoseconds; zero where not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Healthcheck {
    /// `NONE`, or `CMD` with words, or `CMD-SHELL` with a line.
    pub(crate) test: Vec<String>,
    /// `--interval`
    pub(crate) interval: i64,
    /// `--timeout`
    pub(crate) timeout: i64,
    /// `--start-period`
    pub(crate) start_period: i64,
    /// `--start-interval`
    pub(crate) start_interval: i64,
    /// `--retries`
    pub(crate) retries: i64,
}
