//! Writes of an HTTP/2 connection, put together.
//!
//! A change wakes every watch of a connection, and each of them has a frame to send. The connection runs in between:
//! written as they come, each frame would be a record of TLS and a system call of its own, which cost ten times what
//! finding the event does. Here what is written is gathered, and the first flush lets those run first that were woken
//! before it.
//!
//! **Invariant**: nothing waits for anything but tasks that are ready to run: the flush that was put off is the next
//! thing that its task does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most: four records of TLS, a hundred events. Beyond it a write goes on when that much is gone.
const GATHERED: usize = 64 << 10;
/// A buffer is given back when it is empty, unless it is as small as for the usual answer: there are many connections.
const KEPT: usize = 4 << 10;

/// A connection whose writes are gathered until they are flushed.
#[derive(Debug)]
pub(super) struct Coalesce<S> {
    inner: S,
    buffer: BytesMut,
    /// The flush was put off already.
    waited: bool,
}

impl<S: AsyncWrite + Unpin> Coalesce<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, buffer: BytesMut::new(), waited: false }
    }

    /// Writes what was gathered.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(written);
        }
        if self.buffer.capacity() > KEPT {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesce<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= GATHERED {
            ready!(self.drain(cx))?;
        }
        let room = bytes.len().min(GATHERED);
        self.buffer.extend_from_slice(&bytes[..room]);
        Poll::Ready(Ok(room))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() && !self.waited {
            self.waited = true;
            // Woken while it runs, a task goes behind those that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.drain(cx))?;
        self.waited = false;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Notes the length of each write, and takes no more than so much at once.
    #[derive(Clone, Default)]
    struct Sink {
        writes: Arc<Mutex<Vec<usize>>>,
        most: usize,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.most);
            self.writes.lock().unwrap().push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_before_a_flush_is_one_write() {
        let sink = Sink { most: usize::MAX, ..Sink::default() };
        let mut connection = Coalesce::new(sink.clone());
        for _ in 0..100 {
            connection.write_all(&[0; 50]).await.unwrap();
        }
        assert!(sink.writes.lock().unwrap().is_empty());
        connection.flush().await.unwrap();
        connection.flush().await.unwrap();
        connection.write_all(&[0; 7]).await.unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(*sink.writes.lock().unwrap(), [5_000, 7]);
        assert!(connection.buffer.capacity() <= KEPT);
    }

    #[tokio::test]
    async fn no_more_is_gathered_than_there_is_room_for() {
        let sink = Sink { most: 10_000, ..Sink::default() };
        let mut connection = Coalesce::new(sink.clone());
        connection.write_all(&vec![1; 3 * GATHERED]).await.unwrap();
        assert!(connection.buffer.len() <= GATHERED);
        connection.flush().await.unwrap();
        assert_eq!(sink.writes.lock().unwrap().iter().sum::<usize>(), 3 * GATHERED);
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_written() {
        let (near, mut far) = tokio::io::duplex(1_000);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let all = sent.clone();
        let writer = tokio::spawn(async move {
            let mut connection = Coalesce::new(near);
            for part in all.chunks(777) {
                connection.write_all(part).await.unwrap();
                connection.flush().await.unwrap();
            }
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(received == sent);
    }
}
