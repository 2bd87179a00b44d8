//! The certificate authority as the controllers see it: the keys of the API server of this process.

use std::time::Duration;

use decapod_apiserver::Handle;
use decapod_apiserver::pki::SigningRequest;
use decapod_controllers::certificates::{Authority, Refused, Subject};
use jiff::Timestamp;

use crate::failure::chain;

/// Signs with the keys of the API server.
#[derive(Debug)]
pub(super) struct Keys(pub(super) Handle);

fn refused(error: impl std::error::Error + 'static) -> Refused {
    Refused(chain(&error))
}

impl Authority for Keys {
    fn inspect(&self, request: &[u8]) -> Result<Subject, Refused> {
        let request = SigningRequest::parse(request).map_err(refused)?;
        Ok(Subject {
            common_name: request.common_name,
            organizations: request.organizations,
            dns_names: request.dns_names,
            ip_addresses: request.ip_addresses,
            emails: request.emails,
            uris: request.uris,
        })
    }

    fn sign(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, Refused> {
        let request = SigningRequest::parse(request).map_err(refused)?;
        self.0.pki().sign(&request, usages, lifetime, now).map_err(refused)
    }

    fn secret_token(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, Refused> {
        self.0.secret_token(namespace, account, account_uid, secret).map_err(refused)
    }
}
