//! When a node is short of something: Kubernetes' eviction signals and thresholds. Pure.

use std::fmt;
use std::time::Duration;

use decapod_api::quantity::Quantity;

/// What is observed of a node, by Kubernetes' names (`memory.available`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`: bytes that new work could have.
    MemoryAvailable,
    /// `nodefs.available`: bytes of the file system with volumes and logs.
    NodeFsAvailable,
    /// `nodefs.inodesFree`: its inodes.
    NodeFsInodesFree,
    /// `imagefs.available`: bytes of the file system with images and containers.
    ImageFsAvailable,
    /// `imagefs.inodesFree`: its inodes.
    ImageFsInodesFree,
    /// `pid.available`: process ids.
    PidAvailable,
}

/// A node condition that says what it is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    /// The condition's type.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

/// What is reclaimed when a signal's threshold is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Resource {
    /// As messages and requests name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// An amount of it as Kubernetes writes it.
    pub(crate) fn amount(self, amount: u64) -> String {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        match self {
            Self::Memory | Self::Disk => Quantity::from_bytes(amount).to_string(),
            Self::Inodes | Self::Pids => Quantity::from_units(amount).to_string(),
        }
    }
}

impl Signal {
    /// All of them, memory first: the order in which they are looked after.
    pub(crate) const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::PidAvailable,
    ];

    /// Kubernetes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    pub(crate) fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable => Pressure::Memory,
            Self::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    pub(crate) fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable => Resource::Memory,
            Self::NodeFsAvailable | Self::ImageFsAvailable => Resource::Disk,
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => Resource::Inodes,
            Self::PidAvailable => Resource::Pids,
        }
    }
}

/// An amount: absolute, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or process ids.
    Absolute(u64),
    /// Hundredths of the capacity.
    Percent(f64),
}

impl Amount {
    /// The amount where there is `capacity` in all.
    pub(crate) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

/// Pods are evicted while there is less of a signal than this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// What is observed.
    pub signal: Signal,
    /// Less than this is too little.
    pub value: Amount,
    /// How long that may last before pods are evicted, and they then get their own grace; none is a hard
    /// threshold: at once, without grace.
    pub grace: Option<Duration>,
    /// How much more than the threshold must be there before it counts as no longer met.
    pub reclaim: Option<Amount>,
}

/// A threshold that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Kubernetes has no such signal.
    #[error("unsupported eviction signal {0}: one of {all}", all = names())]
    Signal(String),
    /// The amount is neither a positive quantity nor a share up to 100 %.
    #[error("eviction threshold {signal} must be a positive quantity, or a percentage up to 100%: {value}")]
    Value {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// It does not have the form `SIGNAL<VALUE`.
    #[error("an eviction threshold has the form SIGNAL<VALUE, as in memory.available<100Mi: {0}")]
    Form(String),
}

fn names() -> String {
    Signal::ALL.map(Signal::name).join(", ")
}

/// Reads hard thresholds as the kubelet's flag `--eviction-hard` has them: `memory.available<100Mi,nodefs.available<5%`.
/// A share of 0 % or 100 % switches its signal off, as in Kubernetes.
///
/// # Errors
/// Says what cannot be read of them.
pub fn parse(text: &str) -> Result<Vec<Threshold>, Error> {
    let mut thresholds = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('<').ok_or_else(|| Error::Form(part.to_owned()))?;
        let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name.trim());
        let signal = signal.ok_or_else(|| Error::Signal(name.trim().to_owned()))?;
        if let Some(value) = amount(signal, value.trim())? {
            thresholds.push(Threshold { signal, value, grace: None, reclaim: None });
        }
    }
    Ok(thresholds)
}

/// An amount; `None` where it switches the signal off.
fn amount(signal: Signal, text: &str) -> Result<Option<Amount>, Error> {
    let wrong = || Error::Value { signal: signal.name(), value: text.to_owned() };
    let Some(percent) = text.strip_suffix('%') else {
        let quantity: Quantity = text.parse().map_err(|_| wrong())?;
        let amount = u64::try_from(quantity.units()).ok().filter(|amount| *amount > 0);
        return Ok(Some(Amount::Absolute(amount.ok_or_else(wrong)?)));
    };
    let percent: f64 = percent.parse().map_err(|_| wrong())?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(wrong());
    }
    Ok((percent > 0.0 && percent < 100.0).then_some(Amount::Percent(percent)))
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Amount::Absolute(amount) => {
                write!(f, "{}<{}", self.signal.name(), self.signal.resource().amount(amount))
            }
            Amount::Percent(percent) => write!(f, "{}<{percent}%", self.signal.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_the_flag_has_them() {
        let text = "memory.available<100Mi, nodefs.available<5.5%,pid.available<1k,imagefs.available<0%";
        let read = parse(text).unwrap();
        let texts: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["memory.available<100Mi", "nodefs.available<5.5%", "pid.available<1k"]);
        assert_eq!(read[0].value.of(7), 100 << 20);
        assert_eq!(read[1].value.of(2_000), 110);
        assert!(matches!(parse("disk<5%"), Err(Error::Signal(name)) if name == "disk"));
        assert!(matches!(parse("memory.available=5"), Err(Error::Form(_))));
        for bad in ["0", "-1", "101%", "x", "x%"] {
            let text = format!("memory.available<{bad}");
            assert!(matches!(parse(&text), Err(Error::Value { value, .. }) if value == bad), "{bad}");
        }
    }
}
