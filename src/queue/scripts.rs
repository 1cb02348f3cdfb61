//! The Lua scripts, one per transition. `EVALSHA` with a fall-back to `EVAL`: an emptied script cache
//! (restart, failover) is a normal event.

use std::sync::LazyLock;

use redis::{FromRedisValue, RedisResult, Script, ScriptInvocation, aio::ConnectionLike};

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(||
            Script::new(concat!(include_str!("scripts/prelude.lua"), include_str!(concat!("scripts/", $file)))));)*
    };
}

scripts! {
    ENQUEUE = "enqueue.lua",
    CLAIM = "claim.lua",
    RENEW = "renew.lua",
    CHECKPOINT = "checkpoint.lua",
    RELEASE = "release.lua",
    EXPIRED = "expired.lua",
    REAP = "reap.lua",
    REMOVE = "remove.lua",
    ASSERT = "assert.lua",
    CONFIRM = "confirm.lua",
    SERVER = "server.lua",
    REPAIR = "repair.lua",
    DEPTH = "depth.lua",
    RATE_LIMIT = "rate_limit.lua",
    STORE_ALERT = "store_alert.lua",
    OWN = "own.lua",
}

/// The cache may be emptied again between loading a script and calling it.
const TRIES: usize = 5;

pub(crate) trait Call {
    async fn call<T: FromRedisValue>(&self, connection: &mut impl ConnectionLike) -> RedisResult<T>;
}

impl Call for ScriptInvocation<'_> {
    /// Runs the script. One that is not in the cache did not run, so it may be called again.
    async fn call<T: FromRedisValue>(&self, connection: &mut impl ConnectionLike) -> RedisResult<T> {
        let mut answer = self.invoke_async(connection).await;
        for _ in 1..TRIES {
            match &answer {
                Err(error) if error.code() == Some("NOSCRIPT") => answer = self.invoke_async(connection).await,
                _ => break,
            }
        }
        answer
    }
}
