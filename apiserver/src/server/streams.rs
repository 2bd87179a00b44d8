//! The streams of an HTTP/2 connection, in the connection's own task.
//!
//! A change wakes every watch of a connection. As tasks of their own these would be woken one by one, moved between
//! threads, and wait for each other at the lock that a connection's streams share: twice what their work takes. Here
//! the first wakes the connection, all others are a mark in a list, and what they have to say goes out together. What
//! answers a request is a task all the same: it may take long, and other streams are not to wait for it.
//!
//! **Invariant**: a stream ends with its connection, and what answers it ends with the stream.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use tokio::task::coop::{Unconstrained, unconstrained};

type Stream = Unconstrained<BoxFuture<'static, ()>>;

/// Takes streams from the connection that made them. It does so while it is polled, on one thread: the lock is never
/// waited for.
#[derive(Clone, Default)]
pub(super) struct New(Arc<Mutex<Vec<Stream>>>);

impl New {
    fn take(&self) -> Vec<Stream> {
        // A list is whole whatever panicked beside it.
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for New {
    fn execute(&self, stream: F) {
        // How often a stream may go on is up to HTTP/2's windows: tokio's count is for the whole task, and would stop
        // some of many streams half way.
        let stream = unconstrained(Box::pin(stream) as BoxFuture<'static, ()>);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}

/// A connection with its streams.
pub(super) struct Together<C> {
    connection: Pin<Box<C>>,
    new: New,
    streams: FuturesUnordered<Stream>,
}

impl<C: Future> Together<C> {
    /// A connection that was made with this executor.
    pub(super) fn new(connection: C, new: New) -> Self {
        Self { connection: Box::pin(connection), new, streams: FuturesUnordered::new() }
    }
}

impl<C: Future> Future for Together<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        loop {
            // First, so that the connection then sends what all of them have to say.
            while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {}
            if let Poll::Ready(ended) = self.connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            let new = self.new.take();
            if new.is_empty() {
                return Poll::Pending;
            }
            self.streams.extend(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    /// Starts so many streams that wait, and counts how often it is polled.
    struct Connection {
        new: New,
        start: usize,
        change: Arc<Notify>,
        seen: Arc<AtomicUsize>,
        polls: Arc<AtomicUsize>,
        until: usize,
    }

    impl Future for Connection {
        type Output = usize;

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<usize> {
            self.polls.fetch_add(1, Ordering::Relaxed);
            for _ in 0..mem::take(&mut self.start) {
                let (change, seen) = (self.change.clone(), self.seen.clone());
                self.new.execute(async move {
                    loop {
                        change.notified().await;
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let seen = self.seen.load(Ordering::Relaxed);
            if seen >= self.until { Poll::Ready(seen) } else { Poll::Pending }
        }
    }

    #[tokio::test]
    async fn all_that_were_woken_run_before_the_connection_does() {
        let (new, change) = (New::default(), Arc::new(Notify::new()));
        let (seen, polls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let connection = Connection {
            new: new.clone(),
            start: 500,
            change: change.clone(),
            seen: seen.clone(),
            polls: polls.clone(),
            until: 500,
        };
        let mut connection = Box::pin(Together::new(connection, new));
        assert!(futures::poll!(&mut connection).is_pending());
        let before = polls.load(Ordering::Relaxed);
        change.notify_waiters();
        // More than tokio lets a task do in one turn.
        assert_eq!(futures::poll!(&mut connection), Poll::Ready(500));
        assert_eq!(polls.load(Ordering::Relaxed), before + 1);
        drop(connection);
        assert_eq!(Arc::strong_count(&change), 1, "streams end with their connection");
    }
}
