//! The audit webhook: events are sent in batches to a server elsewhere.
//!
//! No request waits for it. What does not fit into the bounded queue, and what the server does not take after
//! a few tries, is lost, counted, and said in the log.

mod config;
mod send;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
pub use config::Error as WebhookError;
use send::{Sender, Trouble};

/// Events that wait to be sent: Kubernetes' buffer.
const QUEUE: usize = 10_000;
/// How often a batch is offered: with Kubernetes' growing pauses, for some two minutes.
const TRIES: u32 = 5;
/// By how much a pause is longer than the one before, in halves.
const GROWTH: u32 = 3;
/// How long what is left may take to be sent when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where events are sent to, and how many at a time.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// A file in the format of a kubeconfig that names the server and how to be known to it.
    pub config_file: PathBuf,
    /// The most events of a batch.
    pub batch_max_size: usize,
    /// How long an event waits for others to go with it.
    pub batch_max_wait: Duration,
    /// The pause before a batch is offered for the second time.
    pub initial_backoff: Duration,
}

impl WebhookOptions {
    /// Kubernetes' defaults: 400 events, 30 s, 10 s.
    pub fn new(config_file: PathBuf) -> Self {
        Self {
            config_file,
            batch_max_size: 400,
            batch_max_wait: Duration::from_secs(30),
            initial_backoff: Duration::from_secs(10),
        }
    }
}

/// The end of the webhook at which events are put in.
pub(super) struct Webhook {
    queue: mpsc::Sender<String>,
    counts: Counts,
}

/// The other end, which sends them.
pub(super) struct Worker {
    queue: mpsc::Receiver<String>,
    sender: Sender,
    options: WebhookOptions,
    counts: Counts,
}

/// Reads the configuration. Nothing is sent until the worker runs.
pub(super) fn open(options: &WebhookOptions, counts: &Counts) -> Result<(Webhook, Worker), WebhookError> {
    let sender = Sender::new(config::read(&options.config_file)?);
    let (put, queue) = mpsc::channel(QUEUE);
    let worker = Worker { queue, sender, options: options.clone(), counts: counts.clone() };
    Ok((Webhook { queue: put, counts: counts.clone() }, worker))
}

impl Webhook {
    /// Puts an event in. Never waits: if the server elsewhere cannot keep up, the event is lost.
    pub(super) fn put(&self, event: String) {
        if self.queue.try_send(event).is_err() {
            lost(&self.counts, 1, "the audit webhook does not take them fast enough");
        }
    }
}

fn lost(counts: &Counts, events: usize, why: &str) {
    let total = counts.lost("webhook", events);
    let before = total.saturating_sub(u64::try_from(events).unwrap_or(u64::MAX));
    // The first tells that it began, and then the powers of two how bad it is.
    if total.ilog2() > before.checked_ilog2().unwrap_or(0) || before == 0 {
        tracing::error!(lost = total, why, "audit events are lost");
    }
}

impl Worker {
    /// Sends until told to stop; what is there then gets one more try.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let (batch, more) = self.batch(&stop).await;
            if !batch.is_empty() {
                self.deliver(batch, &stop).await;
            }
            if !more {
                return;
            }
        }
    }

    /// The next batch, and whether others may follow.
    async fn batch(&mut self, stop: &CancellationToken) -> (Vec<String>, bool) {
        let mut batch = Vec::new();
        let mut due = None;
        while batch.len() < self.options.batch_max_size {
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.queue.recv() => match event {
                    Some(event) => {
                        batch.push(event);
                        due.get_or_insert_with(|| Instant::now() + self.options.batch_max_wait);
                    }
                    None => return (batch, false),
                },
                () = wait => return (batch, true),
                () = stop.cancelled() => {
                    // The queue is empty, or it would have been read: these are the last.
                    return (batch, false);
                }
            }
        }
        (batch, true)
    }

    async fn deliver(&self, batch: Vec<String>, stop: &CancellationToken) {
        let body = list(&batch);
        let mut pause = self.options.initial_backoff;
        let mut tries = 0;
        let why = loop {
            let attempt = tokio::select! {
                sent = self.sender.send(body.clone()) => sent,
                () = farewell(stop) => Err(Trouble::Lasting("the server stops".to_owned())),
            };
            tries += 1;
            match attempt {
                Ok(()) => return,
                Err(Trouble::Lasting(why)) => break why,
                Err(Trouble::Passing(why)) if tries == TRIES => break why,
                Err(Trouble::Passing(why)) => {
                    tracing::warn!(why, "the audit webhook did not take events: they are sent again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = farewell(stop) => break "the server stops".to_owned(),
            }
            pause = pause * GROWTH / 2;
        };
        lost(&self.counts, batch.len(), &why);
    }
}

/// The moment from which nothing may be waited for any more.
async fn farewell(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FAREWELL).await;
}

/// The body of a batch. Its events are JSON already.
fn list(batch: &[String]) -> Bytes {
    let events = batch.join(",");
    let list = format!(
        "{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":[{events}]}}\n"
    );
    list.into()
}
