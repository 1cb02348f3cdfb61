//! Sessions: the Kubernetes token of a user, encrypted in a cookie. The server stores nothing, so every replica with
//! the same key knows every session, and the token decides about each request as in the API.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, Request},
    http::{HeaderMap, HeaderValue, header::COOKIE},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jiff::{SignedDuration, Timestamp};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};

use tokio::time::sleep;

use crate::{
    http::{prefix::Prefix, sender::Sender},
    queue::Queue,
};

/// A session ends after this time, whatever happens in it.
const LIFE: SignedDuration = SignedDuration::from_hours(8);
/// Longest value that browsers are sure to keep.
const MAX_VALUE: usize = 3800;
/// Fewest bytes of a secret.
const MIN_SECRET: usize = 32;
/// Bytes of the time at which a session ends.
const TIME: usize = 8;
/// Interval between reads of the shared secret.
const SHARE_INTERVAL: Duration = Duration::from_secs(10);
/// The whole host.
const ROOT: &str = "/";

/// Key and settings of sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    key: Arc<RwLock<LessSafeKey>>,
    https: bool,
    /// Path of the cookie.
    path: Arc<str>,
}

/// The secret is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret of sessions must have at least {MIN_SECRET} bytes")]
pub struct WeakSecret;

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("https", &self.https).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Sessions that all processes with the same secret know. Without a secret, this process alone knows them, until
    /// [`Sessions::share`] has read one.
    ///
    /// # Errors
    /// When the secret is too short.
    pub fn new(secret: Option<&[u8]>, https: bool) -> Result<Self, WeakSecret> {
        let random: [u8; MIN_SECRET] = rand::random();
        let key = key(secret.unwrap_or(&random))?;
        Ok(Self { key: Arc::new(RwLock::new(key)), https, path: ROOT.into() })
    }

    /// Shares the secret with the other processes of a queue, which has it. Never ends. After a loss of Redis, the
    /// processes that run store their secret again, so that no session ends.
    pub async fn share(self, queue: Queue) {
        let mut secret = rand::random::<[u8; MIN_SECRET]>().to_vec();
        let mut is_used = false;
        loop {
            match queue.dashboard_key(&secret).await {
                Ok(shared) if is_used && shared == secret => {}
                Ok(shared) => match key(&shared) {
                    Ok(key) => {
                        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
                        (secret, is_used) = (shared, true);
                    }
                    Err(error) => tracing::warn!(%error, "could not use the key of the dashboard in Redis"),
                },
                Err(error) => tracing::debug!(%error, "could not share the key of the dashboard by Redis; retrying"),
            }
            sleep(if is_used { SHARE_INTERVAL } else { Duration::from_secs(1) }).await;
        }
    }

    fn key(&self) -> RwLockReadGuard<'_, LessSafeKey> {
        self.key.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sessions of a dashboard below a path. Other services of its host do not receive its cookie.
    pub(in crate::http) fn below(self, prefix: Option<&Prefix>) -> Self {
        Self { path: prefix.map_or(ROOT, Prefix::as_str).into(), ..self }
    }

    /// Transport of a request.
    pub(super) fn way(&self, request: &Request) -> Way {
        let forwarded = request.headers().get("x-forwarded-proto").map(HeaderValue::as_bytes);
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        // Who claims HTTPS without having it gets a cookie that their browser does not send: that harms only them.
        match forwarded {
            _ if self.https => Way::Https,
            Some(b"https") => Way::Https,
            None if peer.is_some_and(|ip| ip.to_canonical().is_loopback()) => Way::Loopback,
            _ => Way::Open,
        }
    }

    /// The cookie of a new session. `None` when the token is too long for one, or the request is unencrypted.
    pub(super) fn begin(&self, token: &str, way: Way, now: Timestamp) -> Option<String> {
        let end = now.checked_add(LIFE).ok()?;
        let mut sealed = [&end.as_second().to_be_bytes(), token.as_bytes()].concat();
        let nonce: [u8; NONCE_LEN] = rand::random();
        let aad = Aad::from(self.binding(way)?);
        self.key().seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        let value = BASE64.encode([&nonce[..], &sealed].concat());
        (value.len() <= MAX_VALUE).then(|| self.set_cookie(way, &value, LIFE.as_secs()))
    }

    /// The token of a request's session, when it has one that has not ended.
    pub(super) fn token(&self, headers: &HeaderMap, way: Way, now: Timestamp) -> Option<String> {
        let (name, aad) = (self.cookie(way), Aad::from(self.binding(way)?));
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(found, _)| *found == name)?;
        let mut sealed = BASE64.decode(value).ok()?;
        let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.key().open_in_place(nonce, aad, sealed).ok()?;
        let (end, token) = opened.split_first_chunk::<TIME>()?;
        (i64::from_be_bytes(*end) > now.as_second()).then(|| String::from_utf8(token.to_vec()).ok())?
    }

    /// The cookie that ends a session.
    pub(super) fn end(&self, way: Way) -> String {
        self.set_cookie(way, "", 0)
    }

    fn set_cookie(&self, way: Way, value: &str, seconds: i64) -> String {
        let secure = if way == Way::Https { "; Secure" } else { "" };
        let (name, path) = (self.cookie(way), &self.path);
        format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
    }

    /// Data that a session is bound to: the cookie, and the transport of its login. A browser sends a cookie of
    /// localhost to all ports, so other servers on this machine receive it. They cannot use it from another machine.
    fn binding(&self, way: Way) -> Option<String> {
        match way {
            Way::Https => Some(format!("{} https", self.cookie(way))),
            Way::Loopback => Some(format!("{} loopback", self.cookie(way))),
            Way::Open => None,
        }
    }

    /// The prefixes keep others from setting it: other hosts of the domain, which browsers check for the whole host only,
    /// and pages without HTTPS.
    fn cookie(&self, way: Way) -> &'static str {
        match way {
            Way::Https if &*self.path == ROOT => "__Host-sync-operator",
            Way::Https => "__Secure-sync-operator",
            Way::Loopback | Way::Open => "sync-operator",
        }
    }
}

/// Derives the key of sessions. The secret may be in use for something else, too.
fn key(secret: &[u8]) -> Result<LessSafeKey, WeakSecret> {
    if secret.len() < MIN_SECRET {
        return Err(WeakSecret);
    }
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sync-operator dashboard").extract(secret);
    let key = derived.expand(&[b"session"], &AES_256_GCM).map(UnboundKey::from).map_err(|_| WeakSecret)?;
    Ok(LessSafeKey::new(key))
}

/// Transport of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Encrypted, here or up to a proxy.
    Https,
    /// Request from this machine, such as by `kubectl port-forward`.
    Loopback,
    /// Unencrypted request from another machine. It has no session.
    Open,
}

/// Returns the path for the redirect after a form. A path outside the dashboard becomes `/`.
pub(super) fn local(path: &str) -> &str {
    let ours = path == "/" || path.starts_with("/?") || path.starts_with("/ui/");
    // Browsers treat a backslash as a slash, and remove tabs and line breaks.
    if ours && !path.contains(|c: char| c == '\\' || !c.is_ascii() || c.is_ascii_control()) { path } else { "/" }
}

/// True when a page of this host sent the form.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    Sender::from_headers(headers) == Sender::SameOrigin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Some(&[7; 32]), false).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_795_000_000).unwrap()
    }

    fn sent(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(COOKIE, format!("other=1; {pair}; last=2").parse().unwrap())])
    }

    #[test]
    fn a_session_is_readable_with_the_same_secret_until_it_ends() {
        let cookie = sessions().begin("a.b.c", Way::Https, now()).unwrap();
        assert!(cookie.starts_with("__Host-sync-operator="), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
        assert!(!cookie.contains("a.b.c") && !cookie.contains(&BASE64.encode("a.b.c")));
        let headers = sent(&cookie);
        assert_eq!(sessions().token(&headers, Way::Https, now()).as_deref(), Some("a.b.c"));
        assert_eq!(sessions().token(&headers, Way::Https, now() + LIFE), None);
        assert_eq!(Sessions::new(Some(&[8; 32]), false).unwrap().token(&headers, Way::Https, now()), None);
        assert_eq!(Sessions::new(None, false).unwrap().token(&headers, Way::Https, now()), None);
    }

    #[test]
    fn a_cookie_that_was_tampered_with_or_renamed_is_none() {
        let cookie = sessions().begin("a.b.c", Way::Loopback, now()).unwrap();
        assert!(!cookie.contains("Secure"));
        for changed in [
            cookie.replacen("sync-operator=", "sync-operator=A", 1),
            cookie.replacen("sync-operator=", "__Host-sync-operator=", 1),
            "sync-operator=".to_owned(),
            "sync-operator=AAAA".to_owned(),
            "sync-operator=!".to_owned(),
        ] {
            for way in [Way::Loopback, Way::Https] {
                assert_eq!(sessions().token(&sent(&changed), way, now()), None, "{changed}");
            }
        }
        assert_ne!(cookie, sessions().begin("a.b.c", Way::Loopback, now()).unwrap(), "each login has another one");
    }

    #[test]
    fn a_session_is_bound_to_the_transport_of_its_login() {
        assert_eq!(sessions().begin("a.b.c", Way::Open, now()), None);
        for (way, others) in [(Way::Loopback, [Way::Https, Way::Open]), (Way::Https, [Way::Loopback, Way::Open])] {
            let cookie = sessions().begin("a.b.c", way, now()).unwrap();
            let value = cookie.split_once('=').unwrap().1.split(';').next().unwrap();
            assert_eq!(sessions().token(&sent(&cookie), way, now()).as_deref(), Some("a.b.c"));
            for other in others {
                let renamed = format!("{}={value}", sessions().cookie(other));
                assert_eq!(sessions().token(&sent(&renamed), other, now()), None, "{way:?} as {other:?}");
            }
        }
    }

    #[test]
    fn below_a_path_the_cookie_counts_there_only() {
        let below = sessions().below(Some(&"/sync".parse().unwrap()));
        let cookie = below.begin("a.b.c", Way::Https, now()).unwrap();
        assert!(cookie.starts_with("__Secure-sync-operator=") && cookie.contains("; Path=/sync; "), "{cookie}");
        assert_eq!(below.token(&sent(&cookie), Way::Https, now()).as_deref(), Some("a.b.c"));
        let cookie = below.begin("a.b.c", Way::Loopback, now()).unwrap();
        assert!(cookie.starts_with("sync-operator=") && cookie.contains("; Path=/sync; "), "{cookie}");
        assert!(below.end(Way::Https).starts_with("__Secure-sync-operator=; Path=/sync; Max-Age=0"));
    }

    #[test]
    fn a_secret_must_be_long_and_a_token_must_not() {
        assert_eq!(Sessions::new(Some(b"short"), false).err(), Some(WeakSecret));
        assert!(sessions().begin(&"x".repeat(2700), Way::Https, now()).is_some());
        assert!(sessions().begin(&"x".repeat(2900), Way::Https, now()).is_none());
    }

    #[test]
    fn only_paths_of_the_dashboard_are_gone_to() {
        for path in ["/", "/?namespace=a", "/ui/runs?phase=Failed", "/ui/runs/a/b"] {
            assert_eq!(local(path), path);
        }
        for path in
            ["", "//evil", "/\\evil", "https://evil", "/ui/\\evil", "/ui/\n", "/jobs", "ui/", "javascript:1", "/ui/ä"]
        {
            assert_eq!(local(path), "/", "{path}");
        }
    }

    #[test]
    fn forms_of_other_sites_are_known_by_their_headers() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
        };
        for pairs in [
            &[("sec-fetch-site", "same-origin"), ("origin", "null")][..],
            &[("origin", "http://a:4000"), ("host", "a:4000")],
        ] {
            assert!(is_same_origin(&headers(pairs)), "{pairs:?}");
        }
        for pairs in [
            &[][..],
            &[("host", "a")],
            &[("sec-fetch-site", "cross-site"), ("origin", "http://a"), ("host", "a")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://evil"), ("host", "a")],
            &[("origin", "null"), ("host", "a")],
            &[("origin", "http://a.evil"), ("host", "a")],
        ] {
            assert!(!is_same_origin(&headers(pairs)), "{pairs:?}");
        }
    }
}
