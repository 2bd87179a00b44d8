//! The flags that say what a node keeps for itself, when it evicts pods, and how large logs become: the kubelet's, by
//! their names.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use decapod_api::quantity::Quantity;
use decapod_kubelet::{EvictionOptions, LogOptions, Reserved, Threshold, parse_thresholds};
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::failure::Failure;

/// How kernel parameters begin that each pod has for itself, beside `kernel.sem`.
const OF_A_POD: [&str; 8] =
    ["kernel.shm", "kernel.msg", "fs.mqueue.", "net.", "kernel/shm", "kernel/msg", "fs/mqueue/", "net/"];

/// What the node keeps for itself.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ResourceFlags {
    /// Pods are evicted at once while the node has less of something than this, and new ones are not taken on
    /// (default: memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,
    /// imagefs.inodesFree<5%,pid.available<1k).
    #[arg(long, value_name = "SIGNAL<VALUE,…")]
    eviction_hard: Option<String>,
    /// Pods are evicted with grace when that has lasted for --eviction-soft-grace-period.
    #[arg(long, value_name = "SIGNAL<VALUE,…")]
    eviction_soft: Option<String>,
    /// How long each soft threshold may be met, as in memory.available=1m30s.
    #[arg(long, value_name = "SIGNAL=DURATION,…")]
    eviction_soft_grace_period: Option<String>,
    /// How much more than a threshold is reclaimed once it was met, as in memory.available=100Mi.
    #[arg(long, value_name = "SIGNAL=VALUE,…")]
    eviction_minimum_reclaim: Option<String>,
    /// The longest grace that a pod gets for a soft threshold.
    #[arg(long, value_name = "DURATION")]
    eviction_max_pod_grace_period: Option<String>,
    /// How long a pressure condition of the node holds after it was last observed (default: 5m).
    #[arg(long, value_name = "DURATION")]
    eviction_pressure_transition_period: Option<String>,
    /// What the operating system needs, as in cpu=200m,memory=500Mi,ephemeral-storage=1Gi: pods do not get it.
    #[arg(long, value_name = "RESOURCE=QUANTITY,…")]
    system_reserved: Option<String>,
    /// What the cluster's own programs on this machine need; added to --system-reserved.
    #[arg(long, value_name = "RESOURCE=QUANTITY,…")]
    kube_reserved: Option<String>,
    /// A container's log that is larger is moved aside and begun anew (default: 10Mi).
    #[arg(long, value_name = "QUANTITY")]
    container_log_max_size: Option<String>,
    /// How many files a container's log has at most (default: 5).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=1000))]
    container_log_max_files: Option<u16>,
    /// Processes and threads of one pod at most (default: no bound).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pod_max_pids: Option<u64>,
    /// Kernel parameters that pods may set beside the safe ones, as in kernel.msg*,net.core.somaxconn (default: none).
    #[arg(long, value_name = "PATTERN,…")]
    allowed_unsafe_sysctls: Option<String>,
    /// How long pods have to end when systemd stops the machine; none by default. The agent's unit needs a longer
    /// TimeoutStopSec.
    #[arg(long, value_name = "DURATION")]
    shutdown_grace_period: Option<String>,
    /// The last part of that, which is for critical pods.
    #[arg(long, value_name = "DURATION", requires = "shutdown_grace_period")]
    shutdown_grace_period_critical_pods: Option<String>,
}

impl ResourceFlags {
    fn given(&self) -> [(&'static str, Option<String>); 14] {
        [
            ("--eviction-hard", self.eviction_hard.clone()),
            ("--eviction-soft", self.eviction_soft.clone()),
            ("--eviction-soft-grace-period", self.eviction_soft_grace_period.clone()),
            ("--eviction-minimum-reclaim", self.eviction_minimum_reclaim.clone()),
            ("--eviction-max-pod-grace-period", self.eviction_max_pod_grace_period.clone()),
            ("--eviction-pressure-transition-period", self.eviction_pressure_transition_period.clone()),
            ("--system-reserved", self.system_reserved.clone()),
            ("--kube-reserved", self.kube_reserved.clone()),
            ("--container-log-max-size", self.container_log_max_size.clone()),
            ("--container-log-max-files", self.container_log_max_files.map(|n| n.to_string())),
            ("--pod-max-pids", self.pod_max_pids.map(|n| n.to_string())),
            ("--allowed-unsafe-sysctls", self.allowed_unsafe_sysctls.clone()),
            ("--shutdown-grace-period", self.shutdown_grace_period.clone()),
            ("--shutdown-grace-period-critical-pods", self.shutdown_grace_period_critical_pods.clone()),
        ]
    }

    /// The flags that say the same to a server.
    pub(super) fn flags(&self) -> Vec<String> {
        self.given().into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value?))).collect()
    }

    /// When pods are evicted.
    ///
    /// # Errors
    /// If a threshold cannot be read, or a soft one has no grace period.
    pub(super) fn eviction(&self) -> Result<EvictionOptions, Failure> {
        let read = |flag: &str, text: &str| {
            parse_thresholds(text).map_err(|error| Failure::new(format!("{flag} \"{text}\": {error}")))
        };
        let mut options = EvictionOptions::default();
        if let Some(text) = &self.eviction_hard {
            options.thresholds = read("--eviction-hard", text)?;
        }
        let graces = pairs("--eviction-soft-grace-period", self.eviction_soft_grace_period.as_deref())?;
        for mut soft in read("--eviction-soft", self.eviction_soft.as_deref().unwrap_or_default())? {
            let name = soft.signal.name();
            let grace = graces.get(name).ok_or_else(|| {
                Failure::new(format!("--eviction-soft {name}: it has no grace period"))
                    .hint(format!("--eviction-soft-grace-period {name}=1m30s gives it one"))
            })?;
            soft.grace = Some(duration::parse(grace)?);
            options.thresholds.push(soft);
        }
        let reclaim = self.eviction_minimum_reclaim.as_deref().unwrap_or_default().replace('=', "<");
        let reclaim = read("--eviction-minimum-reclaim", &reclaim)?;
        for threshold in &mut options.thresholds {
            let own = reclaim.iter().find(|r: &&Threshold| r.signal == threshold.signal);
            threshold.reclaim = own.map(|own| own.value);
        }
        if let Some(grace) = &self.eviction_max_pod_grace_period {
            options.max_grace = duration::parse(grace)?;
        }
        if let Some(period) = &self.eviction_pressure_transition_period {
            options.transition = duration::parse(period)?;
        }
        Ok(options)
    }

    /// What pods do not get.
    ///
    /// # Errors
    /// If an amount is none, or of something that cannot be reserved.
    pub(super) fn reserved(&self) -> Result<Reserved, Failure> {
        let mut reserved = Reserved::default();
        for (flag, text) in
            [("--system-reserved", &self.system_reserved), ("--kube-reserved", &self.kube_reserved)]
        {
            for (name, value) in pairs(flag, text.as_deref())? {
                let quantity = quantity(flag, &value)?;
                let amount = |amount: i64| u64::try_from(amount).unwrap_or(0);
                match name.as_str() {
                    "cpu" => reserved.cpu += amount(quantity.millis()),
                    "memory" => reserved.memory += amount(quantity.units()),
                    "ephemeral-storage" => reserved.storage += amount(quantity.units()),
                    other => {
                        return Err(Failure::new(format!("{flag} {other}: it cannot be reserved"))
                            .hint("cpu, memory and ephemeral-storage can"));
                    }
                }
            }
        }
        Ok(reserved)
    }

    /// How long pods have to end when the machine stops, and which part of that is for critical ones.
    ///
    /// # Errors
    /// If they are no durations, or the part is longer than the whole.
    pub(super) fn shutdown(&self) -> Result<(Duration, Duration), Failure> {
        let read = |text: &Option<String>| text.as_deref().map_or(Ok(Duration::ZERO), duration::parse);
        let (grace, critical) =
            (read(&self.shutdown_grace_period)?, read(&self.shutdown_grace_period_critical_pods)?);
        if critical > grace {
            return Err(Failure::new(
                "--shutdown-grace-period-critical-pods is longer than --shutdown-grace-period, of which it is a part",
            ));
        }
        Ok((grace, critical))
    }

    /// Processes and threads of one pod, if they are bounded.
    pub(super) fn pod_max_pids(&self) -> Option<u64> {
        self.pod_max_pids
    }

    /// The kernel parameters that pods may set beside the safe ones.
    ///
    /// # Errors
    /// If one of them would be set for the whole machine.
    pub(super) fn sysctls(&self) -> Result<Vec<String>, Failure> {
        let patterns = self.allowed_unsafe_sysctls.as_deref().unwrap_or_default().split(',').map(str::trim);
        let patterns = patterns.filter(|pattern| !pattern.is_empty()).map(|pattern| {
            if pattern == "kernel.sem" || OF_A_POD.iter().any(|group| pattern.starts_with(group)) {
                return Ok(pattern.replace('/', "."));
            }
            Err(Failure::new(format!(
                "--allowed-unsafe-sysctls {pattern}: not known to be a pod's own, and so it is set for the whole machine"
            ))
            .hint("kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are a pod's own"))
        });
        patterns.collect()
    }

    /// How logs of containers are kept.
    ///
    /// # Errors
    /// If the size is none.
    pub(super) fn logs(&self) -> Result<LogOptions, Failure> {
        let mut options = LogOptions::default();
        if let Some(size) = &self.container_log_max_size {
            let bytes = quantity("--container-log-max-size", size)?.units();
            options.max_size = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(|| {
                Failure::new(format!("--container-log-max-size {size}: expected more than nothing"))
            })?;
        }
        if let Some(files) = self.container_log_max_files {
            options.max_files = files.into();
        }
        Ok(options)
    }
}

/// `NAME=VALUE,…`
fn pairs(flag: &str, text: Option<&str>) -> Result<BTreeMap<String, String>, Failure> {
    let parts = text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| Failure::new(format!("{flag} \"{part}\": expected NAME=VALUE")))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn quantity(flag: &str, text: &str) -> Result<Quantity, Failure> {
    let quantity = text.parse::<Quantity>().ok().filter(|quantity| !quantity.is_negative());
    quantity.ok_or_else(|| {
        Failure::new(format!("{flag} \"{text}\": expected a quantity such as 200m, 500Mi or 1Gi"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use decapod_kubelet::{Amount, Signal};

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        resources: ResourceFlags,
    }

    fn parse(flags: &[&str]) -> ResourceFlags {
        Flags::parse_from([&["x"], flags].concat()).resources
    }

    #[test]
    fn nothing_given_is_the_default() {
        let flags = parse(&[]);
        assert_eq!(flags.eviction().unwrap(), EvictionOptions::default());
        assert_eq!((flags.reserved().unwrap(), flags.logs().unwrap()), Default::default());
        assert!(flags.flags().is_empty());
    }

    #[test]
    fn all_is_read_and_handed_on() {
        let given = [
            "--eviction-hard=memory.available<200Mi",
            "--eviction-soft=memory.available<10%",
            "--eviction-soft-grace-period=memory.available=1m30s",
            "--eviction-minimum-reclaim=memory.available=50Mi",
            "--system-reserved=cpu=200m,memory=1Gi",
            "--kube-reserved=cpu=1,ephemeral-storage=2Gi",
            "--container-log-max-size=1Mi",
            "--container-log-max-files=3",
            "--pod-max-pids=100",
            "--allowed-unsafe-sysctls=kernel.msg*,net/core/somaxconn",
            "--shutdown-grace-period=1m",
            "--shutdown-grace-period-critical-pods=10s",
        ];
        let flags = parse(&given);
        assert_eq!(flags.flags(), given, "as they were given");
        let thresholds = flags.eviction().unwrap().thresholds;
        let reclaim = Some(Amount::Absolute(50 << 20));
        let soft = Threshold {
            signal: Signal::MemoryAvailable,
            value: Amount::Percent(10.0),
            grace: Some(Duration::from_secs(90)),
            reclaim,
        };
        assert_eq!(thresholds, [Threshold { value: Amount::Absolute(200 << 20), grace: None, ..soft }, soft]);
        let reserved = flags.reserved().unwrap();
        assert_eq!((reserved.cpu, reserved.memory, reserved.storage), (1200, 1 << 30, 2 << 30));
        assert_eq!(flags.shutdown().unwrap(), (Duration::from_secs(60), Duration::from_secs(10)));
        assert_eq!(flags.pod_max_pids(), Some(100));
        assert_eq!(flags.sysctls().unwrap(), ["kernel.msg*", "net.core.somaxconn"]);
        assert_eq!((flags.logs().unwrap().max_size, flags.logs().unwrap().max_files), (1 << 20, 3));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let said = |flags: &[&str]| {
            let flags = parse(flags);
            let all = [
                flags.eviction().err(),
                flags.reserved().err(),
                flags.logs().err(),
                flags.shutdown().err(),
                flags.sysctls().err(),
            ];
            all.into_iter().flatten().map(|failure| failure.to_string()).collect::<String>()
        };
        assert!(said(&["--eviction-hard=disk<5%"]).contains("unsupported eviction signal disk"));
        assert!(said(&["--eviction-soft=pid.available<5%"]).contains("it has no grace period"));
        assert!(said(&["--system-reserved=gpu=1"]).contains("gpu: it cannot be reserved"));
        assert!(said(&["--kube-reserved=cpu"]).contains("expected NAME=VALUE"));
        let longer = ["--shutdown-grace-period=1s", "--shutdown-grace-period-critical-pods=2s"];
        assert!(said(&longer).contains("of which it is a part"));
        assert!(said(&["--allowed-unsafe-sysctls=vm.swappiness"]).contains("for the whole machine"));
        assert!(said(&["--container-log-max-size=0"]).contains("more than nothing"));
    }
}
