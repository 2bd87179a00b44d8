//! The files of `configMap`, `secret`, `downwardAPI` and `projected` volumes.

use decapod_client::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};

use super::atomic::{Entry, Payload};
use super::{Error, Objects, Tokens};
use crate::environment;
use crate::pod::spec;

/// Kubernetes' default permission bits of volume files.
const DEFAULT_MODE: i32 = 0o644;

/// Collects the files of one volume.
pub(super) struct Collector<'a> {
    pub(super) objects: &'a Objects,
    pub(super) tokens: &'a Tokens,
    pub(super) pod: &'a Pod,
    pub(super) facts: &'a environment::Facts<'a>,
    pub(super) renew_at: Option<Timestamp>,
}

/// A file's contents by key, before paths and modes are known.
type Contents = Vec<(String, Vec<u8>)>;

impl Collector<'_> {
    /// The folder that Kubernetes keeps such volumes in and the files; `None` for volumes of another kind.
    pub(super) async fn volume(&mut self, volume: &Volume) -> Result<Option<(&'static str, Payload)>, Error> {
        let mut payload = Payload::new();
        let folder = if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            self.config_map(&source.name, source.optional, source.items.as_ref(), mode, &mut payload).await?;
            "kubernetes.io~configmap"
        } else if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let name = source.secret_name.as_deref().unwrap_or_default();
            self.secret(name, source.optional, source.items.as_ref(), mode, &mut payload).await?;
            "kubernetes.io~secret"
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            self.downward(source.items.as_ref(), mode, &mut payload)?;
            "kubernetes.io~downward-api"
        } else if let Some(source) = &volume.projected {
            self.projected(source, &mut payload).await?;
            "kubernetes.io~projected"
        } else {
            return Ok(None);
        };
        Ok(Some((folder, payload)))
    }

    async fn projected(
        &mut self,
        source: &ProjectedVolumeSource,
        payload: &mut Payload,
    ) -> Result<(), Error> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for projection in source.sources.iter().flatten() {
            self.projection(projection, mode, payload).await?;
        }
        Ok(())
    }

    async fn projection(
        &mut self,
        source: &VolumeProjection,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), Error> {
        if let Some(map) = &source.config_map {
            self.config_map(&map.name, map.optional, map.items.as_ref(), mode, payload).await?;
        }
        if let Some(secret) = &source.secret {
            self.secret(&secret.name, secret.optional, secret.items.as_ref(), mode, payload).await?;
        }
        if let Some(downward) = &source.downward_api {
            self.downward(downward.items.as_ref(), mode, payload)?;
        }
        if let Some(token) = &source.service_account_token {
            let (text, renew_at) = self.tokens.get(self.pod, token).await?;
            self.renew_at = Some(self.renew_at.map_or(renew_at, |at| at.min(renew_at)));
            let entry = self.token_entry(text, mode);
            payload.insert(token.path.clone(), entry);
        }
        if source.cluster_trust_bundle.is_some() {
            return Err(Error::Unsupported("clusterTrustBundle"));
        }
        if source.pod_certificate.is_some() {
            return Err(Error::Unsupported("podCertificate"));
        }
        Ok(())
    }

    /// A token is for its pod's user alone: readable by all only where the user is not known.
    fn token_entry(&self, text: String, mode: i32) -> Entry {
        let pod_spec = self.pod.spec.as_ref();
        let context = pod_spec.and_then(|s| s.security_context.as_ref());
        if context.and_then(|c| c.fs_group).is_some() {
            return Entry { data: text.into_bytes(), mode: 0o600, owner: None };
        }
        let containers =
            pod_spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let users: std::collections::BTreeSet<Option<i64>> = containers
            .map(|c| {
                let own = c.security_context.as_ref().and_then(|s| s.run_as_user);
                own.or_else(|| context.and_then(|c| c.run_as_user))
            })
            .collect();
        match users.first() {
            Some(Some(user)) if users.len() == 1 => {
                Entry { data: text.into_bytes(), mode: 0o600, owner: u32::try_from(*user).ok() }
            }
            _ => Entry { data: text.into_bytes(), mode: bits(mode), owner: None },
        }
    }

    async fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&Vec<KeyToPath>>,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), Error> {
        let key = ObjectKey::new(spec::namespace(self.pod), name);
        let found = self.objects.config_map(spec::uid(self.pod), &key).await?;
        let contents = match &found {
            Some(map) => config_map_contents(map),
            None if optional == Some(true) => return Ok(()),
            None => return Err(Error::NotFound { kind: "configmap", name: name.to_owned() }),
        };
        add("config", contents, items, optional == Some(true), mode, payload)
    }

    async fn secret(
        &self,
        name: &str,
        optional: Option<bool>,
        items: Option<&Vec<KeyToPath>>,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), Error> {
        let key = ObjectKey::new(spec::namespace(self.pod), name);
        let found = self.objects.secret(spec::uid(self.pod), &key).await?;
        let contents = match &found {
            Some(secret) => secret_contents(secret),
            None if optional == Some(true) => return Ok(()),
            None => return Err(Error::NotFound { kind: "secret", name: name.to_owned() }),
        };
        add("secret", contents, items, optional == Some(true), mode, payload)
    }

    fn downward(
        &self,
        items: Option<&Vec<DownwardAPIVolumeFile>>,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), Error> {
        for item in items.into_iter().flatten() {
            let text = if let Some(reference) = &item.field_ref {
                environment::field(reference, self.facts)?
            } else if let Some(reference) = &item.resource_field_ref {
                environment::resource(reference, self.pod, None, self.facts.node)?
            } else {
                continue;
            };
            let mode = bits(item.mode.unwrap_or(mode));
            payload.insert(item.path.clone(), Entry { data: text.into_bytes(), mode, owner: None });
        }
        Ok(())
    }
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o7777
}

fn config_map_contents(map: &ConfigMap) -> Contents {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_contents(secret: &Secret) -> Contents {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

/// All keys under their own names, or the `items` under their paths.
fn add(
    kind: &'static str,
    contents: Contents,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), Error> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        let entries =
            contents.into_iter().map(|(name, data)| (name, Entry { data, mode: bits(mode), owner: None }));
        payload.extend(entries);
        return Ok(());
    };
    for item in items {
        let Some((_, data)) = contents.iter().find(|(name, _)| *name == item.key) else {
            if optional {
                continue;
            }
            return Err(Error::NoKey { kind, key: item.key.clone() });
        };
        let mode = bits(item.mode.unwrap_or(mode));
        payload.insert(item.path.clone(), Entry { data: data.clone(), mode, owner: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let contents = || vec![("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())];
        let item = |key: &str, mode| KeyToPath { key: key.into(), path: format!("x/{key}"), mode };
        let mut payload = Payload::new();
        add("config", contents(), None, false, 0o644, &mut payload).unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), ["a", "b"]);
        payload.clear();
        add("config", contents(), Some(&vec![item("b", Some(0o400))]), false, 0o644, &mut payload).unwrap();
        assert_eq!((payload.len(), payload["x/b"].mode), (1, 0o400));
        let missing = vec![item("zz", None)];
        let error = add("config", contents(), Some(&missing), false, 0o644, &mut payload).unwrap_err();
        assert_eq!(error.to_string(), "references non-existent config key: zz");
        add("config", contents(), Some(&missing), true, 0o644, &mut payload).unwrap();
    }
}
