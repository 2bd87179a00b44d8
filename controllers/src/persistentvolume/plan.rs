//! What binder does next about one claim or one volume: pure. Each plan holds one write at most; after it the world
//! is looked at again, so that a crash between two writes is nothing special.

use std::sync::Arc;

use decapod_api::labels::ParseError;
use decapod_api::storage::{self, annotation};
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
    PersistentVolumeStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Provisioners of this prefix were built into Kubernetes once; none is left.
const BUILT_IN: &str = "kubernetes.io/";

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Claim(PersistentVolumeClaim),
    ClaimStatus(PersistentVolumeClaim),
    Volume(PersistentVolume),
    VolumeStatus(PersistentVolume),
}

/// What people are told about the object that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) warns: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn normal(reason: &'static str, message: impl Into<String>) -> Option<Note> {
    Some(Note { warns: false, reason, message: message.into() })
}

fn warning(reason: &'static str, message: impl Into<String>) -> Option<Note> {
    Some(Note { warns: true, reason, message: message.into() })
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) write: Option<Write>,
    /// Told once the write, if any, is done.
    pub(super) note: Option<Note>,
    /// The claim of the volume has to be looked at.
    pub(super) claim: bool,
}

impl Plan {
    fn write(write: Write) -> Self {
        Self { write: Some(write), ..Self::default() }
    }

    fn note(note: Option<Note>) -> Self {
        Self { note, ..Self::default() }
    }
}

/// What a claim is seen against.
#[derive(Clone, Copy, Debug)]
pub(super) struct World<'a> {
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    pub(super) classes: &'a [Arc<StorageClass>],
    /// The names of the pods that mount the claim and have no node yet.
    pub(super) waiting_pods: &'a [String],
}

impl World<'_> {
    fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volumes.iter().map(|one| &**one).find(|one| one.metadata.name.as_deref() == Some(name))
    }

    fn class(&self, name: &str) -> Option<&StorageClass> {
        self.classes.iter().map(|one| &**one).find(|one| one.metadata.name.as_deref() == Some(name))
    }
}

/// What is next for a claim.
pub(super) fn claim(world: World<'_>, claim: &PersistentVolumeClaim) -> Result<Plan, ParseError> {
    if annotation(&claim.metadata, storage::BIND_COMPLETED).is_some() {
        return Ok(bound_claim(world, claim));
    }
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if !wanted.is_empty() {
        return Ok(claim_of(world, claim, wanted));
    }
    let class = world.class(storage::class_of_claim(claim));
    let waits = class.is_some_and(storage::waits_for_consumer);
    let volumes = world.volumes.iter().map(|volume| &**volume);
    if let Some(volume) = storage::best_match(claim, volumes, None, waits)? {
        return Ok(bind(volume, claim));
    }
    if storage::is_classless(claim)
        && let Some(class) = storage::default_class(world.classes.iter().map(|class| &**class))
    {
        let mut classed = claim.clone();
        classed.spec.get_or_insert_default().storage_class_name.clone_from(&class.metadata.name);
        return Ok(Plan::write(Write::Claim(classed)));
    }
    let selected = annotation(&claim.metadata, storage::SELECTED_NODE).is_some();
    Ok(if waits && !selected {
        pending(claim, first_consumer(world.waiting_pods))
    } else if storage::class_of_claim(claim).is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        pending(claim, normal("FailedBinding", message))
    } else {
        provision(claim, class)
    })
}

fn first_consumer(pods: &[String]) -> Option<Note> {
    match pods {
        [] => normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        _ => normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

/// A claim that names its volume and is not bound to it yet.
fn claim_of(world: World<'_>, claim: &PersistentVolumeClaim, name: &str) -> Plan {
    let Some(volume) = world.volume(name) else { return pending(claim, None) };
    if storage::refers_to(volume, claim) {
        return bind(volume, claim);
    }
    if claim_ref(volume).is_some() {
        let message = format!("volume {name:?} already bound to a different claim.");
        return pending(claim, warning("FailedBinding", message));
    }
    match storage::mismatch(volume, claim) {
        Some(why) => {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            pending(claim, warning("VolumeMismatch", message))
        }
        None => bind(volume, claim),
    }
}

/// A claim that was bound before.
fn bound_claim(world: World<'_>, claim: &PersistentVolumeClaim) -> Plan {
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if name.is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost(claim, "ClaimLost", message);
    }
    let Some(volume) = world.volume(name) else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost(claim, "ClaimLost", message);
    };
    match claim_ref(volume) {
        Some(reference) if reference.uid != claim.metadata.uid => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            lost(claim, "ClaimMisbound", message)
        }
        _ => bind(volume, claim),
    }
}

/// The next step of binding both to each other: the volume first, and its status before the claim's.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Plan {
    if let Some(bound) = bound_volume(volume, claim) {
        return Plan::write(Write::Volume(bound));
    }
    if let Some(told) = with_phase(volume, "Bound", None) {
        return Plan::write(Write::VolumeStatus(told));
    }
    let mut bound = claim.clone();
    let spec = bound.spec.get_or_insert_default();
    if spec.volume_name != volume.metadata.name {
        spec.volume_name.clone_from(&volume.metadata.name);
        annotate(&mut bound.metadata, storage::BOUND_BY_CONTROLLER, "yes");
    }
    annotate(&mut bound.metadata, storage::BIND_COMPLETED, "yes");
    if bound != *claim {
        return Plan::write(Write::Claim(bound));
    }
    let told = bound_status(claim, volume);
    if told == *claim { Plan::default() } else { Plan::write(Write::ClaimStatus(told)) }
}

/// The volume as it refers to the claim; `None` if it does so already.
pub(super) fn bound_volume(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let mut bound = volume.clone();
    if !storage::refers_to(volume, claim) {
        annotate(&mut bound.metadata, storage::BOUND_BY_CONTROLLER, "yes");
    }
    let known = claim_ref(volume).and_then(|reference| reference.uid.as_ref());
    if known != claim.metadata.uid.as_ref() {
        bound.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: claim.metadata.namespace.clone(),
            name: claim.metadata.name.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        });
    }
    Some(bound).filter(|bound| bound != volume)
}

/// The claim with the status of one that is bound to the volume. What it holds is taken over when it becomes bound;
/// later a file system may rightly be smaller than its volume.
fn bound_status(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolumeClaim {
    let mut told = claim.clone();
    let status = told.status.get_or_insert_default();
    let spec = volume.spec.as_ref();
    status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
    if status.phase.as_deref() != Some("Bound") {
        status.phase = Some("Bound".to_owned());
        status.capacity = spec.and_then(|spec| spec.capacity.clone());
        status.current_volume_attributes_class_name =
            spec.and_then(|spec| spec.volume_attributes_class_name.clone());
    }
    told
}

fn pending(claim: &PersistentVolumeClaim, note: Option<Note>) -> Plan {
    Plan { write: unbound_status(claim, "Pending"), note, claim: false }
}

fn lost(claim: &PersistentVolumeClaim, reason: &'static str, message: &str) -> Plan {
    match unbound_status(claim, "Lost") {
        None => Plan::default(),
        write => Plan { write, note: warning(reason, message), claim: false },
    }
}

/// The status of a claim without a volume; `None` if it has it.
fn unbound_status(claim: &PersistentVolumeClaim, phase: &str) -> Option<Write> {
    let mut told = claim.clone();
    let status: &mut PersistentVolumeClaimStatus = told.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    status.access_modes = None;
    status.capacity = None;
    status.current_volume_attributes_class_name = None;
    (told != *claim).then_some(Write::ClaimStatus(told))
}

/// A claim whose volume is to be made.
fn provision(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Plan {
    let failed = |message: String| Plan::note(warning("ProvisioningFailed", message));
    let Some(class) = class else {
        let name = storage::class_of_claim(claim);
        return failed(format!("storageclass.storage.k8s.io {name:?} not found"));
    };
    let provisioner = class.provisioner.as_str();
    if provisioner.starts_with(BUILT_IN) {
        return failed(format!("no volume plugin matched name: {provisioner}"));
    }
    let mut told = claim.clone();
    for key in storage::STORAGE_PROVISIONERS {
        annotate(&mut told.metadata, key, provisioner);
    }
    if told != *claim {
        return Plan::write(Write::Claim(told));
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    pending(claim, normal("ExternalProvisioning", message))
}

/// Whether the volume is said to be given up, so that nobody need be asked again about its claim.
pub(super) fn is_given_up(volume: &PersistentVolume) -> bool {
    matches!(phase(volume), "Released" | "Failed")
}

/// What is next for a volume whose claim, by its uid, is `claim`; `None` if the claim is known to be gone.
pub(super) fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Plan {
    let reference = claim_ref(volume);
    let Some(reference) = reference.filter(|one| one.uid.as_deref().is_some_and(|uid| !uid.is_empty()))
    else {
        let write = with_phase(volume, "Available", None).map(Write::VolumeStatus);
        // One that is reserved waits for its claim, which may be there.
        return Plan { write, note: None, claim: reference.is_some() };
    };
    debug_assert!(
        claim.is_none_or(|claim| claim.metadata.uid == reference.uid),
        "another claim of that name"
    );
    let Some(claim) = claim else { return released(volume) };
    let bound_to = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if Some(bound_to) == volume.metadata.name.as_deref() {
        return Plan { write: with_phase(volume, "Bound", None).map(Write::VolumeStatus), ..Plan::default() };
    }
    if bound_to.is_empty() {
        if storage::modes_differ(claim, volume) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Plan::note(warning(
                "VolumeMismatch",
                format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {name:?} due to incompatible volumeMode."
                ),
            ));
        }
        return Plan { claim: true, ..Plan::default() };
    }
    if provisioner(volume).is_some() && policy(volume) == "Delete" {
        return released(volume);
    }
    let mut unbound = volume.clone();
    let by_us =
        unbound.metadata.annotations.as_mut().and_then(|all| all.remove(storage::BOUND_BY_CONTROLLER));
    let spec = unbound.spec.get_or_insert_default();
    match spec.claim_ref.as_mut() {
        Some(reference) if by_us.is_none() => reference.uid = None,
        _ => spec.claim_ref = None,
    }
    Plan::write(Write::Volume(unbound))
}

/// The claim of the volume is gone, or has another volume.
fn released(volume: &PersistentVolume) -> Plan {
    if !is_given_up(volume) {
        return Plan {
            write: with_phase(volume, "Released", None).map(Write::VolumeStatus),
            ..Plan::default()
        };
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let (reason, message) = match policy(volume) {
        // Whoever made it removes it.
        "Delete" if provisioner(volume).is_some_and(|by| !by.starts_with(BUILT_IN)) => {
            return Plan::default();
        }
        "Delete" => (
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
            ),
        ),
        "Recycle" => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
        _ => return Plan::default(),
    };
    match with_phase(volume, "Failed", Some(&message)) {
        None => Plan::default(),
        Some(failed) => {
            Plan { write: Some(Write::VolumeStatus(failed)), note: warning(reason, message), claim: false }
        }
    }
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn provisioner(volume: &PersistentVolume) -> Option<&str> {
    annotation(&volume.metadata, storage::PROVISIONED_BY)
}

pub(super) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref())
}

/// The volume in this phase; `None` if it is. What else somebody wrote there stays until the phase changes.
fn with_phase(volume: &PersistentVolume, phase_: &str, message: Option<&str>) -> Option<PersistentVolume> {
    let known = volume.status.as_ref().and_then(|status| status.message.as_deref());
    if phase(volume) == phase_ && (message.is_none() || message == known) {
        return None;
    }
    let mut told = volume.clone();
    let status: &mut PersistentVolumeStatus = told.status.get_or_insert_default();
    status.phase = Some(phase_.to_owned());
    status.message = message.map(str::to_owned);
    Some(told)
}

fn annotate(meta: &mut ObjectMeta, key: &str, value: &str) {
    let annotations = meta.annotations.get_or_insert_default();
    if annotations.get(key).map(String::as_str) != Some(value) {
        annotations.insert(key.to_owned(), value.to_owned());
    }
}
