//! Create: decode, default, admit, validate, and write what must not be there yet.

use decapod_api::meta;
use decapod_api::status::Error;
use decapod_api::validate::Scope;
use decapod_api::warnings;
use decapod_storage as storage;
use rand::Rng;
use serde_json::Value;

use super::object::set_meta;
use super::{Call, Registry, body, convert, generation, managed, object, reads, strategy};
use crate::admission::{self, Operation};
use crate::clock::rfc3339;

/// Names are tried this often before a `generateName` is given up, as Kubernetes does.
const NAME_ATTEMPTS: usize = 8;
/// What generated names are made of: no vowels, so no words; no digits that look like letters.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The length of what is appended.
const SUFFIX: usize = 5;
/// The longest base, so that base and suffix fit a label.
const MAX_BASE: usize = 63 - SUFFIX;

/// Five random characters for a generated name.
pub(crate) fn suffix() -> String {
    let mut rng = rand::rng();
    (0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

impl Registry {
    /// Creates an object from a request's body.
    pub(crate) async fn create(
        &self,
        call: &Call,
        mut body: Value,
        duplicates: &[String],
    ) -> Result<Value, Error> {
        body::check_kind(call.resource, &mut body)?;
        let mut object = body::normalize(call, body, duplicates)?;
        managed::take(&mut object);
        let managed = managed::created(call, &object, &rfc3339(self.clock.now()));
        self.create_managed(call, object, managed).await
    }

    /// Creates an object that is decoded and defaulted, with its managers.
    pub(crate) async fn create_managed(
        &self,
        call: &Call,
        mut object: Value,
        managed: Option<Value>,
    ) -> Result<Value, Error> {
        self.place(call, &mut object)?;
        warnings::dedup_owners(&mut object).into_iter().for_each(|warning| call.warn(warning));
        let generate = meta::text(&object, "generateName").unwrap_or_default().to_owned();
        let generated = meta::name(&object).is_empty() && !generate.is_empty();
        if !generated {
            return self.create_named(call, object, managed).await;
        }
        let base: String = generate.chars().take(MAX_BASE).collect();
        let mut result = Err(Error::Internal("no attempt was made".to_owned()));
        for _ in 0..NAME_ATTEMPTS {
            let mut candidate = object.clone();
            set_meta(&mut candidate, "name", format!("{base}{}", suffix()).into());
            result = self.create_named(call, candidate, managed.clone()).await;
            if !matches!(result, Err(Error::AlreadyExists { .. })) {
                return result;
            }
        }
        match result {
            Err(Error::AlreadyExists { resource, name }) => Err(Error::NoUniqueName { resource, name }),
            other => other,
        }
    }

    /// Puts the object where the request's path says, and takes out what only the server sets.
    fn place(&self, call: &Call, object: &mut Value) -> Result<(), Error> {
        if !object::version(object).is_empty() {
            return Err(Error::BadRequest(
                "resourceVersion should not be set on objects to be created".to_owned(),
            ));
        }
        let namespace = meta::namespace(object);
        if call.resource.namespaced() {
            if !namespace.is_empty() && namespace != call.namespace {
                return Err(Error::BadRequest(
                    "the namespace of the provided object does not match the namespace sent on the request"
                        .to_owned(),
                ));
            }
            set_meta(object, "namespace", call.namespace.clone().into());
        }
        for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            set_meta(object, field, Value::Null);
        }
        set_meta(object, "uid", crate::server::random_uuid().to_string().into());
        set_meta(object, "creationTimestamp", rfc3339(self.clock.now()).into());
        Ok(())
    }

    async fn create_named(
        &self,
        call: &Call,
        mut object: Value,
        managed: Option<Value>,
    ) -> Result<Value, Error> {
        let resource = call.resource;
        let named = Call { name: meta::name(&object).to_owned(), ..call.same() };
        generation::start(resource, &mut object);
        let strategy = strategy::of(resource);
        let admitted = admission::mutate(self, &named, Operation::Create, &mut object, None).await;
        call.adopt(&named);
        admitted?;
        // After the mutating plugins: what it derives rests on what they complete.
        strategy.prepare_create(&named, &mut object);
        let mut errors = meta::validate(&object, resource);
        errors.extend(convert::validate(resource, &object, None, Scope::Main));
        errors.extend(admission::malformed(&named, &object, None));
        if !errors.is_empty() {
            return Err(named.invalid(&named.name, errors));
        }
        let admitted = admission::validate(self, &named, Operation::Create, &object, None).await;
        call.adopt(&named);
        admitted?;
        warnings::of_write(resource, &object, None).into_iter().for_each(|warning| call.warn(warning));
        let claim = strategy.claim(self, &named, &mut object, None).await?;
        managed::set(&mut object, managed);
        let exists = || Error::AlreadyExists { resource: resource.qualified(), name: named.name.clone() };
        let key = named.key()?;
        if call.options.dry_run {
            claim.cancel(self).await;
            return match self.store.get(&key).await {
                Ok(None) => Ok(object),
                Ok(Some(_)) => Err(exists()),
                Err(error) => Err(reads::failed(error)),
            };
        }
        let written = self.store.create(&key, object::encode(&convert::stored(resource, &object))).await;
        match written {
            Ok(entry) => {
                claim.keep(self).await;
                set_meta(&mut object, "resourceVersion", entry.modified.to_string().into());
                Ok(object)
            }
            Err(error) => {
                // Only a refusal says that nothing was written; what is claimed for a write of
                // unknown outcome is found and released by the repair.
                if matches!(error, storage::Error::Exists(_)) {
                    claim.cancel(self).await;
                }
                Err(match error {
                    storage::Error::Exists(_) => exists(),
                    other => reads::failed(other),
                })
            }
        }
    }
}

impl Call {
    /// The same call without its warnings.
    pub(crate) fn same(&self) -> Self {
        Self {
            user: self.user.clone(),
            resource: self.resource,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            subresource: self.subresource.clone(),
            options: self.options,
            manager: self.manager.clone(),
            body: self.body.clone(),
            warnings: std::sync::Mutex::default(),
        }
    }

    /// Takes over the warnings of a copy.
    fn adopt(&self, copy: &Self) {
        copy.warnings().into_iter().for_each(|warning| self.warn(warning));
    }
}
