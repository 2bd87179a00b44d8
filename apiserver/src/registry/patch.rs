//! Patch: JSON, merge and strategic merge patches, as functions of the current object.

use decapod_api::facts;
use decapod_api::json;
use decapod_api::patch::{self, JsonPatch};
use decapod_api::status::Error;
use serde_json::Value;

use super::update::{Part, check_identity};
use super::{Call, Registry, body};

/// A patch, parsed.
pub(crate) enum Patch {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Parses a patch by its content type; returns it with the duplicate fields of its body.
    pub(crate) fn parse(content_type: &str, bytes: &[u8]) -> Result<(Self, Vec<String>), Error> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let parsed =
            || json::parse(bytes).map_err(|e| Error::BadRequest(format!("error decoding patch: {e}")));
        match media {
            "application/json-patch+json" => {
                Ok((Self::Json(JsonPatch::parse(bytes).map_err(refused)?), Vec::new()))
            }
            "application/merge-patch+json" => parsed().map(|p| (Self::Merge(p.value), p.duplicates)),
            "application/strategic-merge-patch+json" => {
                parsed().map(|p| (Self::Strategic(p.value), p.duplicates))
            }
            "application/apply-patch+yaml" => Err(Error::UnsupportedMediaType(
                "server-side apply is not served by this version: use kubectl apply without --server-side"
                    .to_owned(),
            )),
            other => Err(Error::UnsupportedMediaType(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json (got {other})"
            ))),
        }
    }

    /// The object with the patch applied.
    pub(crate) fn apply(&self, object: &Value, type_name: &str) -> Result<Value, Error> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => patch::apply_json(&mut patched, patch).map_err(refused)?,
            Self::Merge(patch) => patch::apply_merge(&mut patched, patch),
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

fn refused(error: patch::Error) -> Error {
    match error {
        patch::Error::Malformed(why) => Error::BadRequest(why),
        patch::Error::Inapplicable(why) => Error::Invalid {
            group: String::new(),
            kind: String::new(),
            name: String::new(),
            errors: vec![decapod_api::field::Error::invalid(
                &decapod_api::field::Path::new("patch"),
                "",
                why,
            )],
        },
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
        self.modify(call, part, |old| {
            let mut patched = patch.apply(old, call.resource.type_name)?;
            body::check_kind(call.resource, &mut patched)?;
            let object = body::normalize(call, patched, duplicates)?;
            check_identity(call, &object)?;
            Ok(object)
        })
        .await
    }
}
