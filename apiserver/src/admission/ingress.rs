//! DefaultIngressClass: an Ingress that names no class gets the cluster's default.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Plugin, annotated, default_class};
use crate::registry::object::map_mut;
use crate::registry::row;

const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How classes were named before there was a field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.creates() && write.is("networking.k8s.io", "ingresses")
    }

    async fn mutate(&self, write: &Attributes<'_>, ingress: &mut Value) -> Result<(), Error> {
        let named = ingress["spec"]["ingressClassName"].is_string()
            || ingress["metadata"]["annotations"][CLASS_ANNOTATION].is_string();
        if named {
            return Ok(());
        }
        let classes = write.registry.all(row("networking.k8s.io", "v1", "ingressclasses"), "").await?;
        if let Some(class) = default_class(classes, |class| annotated(class, IS_DEFAULT, "true")) {
            map_mut(ingress, "spec").insert("ingressClassName".to_owned(), meta::name(&class).into());
        }
        Ok(())
    }
}
