use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use decapod_client::clock::ManualClock;
use decapod_client::event::Recorder;
use decapod_client::task::Supervisor;
use decapod_proto::cri;
use k8s_openapi::api::core::v1::{ExecAction, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

/// A container whose health the test decides.
#[derive(Default)]
struct Patient {
    healthy: AtomicBool,
    asked: AtomicUsize,
}

#[async_trait]
impl check::Exec for Patient {
    async fn exec(
        &self,
        _id: &str,
        _command: &[String],
        _timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, decapod_runtime::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let exit_code = i32::from(!self.healthy.load(Ordering::SeqCst));
        Ok(cri::ExecSyncResponse { exit_code, ..Default::default() })
    }
}

struct World {
    clock: Arc<ManualClock>,
    patient: Arc<Patient>,
    probes: Probes,
    wakes: Wakes,
    container: Container,
    supervisor: Supervisor,
}

impl World {
    fn new(container: Container) -> Self {
        let clock = Arc::new(ManualClock::default());
        let supervisor = Supervisor::new();
        let nobody = tower::service_fn(|_request: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API server here"))
        });
        let client = decapod_client::transport::in_process(nobody, ());
        let recorder = Recorder::new(client, "kubelet", "n", &supervisor, clock.clone());
        let wakes = Wakes::default();
        let probes = Probes::new(clock.clone(), wakes.clone(), Tell::new(recorder));
        supervisor.spawn_until_shutdown("probes", probes.clone().run());
        Self { clock, patient: Arc::default(), probes, wakes, container, supervisor }
    }

    fn probe(&self, id: &str) {
        let metadata = ObjectMeta { uid: Some("u".into()), ..ObjectMeta::default() };
        let pod = Arc::new(Pod { metadata, spec: Some(PodSpec::default()), status: None });
        let target = Target {
            exec: self.patient.clone(),
            clock: self.clock.clone(),
            container_id: id.into(),
            container: Arc::new(self.container.clone()),
            ip: String::new(),
        };
        self.probes.ensure(&pod, Sort::App, &target, Duration::ZERO, Seed::default());
    }

    /// Lets time pass second by second until `asked` checks have run in all.
    async fn until_asked(&self, asked: usize) {
        for _ in 0..1000 {
            if self.patient.asked.load(Ordering::SeqCst) >= asked {
                return;
            }
            self.clock.sleepers(1).await;
            self.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        panic!("only {} checks were made", self.patient.asked.load(Ordering::SeqCst));
    }

    async fn woken(&self) {
        let limit = Duration::from_secs(10);
        let woken = tokio::time::timeout(limit, self.wakes.next()).await.unwrap();
        assert!(woken.contains("u"));
    }
}

fn every_second(failures: i32) -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(vec!["check".into()]) }),
        period_seconds: Some(1),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

#[tokio::test]
async fn readiness_follows_the_container_and_wakes_the_worker() {
    let container =
        Container { name: "c".into(), readiness_probe: Some(every_second(2)), ..Container::default() };
    let world = World::new(container.clone());
    world.patient.healthy.store(true, Ordering::SeqCst);
    world.probe("id1");
    assert!(!world.probes.readiness(&container, "id1"), "nothing is known yet");
    world.until_asked(1).await;
    world.woken().await;
    assert!(world.probes.readiness(&container, "id1"));
    assert!(!world.probes.readiness(&container, "id2"), "a verdict is about one container");
    world.patient.healthy.store(false, Ordering::SeqCst);
    let asked = world.patient.asked.load(Ordering::SeqCst);
    world.until_asked(asked + 2).await;
    world.woken().await;
    assert!(!world.probes.readiness(&container, "id1"));
    world.supervisor.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn liveness_waits_for_the_start_and_a_new_container_begins_anew() {
    let container = Container {
        name: "c".into(),
        startup_probe: Some(every_second(5)),
        liveness_probe: Some(every_second(1)),
        ..Container::default()
    };
    let world = World::new(container.clone());
    world.probe("id1");
    world.until_asked(2).await;
    assert_eq!(world.probes.startup(&container, "id1"), None);
    assert_eq!(
        world.probes.liveness(&container, "id1"),
        Some(true),
        "held back, though the check would fail"
    );
    world.patient.healthy.store(true, Ordering::SeqCst);
    let asked = world.patient.asked.load(Ordering::SeqCst);
    world.until_asked(asked + 1).await;
    world.woken().await;
    assert_eq!(world.probes.startup(&container, "id1"), Some(true));
    world.patient.healthy.store(false, Ordering::SeqCst);
    let asked = world.patient.asked.load(Ordering::SeqCst);
    world.until_asked(asked + 1).await;
    world.woken().await;
    assert_eq!(world.probes.liveness(&container, "id1"), Some(false));
    world.probe("id2");
    assert_eq!(world.probes.liveness(&container, "id2"), Some(true));
    world.probes.remove_pod("u");
    assert_eq!(world.probes.startup(&container, "id2"), None);
    world.supervisor.shutdown(Duration::from_secs(1)).await;
}
