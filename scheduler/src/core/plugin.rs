//! The plugins by their names in Kubernetes.

use std::fmt;

macro_rules! plugins {
    ($($name:ident),* $(,)?) => {
        /// One reason for or against a node, or one step of the way to it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Plugin { $($name),* }

        impl Plugin {
            /// All of them, in Kubernetes' order.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in configurations, messages and metrics.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

plugins! {
    SchedulingGates,
    PrioritySort,
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
    DefaultPreemption,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    DefaultBinder,
}

impl Plugin {
    /// The plugin of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|plugin| plugin.name() == name)
    }

    /// Its bit in a [`Set`].
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of the plugins.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Set(u32);

impl Set {
    pub(crate) const fn contains(self, plugin: Plugin) -> bool {
        self.0 & plugin.bit() != 0
    }

    pub(crate) fn insert(&mut self, plugin: Plugin) {
        self.0 |= plugin.bit();
    }

    /// The members, in Kubernetes' order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Plugin> {
        Plugin::ALL.iter().copied().filter(move |plugin| self.contains(*plugin))
    }
}

impl FromIterator<Plugin> for Set {
    fn from_iter<I: IntoIterator<Item = Plugin>>(plugins: I) -> Self {
        let mut set = Self::default();
        plugins.into_iter().for_each(|plugin| set.insert(plugin));
        set
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
