//! Patch: JSON, merge and strategic merge patches, as functions of the current object.

use decapod_api::apply::Apply;
use decapod_api::facts;
use decapod_api::patch::{self, JsonPatch};
use decapod_api::status::Error;
use serde_json::Value;

use super::managed::{self, Tracking};
use super::update::{Part, check_identity};
use super::{Call, Registry, body};
use crate::clock::rfc3339;

/// The media type of a configuration to apply.
const APPLY: &str = "application/apply-patch+yaml";

/// A patch, parsed.
pub(crate) enum Patch {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
    /// A configuration to apply (server-side apply).
    Apply {
        /// The configuration.
        config: Value,
        /// Whether it takes what others own.
        force: bool,
    },
}

impl Patch {
    /// Parses a patch by its content type; returns it with the duplicate fields of its body.
    pub(crate) fn parse(content_type: &str, bytes: &[u8], force: bool) -> Result<(Self, Vec<String>), Error> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let parsed =
            || body::json(bytes).map_err(|e| Error::BadRequest(format!("error decoding patch: {e}")));
        match media {
            "application/json-patch+json" => {
                let patch = JsonPatch::parse(bytes).map_err(refused)?;
                let found = json_patch_fields(&parsed()?);
                Ok((Self::Json(patch), found))
            }
            "application/merge-patch+json" => parsed().map(|p| (Self::Merge(p.value), p.duplicates)),
            "application/strategic-merge-patch+json" => {
                parsed().map(|p| (Self::Strategic(p.value), p.duplicates))
            }
            APPLY => {
                let parsed = body::parse("application/yaml", bytes).map_err(|e| match e {
                    Error::BadRequest(why) => Error::BadRequest(format!("error decoding YAML: {why}")),
                    other => other,
                })?;
                Ok((Self::Apply { config: parsed.value, force }, parsed.duplicates))
            }
            _ => Err(Error::UnsupportedMediaType(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, {APPLY}"
            ))),
        }
    }

    /// Whether bodies of a content type are configurations to apply.
    pub(crate) fn is_apply_type(content_type: &str) -> bool {
        content_type.split(';').next().unwrap_or_default().trim() == APPLY
    }

    /// Whether it is a configuration to apply.
    pub(crate) fn is_apply(&self) -> bool {
        matches!(self, Self::Apply { .. })
    }

    /// The object with the patch applied; a configuration only says what its manager wants, so it is
    /// applied by [`managed::applied`].
    pub(crate) fn apply(&self, object: &Value, type_name: &str) -> Result<Value, Error> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => patch::apply_json(&mut patched, patch).map_err(refused)?,
            Self::Merge(patch) => patch::apply_merge(&mut patched, patch),
            Self::Apply { config, .. } => patched = config.clone(),
            Self::Strategic(patch) => {
                let ty = facts::lookup(type_name).ok_or_else(|| {
                    Error::UnsupportedMediaType(
                        "strategic merge patch is not supported for this kind".to_owned(),
                    )
                })?;
                patch::apply_strategic(&mut patched, patch, ty).map_err(refused)?;
            }
        }
        Ok(patched)
    }
}

/// What a JSON patch has that is no part of one, or twice.
fn json_patch_fields(parsed: &body::Parsed) -> Vec<String> {
    let operations = parsed.value.as_array().into_iter().flatten().enumerate();
    let unknown = operations.flat_map(|(i, operation)| {
        let fields = operation.as_object().into_iter().flatten().map(|(field, _)| field);
        fields
            .filter(|field| !["op", "path", "from", "value"].contains(&field.as_str()))
            .map(move |field| format!("json patch unknown field \"[{i}].{field}\""))
    });
    unknown.chain(parsed.duplicates.iter().map(|found| format!("json patch {found}"))).collect()
}

fn refused(error: patch::Error) -> Error {
    match error {
        patch::Error::Malformed(why) => Error::BadRequest(why),
        patch::Error::Inapplicable(why) => Error::PatchRejected(why),
    }
}

impl Registry {
    /// Patches an object.
    pub(crate) async fn patch(
        &self,
        call: &Call,
        part: Part,
        patch: &Patch,
        duplicates: &[String],
    ) -> Result<Value, Error> {
        let tracking = if patch.is_apply() { Tracking::Given } else { Tracking::Update };
        self.modify_as(call, part, tracking, |old| self.patched(call, patch, duplicates, old)).await
    }

    /// The object that a patch makes of a live one (null: of none).
    pub(crate) fn patched(
        &self,
        call: &Call,
        patch: &Patch,
        duplicates: &[String],
        old: &Value,
    ) -> Result<Value, Error> {
        let mut patched = match patch {
            Patch::Apply { config, force } => {
                let apply = Apply { config, force: *force };
                managed::applied(call, old, apply, &rfc3339(self.clock.now()))?
            }
            other => other.apply(old, call.resource.type_name)?,
        };
        body::check_kind(call.resource, &mut patched)?;
        let object = body::normalize_patched(call, patched, duplicates, patch.is_apply())?;
        check_identity(call, &object)?;
        Ok(object)
    }

    /// Creates the object that an applied configuration describes.
    pub(crate) async fn apply_new(
        &self,
        call: &Call,
        patch: &Patch,
        duplicates: &[String],
    ) -> Result<Value, Error> {
        let mut object = self.patched(call, patch, duplicates, &Value::Null)?;
        let uid = decapod_api::meta::uid(&object);
        if !uid.is_empty() {
            return Err(call.conflict(format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            )));
        }
        let managed = managed::take(&mut object);
        self.create_managed(call, object, managed).await
    }
}
