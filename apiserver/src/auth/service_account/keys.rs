//! The keys of service account tokens: one signs, several verify.
//!
//! **Invariant**: the signing key is the first of the verifying ones, so what was signed is good until
//! the key's owner takes it away.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::pki::Pki;

/// A public key by which tokens are verified.
struct Verifying {
    id: String,
    key: DecodingKey,
    /// The uncompressed point: 0x04, then x and y of 32 bytes each.
    point: Vec<u8>,
}

/// The keys of a cluster's tokens.
pub(crate) struct Keys {
    signing: EncodingKey,
    verifying: Vec<Verifying>,
}

impl Keys {
    pub(crate) fn of(pki: &Pki) -> Self {
        let point = |point: &[u8]| Verifying {
            id: base64_url(digest::digest(&digest::SHA256, point).as_ref()),
            key: DecodingKey::from_ec_der(point),
            point: point.to_vec(),
        };
        let own = pki.token_key();
        let points = std::iter::once(own.public_key_raw()).chain(pki.former_token_keys());
        Self {
            signing: EncodingKey::from_ec_der(own.serialized_der()),
            verifying: points.map(point).collect(),
        }
    }

    /// Signs claims (ES256), naming the key in the header.
    pub(super) fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = self.verifying.first().map(|key| key.id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The claims of a token that one of the keys signed. Times and audiences are the caller's affair.
    pub(super) fn verify<C: DeserializeOwned>(&self, token: &str) -> Result<C, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let named = jsonwebtoken::decode_header(token)?.kid;
        let candidates = self.verifying.iter().filter(|key| named.as_ref().is_none_or(|id| *id == key.id));
        let mut result = Err(jsonwebtoken::errors::ErrorKind::InvalidSignature.into());
        for candidate in candidates {
            result = jsonwebtoken::decode::<C>(token, &candidate.key, &validation).map(|data| data.claims);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The public keys as a JSON web key set.
    pub(crate) fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.verifying.iter().map(Verifying::jwk).collect();
        json!({ "keys": keys })
    }
}

impl Verifying {
    fn jwk(&self) -> Value {
        let (x, y) = (self.point.get(1..33), self.point.get(33..65));
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": base64_url(x.unwrap_or_default()), "y": base64_url(y.unwrap_or_default()),
        })
    }
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
