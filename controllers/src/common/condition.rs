//! Conditions: every kind has a type of its own for them, with the same fields and the same rules.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerCondition;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the condition types of all kinds share.
pub(crate) trait Condition: Clone {
    /// A condition that changed and was updated at `now`.
    fn new(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self;
    fn type_(&self) -> &str;
    fn status(&self) -> &str;
    fn reason(&self) -> &str;
    fn message(&self) -> &str;
    fn transition(&mut self) -> &mut Option<Time>;
}

macro_rules! condition {
    ($kind:ident $(, $update:ident)?) => {
        impl Condition for $kind {
            fn new(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self {
                Self {
                    type_: type_.to_owned(),
                    status: status.to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message.to_owned()),
                    last_transition_time: Some(Time(now)),
                    $($update: Some(Time(now)),)?
                }
            }

            fn type_(&self) -> &str {
                &self.type_
            }

            fn status(&self) -> &str {
                &self.status
            }

            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }

            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }

            fn transition(&mut self) -> &mut Option<Time> {
                &mut self.last_transition_time
            }
        }
    };
}

condition!(DeploymentCondition, last_update_time);
condition!(ReplicaSetCondition);
condition!(NamespaceCondition);
condition!(HorizontalPodAutoscalerCondition);

/// The condition of a type.
pub(crate) fn find<'a, C: Condition>(conditions: &'a [C], type_: &str) -> Option<&'a C> {
    conditions.iter().find(|condition| condition.type_() == type_)
}

/// Sets a condition. One of the same status and reason stands as it is; one of the same status keeps the
/// time of its transition.
pub(crate) fn set<C: Condition>(conditions: &mut Vec<C>, condition: C) {
    let same = |known: &C| known.status() == condition.status() && known.reason() == condition.reason();
    if find(conditions, condition.type_()).is_some_and(same) {
        return;
    }
    replace(conditions, condition);
}

/// Sets a condition also where only its message differs.
pub(crate) fn set_with_message<C: Condition>(conditions: &mut Vec<C>, condition: C) {
    let same = |known: &C| known.message() == condition.message();
    if find(conditions, condition.type_()).is_some_and(same) {
        set(conditions, condition);
    } else {
        replace(conditions, condition);
    }
}

/// Sets a condition in any case; one of the same status keeps the time of its transition.
pub(crate) fn replace<C: Condition>(conditions: &mut Vec<C>, mut condition: C) {
    let position = conditions.iter().position(|known| known.type_() == condition.type_());
    if let Some(known) = position.map(|position| &mut conditions[position]) {
        if known.status() == condition.status() {
            *condition.transition() = known.transition().clone();
        }
        *known = condition;
    } else {
        conditions.push(condition);
    }
}

/// Removes the condition of a type.
pub(crate) fn remove<C: Condition>(conditions: &mut Vec<C>, type_: &str) {
    conditions.retain(|condition| condition.type_() != type_);
}
