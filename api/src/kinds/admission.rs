//! Webhooks and admission policies: defaulting.

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
    NamedRuleWithOperations, RuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Kind, or, or_text};

/// How long a webhook may take, in seconds.
const TIMEOUT: i32 = 10;
const HTTPS: i32 = 443;

fn policies(failure: &mut Option<String>, matching: &mut Option<String>) {
    or_text(failure, "Fail");
    or_text(matching, "Equivalent");
}

fn selectors(namespace: &mut Option<LabelSelector>, object: &mut Option<LabelSelector>) {
    or(namespace, LabelSelector::default());
    or(object, LabelSelector::default());
}

fn client(
    config: &mut WebhookClientConfig,
    timeout: &mut Option<i32>,
    rules: &mut Option<Vec<RuleWithOperations>>,
) {
    or(timeout, TIMEOUT);
    if let Some(service) = &mut config.service {
        or(&mut service.port, HTTPS);
    }
    rules.iter_mut().flatten().for_each(|rule| or_text(&mut rule.scope, "*"));
}

impl Kind for ValidatingWebhookConfiguration {
    fn default_fields(&mut self) {
        for hook in self.webhooks.iter_mut().flatten() {
            policies(&mut hook.failure_policy, &mut hook.match_policy);
            selectors(&mut hook.namespace_selector, &mut hook.object_selector);
            client(&mut hook.client_config, &mut hook.timeout_seconds, &mut hook.rules);
        }
    }
}

impl Kind for MutatingWebhookConfiguration {
    fn default_fields(&mut self) {
        for hook in self.webhooks.iter_mut().flatten() {
            policies(&mut hook.failure_policy, &mut hook.match_policy);
            selectors(&mut hook.namespace_selector, &mut hook.object_selector);
            client(&mut hook.client_config, &mut hook.timeout_seconds, &mut hook.rules);
            or_text(&mut hook.reinvocation_policy, "Never");
        }
    }
}

fn resources(matching: Option<&mut MatchResources>) {
    let Some(matching) = matching else { return };
    or_text(&mut matching.match_policy, "Equivalent");
    selectors(&mut matching.namespace_selector, &mut matching.object_selector);
    let named = |rule: &mut NamedRuleWithOperations| or_text(&mut rule.scope, "*");
    let rules = matching.resource_rules.iter_mut().chain(&mut matching.exclude_resource_rules);
    rules.flatten().for_each(named);
}

impl Kind for ValidatingAdmissionPolicy {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or_text(&mut spec.failure_policy, "Fail");
        resources(spec.match_constraints.as_mut());
    }
}

impl Kind for ValidatingAdmissionPolicyBinding {
    fn default_fields(&mut self) {
        resources(self.spec.match_resources.as_mut());
    }
}

impl Kind for MutatingAdmissionPolicy {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or_text(&mut spec.failure_policy, "Fail");
        resources(spec.match_constraints.as_mut());
    }
}

impl Kind for MutatingAdmissionPolicyBinding {
    fn default_fields(&mut self) {
        resources(self.spec.as_mut().and_then(|s| s.match_resources.as_mut()));
    }
}
