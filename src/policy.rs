//! Policy that applies now, for the parts of a process.

use std::sync::Arc;

use tokio::sync::watch;

use crate::domain::{egress::Egress, policy::Policy};

/// Policy that applies now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CurrentPolicy(watch::Receiver<Arc<Policy>>);

/// Addresses that the policy allows a namespace now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NamespaceEgress {
    policy: CurrentPolicy,
    namespace: String,
}

impl Default for CurrentPolicy {
    /// The policy of an installation without settings.
    fn default() -> Self {
        Self::fixed(Policy::default())
    }
}

impl CurrentPolicy {
    /// Creates a policy that may change, with the sender of the changes.
    #[must_use]
    pub fn new(policy: Policy) -> (watch::Sender<Arc<Policy>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(policy));
        (sender, Self(receiver))
    }

    /// Creates a policy that never changes.
    #[must_use]
    pub fn fixed(policy: Policy) -> Self {
        Self::new(policy).1
    }

    /// Returns the policy.
    #[must_use]
    pub fn get(&self) -> Arc<Policy> {
        Arc::clone(&self.0.borrow())
    }

    /// Returns the changes of the policy.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Policy>> {
        self.0.clone()
    }

    /// Returns the addresses of a namespace.
    #[must_use]
    pub fn egress(&self, namespace: &str) -> NamespaceEgress {
        NamespaceEgress { policy: self.clone(), namespace: namespace.to_owned() }
    }
}

impl NamespaceEgress {
    /// Returns the addresses that are allowed now.
    #[must_use]
    pub fn get(&self) -> Egress {
        let policy = self.policy.get();
        policy.egress(&policy.matching(&self.namespace))
    }
}
