//! `token`: bootstrap tokens, with which new nodes (and `kubeadm`-like tools) first come in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use decapod_apiserver::pki::share::SERVERS;
use serde_json::{Value, json};

use super::session::{Session, with_query};
use crate::failure::Failure;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// Where the cluster is, for whoever joins.
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const USAGE_PREFIX: &str = "usage-bootstrap-";
const NODES: &str = "system:bootstrappers:decapod:default-node-token";
/// The lengths of a token's halves.
const ID: usize = 6;
const SECRET: usize = 16;

/// Bootstrap tokens, with which new nodes first come in.
#[derive(Subcommand, Debug)]
pub(crate) enum Token {
    /// Make a token and print it.
    Create(Create),
    /// Show the tokens.
    List(List),
    /// Make tokens invalid.
    #[command(alias = "delete")]
    Revoke(Revoke),
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The token, ID.SECRET of 6 and 16 letters and digits (default: a random one).
    token: Option<String>,
    /// How long it is good; 0s for ever.
    #[arg(long, default_value = "24h")]
    ttl: String,
    /// Print the command with which a node joins instead of the token alone.
    #[arg(long)]
    print_join_command: bool,
    /// What it is for, in words.
    #[arg(long, default_value = "")]
    description: String,
    /// What it may be used for.
    #[arg(long, value_delimiter = ',', default_value = "signing,authentication",
          value_parser = ["signing", "authentication"])]
    usages: Vec<String>,
    /// What joins by it: a node, or a further server, which gets the keys of the cluster (its authority's, too).
    #[arg(long, value_enum, default_value_t = Role::Node)]
    role: Role,
    /// The groups of who authenticates by it, below system:bootstrappers (default: that of its role).
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Node,
    Server,
}

impl Role {
    /// The group to which the cluster's own bindings give what who joins needs.
    fn group(self) -> &'static str {
        match self {
            Self::Node => NODES,
            Self::Server => SERVERS,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// The form: json, or a table.
    #[arg(short, long, value_parser = ["json", "table"], default_value = "table")]
    output: String,
}

#[derive(Args, Debug)]
pub(crate) struct Revoke {
    /// Tokens, or their ids.
    #[arg(required = true)]
    tokens: Vec<String>,
}

impl Token {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(session).await,
            Self::List(list) => list.run(session).await,
            Self::Revoke(revoke) => revoke.run(session).await,
        }
    }
}

impl Create {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        let token = match &self.token {
            Some(token) => token.clone(),
            None => format!("{}.{}", random(ID)?, random(SECRET)?),
        };
        let (id, secret) = split(&token).ok_or_else(|| {
            Failure::new(format!("\"{token}\" is no token"))
                .hint("6 lower-case letters or digits, a point, and 16 of them")
        })?;
        let object = object(id, secret, self)?;
        session.create(SECRETS, &object).await?;
        if self.print_join_command {
            let info = session.get(CLUSTER_INFO).await?;
            let (server, hash) = cluster(&info)
                .ok_or_else(|| Failure::new("kube-public/cluster-info does not say where the cluster is"))?;
            let agreed = agreed(&info);
            let joins = format!("--server {server} --token {token} --ca-cert-hash {hash}{agreed}");
            match self.role {
                Role::Node => println!("decapod agent {joins}"),
                Role::Server => {
                    println!("decapod server {joins} --datastore etcd=URL,URL");
                    eprintln!("with the same --datastore and --etcd-… flags as the other servers");
                }
            }
        } else {
            println!("{token}");
        }
        Ok(())
    }
}

impl Create {
    fn groups(&self) -> String {
        if self.groups.is_empty() { self.role.group().to_owned() } else { self.groups.join(",") }
    }
}

/// The Secret that is a bootstrap token.
fn object(id: &str, secret: &str, create: &Create) -> Result<Value, Failure> {
    let lifetime = crate::duration::parse(&create.ttl)?;
    let mut data = json!({"token-id": id, "token-secret": secret,
        "auth-extra-groups": create.groups()});
    if !lifetime.is_zero() {
        let end = jiff::Timestamp::now().checked_add(lifetime);
        let end = end.map_err(|_| Failure::new(format!("--ttl {} is too long", create.ttl)))?;
        data["expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    if !create.description.is_empty() {
        data["description"] = create.description.as_str().into();
    }
    for usage in &create.usages {
        data[format!("{USAGE_PREFIX}{usage}")] = "true".into();
    }
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": TYPE, "stringData": data,
        "metadata": {"name": format!("{NAME_PREFIX}{id}"), "namespace": "kube-system"}}))
}

/// A token for a node that joins within the hour, and the Secret that makes it good.
pub(crate) fn for_a_node(description: &str) -> Result<(String, Value), Failure> {
    let (id, secret) = (random(ID)?, random(SECRET)?);
    let create = Create {
        token: None,
        ttl: "1h".to_owned(),
        print_join_command: false,
        description: description.to_owned(),
        usages: vec!["authentication".to_owned()],
        role: Role::Node,
        groups: Vec::new(),
    };
    let object = object(&id, &secret, &create)?;
    Ok((format!("{id}.{secret}"), object))
}

impl List {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        let path = with_query(SECRETS, &[("fieldSelector", format!("type={TYPE}"))]);
        let list = session.get(&path).await?;
        let rows: Vec<Value> = list["items"].as_array().into_iter().flatten().map(row).collect();
        if self.output == "json" {
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(());
        }
        println!("{:<24} {:<22} {:<24} {:<44} DESCRIPTION", "TOKEN", "EXPIRES", "USAGES", "EXTRA GROUPS");
        for row in rows {
            let text =
                |field: &str| row[field].as_str().filter(|t| !t.is_empty()).unwrap_or("<none>").to_owned();
            let expires = row["expires"].as_str().filter(|t| !t.is_empty()).unwrap_or("<forever>");
            let (token, usages) = (text("token"), text("usages"));
            println!("{token:<24} {expires:<22} {usages:<24} {:<44} {}", text("groups"), text("description"));
        }
        Ok(())
    }
}

impl Revoke {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        for token in &self.tokens {
            let id = split(token).map_or(token.as_str(), |(id, _)| id);
            if !is(id, ID) {
                return Err(Failure::new(format!("\"{token}\" is neither a token nor the id of one")));
            }
            session.delete(&format!("{SECRETS}/{NAME_PREFIX}{id}"), &json!({})).await?;
            println!("bootstrap token \"{id}\" revoked");
        }
        Ok(())
    }
}

/// Where the cluster is, and the hash of its authority's key, as its public ConfigMap says.
fn cluster(info: &Value) -> Option<(String, String)> {
    let kubeconfig: Value = serde_saphyr::from_str(info["data"]["kubeconfig"].as_str()?).ok()?;
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    let pem = STANDARD.decode(cluster["certificate-authority-data"].as_str()?).ok()?;
    let hash = decapod_apiserver::pki::pin(&String::from_utf8(pem).ok()?)?;
    Some((cluster["server"].as_str()?.to_owned(), hash))
}

/// The flags that all nodes must agree on, where they are not the default ones.
fn agreed(info: &Value) -> String {
    const DEFAULTS: [(&str, &str); 3] = [
        ("pod-cidr", "10.244.0.0/16"),
        ("service-cidr", "10.96.0.0/16"),
        ("cluster-domain", "cluster.local"),
    ];
    let told =
        DEFAULTS.iter().filter_map(|(flag, default)| Some((flag, default, info["data"][*flag].as_str()?)));
    told.filter(|(_, default, value)| *default != value)
        .map(|(flag, _, value)| format!(" --{flag} {value}"))
        .collect()
}

/// What is shown of a token. Who may read its Secret may see it whole.
fn row(secret: &Value) -> Value {
    let text = |key: &str| {
        let bytes = STANDARD.decode(secret["data"][key].as_str().unwrap_or_default());
        // What is no text is not shown.
        bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    let keys = secret["data"].as_object().into_iter().flatten().map(|(key, _)| key);
    let used = keys
        .filter_map(|key| key.strip_prefix(USAGE_PREFIX))
        .filter(|usage| text(&format!("{USAGE_PREFIX}{usage}")) == "true");
    json!({"token": format!("{}.{}", text("token-id"), text("token-secret")), "expires": text("expiration"),
        "usages": used.collect::<Vec<_>>().join(","), "groups": text("auth-extra-groups"),
        "description": text("description")})
}

fn is(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn split(token: &str) -> Option<(&str, &str)> {
    token.split_once('.').filter(|(id, secret)| is(id, ID) && is(secret, SECRET))
}

/// Random letters and digits, each equally likely.
fn random(length: usize) -> Result<String, Failure> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    /// The largest multiple of the letters' number that fits a byte: what is above would favour some.
    const FAIR: u8 = 252;
    let source = rustls::crypto::ring::default_provider().secure_random;
    let mut text = String::new();
    while text.len() < length {
        let mut byte = [0_u8];
        source.fill(&mut byte).map_err(|_| Failure::new("the machine gives no random numbers"))?;
        if byte[0] < FAIR {
            text.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_random_and_well_formed() {
        let token = || format!("{}.{}", random(ID).unwrap(), random(SECRET).unwrap());
        let (one, two) = (token(), token());
        assert!(split(&one).is_some(), "{one}");
        assert_ne!(one, two);
        assert_eq!(split("abc.def"), None);
    }

    #[test]
    fn who_joins_is_told_what_is_not_the_default() {
        let info = json!({"data": {"pod-cidr": "10.9.0.0/16", "service-cidr": "10.96.0.0/16"}});
        assert_eq!(agreed(&info), " --pod-cidr 10.9.0.0/16");
        assert_eq!(agreed(&json!({})), "");
    }

    #[test]
    fn rows_show_what_a_token_is_for() {
        let encode = |text: &str| STANDARD.encode(text);
        let secret = json!({"data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-signing": encode("true"), "usage-bootstrap-authentication": encode("false")}});
        let row = row(&secret);
        assert_eq!((&row["token"], &row["usages"]), (&json!("abcdef.0123456789abcdef"), &json!("signing")));
    }
}
