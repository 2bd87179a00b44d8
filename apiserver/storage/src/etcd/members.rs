//! The members of etcd: one connection to each, and which of them is asked.
//!
//! All requests go to one member until it fails; then the next one is asked. So a lost member costs one
//! failed attempt, not one in three requests.

use std::error::Error as _;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, CompactionOptions, ConnectOptions, Error, GetOptions, KvClient, WatchClient};
use tokio::sync::OnceCell;
use tonic::Code;

use super::options::{Login, Options, OptionsError};

/// A request that one member has not answered by then is given up: etcd itself gives up after seven
/// seconds.
const ATTEMPT: Duration = Duration::from_secs(8);
/// A member that has not taken a connection by then is passed over.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection over which nothing came is checked this often; etcd forbids more than every five
/// seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A connection that does not answer the check by then is dead.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often each member is asked before a request fails.
const ROUNDS: usize = 3;
/// How long is waited when all of them failed: an election takes about a second.
const PAUSE: Duration = Duration::from_millis(400);

/// The connections to all members.
pub(super) struct Members {
    members: Vec<Member>,
    current: AtomicUsize,
    /// Our name and password.
    login: Option<(String, String)>,
}

struct Member {
    url: String,
    kv: KvClient,
    watch: WatchClient,
    /// Holds the connection.
    client: Client,
    /// Set once we are logged in there. From then on the client gets a new token where the old one is no longer good.
    entered: OnceCell<()>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.url)).finish()
    }
}

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("etcd at {member}: {}", .kind.describe())]
pub struct Failure {
    member: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Timeout,
    Closed,
    Refused(Box<Error>),
}

impl Kind {
    fn describe(&self) -> String {
        match self {
            Self::Timeout => format!("no answer within {} s", ATTEMPT.as_secs()),
            Self::Closed => "the connection was closed".to_owned(),
            Self::Refused(error) => describe(error),
        }
    }
}

impl Failure {
    /// The revision that was asked for is no longer kept.
    pub(super) fn is_compacted(&self) -> bool {
        self.says("required revision has been compacted")
    }

    /// The revision that was asked for is not there yet.
    pub(super) fn is_future(&self) -> bool {
        self.says("required revision is a future revision")
    }

    /// The request is larger than etcd takes.
    pub(super) fn is_too_large(&self) -> bool {
        self.says("request is too large") || self.says("larger than max")
    }

    fn status(&self) -> Option<&tonic::Status> {
        match &self.kind {
            Kind::Refused(error) => match &**error {
                Error::GRpcStatus(status) => Some(status),
                _ => None,
            },
            Kind::Timeout | Kind::Closed => None,
        }
    }

    fn says(&self, words: &str) -> bool {
        self.status().is_some_and(|status| status.message().contains(words))
    }

    /// Whether another member, or the same one later, may well answer.
    fn is_passing(&self) -> bool {
        match (&self.kind, self.status()) {
            (Kind::Timeout | Kind::Closed, _) => true,
            (_, Some(status)) => matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
            ),
            (_, None) => {
                matches!(self.kind, Kind::Refused(ref e) if matches!(**e, Error::TransportError(_) | Error::IoError(_)))
            }
        }
    }

    /// Whether the request certainly never left this machine.
    fn was_never_sent(&self) -> bool {
        let Some(status) = self.status() else { return false };
        // tonic's own words before it hands a request to a connection.
        status.message().starts_with("Service was not ready")
            || causes(status).iter().any(|cause| cause.is::<tonic::ConnectError>())
    }

    /// Whether waiting does not help: the members and we do not trust each other.
    fn is_refusal(&self) -> bool {
        let Some(status) = self.status() else { return false };
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
            || describe_status(status).contains("invalid peer certificate")
            || describe_status(status).contains("received fatal alert")
    }
}

fn causes(status: &tonic::Status) -> Vec<&(dyn std::error::Error + 'static)> {
    let mut causes = Vec::new();
    let mut next = status.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

fn describe(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => describe_status(status),
        other => other.to_string(),
    }
}

/// The message, and the causes as far as they say something new.
fn describe_status(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    for cause in causes(status) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

impl Members {
    pub(super) async fn new(options: &Options) -> Result<Self, OptionsError> {
        let tls = options.tls()?;
        let login = options.login.as_ref().map(Login::read).transpose()?;
        let mut members = Vec::new();
        for url in &options.endpoints {
            let mut connect = ConnectOptions::new()
                .with_connect_timeout(CONNECT)
                .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
                .with_keep_alive_while_idle(true)
                .with_require_leader(true)
                .with_auto_token_refresh(true);
            if let Some(tls) = tls.as_ref().filter(|_| url.starts_with("https://")) {
                connect = connect.with_tls(tls.clone());
            }
            // Nothing is sent before the first request.
            let client = Client::connect([url], Some(connect)).await.map_err(|_| OptionsError::Endpoint {
                endpoint: url.clone(),
                why: "no connection can be made with these certificates",
            })?;
            // What etcd sends was bounded when it was written, and lists are read in parts.
            members.push(Member {
                url: url.clone(),
                kv: client.kv_client().max_decoding_message_size(usize::MAX),
                watch: client.watch_client().max_decoding_message_size(usize::MAX),
                client,
                entered: OnceCell::new(),
            });
        }
        Ok(Self { members, current: AtomicUsize::new(0), login })
    }

    /// Waits until a member answers.
    pub(super) async fn wait(&self, patience: Duration) -> Result<(), Failure> {
        let last = std::sync::Mutex::new(None);
        let answered = async {
            loop {
                let failure = match self.attempt(|mut kv| async move { kv.get("/", None).await }).await {
                    Ok(_) => return Ok(()),
                    Err(failure) => failure,
                };
                if failure.is_refusal() || !failure.is_passing() {
                    return Err(failure);
                }
                tracing::warn!(%failure, "etcd does not answer yet");
                *last.lock().expect("nothing panics while it holds the lock") = Some(failure);
                tokio::time::sleep(PAUSE).await;
            }
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(result) => result,
            Err(_) => {
                let last = last.lock().expect("nothing panics while it holds the lock").take();
                Err(last.unwrap_or_else(|| self.failure(self.current(), Kind::Timeout)))
            }
        }
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.members.len()
    }

    /// Asks another member from now on, unless somebody else has seen to it.
    fn pass_over(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        // Who loses the race finds that another request has passed it over already.
        self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    fn failure(&self, member: usize, kind: Kind) -> Failure {
        Failure { member: self.members[member].url.clone(), kind }
    }

    /// Logs in, where a name is wanted and that was not done yet.
    async fn enter(&self, member: usize) -> Result<(), Error> {
        let (Some(login), member) = (&self.login, &self.members[member]) else { return Ok(()) };
        let enter = || async {
            let mut client = member.client.clone();
            client.update_user(Some(login.clone())).await
        };
        member.entered.get_or_try_init(enter).await.map(drop)
    }

    async fn attempt<T, F>(&self, call: impl Fn(KvClient) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let member = self.current();
        let kv = self.members[member].kv.clone();
        let done = async {
            self.enter(member).await?;
            call(kv).await
        };
        let failure = match tokio::time::timeout(ATTEMPT, done).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => self.failure(member, Kind::Refused(Box::new(error))),
            Err(_) => self.failure(member, Kind::Timeout),
        };
        if failure.is_passing() {
            self.pass_over(member);
        }
        Err(failure)
    }

    async fn retry<T, F>(
        &self,
        call: impl Fn(KvClient) -> F,
        again: impl Fn(&Failure) -> bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let attempts = self.members.len() * ROUNDS;
        for attempt in 1.. {
            match self.attempt(&call).await {
                Err(failure) if attempt < attempts && again(&failure) => {
                    if attempt % self.members.len() == 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Asks until a member answers; bounded.
    pub(super) async fn read<T, F>(&self, call: impl Fn(KvClient) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.retry(call, Failure::is_passing).await
    }

    /// Asks one member, and another only if the first was not even asked.
    pub(super) async fn write<T, F>(&self, call: impl Fn(KvClient) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.retry(call, Failure::was_never_sent).await
    }

    /// Forgets history. Doing it twice does no harm.
    pub(super) async fn compact(&self, revision: i64) -> Result<(), Failure> {
        let options = CompactionOptions::new();
        let compact = |mut kv: KvClient| {
            let options = options.clone();
            async move { kv.compact(revision, Some(options)).await }
        };
        self.read(compact).await.map(drop)
    }

    /// How many bytes the database of the member takes that is asked now. Nobody waits for that, so only one is asked.
    pub(super) async fn size(&self) -> Result<u64, Failure> {
        let member = self.current();
        let mut maintenance = self.members[member].client.maintenance_client();
        let asked = async {
            self.enter(member).await?;
            maintenance.status().await
        };
        match tokio::time::timeout(ATTEMPT, asked).await {
            Ok(Ok(status)) => Ok(u64::try_from(status.db_size()).unwrap_or_default()),
            Ok(Err(error)) => Err(self.failure(member, Kind::Refused(Box::new(error)))),
            Err(_) => Err(self.failure(member, Kind::Timeout)),
        }
    }

    /// What to watch with: the member that is asked now, as a number, and a client of it.
    ///
    /// A watch does not notice that its token is no longer good, but ends; so where we have a name, something is read
    /// first.
    pub(super) async fn watcher(&self) -> Result<(usize, WatchClient), Failure> {
        if self.login.is_some() {
            let count = GetOptions::new().with_count_only();
            let read = |mut kv: KvClient| {
                let count = count.clone();
                async move { kv.get("/", Some(count)).await }
            };
            self.read(read).await?;
        }
        let member = self.current();
        Ok((member, self.members[member].watch.clone()))
    }

    /// A watch of this member failed.
    pub(super) fn watch_failed(&self, member: usize, error: Option<Error>) -> Failure {
        self.pass_over(member);
        self.failure(member, error.map_or(Kind::Closed, |error| Kind::Refused(Box::new(error))))
    }

    /// A watch of this member did not start in time.
    pub(super) fn watch_timed_out(&self, member: usize) -> Failure {
        self.pass_over(member);
        self.failure(member, Kind::Timeout)
    }

    /// How often something is tried before it fails.
    pub(super) fn attempts(&self) -> usize {
        self.members.len() * ROUNDS
    }
}

/// How long is waited between attempts, and for one.
pub(super) const BETWEEN: Duration = PAUSE;
/// How long a watch may take to start.
pub(super) const START: Duration = ATTEMPT;
