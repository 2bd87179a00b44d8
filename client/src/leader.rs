//! Work that one of several processes does: whoever holds a Lease.
//!
//! **Invariant**: what a leader started has ended before another may begin. It gives up after the renew deadline, its
//! tasks get [`ENDS_WITHIN`] and are dropped then, and a Lease holds longer than both together. A write that is still
//! on its way is compared with what is there, as every write is.

use std::sync::Arc;
use std::time::Duration;

use crate::ObjectKey;
use crate::clock::{self, Clock};
use crate::error::chain;
use crate::lease::{Elector, Options};
use crate::task::Supervisor;

/// How long the work of a leader may take to end once it has lost its Lease.
pub const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// How long it is tried to give the Lease back at a stop: another takes it anyway when its time is over.
const GIVES_BACK: Duration = Duration::from_secs(2);

/// The namespace of the Leases.
const NAMESPACE: &str = "kube-system";

/// What takes part in elections in this process.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Names this server among the others; it is the same after a restart, so that a server that comes back need not
    /// wait for the end of its own Lease.
    pub identity: String,
    /// `None`: nobody else can be there.
    pub terms: Option<Terms>,
    /// By what time is told.
    pub clock: Arc<dyn Clock>,
    /// Whose task this is, and all that is started.
    pub supervisor: Supervisor,
}

/// What an election goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a Lease that is not renewed keeps others away.
    pub duration: Duration,
    /// For how long the leader tries to renew before it stops.
    pub renew_deadline: Duration,
    /// The time between two tries.
    pub retry: Duration,
}

impl Candidate {
    /// Runs what `start` starts as tasks of the supervisor that it is given, whenever this server is the leader.
    pub fn lead(
        &self,
        lease: &'static str,
        client: kube::Client,
        start: impl Fn(&Supervisor) + Send + 'static,
    ) {
        let Some(terms) = self.terms else {
            start(&self.supervisor);
            return;
        };
        let options = Options {
            lease: ObjectKey::new(NAMESPACE, lease),
            identity: self.identity.clone(),
            duration: terms.duration,
            renew_deadline: terms.renew_deadline,
            retry: terms.retry,
        };
        let (clock, supervisor) = (self.clock.clone(), self.supervisor.clone());
        let mut elector = Elector::new(client, options, clock.clone());
        self.supervisor.spawn(lease, async move {
            let stopping = supervisor.shutdown_token();
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = elector.acquire() => {}
                }
                let term = supervisor.child();
                start(&term);
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    () = elector.hold() => {}
                }
                let dropped = term.shutdown(ENDS_WITHIN).await;
                if !dropped.is_empty() {
                    tracing::debug!(lease, ?dropped, "tasks had to be dropped");
                }
                if stopping.is_cancelled() {
                    give_back(&mut elector, &*clock).await;
                    return;
                }
            }
        });
    }
}

/// So that another need not wait for the Lease's end.
async fn give_back(elector: &mut Elector, clock: &dyn Clock) {
    if let Some(Err(error)) = clock::timeout(clock, GIVES_BACK, elector.release()).await {
        tracing::debug!(error = chain(&error), "the lease ends by itself");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::ManualClock;
    use crate::testing::Objects;

    /// Waits for what other tasks do, while time passes at such a pace.
    async fn until(clock: &ManualClock, pace: u64, mut held: impl FnMut() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(120), async {
            while !held() {
                clock.advance(Duration::from_millis(pace));
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("it comes true");
    }

    fn candidate(name: &str, clock: &Arc<ManualClock>) -> Candidate {
        let terms = Terms {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        };
        Candidate {
            identity: name.to_owned(),
            terms: Some(terms),
            clock: clock.clone(),
            supervisor: Supervisor::new(),
        }
    }

    /// Counts the leaders that work at this time.
    fn work(count: &Arc<AtomicUsize>) -> impl Fn(&Supervisor) + Send + 'static {
        let count = count.clone();
        move |term| {
            let (count, end) = (count.clone(), term.shutdown_token());
            count.fetch_add(1, Ordering::SeqCst);
            term.spawn("work", async move {
                end.cancelled().await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    #[tokio::test]
    async fn one_leads_and_gives_back_what_it_held() {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let (one, other) = (candidate("one", &clock), candidate("other", &clock));
        let (first, second) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        one.lead("kube-scheduler", server.client(), work(&first));
        until(&clock, 0, || first.load(Ordering::SeqCst) == 1).await;
        other.lead("kube-scheduler", server.client(), work(&second));
        clock.sleepers(2).await;
        assert_eq!(second.load(Ordering::SeqCst), 0);
        one.supervisor.shutdown(Duration::from_secs(60)).await;
        assert_eq!(first.load(Ordering::SeqCst), 0);
        until(&clock, 100, || second.load(Ordering::SeqCst) == 1).await;
        other.supervisor.shutdown(Duration::from_secs(60)).await;
    }

    #[tokio::test]
    async fn a_leader_that_is_cut_off_ends_its_work_and_comes_back() {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let one = candidate("one", &clock);
        let count = Arc::new(AtomicUsize::new(0));
        one.lead("kube-controller-manager", server.client(), work(&count));
        until(&clock, 0, || count.load(Ordering::SeqCst) == 1).await;
        server.fail(Some(500));
        until(&clock, 100, || count.load(Ordering::SeqCst) == 0).await;
        server.fail(None);
        until(&clock, 100, || count.load(Ordering::SeqCst) == 1).await;
        one.supervisor.shutdown(Duration::from_secs(60)).await;
    }
}
