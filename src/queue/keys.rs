//! Names of the queue's keys. All of one queue share a hash tag, so that they live in one slot of a Redis Cluster.

/// Keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// Keys of all scripts, in the order of `scripts/prelude.lua`. First come the sets of unfinished runs (4), then of
    /// ended runs (2), then the waiting runs by the time since which they wait.
    pub shared: [String; 15],
}

impl Keys {
    pub fn new(queue: &str) -> Self {
        let prefix = format!("{{sync:{queue}}}");
        let names = [
            "waiting",
            "delayed",
            "active",
            "parked",
            "completed",
            "failed",
            "due",
            "wake",
            "events",
            "seq",
            "workers",
            "asserted",
            "owner",
            "clock",
            "shares",
        ];
        Self { shared: names.map(|name| format!("{prefix}:{name}")), prefix }
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        self.prefix.trim_start_matches("{sync:").trim_end_matches('}')
    }

    /// The list that wakes waiting workers.
    pub fn wake(&self) -> &str {
        &self.shared[7]
    }

    /// Stream of the changes of runs.
    pub fn events(&self) -> &str {
        &self.shared[8]
    }

    /// The set of the workers that live.
    pub fn workers(&self) -> &str {
        &self.shared[10]
    }

    /// The hash of the installation that owns the queue.
    pub fn owner(&self) -> &str {
        &self.shared[12]
    }

    /// The time at which a rate limit lets the next request pass.
    pub fn rate_limit(&self, name: &str) -> String {
        format!("{}:rate_limit:{name}", self.prefix)
    }

    /// Hash with the status of an alert.
    pub fn alert(&self, uid: &str) -> String {
        format!("{}:alert:{uid}", self.prefix)
    }

    /// Secret of the sessions of the dashboard.
    pub fn dashboard_key(&self) -> String {
        format!("{}:dashboard_key", self.prefix)
    }

    /// The hash of a run.
    pub fn run(&self, uid: &str) -> String {
        format!("{}:run:{uid}", self.prefix)
    }
}

/// True when a key has a part in braces, which selects its slot of a Cluster.
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>
pub(super) fn has_tag(key: &str) -> bool {
    key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(tag, _)| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tag_is_the_first_nonempty_pair_of_braces() {
        for (key, tagged) in [("{bull}:a", true), ("a{b}c", true), ("bull:a", false), ("{}a{b}", false), ("}a{", false)]
        {
            assert_eq!(has_tag(key), tagged, "{key}");
        }
    }
}
