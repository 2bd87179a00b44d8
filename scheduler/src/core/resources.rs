//! Amounts of resources as whole numbers: CPU in thousandths, everything else in units.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use decapod_api::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Amounts by resource. CPU, memory and ephemeral storage are fields because every pod is asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a CPU.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) ephemeral: i64,
    /// Extended resources and huge pages, by name.
    pub(crate) scalar: BTreeMap<String, i64>,
}

impl Resources {
    /// The amounts of a list as it stands in a container or a node. What cannot be parsed was refused by
    /// the API server and counts as nothing.
    pub(crate) fn parse(list: &BTreeMap<String, Text>) -> Self {
        let mut resources = Self::default();
        for (name, amount) in list {
            let Ok(amount) = Quantity::try_from(amount) else { continue };
            match name.as_str() {
                "cpu" => resources.cpu = amount.millis(),
                "memory" => resources.memory = amount.units(),
                "ephemeral-storage" => resources.ephemeral = amount.units(),
                "pods" => {}
                other => {
                    resources.scalar.insert(other.to_owned(), amount.units());
                }
            }
        }
        resources
    }

    /// The amount of an extended resource or of huge pages.
    pub(crate) fn scalar(&self, name: &str) -> i64 {
        self.scalar.get(name).copied().unwrap_or(0)
    }

    /// The larger amount of each resource.
    pub(crate) fn max(mut self, other: &Self) -> Self {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.scalar {
            let mine = self.scalar.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
        self
    }
}

impl AddAssign<&Self> for Resources {
    fn add_assign(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral = self.ephemeral.saturating_add(other.ephemeral);
        for (name, amount) in &other.scalar {
            let mine = self.scalar.entry(name.clone()).or_default();
            *mine = mine.saturating_add(*amount);
        }
    }
}

impl SubAssign<&Self> for Resources {
    fn sub_assign(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral -= other.ephemeral;
        for (name, amount) in &other.scalar {
            let mine = self.scalar.entry(name.clone()).or_default();
            *mine -= amount;
            if *mine == 0 {
                self.scalar.remove(name);
            }
        }
    }
}
