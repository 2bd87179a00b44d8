//! Places in an object: how what is there merges and is owned.

use serde_json::{Value, json};
use std::sync::LazyLock;

use crate::facts::{Field, ListType, Shape, Type};

/// What a value at some place is to server-side apply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// One value with one owner: a scalar.
    Scalar(&'static Shape),
    /// A whole tree with one owner.
    Atomic,
    /// A struct; its fields are owned one by one.
    Struct(&'static Type),
    /// A map; its entries are owned one by one.
    Map(&'static Shape),
    /// A list of scalars; its values are owned one by one.
    Set(&'static Shape),
    /// A list of structs that are told apart by these keys.
    Keyed(&'static [&'static str], &'static Shape),
}

impl Place {
    /// The root of an object.
    pub(super) fn root(ty: &'static Type) -> Self {
        Self::Struct(ty)
    }

    fn of_shape(shape: &'static Shape) -> Self {
        if let Some(ty) = shape.resolve() {
            return if ty.atomic { Self::Atomic } else { Self::Struct(ty) };
        }
        match shape.wire() {
            Shape::Map(item) => Self::Map(item),
            Shape::List(_) | Shape::Any | Shape::Ref(_) => Self::Atomic,
            _ => Self::Scalar(shape),
        }
    }

    fn of_field(field: &'static Field) -> Self {
        if field.atomic {
            return Self::Atomic;
        }
        match (&field.shape, &field.list) {
            (Shape::List(item), Some(ListType::Set)) => Self::Set(item),
            (Shape::List(item), Some(ListType::Map(keys))) => Self::Keyed(keys, item),
            (shape, _) => Self::of_shape(shape),
        }
    }

    /// The place of a field or entry of what is here; `None` if there is none of that name.
    pub(super) fn entry(self, name: &str) -> Option<Self> {
        match self {
            Self::Struct(ty) => ty.fields.get(name).map(Self::of_field),
            Self::Map(item) => Some(Self::of_shape(item)),
            _ => None,
        }
    }

    /// The place of an item of the list that is here.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Set(item) | Self::Keyed(_, item) => Self::of_shape(item),
            _ => Self::Atomic,
        }
    }

    /// Whether a field of this name is declared here, rather than an entry of a map.
    pub(super) fn declares(self, name: &str) -> bool {
        matches!(self, Self::Struct(ty) if ty.fields.contains_key(name))
    }

    /// What is there although nothing was written: Kubernetes' types hold some structs by value, and
    /// write required fields also when they are empty. Such a value is nobody's change.
    pub(super) fn implied(self, name: &str) -> Option<&'static Value> {
        static ZEROS: LazyLock<[Value; 5]> =
            LazyLock::new(|| [Value::Null, json!(""), json!(0), json!(false), json!({})]);
        let Self::Struct(ty) = self else { return None };
        let field = ty.fields.get(name)?;
        let zero = match field.shape.wire() {
            _ if by_value(ty.name, name) => 4,
            _ if !field.required => return None,
            Shape::String => 1,
            Shape::Int32 | Shape::Int64 => 2,
            Shape::Bool => 3,
            _ => 0,
        };
        Some(&ZEROS[zero])
    }
}

/// Whether Kubernetes' type holds an optional struct by value, on a way from an object's root that
/// passes by such structs only.
fn by_value(ty: &str, field: &str) -> bool {
    let short = ty.rsplit('.').next().unwrap_or(ty);
    match field {
        "metadata" | "spec" | "status" => true,
        "strategy" => short == "DeploymentSpec",
        "updateStrategy" => matches!(short, "StatefulSetSpec" | "DaemonSetSpec"),
        "template" => matches!(
            short,
            "PodTemplate"
                | "DeploymentSpec"
                | "StatefulSetSpec"
                | "DaemonSetSpec"
                | "JobSpec"
                | "ReplicaSetSpec"
        ),
        "resources" => short == "PersistentVolumeClaimSpec",
        "loadBalancer" => matches!(short, "ServiceStatus" | "IngressStatus"),
        "podSelector" => short == "NetworkPolicySpec",
        "source" | "deprecatedSource" | "involvedObject" | "regarding" => short == "Event",
        "nodeInfo" | "daemonEndpoints" => short == "NodeStatus",
        "kubeletEndpoint" => short == "NodeDaemonEndpoints",
        _ => false,
    }
}
