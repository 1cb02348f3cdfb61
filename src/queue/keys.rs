//! Names of the queue's keys. All of one queue share a hash tag, so that they live in one slot of a Redis Cluster.

/// Keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    pub waiting: String,
    pub delayed: String,
    pub active: String,
    pub parked: String,
    pub completed: String,
    pub failed: String,
    pub wake: String,
    pub events: String,
    pub seq: String,
    pub workers: String,
}

impl Keys {
    pub fn new(queue: &str) -> Self {
        let prefix = format!("{{sync:{queue}}}");
        let key = |name: &str| format!("{prefix}:{name}");
        Self {
            waiting: key("waiting"),
            delayed: key("delayed"),
            active: key("active"),
            parked: key("parked"),
            completed: key("completed"),
            failed: key("failed"),
            wake: key("wake"),
            events: key("events"),
            seq: key("seq"),
            workers: key("workers"),
            prefix,
        }
    }

    pub fn run(&self, uid: &str) -> String {
        format!("{}:run:{uid}", self.prefix)
    }
}
