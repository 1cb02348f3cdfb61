//! Authentication and authorization of callers: a TokenReview, then a SubjectAccessReview.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use moka::{Expiry, future::Cache};
use sha2::{Digest, Sha256};

use super::problem::{Problem, ProblemKind};
use crate::{api::GROUP, cluster};

/// Audience of the tokens: `kubectl create token NAME --audience sync-operator`.
pub const AUDIENCE: &str = "sync-operator";
/// Lifetimes of cached answers of Kubernetes: of an allowed one, and of a denied one.
const ALLOWED_FOR: Duration = Duration::from_mins(1);
const DENIED_FOR: Duration = Duration::from_secs(10);
/// Largest number of cached answers, of each kind.
const MAX_ANSWERS: u64 = 10_000;
/// Namespaces that are looked through for a caller who has a right in some of them only.
pub(super) const MAX_NAMESPACES: usize = 50;
/// Longest accepted token. Tokens of service accounts have about 1 KiB.
const MAX_TOKEN: usize = 16 * 1024;

/// Access to reading calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ReadAccess {
    /// Everyone who reaches the port may read.
    Open,
    /// Only callers that may list SyncJobs may read.
    #[default]
    Authorized,
}

/// Authenticated caller.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Username in Kubernetes: `system:serviceaccount:NAMESPACE:NAME`.
    pub name: String,
    user: UserInfo,
    login: LoginHash,
}

/// Identity that a trusted proxy has set. It takes precedence over the headers of the request.
#[derive(Clone)]
pub(super) struct ProxyIdentity(pub Arc<Caller>);

/// Hash of the credentials: a token, or the names that a proxy set. Tokens are stored as hashes only.
type LoginHash = [u8; 32];

impl Caller {
    /// Creates a caller with only a name and groups.
    pub fn from_proxy(name: &str, groups: Vec<String>) -> Self {
        // No token has a line break, so none has the same hash.
        let login = hash(&format!("{name}\n{}", groups.join("\n")));
        let user = UserInfo { username: Some(name.to_owned()), groups: Some(groups), ..UserInfo::default() };
        Self { name: name.to_owned(), user, login }
    }

    /// Groups in Kubernetes.
    #[cfg(test)]
    pub fn groups(&self) -> &[String] {
        self.user.groups.as_deref().unwrap_or_default()
    }
}

/// A right in Kubernetes: a verb on a kind, which is nearly always a kind of this API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Right {
    pub verb: &'static str,
    /// API group of the resource.
    pub group: &'static str,
    /// `syncjobs` or `syncschedules`.
    pub resource: &'static str,
    /// `None`: in all namespaces.
    pub namespace: Option<String>,
    /// `None`: on all objects there.
    pub name: Option<String>,
}

impl Right {
    pub fn new(verb: &'static str, resource: &'static str, namespace: Option<&str>) -> Self {
        Self { verb, group: GROUP, resource, namespace: namespace.map(str::to_owned), name: None }
    }

    pub fn on(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}.{}", self.verb, self.resource, self.group)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in all namespaces"),
        }
    }
}

/// Authentication and authorisation of callers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Access(Option<Reviews>);

#[derive(Clone)]
struct Reviews {
    client: Client,
    reads: ReadAccess,
    callers: Cache<LoginHash, Option<Arc<Caller>>>,
    rights: Cache<(LoginHash, Right), bool>,
}

/// A yes is kept for longer than a no, so that a right that was just given soon counts.
struct AnswerExpiry;

impl<K> Expiry<K, bool> for AnswerExpiry {
    fn expire_after_create(&self, _: &K, allowed: &bool, _: std::time::Instant) -> Option<Duration> {
        Some(if *allowed { ALLOWED_FOR } else { DENIED_FOR })
    }
}

impl<K> Expiry<K, Option<Arc<Caller>>> for AnswerExpiry {
    fn expire_after_create(&self, _: &K, caller: &Option<Arc<Caller>>, _: std::time::Instant) -> Option<Duration> {
        Some(if caller.is_some() { ALLOWED_FOR } else { DENIED_FOR })
    }
}

impl Access {
    /// Kubernetes decides.
    pub fn reviewed(client: Client, reads: ReadAccess) -> Self {
        Self(Some(Reviews {
            client,
            reads,
            callers: Cache::builder().max_capacity(MAX_ANSWERS).expire_after(AnswerExpiry).build(),
            rights: Cache::builder().max_capacity(MAX_ANSWERS).expire_after(AnswerExpiry).build(),
        }))
    }

    /// Access without authorization, for a port that only this machine reaches.
    pub fn anyone() -> Self {
        Self(None)
    }

    /// Authenticates the caller.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        let Some(reviews) = &self.0 else { return Ok(Arc::new(anonymous())) };
        let token = token(headers).ok_or_else(|| {
            let detail = format!("send Authorization: Bearer TOKEN, with a token for the audience {AUDIENCE}");
            Problem::new(ProblemKind::Unauthenticated, detail)
        })?;
        let review = reviews.review_token(token);
        let caller = reviews.callers.try_get_with(hash(token), review).await.map_err(|problem| (*problem).clone())?;
        caller.ok_or_else(|| {
            let detail = format!("Kubernetes does not accept the token; it must be valid for the audience {AUDIENCE}");
            Problem::new(ProblemKind::Unauthenticated, detail)
        })
    }

    /// Authenticates a reader: anyone when reading is open.
    pub async fn reader(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        match &self.0 {
            Some(reviews) if reviews.reads == ReadAccess::Authorized => self.caller(headers).await,
            _ => Ok(Arc::new(anonymous())),
        }
    }

    /// Refuses a reader who may not list the SyncJobs of the namespace, or of all of them.
    pub async fn check_read(&self, reader: &Caller, namespace: Option<&str>) -> Result<(), Problem> {
        match &self.0 {
            Some(reviews) if reviews.reads == ReadAccess::Authorized => {
                self.check(reader, Right::new("list", "syncjobs", namespace)).await
            }
            _ => Ok(()),
        }
    }

    /// Returns whether a caller may list the SyncJobs of all namespaces. Callers without a token may not, unless
    /// reading is open.
    pub async fn reads_all(&self, headers: &HeaderMap) -> Result<bool, Problem> {
        match &self.0 {
            Some(reviews) if reviews.reads == ReadAccess::Authorized => {
                if token(headers).is_none() {
                    return Ok(false);
                }
                let caller = self.caller(headers).await?;
                self.has(&caller, &Right::new("list", "syncjobs", None)).await
            }
            _ => Ok(true),
        }
    }

    /// Refuses a caller who does not have a right.
    pub async fn check(&self, caller: &Caller, right: Right) -> Result<(), Problem> {
        if self.has(caller, &right).await? {
            return Ok(());
        }
        Err(Problem::new(ProblemKind::Forbidden, format!("{} may not {right}", caller.name)))
    }

    /// Returns whether a caller has a right.
    pub async fn has(&self, caller: &Caller, right: &Right) -> Result<bool, Problem> {
        let Some(reviews) = &self.0 else { return Ok(true) };
        let asked = reviews.rights.try_get_with((caller.login, right.clone()), reviews.review_right(caller, right));
        asked.await.map_err(|problem| (*problem).clone())
    }

    /// Returns those of the namespaces in which a caller has a right.
    pub async fn among(
        &self,
        caller: &Caller,
        right: &Right,
        namespaces: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Problem> {
        let mut allowed = BTreeSet::new();
        for namespace in namespaces.into_iter().take(MAX_NAMESPACES) {
            let there = Right { namespace: Some(namespace.clone()), ..right.clone() };
            if self.has(caller, &there).await? {
                allowed.insert(namespace);
            }
        }
        Ok(allowed)
    }

    /// True when Kubernetes decides, so that callers have to authenticate.
    pub fn is_locked(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the name of a caller that was authenticated recently, from the cache only.
    pub async fn known(&self, headers: &HeaderMap) -> Option<String> {
        let caller = self.0.as_ref()?.callers.get(&hash(token(headers)?)).await??;
        Some(caller.name.clone())
    }
}

impl Reviews {
    async fn review_token(&self, token: &str) -> Result<Option<Arc<Caller>>, Problem> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = cluster::call("review a token", reviews.create(&params, &review)).await?;
        let status = answer.status.unwrap_or_default();
        // A server that knows nothing of audiences names none.
        let is_for_us = status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !is_for_us {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.clone().unwrap_or_default();
        Ok(Some(Arc::new(Caller { name, user, login: hash(token) })))
    }

    async fn review_right(&self, caller: &Caller, right: &Right) -> Result<bool, Problem> {
        let UserInfo { extra, groups, uid, username } = caller.user.clone();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: username,
                groups,
                uid,
                extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(right.group.to_owned()),
                    resource: Some(right.resource.to_owned()),
                    verb: Some(right.verb.to_owned()),
                    namespace: right.namespace.clone(),
                    name: right.name.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = cluster::call("review a right", reviews.create(&params, &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

fn anonymous() -> Caller {
    Caller { name: "anonymous".to_owned(), user: UserInfo::default(), login: [0; 32] }
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN;
    usable.then_some(token)
}

fn hash(login: &str) -> LoginHash {
    Sha256::digest(login).into()
}
