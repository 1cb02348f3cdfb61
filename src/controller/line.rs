//! Lines of those that have something to write. Waiting in one costs nothing: no reconciliation stays open, and none comes
//! again only to see that it is not its turn.

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

/// Those that are on their way to the API server at a time. Each keeps a reconciliation open: both lines together must leave
/// some for what writes nothing. kube takes those that find none open in no order.
const PLACES: usize = 64;
/// How long a place is kept for one that was called. One that was deleted meanwhile never comes.
const KEEP: Duration = Duration::from_secs(5);

/// Somebody who has something to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    Schedule(ObjectRef<SyncSchedule>),
    Job(ObjectRef<SyncJob>),
    Alert(ObjectRef<SyncAlert>),
}

impl From<&SyncSchedule> for Writer {
    fn from(schedule: &SyncSchedule) -> Self {
        Self::Schedule(ObjectRef::from_obj(schedule))
    }
}

impl From<&SyncJob> for Writer {
    fn from(job: &SyncJob) -> Self {
        Self::Job(ObjectRef::from_obj(job))
    }
}

impl From<&SyncAlert> for Writer {
    fn from(alert: &SyncAlert) -> Self {
        Self::Alert(ObjectRef::from_obj(alert))
    }
}

impl Writer {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Schedule(_) => "SyncSchedule",
            Self::Job(_) => "SyncJob",
            Self::Alert(_) => "SyncAlert",
        }
    }

    /// The object, for events.
    pub fn reference(&self) -> ObjectReference {
        match self {
            Self::Schedule(schedule) => schedule.clone().into(),
            Self::Job(job) => job.clone().into(),
            Self::Alert(alert) => alert.clone().into(),
        }
    }
}

/// A place at the front, until it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// Who waits in it, and who was called. First come, first served, but SyncJobs and the others take turns: after an outage each
/// SyncSchedule has to tell that it is over, and the ends of runs do not wait behind all of them.
#[derive(Clone)]
pub(super) struct Line {
    places: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<Writer, Known>>>,
    jobs: mpsc::UnboundedSender<Writer>,
    others: mpsc::UnboundedSender<Writer>,
}

enum Known {
    Waits,
    Called(Place, Instant),
}

/// Calls those that wait, by having them reconciled.
pub(super) struct Caller {
    line: Line,
    waiting_jobs: mpsc::UnboundedReceiver<Writer>,
    waiting_others: mpsc::UnboundedReceiver<Writer>,
    schedules: mpsc::UnboundedSender<ObjectRef<SyncSchedule>>,
    jobs: mpsc::UnboundedSender<ObjectRef<SyncJob>>,
    alerts: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
}

/// Those that are called.
pub(super) struct Called {
    pub schedules: UnboundedReceiverStream<ObjectRef<SyncSchedule>>,
    pub jobs: UnboundedReceiverStream<ObjectRef<SyncJob>>,
    pub alerts: UnboundedReceiverStream<ObjectRef<SyncAlert>>,
}

impl Line {
    pub fn new() -> (Self, Caller, Called) {
        let ((waiting_job, waiting_jobs), (waiting_other, waiting_others)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let ((schedules, called_schedules), (jobs, called_jobs)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (alerts, called_alerts) = mpsc::unbounded_channel();
        let (places, known) = (Arc::new(Semaphore::new(PLACES)), Arc::default());
        let line = Self { places, known, jobs: waiting_job, others: waiting_other };
        let called =
            Called { schedules: called_schedules.into(), jobs: called_jobs.into(), alerts: called_alerts.into() };
        (line.clone(), Caller { line, waiting_jobs, waiting_others, schedules, jobs, alerts }, called)
    }

    /// The place that is kept for one that was called. To be asked for first in a reconciliation: it is free again when that
    /// ends and nothing was to be written any more.
    pub fn kept(&self, who: &Writer) -> Option<Place> {
        take_kept(&mut self.lock(), who)
    }

    /// A place when nobody waits for one. Otherwise one in line, once: `who` is reconciled again when it is its turn.
    pub fn enter(&self, who: Writer) -> Option<Place> {
        let mut known = self.lock();
        if let Some(place) = take_kept(&mut known, &who) {
            return Some(place);
        }
        if known.contains_key(&who) {
            return None;
        }
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        known.insert(who.clone(), Known::Waits);
        let end = if matches!(who, Writer::Job(_)) { &self.jobs } else { &self.others };
        // The receiver is gone only when the process ends.
        end.send(who).ok();
        None
    }

    fn call(&self, who: &Writer, place: Place) {
        self.lock().insert(who.clone(), Known::Called(place, Instant::now()));
    }

    fn forget_absent(&self, now: Instant) {
        self.lock().retain(
            |_, known| !matches!(known, Known::Called(_, since) if now.saturating_duration_since(*since) >= KEEP),
        );
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Writer, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_kept(known: &mut HashMap<Writer, Known>, who: &Writer) -> Option<Place> {
    match known.remove(who)? {
        Known::Called(place, _) => Some(place),
        Known::Waits => {
            known.insert(who.clone(), Known::Waits);
            None
        }
    }
}

impl Caller {
    /// Never ends.
    pub async fn call(mut self) {
        let mut ticks = interval(KEEP / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = None;
        loop {
            let places = Arc::clone(&self.line.places);
            select! {
                _ = ticks.tick() => self.line.forget_absent(Instant::now()),
                // Of those that are ready, any one is taken.
                who = self.waiting_jobs.recv(), if next.is_none() => next = who,
                who = self.waiting_others.recv(), if next.is_none() => next = who,
                // It is never closed.
                Ok(place) = places.acquire_owned(), if next.is_some() => {
                    if let Some(who) = next.take() {
                        self.line.call(&who, place);
                        self.tell(who);
                    }
                }
            }
        }
    }

    /// The readers are gone only when the process ends.
    fn tell(&self, who: Writer) {
        match who {
            Writer::Schedule(schedule) => self.schedules.send(schedule).ok(),
            Writer::Job(job) => self.jobs.send(job).ok(),
            Writer::Alert(alert) => self.alerts.send(alert).ok(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> Writer {
        Writer::Job(ObjectRef::new(&format!("j{number}")).within("here"))
    }

    /// A line whose places are all taken, and its callers' ends.
    fn full() -> (Line, Vec<Place>, Called) {
        let (line, caller, turns) = Line::new();
        tokio::spawn(caller.call());
        let places = (0..PLACES).map(|number| line.enter(job(number)).unwrap()).collect();
        (line, places, turns)
    }

    async fn called(from: &mut Called) -> Writer {
        use futures::StreamExt;
        Writer::Job(from.jobs.next().await.unwrap())
    }

    #[tokio::test]
    async fn those_that_find_no_place_are_called_in_the_order_they_came() {
        let (line, mut places, mut from) = full();
        for number in [100, 101, 100, 102] {
            assert!(line.enter(job(number)).is_none());
        }
        for number in [100, 101] {
            places.pop();
            let who = called(&mut from).await;
            assert_eq!(who, job(number));
            assert!(line.enter(job(7)).is_none(), "nobody goes before those that wait");
            places.push(line.kept(&who).unwrap());
            assert!(line.kept(&who).is_none() && line.kept(&job(102)).is_none());
        }
        // Each is there once.
        places.drain(..3);
        let rest = [called(&mut from).await, called(&mut from).await];
        assert_eq!(rest, [job(102), job(7)]);
        drop(line.enter(job(102)).unwrap());
        assert!(line.enter(job(103)).is_some(), "a place is free, and nobody waits");
    }

    #[tokio::test]
    async fn the_place_of_one_that_does_not_come_is_free_again() {
        let (line, mut places, mut from) = full();
        assert!(line.enter(job(100)).is_none() && line.enter(job(101)).is_none());
        places.pop();
        assert_eq!(called(&mut from).await, job(100));
        line.forget_absent(Instant::now());
        assert!(line.lock().contains_key(&job(100)));
        line.forget_absent(Instant::now() + KEEP);
        assert_eq!(called(&mut from).await, job(101));
        assert!(line.kept(&job(100)).is_none());
        assert!(line.enter(job(100)).is_none(), "it waits anew");
    }

    #[tokio::test]
    async fn ends_of_runs_do_not_wait_behind_all_schedules() {
        use futures::StreamExt;
        let (line, places, mut from) = full();
        for number in 0..PLACES {
            let schedule = ObjectRef::new(&format!("s{number}")).within("here");
            assert!(line.enter(Writer::Schedule(schedule)).is_none());
        }
        assert!(line.enter(job(100)).is_none());
        let mut places = places.into_iter();
        let mut told = 0;
        loop {
            places.next();
            select! {
                Some(_) = from.jobs.next() => break,
                Some(schedule) = from.schedules.next() => {
                    told += 1;
                    drop(line.kept(&Writer::Schedule(schedule)).unwrap());
                }
            }
        }
        assert!(told < PLACES, "{told}");
    }
}
