//! The Lua scripts, one per transition. `EVALSHA` with a fall-back to `EVAL`: an emptied script cache
//! (restart, failover) is a normal event.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));)*
    };
}

scripts! {
    ENQUEUE = "enqueue.lua",
    CANDIDATES = "candidates.lua",
    CLAIM = "claim.lua",
    RENEW = "renew.lua",
    CHECKPOINT = "checkpoint.lua",
    FINISH = "finish.lua",
    RETRY = "retry.lua",
    RELEASE = "release.lua",
    EXPIRED = "expired.lua",
    REAP = "reap.lua",
    REMOVE = "remove.lua",
}
