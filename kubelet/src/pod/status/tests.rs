use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerRestartRuleOnExitCodes, ContainerState, PodCondition,
    PodReadinessGate, PodSpec, Probe,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::pod::observed::{self, Sandbox, State};

#[derive(Default)]
struct Ready(bool);

impl Verdicts for Ready {
    fn startup(&self, container: &Container, _id: &str) -> Option<bool> {
        if container.startup_probe.is_none() { Some(true) } else { None }
    }

    fn liveness(&self, _container: &Container, _id: &str) -> Option<bool> {
        Some(true)
    }

    fn readiness(&self, container: &Container, _id: &str) -> bool {
        container.readiness_probe.is_none() || self.0
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some("busybox".into()), ..Container::default() }
}

fn pod(spec: PodSpec) -> Pod {
    let metadata = ObjectMeta {
        name: Some("p".into()),
        uid: Some("u".into()),
        generation: Some(3),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

fn seen(name: &str, attempt: u32, state: State, exit_code: i32) -> observed::Container {
    observed::Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        sandbox_id: "s".into(),
        attempt,
        state,
        created_at: at(i64::from(attempt)),
        started_at: Some(at(5)),
        finished_at: (state == State::Exited).then(|| at(9)),
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "busybox:latest".into(),
        image_id: "sha256:1".into(),
        hash: String::new(),
        backoff: std::time::Duration::ZERO,
        log_path: String::new(),
        user: None,
    }
}

struct Case {
    pod: Pod,
    old: PodStatus,
    containers: Vec<observed::Container>,
    waiting: BTreeMap<String, Waiting>,
    ready: bool,
    terminal: bool,
    now: i64,
}

impl Case {
    fn new(spec: PodSpec, containers: Vec<observed::Container>) -> Self {
        Self {
            pod: pod(spec),
            old: PodStatus::default(),
            containers,
            waiting: BTreeMap::new(),
            ready: true,
            terminal: false,
            now: 100,
        }
    }

    fn run(&self) -> PodStatus {
        self.run_in(true)
    }

    /// The status of a pod whose sandbox is ready, or no more.
    fn run_in(&self, ready: bool) -> PodStatus {
        let sandbox =
            Sandbox { id: "s".into(), attempt: 0, created_at: at(0), ready, ips: vec!["10.244.0.2".into()] };
        let observed = Observed::new(vec![sandbox], self.containers.clone());
        compute(&Input {
            pod: &self.pod,
            old: &self.old,
            observed: &observed,
            waiting: &self.waiting,
            hooked: &BTreeSet::new(),
            verdicts: &Ready(self.ready),
            terminal: self.terminal,
            failure: None,
            messages: &BTreeMap::new(),
            host_ips: &["192.0.2.1".to_owned()],
            runtime: "decapod",
            now: at(self.now),
        })
    }
}

fn spec(policy: &str, init: Vec<Container>, containers: Vec<Container>) -> PodSpec {
    PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(init),
        containers,
        ..PodSpec::default()
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
}

fn state<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerState {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|s| s.name == name).unwrap().state.as_ref().unwrap()
}

fn waiting_reason(status: &PodStatus, name: &str) -> String {
    state(status, name).waiting.as_ref().unwrap().reason.clone().unwrap()
}

#[test]
fn the_address_stays_when_the_sandbox_goes() {
    let mut case = Case::new(spec("Always", vec![], vec![container("a")]), vec![]);
    assert_eq!(case.run_in(false).pod_ip.as_deref(), Some("10.244.0.2"), "it came and went unseen");
    case.old.pod_ips = Some(vec![PodIP { ip: "10.244.0.9".into() }]);
    assert_eq!(case.run_in(false).pod_ip.as_deref(), Some("10.244.0.9"));
    assert_eq!(case.run().pod_ip.as_deref(), Some("10.244.0.2"));
}

#[test]
fn a_new_pod_is_pending_and_creating() {
    let status = Case::new(spec("Always", vec![], vec![container("a")]), vec![]).run();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting_reason(&status, "a"), "ContainerCreating");
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(condition(&status, "Ready").message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.2"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.start_time.unwrap().0, at(100));
}

#[test]
fn a_running_pod_is_ready_when_its_probe_says_so() {
    let mut probed = container("a");
    probed.readiness_probe = Some(Probe::default());
    let mut case = Case::new(spec("Always", vec![], vec![probed]), vec![seen("a", 0, State::Running, 0)]);
    case.ready = false;
    let unready = case.run();
    assert_eq!(unready.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&unready, "Ready").status, "False");
    case.old = unready;
    (case.ready, case.now) = (true, 200);
    let ready = case.run();
    assert_eq!(condition(&ready, "Ready").status, "True");
    assert_eq!(condition(&ready, "Ready").last_transition_time.as_ref().unwrap().0, at(200));
    let initialized = condition(&ready, "Initialized");
    assert_eq!(initialized.last_transition_time.as_ref().unwrap().0, at(100), "did not change");
    let container = &ready.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.container_id.as_deref(), Some("decapod://a0"));
    assert_eq!((container.ready, container.started, container.restart_count), (true, Some(true), 0));
}

#[test]
fn a_crash_loop_shows_why_it_waits_and_how_it_ended() {
    let containers = vec![seen("a", 2, State::Exited, 7), seen("a", 1, State::Exited, 6)];
    let mut case = Case::new(spec("Always", vec![], vec![container("a")]), containers);
    let ended = case.run();
    assert_eq!(state(&ended, "a").terminated.as_ref().unwrap().reason.as_deref(), Some("Error"));
    assert_eq!(ended.phase.as_deref(), Some("Running"));
    let why = Waiting { reason: "CrashLoopBackOff", message: "back-off 20s".into() };
    case.waiting.insert("a".into(), why);
    let looping = case.run();
    assert_eq!(waiting_reason(&looping, "a"), "CrashLoopBackOff");
    let container = &looping.container_statuses.as_ref().unwrap()[0];
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, container.restart_count), (7, 2));
    assert_eq!(looping.phase.as_deref(), Some("Running"));
}

#[test]
fn how_a_container_ended_is_known_until_its_successor_ends() {
    let mut case =
        Case::new(spec("Always", vec![], vec![container("a")]), vec![seen("a", 0, State::Exited, 5)]);
    let last = |status: &PodStatus| {
        let last = status.container_statuses.as_ref().unwrap()[0].last_state.clone();
        last.and_then(|last| Some(last.terminated?.exit_code))
    };
    case.old = case.run();
    assert_eq!(last(&case.old), None);
    // All are removed to begin anew: looked at twice, then it runs again.
    case.containers.clear();
    for _ in 0..2 {
        case.old = case.run();
        assert_eq!(
            (waiting_reason(&case.old, "a").as_str(), last(&case.old)),
            ("ContainerCreating", Some(5))
        );
    }
    case.containers = vec![seen("a", 1, State::Running, 0)];
    case.old = case.run();
    assert_eq!(last(&case.old), Some(5));
    case.old = case.run();
    assert_eq!(last(&case.old), Some(5));
}

#[test]
fn image_errors_keep_the_pod_pending() {
    let mut case = Case::new(spec("Always", vec![], vec![container("a")]), vec![]);
    case.waiting.insert("a".into(), Waiting { reason: "ImagePullBackOff", message: "no".into() });
    let status = case.run();
    assert_eq!(
        (status.phase.as_deref(), waiting_reason(&status, "a").as_str()),
        (Some("Pending"), "ImagePullBackOff")
    );
}

#[test]
fn phases_follow_the_restart_policy() {
    for (policy, codes, terminal, phase) in [
        ("Never", [0, 0], true, "Succeeded"),
        ("Never", [0, 1], true, "Failed"),
        ("OnFailure", [0, 0], true, "Succeeded"),
        ("OnFailure", [0, 1], false, "Running"),
        ("Always", [0, 0], false, "Running"),
        ("Always", [0, 0], true, "Succeeded"),
        ("Always", [0, 137], true, "Failed"),
    ] {
        let containers = vec![seen("a", 0, State::Exited, codes[0]), seen("b", 0, State::Exited, codes[1])];
        let mut case = Case::new(spec(policy, vec![], vec![container("a"), container("b")]), containers);
        case.terminal = terminal;
        let status = case.run();
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {codes:?} {terminal}");
        if phase == "Succeeded" {
            assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("PodCompleted"));
        }
    }
}

#[test]
fn initialization_is_told_step_by_step() {
    let spec = spec("Always", vec![container("i")], vec![container("a")]);
    let running = Case::new(spec.clone(), vec![seen("i", 0, State::Running, 0)]).run();
    assert_eq!(running.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting_reason(&running, "a"), "PodInitializing");
    assert_eq!(
        condition(&running, "Initialized").message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
    let done = Case::new(spec.clone(), vec![seen("i", 0, State::Exited, 0)]).run();
    assert_eq!(condition(&done, "Initialized").status, "True");
    let mut never = spec;
    never.restart_policy = Some("Never".into());
    let failed = Case::new(never, vec![seen("i", 0, State::Exited, 1)]).run();
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_terminal_phase_is_never_left() {
    let mut case =
        Case::new(spec("Always", vec![], vec![container("a")]), vec![seen("a", 0, State::Running, 0)]);
    case.old.phase = Some("Failed".into());
    case.old.reason = Some("Evicted".into());
    let status = case.run();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}

#[test]
fn gates_and_foreign_conditions_are_respected() {
    let mut gated = spec("Always", vec![], vec![container("a")]);
    gated.readiness_gates = Some(vec![PodReadinessGate { condition_type: "example.com/lb".into() }]);
    let mut case = Case::new(gated, vec![seen("a", 0, State::Running, 0)]);
    let closed = case.run();
    assert_eq!(condition(&closed, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(condition(&closed, "ContainersReady").status, "True");
    let open =
        PodCondition { type_: "example.com/lb".into(), status: "True".into(), ..PodCondition::default() };
    case.old.conditions = Some(vec![open.clone()]);
    let status = case.run();
    assert_eq!(condition(&status, "Ready").status, "True");
    assert_eq!(condition(&status, "example.com/lb"), &open);
}

#[test]
fn a_pod_that_begins_anew_says_so() {
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
    let ruled = Container { restart_policy_rules: Some(vec![rule]), ..container("a") };
    let all = spec("Never", vec![], vec![ruled, container("b")]);
    let told = |code, terminal| {
        let containers = vec![seen("a", 0, State::Exited, code), seen("b", 0, State::Exited, 0)];
        let status = Case { terminal, ..Case::new(all.clone(), containers) }.run();
        let told = condition(&status, "AllContainersRestarting");
        (told.status.clone(), told.reason.clone().unwrap_or_default())
    };
    assert_eq!(told(42, false), ("True".to_owned(), "RestartAllContainersStarted".to_owned()));
    assert_eq!(told(1, true), ("False".to_owned(), "PodFailed".to_owned()));
    assert_eq!(told(0, true), ("False".to_owned(), "PodCompleted".to_owned()));
    let plain = Case::new(spec("Never", vec![], vec![container("a")]), vec![]).run();
    assert!(plain.conditions.iter().flatten().all(|c| c.type_ != "AllContainersRestarting"));
}

#[test]
fn a_patch_says_only_what_changed() {
    let case = Case::new(spec("Always", vec![], vec![container("a")]), vec![seen("a", 0, State::Running, 0)]);
    let status = case.run();
    assert!(patch("u", &status, &status).is_none());
    let full = patch("u", &PodStatus::default(), &status).unwrap();
    assert_eq!(full["metadata"]["uid"], "u");
    let mut before = status.clone();
    before.conditions.as_mut().unwrap()[2].status = "False".into();
    before.conditions.as_mut().unwrap()[2].reason = Some("x".into());
    before.message = Some("gone".into());
    let small = patch("u", &before, &status).unwrap();
    let fields: Vec<&String> = small["status"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["conditions", "message"]);
    assert_eq!(small["status"]["message"], serde_json::Value::Null);
    let conditions = small["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0]["reason"], serde_json::Value::Null, "what went away is nulled");
}
