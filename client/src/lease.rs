//! Leader election by a `coordination.k8s.io/v1` Lease: of several processes that could do the same work,
//! one does it.
//!
//! A holder that cannot renew in time stops by itself before another may take over, so at most one works
//! as long as the clocks run at about the same speed; they need not show the same time, because a
//! candidate measures by its own clock how long the Lease has not changed.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::ObjectKey;
use crate::clock::{self, Clock};
use crate::error::{self, ErrorExt};

/// How a candidate takes part in an election.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Lease that is held by the leader.
    pub lease: ObjectKey,
    /// What names this candidate: unique among the candidates.
    pub identity: String,
    /// How long a Lease that is not renewed keeps others away (Kubernetes: 15 s).
    pub duration: Duration,
    /// For how long the leader tries to renew before it stops (Kubernetes: 10 s; less than `duration`).
    pub renew_deadline: Duration,
    /// The time between two tries (Kubernetes: 2 s).
    pub retry: Duration,
}

impl Options {
    /// Kubernetes' timings for the Lease `lease` and the candidate `identity`.
    pub fn new(lease: ObjectKey, identity: impl Into<String>) -> Self {
        Self {
            lease,
            identity: identity.into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// A candidate for one Lease.
pub struct Elector {
    api: Api<Lease>,
    options: Options,
    clock: Arc<dyn Clock>,
    /// The state of the Lease that was seen last (holder and renewal), and when it was first seen.
    observed: Option<(LeaseSpec, Duration)>,
}

impl Elector {
    /// A candidate that holds nothing yet.
    pub fn new(client: Client, options: Options, clock: Arc<dyn Clock>) -> Self {
        Self { api: Api::namespaced(client, &options.lease.namespace), options, clock, observed: None }
    }

    /// Waits until this candidate is the leader.
    pub async fn acquire(&mut self) {
        loop {
            match self.try_hold().await {
                Ok(true) => {
                    tracing::info!(lease = %self.options.lease, "became the leader");
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(lease = %self.options.lease, error = error::chain(&error), "not acquired");
                }
            }
            self.clock.sleep(self.options.retry).await;
        }
    }

    /// Renews until that fails for too long or another holds the Lease: returns when the leader's work
    /// must stop at once.
    pub async fn hold(&mut self) {
        let mut renewed = self.clock.monotonic();
        loop {
            self.clock.sleep(self.options.retry).await;
            let left = (renewed + self.options.renew_deadline).saturating_sub(self.clock.monotonic());
            let clock = self.clock.clone();
            match clock::timeout(&*clock, left, self.try_hold()).await {
                Some(Ok(true)) => renewed = self.clock.monotonic(),
                Some(Ok(false)) => {
                    tracing::warn!(lease = %self.options.lease, "another is the leader now");
                    return;
                }
                Some(Err(error)) => {
                    tracing::warn!(lease = %self.options.lease, error = error::chain(&error), "not renewed");
                }
                None => {}
            }
            if self.clock.monotonic().saturating_sub(renewed) >= self.options.renew_deadline {
                tracing::warn!(lease = %self.options.lease, "could not renew in time");
                return;
            }
        }
    }

    /// Gives the Lease back, so that another need not wait for its end.
    ///
    /// # Errors
    /// When the API server cannot be asked; the Lease then ends by itself.
    pub async fn release(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.options.lease.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| self.is_mine(spec)) else { return Ok(()) };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.api.replace(&self.options.lease.name, &PostParams::default(), &lease).await?;
        Ok(())
    }

    /// Takes or renews the Lease; whether this candidate holds it now.
    async fn try_hold(&mut self) -> kube::Result<bool> {
        let name = &self.options.lease.name;
        let Some(mut lease) = self.api.get_opt(name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(self.options.lease.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_already_exists() => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.take().unwrap_or_default();
        let monotonic = self.clock.monotonic();
        let unchanged = self.observed.as_ref().filter(|(seen, _)| *seen == spec);
        let since = unchanged.map_or(monotonic, |(_, since)| *since);
        self.observed = Some((spec.clone(), since));
        let holder = spec.holder_identity.as_deref().unwrap_or("");
        let term = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).try_into().unwrap_or(0));
        if !holder.is_empty() && !self.is_mine(&spec) && monotonic < since + term {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        match self.api.replace(name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_mine(&self, spec: &LeaseSpec) -> bool {
        spec.holder_identity.as_deref() == Some(&self.options.identity)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(self.clock.now());
        let mine = before.filter(|before| self.is_mine(before));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        let change = i32::from(before.is_some() && mine.is_none());
        LeaseSpec {
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.options.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: mine.and_then(|mine| mine.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(change)),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::testing::Objects;

    fn elector(server: &Objects, clock: &Arc<ManualClock>, identity: &str) -> Elector {
        let options = Options::new(ObjectKey::new("kube-system", "leader"), identity);
        Elector::new(server.client(), options, clock.clone())
    }

    #[tokio::test]
    async fn one_of_two_leads_until_it_falls_silent() {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let (mut one, mut other) = (elector(&server, &clock, "one"), elector(&server, &clock, "other"));
        assert!(one.try_hold().await.unwrap());
        assert!(!other.try_hold().await.unwrap());
        clock.advance(Duration::from_secs(10));
        assert!(one.try_hold().await.unwrap(), "renewed");
        assert!(!other.try_hold().await.unwrap());
        clock.advance(Duration::from_secs(14));
        assert!(!other.try_hold().await.unwrap(), "counted from when the renewal was seen");
        clock.advance(Duration::from_secs(1));
        assert!(other.try_hold().await.unwrap());
        assert!(!one.try_hold().await.unwrap(), "it notices");
        let lease = server.all().into_values().next().unwrap();
        assert_eq!(
            (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
            (&"other".into(), &1.into())
        );
    }

    #[tokio::test]
    async fn a_released_lease_is_free_at_once() {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let (mut one, mut other) = (elector(&server, &clock, "one"), elector(&server, &clock, "other"));
        one.acquire().await;
        one.release().await.unwrap();
        assert!(other.try_hold().await.unwrap());
    }

    #[tokio::test]
    async fn a_leader_that_cannot_renew_stops_before_another_may_start() {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let mut leader = elector(&server, &clock, "one");
        leader.acquire().await;
        server.fail(Some(500));
        let holding = tokio::task::spawn(async move { leader.hold().await });
        for _ in 0..5 {
            assert!(!holding.is_finished());
            clock.sleepers(1).await;
            clock.advance(Duration::from_secs(2));
        }
        tokio::time::timeout(Duration::from_secs(60), holding).await.unwrap().unwrap();
    }
}
