//! The figures that autoscalers go by, from the metrics APIs: what pods use (`metrics.k8s.io`), and what others measure
//! (`custom.metrics.k8s.io`, `external.metrics.k8s.io`), which need a server of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use decapod_api::quantity::Quantity;
use decapod_client::error::{self, ErrorExt};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::MetricIdentifier;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;

use decapod_api::labels::Selector;

/// The time that a figure stands for, where its server does not say.
const WINDOW: Duration = Duration::from_secs(60);

/// What was measured of a pod, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    /// The time before `at` that it stands for.
    pub(super) window: Duration,
}

/// The samples by the names of their pods.
pub(super) type Samples = BTreeMap<String, Sample>;

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: BTreeMap<String, String>,
}

/// The metrics APIs, for the objects of one namespace.
pub(super) struct Metrics<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
}

impl Metrics<'_> {
    /// What the pods of a selector use of a resource; or one of their containers.
    pub(super) async fn resource(
        &self,
        resource: &str,
        pods: &Selector,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", self.namespace);
        let query = [("labelSelector", pods.to_string())];
        let told = |error| format!("unable to fetch metrics from resource metrics API: {error}");
        let listed: Listed = self.get(&path, &query).await.map_err(told)?;
        if listed.items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        Ok(listed.items.iter().filter_map(|pod| sample(pod, resource, container)).collect())
    }

    /// What is measured of each pod of a selector.
    pub(super) async fn pods(&self, metric: &MetricIdentifier, pods: &Selector) -> Result<Samples, String> {
        let values = self.custom(&format!("pods/*/{}", metric.name), metric, Some(pods)).await?;
        let sample = |value: &Value| {
            let seconds = value["windowSeconds"].as_u64().map(Duration::from_secs);
            let name = value["describedObject"]["name"].as_str()?.to_owned();
            let at = value["timestamp"].as_str().and_then(|text| text.parse().ok())?;
            Some((name, Sample { value: millis(&value["value"])?, at, window: seconds.unwrap_or(WINDOW) }))
        };
        Ok(values.iter().filter_map(sample).collect())
    }

    /// What is measured of one object: `path` is its place in the namespace, such as `ingresses.networking.k8s.io/web`.
    pub(super) async fn object(&self, path: &str, metric: &MetricIdentifier) -> Result<i64, String> {
        let values = self.custom(&format!("{path}/{}", metric.name), metric, None).await?;
        values
            .first()
            .and_then(|value| millis(&value["value"]))
            .ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }

    /// The sum of what is measured outside of the cluster.
    pub(super) async fn external(&self, metric: &MetricIdentifier) -> Result<i64, String> {
        let selector = selector_of(metric)?;
        let path =
            format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}", self.namespace, metric.name);
        let told = |error| format!("unable to fetch metrics from external metrics API: {error}");
        let list: Value = self.get(&path, &[("labelSelector", selector.to_string())]).await.map_err(told)?;
        let values = list["items"].as_array().filter(|items| !items.is_empty());
        let values = values.ok_or_else(|| "no metrics returned from external metrics API".to_owned())?;
        Ok(values.iter().filter_map(|value| millis(&value["value"])).fold(0, i64::saturating_add))
    }

    async fn custom(
        &self,
        path: &str,
        metric: &MetricIdentifier,
        pods: Option<&Selector>,
    ) -> Result<Vec<Value>, String> {
        const GROUP: &str = "custom.metrics.k8s.io";
        let told = |error: &dyn std::fmt::Display| {
            format!("unable to fetch metrics from custom metrics API: {error}")
        };
        let none = || told(&format!("no custom metrics API ({GROUP}) registered"));
        let group: Value = match self.request(&format!("/apis/{GROUP}"), &[]).await {
            Ok(group) => group,
            Err(error) if error.is_not_found() => return Err(none()),
            Err(error) => return Err(told(&error::chain(&error))),
        };
        let version = group["preferredVersion"]["version"].as_str().ok_or_else(none)?;
        let path = format!("/apis/{GROUP}/{version}/namespaces/{}/{path}", self.namespace);
        let mut query = vec![("metricLabelSelector", selector_of(metric)?.to_string())];
        query.extend(pods.map(|pods| ("labelSelector", pods.to_string())));
        let list: Value = self.get(&path, &query).await.map_err(|error| told(&error))?;
        let values = list["items"].as_array().filter(|items| !items.is_empty()).cloned();
        values.ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }

    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, String> {
        self.request(path, query).await.map_err(|error| error::chain(&error))
    }

    async fn request<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> kube::Result<T> {
        let set = query.iter().filter(|(_, value)| !value.is_empty());
        let query: Vec<_> = set.map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let request = Request::get(format!("{path}?{}", query.join("&"))).body(Vec::new());
        self.client.request(request.map_err(kube::Error::HttpError)?).await
    }
}

fn selector_of(metric: &MetricIdentifier) -> Result<Selector, String> {
    let selector = metric.selector.as_ref();
    selector.map_or_else(|| Ok(Selector::everything()), Selector::try_from).map_err(|error| error.to_string())
}

/// What is not plain in a query, in hexadecimal.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn millis(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<Quantity>().ok().map(|quantity| quantity.millis())
}

/// What a pod, or its container, uses; nothing where a container's figure is missing.
fn sample(pod: &PodMetrics, resource: &str, container: Option<&str>) -> Option<(String, Sample)> {
    let asked = pod.containers.iter().filter(|one| container.is_none_or(|name| name == one.name));
    let usage = |one: &ContainerMetrics| Some(one.usage.get(resource)?.parse::<Quantity>().ok()?.millis());
    let values = asked.map(usage).collect::<Option<Vec<i64>>>().filter(|values| !values.is_empty())?;
    let window = decapod_api::cron::duration(&pod.window).unwrap_or(WINDOW);
    let value = values.into_iter().fold(0, i64::saturating_add);
    Some((pod.metadata.name.clone(), Sample { value, at: pod.timestamp, window }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_do() {
        let pod: PodMetrics = serde_json::from_value(json!({"metadata": {"name": "p"},
            "timestamp": "2024-05-01T00:00:00Z", "window": "15.5s", "containers": [
            {"name": "a", "usage": {"cpu": "1500u", "memory": "1Ki"}}, {"name": "b", "usage": {"cpu": "2"}}]}))
        .unwrap();
        let value = |resource, container| sample(&pod, resource, container).map(|(_, sample)| sample.value);
        assert_eq!(value("cpu", None), Some(2_002));
        assert_eq!(value("cpu", Some("b")), Some(2_000));
        assert_eq!(value("memory", None), None, "one has no figure");
        assert_eq!(value("memory", Some("a")), Some(1_024_000));
        assert_eq!(value("cpu", Some("c")), None);
        assert_eq!(sample(&pod, "cpu", None).unwrap().1.window, Duration::from_millis(15_500));
        assert_eq!(escape("a in (b,c)"), "a%20in%20%28b%2Cc%29");
    }
}
