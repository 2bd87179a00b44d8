use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes, Probe};

use super::*;
use crate::pod::observed::Sandbox;

/// Verdicts by container name; what is not listed has none, or no probe.
#[derive(Default)]
struct Said {
    startup: Vec<(&'static str, bool)>,
    liveness: Vec<(&'static str, bool)>,
}

fn said(list: &[(&'static str, bool)], name: &str) -> Option<bool> {
    list.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
}

impl Verdicts for Said {
    fn startup(&self, container: &Container, _id: &str) -> Option<bool> {
        if container.startup_probe.is_none() { Some(true) } else { said(&self.startup, &container.name) }
    }

    fn liveness(&self, container: &Container, _id: &str) -> Option<bool> {
        said(&self.liveness, &container.name).or(Some(true))
    }

    fn readiness(&self, _container: &Container, _id: &str) -> bool {
        true
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some("i".into()), ..Container::default() }
}

fn sidecar(name: &str) -> Container {
    Container { restart_policy: Some("Always".into()), ..container(name) }
}

fn pod(policy: &str, init: Vec<Container>, containers: Vec<Container>) -> Pod {
    let spec = PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(init),
        containers,
        ..PodSpec::default()
    };
    Pod { spec: Some(spec), ..Pod::default() }
}

fn sandbox(attempt: u32, ready: bool) -> Sandbox {
    Sandbox { id: format!("s{attempt}"), attempt, created_at: at(0), ready, ips: Vec::new() }
}

fn seen(name: &str, attempt: u32, state: State) -> observed::Container {
    observed::Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        sandbox_id: "s0".into(),
        attempt,
        state,
        created_at: at(i64::from(attempt)),
        started_at: Some(at(i64::from(attempt))),
        finished_at: (state == State::Exited).then(|| at(100)),
        exit_code: 1,
        reason: String::new(),
        message: String::new(),
        image: "i".into(),
        image_id: "i".into(),
        hash: spec::hash(&container(name)),
        backoff: Duration::ZERO,
        log_path: String::new(),
        user: None,
    }
}

fn exited(name: &str, attempt: u32, code: i32, backoff: u64) -> observed::Container {
    observed::Container {
        exit_code: code,
        backoff: Duration::from_secs(backoff),
        ..seen(name, attempt, State::Exited)
    }
}

fn go(pod: &Pod, sandboxes: Vec<Sandbox>, containers: Vec<observed::Container>, goal: Goal) -> Plan {
    go_with(pod, sandboxes, containers, goal, &Said::default(), 101, &[])
}

fn go_with(
    pod: &Pod,
    sandboxes: Vec<Sandbox>,
    containers: Vec<observed::Container>,
    goal: Goal,
    verdicts: &Said,
    now: i64,
    stopping: &[&str],
) -> Plan {
    let stopping = stopping.iter().map(|s| (*s).to_owned()).collect();
    let hooked = BTreeSet::new();
    let facts = Facts { now: at(now), verdicts, stopping: &stopping, hooked: &hooked, pre_stopped: &hooked };
    plan(pod, &Observed::new(sandboxes, containers), goal, &facts)
}

fn start(name: &str, attempt: u32, backoff: u64) -> Action {
    Action::ContainerStart { name: name.into(), attempt, backoff: Duration::from_secs(backoff) }
}

fn killed(plan: &Plan) -> Vec<&str> {
    plan.actions
        .iter()
        .filter_map(|a| if let Action::ContainerKill { id, .. } = a { Some(id.as_str()) } else { None })
        .collect()
}

const STOP: Goal = Goal::Stop { grace: Duration::from_secs(30) };

#[test]
fn a_new_pod_gets_a_sandbox_and_then_its_containers() {
    let pod = pod("Always", vec![], vec![container("a"), container("b")]);
    assert_eq!(go(&pod, vec![], vec![], Goal::Run).actions, [Action::SandboxCreate { attempt: 0 }]);
    let plan = go(&pod, vec![sandbox(0, true)], vec![], Goal::Run);
    assert_eq!(plan.actions, [start("a", 0, 0), start("b", 0, 0)]);
    let running = vec![seen("a", 0, State::Running), seen("b", 0, State::Running)];
    assert_eq!(go(&pod, vec![sandbox(0, true)], running, Goal::Run), Plan::default());
}

#[test]
fn init_containers_run_one_after_another() {
    let pod = pod("Always", vec![container("i"), container("j")], vec![container("a")]);
    let ready = || vec![sandbox(0, true)];
    assert_eq!(go(&pod, ready(), vec![], Goal::Run).actions, [start("i", 0, 0)]);
    let running = vec![seen("i", 0, State::Running)];
    assert!(go(&pod, ready(), running, Goal::Run).actions.is_empty());
    let first = vec![exited("i", 0, 0, 0)];
    assert_eq!(go(&pod, ready(), first, Goal::Run).actions, [start("j", 0, 0)]);
    let failed = vec![exited("i", 0, 0, 0), exited("j", 0, 1, 0)];
    assert_eq!(go(&pod, ready(), failed, Goal::Run).actions, [start("j", 1, 10)]);
    let both = vec![exited("i", 0, 0, 0), exited("j", 0, 0, 0)];
    assert_eq!(go(&pod, ready(), both, Goal::Run).actions, [start("a", 0, 0)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod("Never", vec![container("i")], vec![container("a")]);
    let plan = go(&pod, vec![sandbox(0, true)], vec![exited("i", 0, 1, 0)], Goal::Run);
    assert!(plan.ended);
    assert_eq!(plan.actions, [Action::SandboxStop { id: "s0".into() }]);
    let again = go(&pod, vec![sandbox(0, false)], vec![exited("i", 0, 1, 0)], Goal::Run);
    assert!(again.ended, "and it is not begun again in a new sandbox");
}

#[test]
fn sidecars_start_before_and_end_after_the_others() {
    let mut probed = sidecar("s");
    probed.startup_probe = Some(Probe::default());
    let pod = pod("Never", vec![probed, sidecar("t")], vec![container("a")]);
    let ready = || vec![sandbox(0, true)];
    let one = || vec![seen("s", 0, State::Running)];
    assert!(go(&pod, ready(), one(), Goal::Run).actions.is_empty(), "s has not started yet");
    let started = Said { startup: vec![("s", true)], ..Said::default() };
    let plan = go_with(&pod, ready(), one(), Goal::Run, &started, 101, &[]);
    assert_eq!(plan.actions, [start("t", 0, 0)]);
    let all = |a| vec![seen("s", 0, State::Running), seen("t", 0, State::Running), a];
    let done = all(exited("a", 0, 0, 0));
    let plan = go_with(&pod, ready(), done.clone(), Goal::Run, &started, 101, &[]);
    assert!(plan.ended);
    assert_eq!(killed(&plan), ["t0"], "the last sidecar first");
    let plan = go_with(&pod, ready(), all(seen("a", 0, State::Running)), STOP, &started, 101, &[]);
    assert_eq!(killed(&plan), ["a0"], "sidecars outlive the containers that they serve");
}

#[test]
fn restarts_follow_the_policy() {
    for (policy, code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let pod = pod(policy, vec![], vec![container("a")]);
        let plan = go(&pod, vec![sandbox(0, true)], vec![exited("a", 0, code, 0)], Goal::Run);
        assert_eq!(plan.actions.contains(&start("a", 1, 10)), restarted, "{policy} {code}");
        assert_eq!(plan.ended, !restarted, "{policy} {code}");
    }
    let mut ruled = container("a");
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    ruled.restart_policy_rules =
        Some(vec![ContainerRestartRule { action: "Restart".into(), exit_codes: Some(codes) }]);
    let pod = pod("Never", vec![], vec![ruled]);
    let plan = go(&pod, vec![sandbox(0, true)], vec![exited("a", 0, 42, 0)], Goal::Run);
    assert_eq!(plan.actions, [start("a", 1, 10)]);
}

#[test]
fn crash_loops_wait_longer_each_time_up_to_five_minutes() {
    let pod = pod("Always", vec![], vec![container("a")]);
    for (had, next) in [(0, 10), (10, 20), (160, 300), (300, 300)] {
        let waiting = go_with(
            &pod,
            vec![sandbox(0, true)],
            vec![exited("a", 3, 1, had)],
            Goal::Run,
            &Said::default(),
            100,
            &[],
        );
        if had > 0 {
            assert!(waiting.actions.is_empty());
            assert_eq!(waiting.wake_after, Some(Duration::from_secs(had)));
            assert_eq!(waiting.backoffs[0].delay, Duration::from_secs(had));
        }
        let due = go_with(
            &pod,
            vec![sandbox(0, true)],
            vec![exited("a", 3, 1, had)],
            Goal::Run,
            &Said::default(),
            100 + i64::try_from(had).unwrap(),
            &[],
        );
        assert_eq!(due.actions, [start("a", 4, next)]);
    }
    let mut long = exited("a", 3, 1, 300);
    long.finished_at = Some(at(1000));
    let plan = go_with(&pod, vec![sandbox(0, true)], vec![long], Goal::Run, &Said::default(), 1000, &[]);
    assert_eq!(plan.actions, [start("a", 4, 10)], "ten minutes of health forgive everything");
}

#[test]
fn probes_and_changed_images_stop_a_container_once() {
    let pod = pod("Always", vec![], vec![container("a")]);
    let dead = Said { liveness: vec![("a", false)], ..Said::default() };
    let running = || vec![seen("a", 0, State::Running)];
    let plan = go_with(&pod, vec![sandbox(0, true)], running(), Goal::Run, &dead, 101, &[]);
    assert_eq!(killed(&plan), ["a0"]);
    let plan = go_with(&pod, vec![sandbox(0, true)], running(), Goal::Run, &dead, 101, &["a0"]);
    assert!(plan.actions.is_empty(), "it is being stopped already");
    let mut other = seen("a", 0, State::Running);
    other.hash = "other".into();
    let plan = go(&pod, vec![sandbox(0, true)], vec![other], Goal::Run);
    assert!(matches!(plan.actions[0], Action::ContainerKill { reason: KillReason::SpecChanged, .. }));
}

#[test]
fn a_lost_sandbox_is_made_anew_after_its_containers_are_gone() {
    let pod = pod("Always", vec![container("i")], vec![container("a")]);
    let before = vec![exited("i", 0, 0, 0), seen("a", 0, State::Running)];
    let plan = go(&pod, vec![sandbox(0, false)], before, Goal::Run);
    assert_eq!(killed(&plan), ["a0"]);
    let gone = vec![exited("i", 0, 0, 0), exited("a", 0, 137, 0)];
    let plan = go(&pod, vec![sandbox(0, false)], gone.clone(), Goal::Run);
    assert_eq!(plan.actions, [Action::SandboxStop { id: "s0".into() }, Action::SandboxCreate { attempt: 1 }]);
    let plan = go(&pod, vec![sandbox(1, true), sandbox(0, false)], gone, Goal::Run);
    assert_eq!(plan.actions, [start("i", 1, 0)], "init containers run again in the new sandbox");
}

#[test]
fn one_dead_attempt_is_kept() {
    let pod = pod("Always", vec![], vec![container("a")]);
    let attempts =
        vec![seen("a", 3, State::Running), exited("a", 2, 1, 0), exited("a", 1, 1, 0), exited("a", 0, 1, 0)];
    let plan = go(&pod, vec![sandbox(0, true)], attempts, Goal::Run);
    let remove = |id: &str| Action::ContainerRemove { id: id.into() };
    assert_eq!(plan.actions, [remove("a1"), remove("a0")]);
}

#[test]
fn removal_comes_after_the_last_container() {
    let pod = pod("Always", vec![], vec![container("a")]);
    let orphan = |containers| {
        let (stopping, hooked) = (BTreeSet::new(), BTreeSet::new());
        let facts = Facts {
            now: at(0),
            verdicts: &Said::default(),
            stopping: &stopping,
            hooked: &hooked,
            pre_stopped: &hooked,
        };
        plan_orphan(&Observed::new(vec![sandbox(0, true)], containers), Duration::from_secs(1), &facts)
    };
    assert_eq!(killed(&orphan(vec![seen("a", 0, State::Running)])), ["a0"]);
    let plan = orphan(vec![exited("a", 0, 0, 0)]);
    assert_eq!(plan.actions, [Action::SandboxRemove { id: "s0".into() }]);
    let plan = go(&pod, vec![sandbox(0, true)], vec![exited("a", 0, 0, 0)], STOP);
    assert_eq!(plan.actions, [Action::SandboxStop { id: "s0".into() }]);
    assert!(go(&pod, vec![sandbox(0, false)], vec![], STOP).actions.is_empty());
}

#[test]
fn a_container_that_never_started_is_replaced_under_the_same_number() {
    let pod = pod("Always", vec![], vec![container("a")]);
    let plan = go(&pod, vec![sandbox(0, true)], vec![seen("a", 2, State::Created)], Goal::Run);
    assert_eq!(plan.actions, [Action::ContainerRemove { id: "a2".into() }, start("a", 2, 0)]);
}

/// A world in which every action succeeds at once settles, for every pod and every start.
#[test]
fn plans_settle() {
    let mut random = 7_u64;
    let mut roll = move |sides: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % sides
    };
    for _ in 0..2000 {
        let policy = ["Always", "OnFailure", "Never"][usize::try_from(roll(3)).unwrap()];
        let mut init = Vec::new();
        for name in ["i", "s"].iter().take(usize::try_from(roll(3)).unwrap()) {
            init.push(if roll(2) == 0 { sidecar(name) } else { container(name) });
        }
        let pod = pod(policy, init, vec![container("a"), container("b")]);
        let mut sandboxes = Vec::new();
        let mut containers: Vec<observed::Container> = Vec::new();
        if roll(3) > 0 {
            sandboxes.push(sandbox(0, roll(3) > 0));
            for name in ["i", "s", "a", "b"] {
                let known = spec::find(pod.spec.as_ref().unwrap(), name).is_some();
                if known && roll(2) == 0 {
                    let code = i32::try_from(roll(2)).unwrap();
                    let state =
                        [State::Running, State::Exited, State::Created][usize::try_from(roll(3)).unwrap()];
                    containers.push(observed::Container { exit_code: code, ..seen(name, 0, state) });
                }
            }
        }
        let goal = if roll(4) == 0 { STOP } else { Goal::Run };
        let mut settled = false;
        for round in 0..30 {
            let plan = go_with(
                &pod,
                sandboxes.clone(),
                containers.clone(),
                goal,
                &Said::default(),
                10_000 * (round + 1),
                &[],
            );
            if plan.actions.is_empty() {
                settled = true;
                break;
            }
            for action in plan.actions {
                play(&pod, action, &mut sandboxes, &mut containers);
            }
        }
        assert!(settled, "{pod:?} {containers:?}");
        if goal == STOP {
            assert!(!containers.iter().any(|c| c.state == State::Running));
            assert!(!sandboxes.iter().any(|s| s.ready));
        }
    }
}

/// Does what an action says; init containers end well at once, app containers run on.
fn play(pod: &Pod, action: Action, sandboxes: &mut Vec<Sandbox>, containers: &mut Vec<observed::Container>) {
    match action {
        Action::ContainerKill { id, .. } => {
            let found = containers.iter_mut().find(|c| c.id == id).unwrap();
            assert_eq!(found.state, State::Running, "only what runs is stopped");
            found.state = State::Exited;
            found.exit_code = 137;
            found.finished_at = Some(at(100));
        }
        Action::SandboxStop { id } => {
            for sandbox in sandboxes.iter_mut().filter(|s| s.id == id) {
                sandbox.ready = false;
            }
        }
        Action::SandboxRemove { id } => {
            sandboxes.retain(|s| s.id != id);
            containers.retain(|c| c.sandbox_id != id);
        }
        Action::SandboxCreate { attempt } => sandboxes.insert(0, sandbox(attempt, true)),
        Action::ContainerStart { name, attempt, backoff } => {
            assert!(!containers.iter().any(|c| c.name == name && c.attempt >= attempt), "{name} {attempt}");
            let sort = spec::find(pod.spec.as_ref().unwrap(), &name).unwrap().1;
            let state = if sort == Sort::Init { State::Exited } else { State::Running };
            let sandbox_id = sandboxes.iter().find(|s| s.ready).unwrap().id.clone();
            let made = seen(&name, attempt, state);
            containers.push(observed::Container { exit_code: 0, backoff, sandbox_id, ..made });
        }
        Action::ContainerRemove { id } => containers.retain(|c| c.id != id),
        Action::ContainerPreStop { .. } => {}
    }
}

#[test]
fn one_end_may_be_the_end_and_the_beginning_of_all() {
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
    let strict = Container { restart_policy_rules: Some(vec![rule]), ..container("a") };
    let mut pod = pod("Never", vec![container("i")], vec![strict, container("b")]);
    let ready = || vec![sandbox(0, true)];
    let others = |b: observed::Container| vec![exited("i", 0, 0, 0), exited("a", 0, 42, 0), b];
    let plan = go(&pod, ready(), others(seen("b", 0, State::Running)), Goal::Run);
    assert_eq!((killed(&plan), plan.ended), (vec!["b0"], false));
    // Nothing is removed before clients can see how it ended.
    let ended = || others(exited("b", 0, 137, 0));
    assert_eq!(go(&pod, ready(), ended(), Goal::Run), Plan::default());
    pod.status = Some(
        serde_json::from_value(serde_json::json!({ "containerStatuses": [
            { "name": "a", "ready": false, "image": "i", "imageID": "i", "restartCount": 0,
              "state": { "terminated": { "exitCode": 42, "containerID": "decapod://a0" } } } ] }))
        .unwrap(),
    );
    let plan = go(&pod, ready(), ended(), Goal::Run);
    let remove = |id: &str| Action::ContainerRemove { id: id.into() };
    assert_eq!(plan.actions.last(), Some(&remove("a0")), "what began it goes last");
    assert_eq!(plan.actions.len(), 3);
}

#[test]
fn sidecars_hear_of_the_end_before_it_is_their_turn() {
    let hook = k8s_openapi::api::core::v1::LifecycleHandler::default();
    let lifecycle = k8s_openapi::api::core::v1::Lifecycle { pre_stop: Some(hook), ..Default::default() };
    let pod =
        pod("Always", vec![Container { lifecycle: Some(lifecycle), ..sidecar("s") }], vec![container("a")]);
    let both = vec![seen("s", 0, State::Running), seen("a", 0, State::Running)];
    let plan = go(&pod, vec![sandbox(0, true)], both, STOP);
    assert_eq!(killed(&plan), ["a0"]);
    let early = |a: &Action| matches!(a, Action::ContainerPreStop { name, .. } if name == "s");
    assert!(plan.actions.iter().any(early), "{plan:?}");
    let alone = vec![seen("s", 0, State::Running), exited("a", 0, 0, 0)];
    let plan = go(&pod, vec![sandbox(0, true)], alone, STOP);
    assert_eq!((killed(&plan), plan.actions.iter().any(early)), (vec!["s0"], false));
}
