//! Tokens against a few known objects.

use serde_json::json;

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

type Objects = &'static [(&'static str, &'static str, &'static str)];

struct Known(Objects);

#[async_trait]
impl Lookup for Known {
    async fn object(&self, resource: &str, _: &str, name: &str) -> Option<Value> {
        let found = self.0.iter().find(|k| k.0 == resource && k.1 == name)?;
        Some(json!({"metadata": {"name": found.1, "uid": found.2}}))
    }

    async fn label(&self, _: &Reference, _: &str, _: &str, _: &str) {}
}

fn grant() -> Grant {
    Grant {
        namespace: "web".into(),
        account: Reference { name: "bot".into(), uid: "u1".into() },
        pod: Some(Reference { name: "p".into(), uid: "u2".into() }),
        node: None,
        secret: None,
        audiences: vec![],
        lifetime: Duration::from_secs(3600),
    }
}

fn tokens_in(dir: &std::path::Path, known: Objects) -> Tokens {
    let options = TokenOptions::default().completed("cluster.local");
    Tokens::new(&Pki::open(dir, Timestamp::now()).unwrap(), options, Arc::new(Known(known)))
}

fn tokens(known: Objects) -> Tokens {
    tokens_in(tempfile::tempdir().unwrap().path(), known)
}

const BOTH: Objects = &[("serviceaccounts", "bot", "u1"), ("pods", "p", "u2")];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[tokio::test]
async fn a_token_names_its_account_and_pod() {
    let (tokens, now) = (tokens(BOTH), at(1_800_000_000));
    let signed = tokens.sign(&grant(), now).unwrap();
    assert_eq!(signed.expires.as_second(), 1_800_003_600);
    let (user, audiences) = tokens.authenticate(&signed.token, &[], now).await.unwrap();
    assert_eq!(user.username, "system:serviceaccount:web:bot");
    assert!(user.in_group("system:serviceaccounts:web") && user.in_group(crate::auth::AUTHENTICATED));
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], [signed.credential_id]);
    assert_eq!(audiences, [ISSUER]);
    let refused = tokens.authenticate(&signed.token, &["vault".into()], now).await;
    assert!(matches!(refused, Err(Error::Audience { .. })));
    let late = tokens.authenticate(&signed.token, &[], at(1_800_003_661)).await.unwrap_err();
    assert_eq!(late.to_string(), "service account token has expired");
    let early = tokens.authenticate(&signed.token, &[], at(1_799_999_000)).await;
    assert!(matches!(early, Err(Error::Early)));
}

#[tokio::test]
async fn mounted_tokens_are_honoured_for_longer() {
    let (tokens, now) = (tokens(BOTH), at(1_800_000_000));
    let mounted = Grant { lifetime: MOUNTED_LIFETIME, ..grant() };
    let signed = tokens.sign(&mounted, now).unwrap();
    assert_eq!(signed.expires.as_second(), 1_800_003_607);
    assert!(tokens.authenticate(&signed.token, &[], at(1_800_100_000)).await.is_ok());
    let other = Grant { audiences: vec!["vault".into()], ..mounted };
    let signed = tokens.sign(&other, now).unwrap();
    assert!(tokens.authenticate(&signed.token, &["vault".into()], at(1_800_100_000)).await.is_err());
}

#[tokio::test]
async fn a_token_dies_with_what_it_is_bound_to() {
    let now = Timestamp::now();
    let gone = tokens(&[("serviceaccounts", "bot", "u1")]);
    let signed = gone.sign(&grant(), now).unwrap();
    assert!(matches!(gone.authenticate(&signed.token, &[], now).await, Err(Error::Unbound)));
    let reborn = tokens(&[("serviceaccounts", "bot", "other"), ("pods", "p", "u2")]);
    let own = reborn.sign(&grant(), now).unwrap();
    let error = reborn.authenticate(&own.token, &[], now).await.unwrap_err();
    assert_eq!(error.to_string(), "service account UID (other) does not match claim (u1)");
    // Signed by another cluster's key.
    assert!(reborn.authenticate(&signed.token, &[], now).await.unwrap_err().is_foreign());
}

#[tokio::test]
async fn a_former_key_still_verifies_and_does_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let before = tokens_in(dir.path(), BOTH);
    let signed = before.sign(&grant(), now).unwrap();
    std::fs::rename(dir.path().join("sa.key"), dir.path().join("sa-2025.key")).unwrap();
    let after = tokens_in(dir.path(), BOTH);
    assert!(after.authenticate(&signed.token, &[], now).await.is_ok());
    let newer = after.sign(&grant(), now).unwrap();
    assert!(before.authenticate(&newer.token, &[], now).await.is_err(), "signed by the new key");
    assert_eq!(after.keys().jwks()["keys"].as_array().unwrap().len(), 2);
    assert_ne!(after.keys().jwks()["keys"][0], before.keys().jwks()["keys"][0]);
}

#[test]
fn user_names_of_accounts() {
    assert_eq!(split_username("system:serviceaccount:web:bot"), Some(("web", "bot")));
    for other in ["system:serviceaccount:web", "system:serviceaccount::bot", "jane"] {
        assert_eq!(split_username(other), None, "{other}");
    }
}

#[tokio::test]
async fn a_new_issuer_believes_the_old_ones_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), Timestamp::now()).unwrap();
    let known: Objects = &[("serviceaccounts", "bot", "u1"), ("pods", "p", "u2")];
    let of =
        |options: TokenOptions| Tokens::new(&pki, options.completed("cluster.local"), Arc::new(Known(known)));
    let now = at(1_800_000_000);
    let old = of(TokenOptions::default());
    let issuers = vec!["https://tokens.example/".to_owned(), ISSUER.to_owned()];
    let new = of(TokenOptions {
        issuers,
        max_lifetime: Duration::from_secs(7200),
        extend: false,
        ..TokenOptions::default()
    });
    let before = old.sign(&grant(), now).unwrap();
    assert!(new.authenticate(&before.token, &[], now).await.is_ok());
    let after = new.sign(&Grant { lifetime: Duration::from_secs(1_000_000), ..grant() }, now).unwrap();
    assert_eq!(after.expires.as_second(), 1_800_007_200);
    assert!(new.authenticate(&after.token, &[], now).await.is_ok());
    assert!(old.authenticate(&after.token, &[], now).await.unwrap_err().is_foreign());
    assert_eq!(new.options().jwks_uri.as_deref(), Some("https://tokens.example/openid/v1/jwks"));
}
