//! TaintToleration: nodes repel pods that do not tolerate their taints.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::Rejection;
use crate::core::node::NodeInfo;
use crate::core::plugin::Plugin;
use crate::core::pod::PodInfo;

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

/// Whether one of the tolerations covers the taint.
pub(super) fn tolerates(tolerations: &[Toleration], key: &str, value: &str, effect: &str) -> bool {
    tolerations.iter().any(|toleration| {
        let (wanted, of) = (text(&toleration.key), text(&toleration.effect));
        if (!of.is_empty() && of != effect) || (!wanted.is_empty() && wanted != key) {
            return false;
        }
        match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => !wanted.is_empty() && text(&toleration.value) == value,
            _ => false,
        }
    })
}

/// The taints that keep the pod away.
pub(crate) fn untolerated<'a>(pod: &'a PodInfo, node: &'a NodeInfo) -> impl Iterator<Item = &'a Taint> {
    let hard = node.taints.iter().filter(|taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute"));
    hard.filter(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        !tolerates(&pod.tolerations, &taint.key, value, &taint.effect)
    })
}

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    match untolerated(pod, node).next() {
        Some(_) => Err(Rejection::lasting(Plugin::TaintToleration, "node(s) had untolerated taint(s)")),
        None => Ok(()),
    }
}

/// How many of the taints that only ask for preference the pod does not tolerate.
pub(super) fn untolerated_preferences(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let untolerated = soft.filter(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        !tolerates(&pod.tolerations, &taint.key, value, &taint.effect)
    });
    i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations_cover_taints_as_in_kubernetes() {
        let cases = [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("k", "Equal", "other", ""), false),
            (toleration("other", "Exists", "", ""), false),
            (toleration("k", "Equal", "v", "NoExecute"), false),
            (toleration("", "Equal", "v", ""), false),
        ];
        for (toleration, expected) in cases {
            let text = format!("{toleration:?}");
            assert_eq!(tolerates(&[toleration], "k", "v", "NoSchedule"), expected, "{text}");
        }
    }
}
