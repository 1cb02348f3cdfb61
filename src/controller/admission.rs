//! Fair admission queue for reconciliations that write to the API server. A queued object holds no reconciliation open
//! and is not polled: the dispatcher triggers its reconciliation when a permit is free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::reflector::ObjectRef;
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::api::{SyncAlert, SyncJob, SyncSchedule};

/// Permits of one queue. Each holder keeps a reconciliation open, so both queues together must leave some
/// reconciliations for objects that write nothing. kube starts reconciliations beyond its limit in no order.
const PERMITS: usize = 64;
/// Longest time for which a dispatched permit is reserved. An object that was deleted in the meantime never takes the
/// permit.
const RESERVATION: Duration = Duration::from_secs(5);

/// Object whose reconciliation has a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObjectKey {
    Schedule(ObjectRef<SyncSchedule>),
    Job(ObjectRef<SyncJob>),
    Alert(ObjectRef<SyncAlert>),
}

impl From<&SyncSchedule> for ObjectKey {
    fn from(schedule: &SyncSchedule) -> Self {
        Self::Schedule(ObjectRef::from_obj(schedule))
    }
}

impl From<&SyncJob> for ObjectKey {
    fn from(job: &SyncJob) -> Self {
        Self::Job(ObjectRef::from_obj(job))
    }
}

impl From<&SyncAlert> for ObjectKey {
    fn from(alert: &SyncAlert) -> Self {
        Self::Alert(ObjectRef::from_obj(alert))
    }
}

impl ObjectKey {
    /// Kind of the object.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Schedule(_) => "SyncSchedule",
            Self::Job(_) => "SyncJob",
            Self::Alert(_) => "SyncAlert",
        }
    }

    /// Reference to the object, for events.
    pub fn reference(&self) -> ObjectReference {
        match self {
            Self::Schedule(schedule) => schedule.clone().into(),
            Self::Job(job) => job.clone().into(),
            Self::Alert(alert) => alert.clone().into(),
        }
    }
}

/// Permit to write, until it is dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// Queue of objects that wait for a permit. First come, first served within SyncJobs and within the other kinds. Either
/// of the two is served next: after an outage, each SyncSchedule has a status to write, and the ends of runs must not
/// wait behind all of them.
#[derive(Clone)]
pub(super) struct AdmissionQueue {
    permits: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<ObjectKey, Known>>>,
    jobs: mpsc::UnboundedSender<ObjectKey>,
    others: mpsc::UnboundedSender<ObjectKey>,
}

enum Known {
    Waits,
    Reserved(Permit, Instant),
}

/// Dispatcher of free permits: triggers the reconciliation of the next object.
pub(super) struct Dispatcher {
    queue: AdmissionQueue,
    waiting_jobs: mpsc::UnboundedReceiver<ObjectKey>,
    waiting_others: mpsc::UnboundedReceiver<ObjectKey>,
    schedules: mpsc::UnboundedSender<ObjectRef<SyncSchedule>>,
    jobs: mpsc::UnboundedSender<ObjectRef<SyncJob>>,
    alerts: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
}

/// Objects to which a permit was dispatched.
pub(super) struct Admitted {
    pub schedules: UnboundedReceiverStream<ObjectRef<SyncSchedule>>,
    pub jobs: UnboundedReceiverStream<ObjectRef<SyncJob>>,
    pub alerts: UnboundedReceiverStream<ObjectRef<SyncAlert>>,
}

impl AdmissionQueue {
    pub fn new() -> (Self, Dispatcher, Admitted) {
        let ((waiting_job, waiting_jobs), (waiting_other, waiting_others)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let ((schedules, admitted_schedules), (jobs, admitted_jobs)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (alerts, admitted_alerts) = mpsc::unbounded_channel();
        let (permits, known) = (Arc::new(Semaphore::new(PERMITS)), Arc::default());
        let queue = Self { permits, known, jobs: waiting_job, others: waiting_other };
        let admitted = Admitted {
            schedules: admitted_schedules.into(),
            jobs: admitted_jobs.into(),
            alerts: admitted_alerts.into(),
        };
        (queue.clone(), Dispatcher { queue, waiting_jobs, waiting_others, schedules, jobs, alerts }, admitted)
    }

    /// Takes the permit that is reserved for an object. Call it first in a reconciliation: the permit is released when
    /// the reconciliation ends, also when there is nothing left to write.
    pub fn take_permit(&self, who: &ObjectKey) -> Option<Permit> {
        take_reserved(&mut self.lock(), who)
    }

    /// Takes a permit when no object waits for one. Otherwise queues the object, once: it is reconciled again when a
    /// permit is free.
    pub fn enqueue(&self, who: ObjectKey) -> Option<Permit> {
        let mut known = self.lock();
        if let Some(permit) = take_reserved(&mut known, &who) {
            return Some(permit);
        }
        if known.contains_key(&who) {
            return None;
        }
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        known.insert(who.clone(), Known::Waits);
        let end = if matches!(who, ObjectKey::Job(_)) { &self.jobs } else { &self.others };
        // The receiver is gone only when the process ends.
        end.send(who).ok();
        None
    }

    fn reserve(&self, who: &ObjectKey, permit: Permit) {
        self.lock().insert(who.clone(), Known::Reserved(permit, Instant::now()));
    }

    fn reclaim_unused(&self, now: Instant) {
        self.lock().retain(
            |_, known| !matches!(known, Known::Reserved(_, since) if now.saturating_duration_since(*since) >= RESERVATION),
        );
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_reserved(known: &mut HashMap<ObjectKey, Known>, who: &ObjectKey) -> Option<Permit> {
    match known.remove(who)? {
        Known::Reserved(permit, _) => Some(permit),
        Known::Waits => {
            known.insert(who.clone(), Known::Waits);
            None
        }
    }
}

impl Dispatcher {
    /// Dispatches permits. Never ends.
    pub async fn dispatch(mut self) {
        let mut ticks = interval(RESERVATION / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = None;
        loop {
            let permits = Arc::clone(&self.queue.permits);
            select! {
                _ = ticks.tick() => self.queue.reclaim_unused(Instant::now()),
                // `select!` takes a random one of the branches that are ready.
                who = self.waiting_jobs.recv(), if next.is_none() => next = who,
                who = self.waiting_others.recv(), if next.is_none() => next = who,
                // It is never closed.
                Ok(permit) = permits.acquire_owned(), if next.is_some() => {
                    if let Some(who) = next.take() {
                        self.queue.reserve(&who, permit);
                        self.trigger(who);
                    }
                }
            }
        }
    }

    /// The readers are gone only when the process ends.
    fn trigger(&self, who: ObjectKey) {
        match who {
            ObjectKey::Schedule(schedule) => self.schedules.send(schedule).ok(),
            ObjectKey::Job(job) => self.jobs.send(job).ok(),
            ObjectKey::Alert(alert) => self.alerts.send(alert).ok(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> ObjectKey {
        ObjectKey::Job(ObjectRef::new(&format!("j{number}")).within("here"))
    }

    /// A queue without free permits, the permits, and the streams of its dispatcher.
    fn full() -> (AdmissionQueue, Vec<Permit>, Admitted) {
        let (queue, dispatcher, admitted) = AdmissionQueue::new();
        tokio::spawn(dispatcher.dispatch());
        let permits = (0..PERMITS).map(|number| queue.enqueue(job(number)).unwrap()).collect();
        (queue, permits, admitted)
    }

    async fn next_admitted(from: &mut Admitted) -> ObjectKey {
        use futures::StreamExt;
        ObjectKey::Job(from.jobs.next().await.unwrap())
    }

    #[tokio::test]
    async fn queued_objects_are_admitted_in_order() {
        let (queue, mut permits, mut from) = full();
        for number in [100, 101, 100, 102] {
            assert!(queue.enqueue(job(number)).is_none());
        }
        for number in [100, 101] {
            permits.pop();
            let who = next_admitted(&mut from).await;
            assert_eq!(who, job(number));
            assert!(queue.enqueue(job(7)).is_none(), "an object must not overtake the waiting objects");
            permits.push(queue.take_permit(&who).unwrap());
            assert!(queue.take_permit(&who).is_none() && queue.take_permit(&job(102)).is_none());
        }
        // Each object is in the queue once.
        permits.drain(..3);
        let rest = [next_admitted(&mut from).await, next_admitted(&mut from).await];
        assert_eq!(rest, [job(102), job(7)]);
        drop(queue.enqueue(job(102)).unwrap());
        assert!(queue.enqueue(job(103)).is_some(), "a permit is free, and no object waits");
    }

    #[tokio::test]
    async fn an_unused_permit_is_reclaimed() {
        let (queue, mut permits, mut from) = full();
        assert!(queue.enqueue(job(100)).is_none() && queue.enqueue(job(101)).is_none());
        permits.pop();
        assert_eq!(next_admitted(&mut from).await, job(100));
        queue.reclaim_unused(Instant::now());
        assert!(queue.lock().contains_key(&job(100)));
        queue.reclaim_unused(Instant::now() + RESERVATION);
        assert_eq!(next_admitted(&mut from).await, job(101));
        assert!(queue.take_permit(&job(100)).is_none());
        assert!(queue.enqueue(job(100)).is_none(), "it waits again");
    }

    #[tokio::test]
    async fn ends_of_runs_do_not_wait_behind_all_schedules() {
        use futures::StreamExt;
        let (queue, permits, mut from) = full();
        for number in 0..PERMITS {
            let schedule = ObjectRef::new(&format!("s{number}")).within("here");
            assert!(queue.enqueue(ObjectKey::Schedule(schedule)).is_none());
        }
        assert!(queue.enqueue(job(100)).is_none());
        let mut permits = permits.into_iter();
        let mut served = 0;
        loop {
            permits.next();
            select! {
                Some(_) = from.jobs.next() => break,
                Some(schedule) = from.schedules.next() => {
                    served += 1;
                    drop(queue.take_permit(&ObjectKey::Schedule(schedule)).unwrap());
                }
            }
        }
        assert!(served < PERMITS, "{served}");
    }
}
