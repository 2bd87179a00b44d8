//! Images to and from registries by command: the running agent (or the files, where none runs) moves them, and tells
//! how far it has come.

use std::convert::Infallible;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use clap::Args;
use decapod_proto::cri;
use decapod_runtime::{Credentials, Embedded, Progress, Transfer};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::control::ImageRow;
use super::image::size;
use crate::failure::{Failure, chain};

/// How to reach a registry.
#[derive(Args, Debug)]
pub(crate) struct Access {
    /// Take any certificate, and speak plain HTTP with a registry that has none.
    #[arg(long)]
    insecure: bool,
    /// The user at the registry (default: what config.json in $DOCKER_CONFIG or ~/.docker says).
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the user's password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Access {
    /// The user and the password that were given, read once for all references.
    pub(super) fn login(&self) -> Result<Option<cri::AuthConfig>, Failure> {
        let Some(username) = self.username.clone() else { return Ok(None) };
        let mut password = String::new();
        std::io::stdin().read_to_string(&mut password)?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(cri::AuthConfig { username, password, ..Default::default() }))
    }

    /// What to ask the agent for.
    pub(super) fn ask(&self, reference: &str, login: Option<&cri::AuthConfig>) -> Result<Ask, Failure> {
        let found = match login {
            Some(login) => Some(login.clone()),
            None => docker_config().map(|file| configured(&file, reference)).transpose()?.flatten(),
        };
        let auth = found.unwrap_or_default();
        Ok(Ask {
            reference: reference.to_owned(),
            insecure: self.insecure,
            username: auth.username,
            password: auth.password,
            identity_token: auth.identity_token,
        })
    }
}

/// Docker's configuration of who calls.
fn docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    folder.or_else(home).map(|folder| folder.join("config.json")).filter(|file| file.exists())
}

fn configured(file: &std::path::Path, reference: &str) -> Result<Option<cri::AuthConfig>, Failure> {
    let found = decapod_kubelet::docker_credentials(file, reference);
    let found = found.map_err(|error| Failure::new(format!("{}: {}", file.display(), chain(&*error))))?;
    Ok(found.into_iter().next())
}

/// A transfer to make.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Ask {
    reference: String,
    insecure: bool,
    username: String,
    password: String,
    identity_token: String,
}

impl Ask {
    fn transfer(&self) -> (Transfer, watch::Receiver<Progress>) {
        let (progress, receiver) = watch::channel(Progress::default());
        let credentials = Credentials {
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identity_token.clone(),
            ..Credentials::default()
        };
        (Transfer { credentials: Some(credentials), insecure: self.insecure, progress }, receiver)
    }
}

/// What is heard of a transfer; the last is no progress.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Word {
    Progress(Progress),
    Pulled(ImageRow),
    Pushed(String),
    Failed(String),
}

/// Which way an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Pull,
    Push,
}

impl Way {
    /// Where the agent is asked for it.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Pull => "/images/pull",
            Self::Push => "/images/push",
        }
    }
}

/// A transfer under way.
pub(super) struct Moving {
    work: Option<BoxFuture<'static, Word>>,
    progress: watch::Receiver<Progress>,
}

impl Moving {
    pub(super) fn start(runtime: Embedded, way: Way, ask: Ask) -> Self {
        let (transfer, progress) = ask.transfer();
        let work = async move {
            let moved = match way {
                Way::Pull => {
                    let image = runtime.image_transfer(&ask.reference, &transfer).await;
                    image.map(|image| Word::Pulled(image.into()))
                }
                Way::Push => runtime.image_push(&ask.reference, &transfer).await.map(Word::Pushed),
            };
            moved.unwrap_or_else(|error| Word::Failed(chain(&error)))
        };
        Self { work: Some(work.boxed()), progress }
    }

    /// The next word; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Word> {
        let work = self.work.as_mut()?;
        let word = tokio::select! {
            word = work => word,
            Ok(()) = self.progress.changed() => return Some(Word::Progress(*self.progress.borrow_and_update())),
        };
        self.work = None;
        Some(word)
    }
}

fn answer(moving: Moving) -> Response {
    let lines = futures::stream::unfold(moving, |mut moving| async move {
        let word = moving.next().await?;
        let mut line = serde_json::to_vec(&word).expect("texts and numbers are JSON");
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), moving))
    });
    Body::from_stream(lines.boxed()).into_response()
}

/// The agent's side of transfers.
pub(super) fn routes(runtime: Embedded) -> Router {
    let route = |way: Way| {
        post(move |State(runtime): State<Embedded>, Json(ask): Json<Ask>| async move {
            answer(Moving::start(runtime, way, ask))
        })
    };
    let routes = [Way::Pull, Way::Push].into_iter();
    routes.fold(Router::new(), |router, way| router.route(way.path(), route(way))).with_state(runtime)
}

/// Shows how far a transfer has come, on a terminal.
pub(super) struct Display {
    doing: String,
    shown: String,
    terminal: bool,
}

impl Display {
    pub(super) fn new(doing: String) -> Self {
        Self { doing, shown: String::new(), terminal: std::io::stderr().is_terminal() }
    }

    /// Takes a word; gives the last one back.
    pub(super) fn hear(&mut self, word: Word) -> Result<Option<Word>, Failure> {
        match word {
            Word::Progress(progress) => {
                self.show(&line(&self.doing, progress));
                Ok(None)
            }
            Word::Failed(why) => {
                self.show("");
                Err(Failure::new(why))
            }
            last => {
                self.show("");
                Ok(Some(last))
            }
        }
    }

    fn show(&mut self, text: &str) {
        if self.terminal && text != self.shown {
            // A terminal that is gone needs no progress.
            let mut out = std::io::stderr();
            write!(out, "\r\x1b[K{text}").and_then(|()| out.flush()).ok();
            text.clone_into(&mut self.shown);
        }
    }
}

fn line(doing: &str, progress: Progress) -> String {
    match progress.layers {
        0 => doing.to_owned(),
        layers => format!(
            "{doing}: {}/{layers} layers, {} of {}",
            progress.layers_done,
            size(progress.bytes_done),
            size(progress.bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_well() {
        let progress = Progress { layers: 3, layers_done: 1, bytes: 4 << 20, bytes_done: 1 << 20 };
        assert_eq!(line("pulling x", progress), "pulling x: 1/3 layers, 1.0 MiB of 4.0 MiB");
        assert_eq!(line("pulling x", Progress::default()), "pulling x");
    }

    #[test]
    fn only_the_last_word_is_given_back() {
        let mut display = Display::new("x".to_owned());
        assert!(display.hear(Word::Progress(Progress::default())).unwrap().is_none());
        assert!(matches!(display.hear(Word::Pushed("d".into())).unwrap(), Some(Word::Pushed(_))));
        assert!(display.hear(Word::Failed("why".into())).unwrap_err().to_string().contains("why"));
    }
}
