//! Which plugins run: those that do by default, and what `--enable-admission-plugins` and
//! `--disable-admission-plugins` say, by Kubernetes' names.

use std::collections::BTreeSet;

use super::{AdmissionError, PLUGINS, Plugin};

/// All plugins that Kubernetes knows.
const KNOWN: [&str; 41] = [
    "AlwaysAdmit",
    "NamespaceAutoProvision",
    "NamespaceLifecycle",
    "NamespaceExists",
    "LimitPodHardAntiAffinityTopology",
    "LimitRanger",
    "ServiceAccount",
    "NodeRestriction",
    "TaintNodesByCondition",
    "AlwaysPullImages",
    "ImagePolicyWebhook",
    "PodSecurity",
    "PodNodeSelector",
    "Priority",
    "DefaultTolerationSeconds",
    "PodTolerationRestriction",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "DefaultStorageClass",
    "StorageObjectInUseProtection",
    "PodGroupProtection",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "RuntimeClass",
    "CertificateApproval",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "DenyServiceExternalIPs",
    "PodTopologyLabels",
    "PodGroupWorkloadExists",
    "NodeDeclaredFeatureValidator",
    "JobValidation",
    "PodResizeValidator",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
    "AlwaysDeny",
];

/// Kubernetes' plugins that are parts of one of ours.
const PARTS: [&str; 3] = ["CertificateApproval", "CertificateSigning", "CertificateSubjectRestriction"];

/// What `--enable-admission-plugins` and `--disable-admission-plugins` name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionPlugins {
    /// Those that run beside those that do by default.
    pub enable: Vec<String>,
    /// Those that do not run though they do by default.
    pub disable: Vec<String>,
}

impl AdmissionPlugins {
    /// Whether they can be had.
    ///
    /// # Errors
    /// If one is unknown, or named in both lists, in kube-apiserver's words; or if one is to run that is not built in.
    pub fn check(&self) -> Result<(), AdmissionError> {
        let unknown = |flag: &str, names: &[String]| {
            let unknown = names.iter().filter(|name| !KNOWN.contains(&name.as_str()));
            unknown.map(|name| format!("{flag} plugin {name:?} is unknown")).collect::<Vec<_>>()
        };
        let mut errors = unknown("enable-admission-plugins", &self.enable);
        errors.extend(unknown("disable-admission-plugins", &self.disable));
        let both: BTreeSet<&str> =
            self.enable.iter().filter(|name| self.disable.contains(name)).map(String::as_str).collect();
        if !both.is_empty() {
            let both: Vec<&str> = both.into_iter().collect();
            errors.push(format!(
                "[{}] in enable-admission-plugins and disable-admission-plugins overlapped",
                both.join(" ")
            ));
        }
        let built_in =
            |name: &str| PARTS.contains(&name) || PLUGINS.iter().any(|plugin| plugin.name() == name);
        let missing = self.enable.iter().filter(|name| KNOWN.contains(&name.as_str()) && !built_in(name));
        errors.extend(missing.map(|name| {
            format!(
                "enable-admission-plugins plugin {name:?} is not built in: what it checks would go unchecked"
            )
        }));
        if errors.is_empty() { Ok(()) } else { Err(AdmissionError::Plugins(errors.join("; "))) }
    }
}

/// The plugins that run, in Kubernetes' order.
#[derive(Clone)]
pub(crate) struct Chosen {
    plugins: Vec<&'static dyn Plugin>,
    disabled: Vec<String>,
}

impl std::fmt::Debug for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|plugin| plugin.name())).finish()
    }
}

impl Default for Chosen {
    fn default() -> Self {
        Self::of(&AdmissionPlugins::default())
    }
}

impl Chosen {
    /// Those that run where the operator says so.
    pub(crate) fn of(flags: &AdmissionPlugins) -> Self {
        let named = |list: &[String], plugin: &dyn Plugin| list.iter().any(|name| name == plugin.name());
        let runs = |plugin: &dyn Plugin| {
            (plugin.on_by_default() || named(&flags.enable, plugin)) && !named(&flags.disable, plugin)
        };
        let plugins = PLUGINS.iter().copied().filter(|plugin| runs(*plugin)).collect();
        Self { plugins, disabled: flags.disable.clone() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'static dyn Plugin> {
        self.plugins.iter().copied()
    }

    /// Whether a part of a plugin runs, which has a name of its own in Kubernetes.
    pub(super) fn runs(&self, part: &str) -> bool {
        self.disabled.iter().all(|name| name != part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(enable: &[&str], disable: &[&str]) -> AdmissionPlugins {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        AdmissionPlugins { enable: owned(enable), disable: owned(disable) }
    }

    #[test]
    fn all_of_ours_bear_kubernetes_names_but_those_that_have_none_there() {
        let own: Vec<_> = PLUGINS.iter().map(|p| p.name()).filter(|name| !KNOWN.contains(name)).collect();
        assert_eq!(own, ["CertificateSigningRequests", "RBACEscalation"]);
    }

    #[test]
    fn flags_choose() {
        let has = |flags: &AdmissionPlugins, name: &str| {
            flags.check().unwrap();
            Chosen::of(flags).iter().any(|plugin| plugin.name() == name)
        };
        let none = AdmissionPlugins::default();
        assert!(has(&none, "NodeRestriction") && !has(&none, "AlwaysPullImages"));
        assert!(has(&flags(&["AlwaysPullImages"], &[]), "AlwaysPullImages"));
        assert!(!has(&flags(&[], &["PodSecurity", "ValidatingAdmissionWebhook"]), "PodSecurity"));
        assert!(!Chosen::of(&flags(&[], &["CertificateApproval"])).runs("CertificateApproval"));
    }

    #[test]
    fn errors_are_kube_apiservers() {
        let told = |flags: AdmissionPlugins| flags.check().unwrap_err().to_string();
        assert_eq!(
            told(flags(&["Crab", "PodSecurity"], &["Lobster", "PodSecurity"])),
            "enable-admission-plugins plugin \"Crab\" is unknown; \
             disable-admission-plugins plugin \"Lobster\" is unknown; \
             [PodSecurity] in enable-admission-plugins and disable-admission-plugins overlapped"
        );
        assert!(told(flags(&["ImagePolicyWebhook"], &[])).contains("\"ImagePolicyWebhook\" is not built in"));
    }
}
