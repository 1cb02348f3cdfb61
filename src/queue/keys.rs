//! Names of the queue's keys. All of one queue share a hash tag, so that they live in one slot of a Redis Cluster.

/// Keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// What every script gets, in the order in which `scripts/prelude.lua` names it: first the sets of the runs
    /// that have not ended (4), then of those that have (2), then those that wait, by the time since which they do.
    pub shared: [String; 11],
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
        ];
        Self { shared: names.map(|name| format!("{prefix}:{name}")), prefix }
    }

    /// The list that wakes waiting workers.
    pub fn wake(&self) -> &str {
        &self.shared[7]
    }

    /// The stream of what happens to runs.
    pub fn events(&self) -> &str {
        &self.shared[8]
    }

    /// The set of the workers that live.
    pub fn workers(&self) -> &str {
        &self.shared[10]
    }

    /// When a gate lets the next one through.
    pub fn gate(&self, name: &str) -> String {
        format!("{}:gate:{name}", self.prefix)
    }

    /// The hash of a run.
    pub fn run(&self, uid: &str) -> String {
        format!("{}:run:{uid}", self.prefix)
    }
}
