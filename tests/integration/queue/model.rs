//! A model of the queue, and random operations on both.

use std::collections::HashMap;

use proptest::prelude::*;
use sync_operator::{domain::run::State, queue::Control};

pub const UIDS: [&str; 3] = ["a", "b", "c"];
/// Namespaces of these runs.
pub const NAMESPACES: [&str; 3] = ["crowd", "crowd", "other"];
pub const WORKERS: [&str; 2] = ["w1", "w2"];

/// The way in which a worker releases a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReleaseKind {
    Completed,
    Failed,
    Retry,
    Release,
    /// Held because of this number of documents.
    Hold(u64),
}

impl ReleaseKind {
    pub fn costs_no_attempt(self) -> bool {
        matches!(self, Self::Release | Self::Hold(_))
    }
}

/// An operation on a run, by its index. `age` selects the epoch: 0 is the newest claim, 1 the claim before, and so on,
/// including claims before the run was removed and enqueued again.
#[derive(Clone, Debug)]
pub enum Operation {
    Enqueue {
        run: usize,
        priority: i32,
        rollback: bool,
    },
    Claim {
        worker: usize,
    },
    Checkpoint {
        run: usize,
        age: usize,
    },
    /// A worker releases runs in one call.
    Release {
        runs: Vec<(usize, usize, ReleaseKind)>,
    },
    Renew {
        run: usize,
        age: usize,
    },
    Remove {
        run: usize,
    },
    Control {
        run: usize,
        suspended: bool,
        cancelled: bool,
        priority: i32,
        approved: Option<u64>,
    },
    /// The run is missing in all sets.
    Misplace {
        run: usize,
    },
    Repair,
    /// The lease of the run ends, and it is reaped.
    Expire {
        run: usize,
    },
    /// The run's backoff is over.
    Due {
        run: usize,
    },
}

pub fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let age = || prop_oneof![4 => Just(0_usize), 1 => 1..4_usize];
    let run = || 0..UIDS.len();
    let how = prop_oneof![
        2 => Just(ReleaseKind::Retry),
        2 => Just(ReleaseKind::Release),
        2 => (1..3_u64).prop_map(ReleaseKind::Hold),
        1 => Just(ReleaseKind::Completed),
        1 => Just(ReleaseKind::Failed),
    ];
    let operation = prop_oneof![
        4 => (run(), -1..=1, any::<bool>())
            .prop_map(|(run, priority, rollback)| Operation::Enqueue { run, priority, rollback }),
        6 => (0..WORKERS.len()).prop_map(|worker| Operation::Claim { worker }),
        2 => (run(), age()).prop_map(|(run, age)| Operation::Checkpoint { run, age }),
        5 => proptest::collection::vec((run(), age(), how), 1..4).prop_map(|runs| Operation::Release { runs }),
        1 => (run(), age()).prop_map(|(run, age)| Operation::Renew { run, age }),
        1 => run().prop_map(|run| Operation::Remove { run }),
        4 => (run(), any::<bool>(), prop::bool::weighted(0.2), -1..=1, prop::option::of(1..3_u64))
            .prop_map(|(run, suspended, cancelled, priority, approved)| Operation::Control {
                run, suspended, cancelled, priority, approved,
            }),
        1 => run().prop_map(|run| Operation::Misplace { run }),
        1 => Just(Operation::Repair),
        2 => run().prop_map(|run| Operation::Expire { run }),
        2 => run().prop_map(|run| Operation::Due { run }),
    ];
    proptest::collection::vec(operation, 0..40)
}

/// The expected state of the queue.
#[derive(Default)]
pub struct Model {
    pub runs: [Option<ModelRun>; UIDS.len()],
    /// All epochs of each run.
    pub epochs: [Vec<u64>; UIDS.len()],
    /// The latest tag that was claimed of each priority.
    pub virtual_times: HashMap<i32, u64>,
    /// The next tag of each flow: priority, namespace, and whether its runs were claimed before.
    pub flows: HashMap<(i32, &'static str, bool), u64>,
    pub tags: u64,
}

#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is one field of the hash")]
pub struct ModelRun {
    pub state: State,
    pub priority: i32,
    /// Negated priority and tag, since the run waited.
    pub rank: Option<(i32, u64)>,
    pub attempts: u32,
    pub recoveries: u32,
    pub stalls: u32,
    pub checkpoint: Option<usize>,
    pub suspended: bool,
    pub cancelled: bool,
    /// Number of documents of the last hold.
    pub held: Option<u64>,
    pub approved: Option<u64>,
    /// True until the backoff is over.
    pub backing_off: bool,
    /// True when the run is claimed once more before it fails, to be rolled back.
    pub rollback: bool,
    /// True when the run has failed, and only its rollback is left.
    pub rolled_back: bool,
    /// True from the first claim on.
    pub started: bool,
    /// True when the run is in the set of its state.
    pub placed: bool,
}

impl ModelRun {
    /// A run that does not wait yet.
    pub fn new(priority: i32, rollback: bool) -> Self {
        Self {
            state: State::Parked,
            priority,
            rank: None,
            attempts: 0,
            recoveries: 0,
            stalls: 0,
            checkpoint: None,
            suspended: false,
            cancelled: false,
            held: None,
            approved: None,
            backing_off: false,
            rollback,
            rolled_back: false,
            started: false,
            placed: true,
        }
    }

    /// True when the worker must release the run.
    pub fn is_recalled(&self) -> bool {
        (self.suspended || self.cancelled) && !self.rolled_back
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Completed | State::Failed)
    }
}

impl Model {
    /// An epoch to write with, and whether it holds the run.
    pub fn epoch(&self, run: usize, age: usize) -> (u64, bool) {
        let newest_first = self.epochs[run].iter().rev().nth(age);
        let active = self.runs[run].is_some_and(|run| run.state == State::Active);
        newest_first.map_or((0, false), |epoch| (*epoch, active && age == 0))
    }

    fn run(&mut self, run: usize) -> &mut ModelRun {
        self.runs[run].as_mut().unwrap()
    }

    pub fn next(&self) -> Option<usize> {
        let runs = self.runs.iter().enumerate().filter_map(|(index, run)| Some((index, (*run)?)));
        let waiting = runs.filter(|(_, run)| run.placed && run.state == State::Waiting);
        waiting.min_by_key(|(index, run)| (run.rank, *index)).map(|(index, _)| index)
    }

    /// Makes the delayed runs wait whose backoff is over.
    pub fn promote(&mut self) {
        for index in 0..UIDS.len() {
            let run = self.runs[index];
            if run.is_some_and(|run| run.placed && run.state == State::Delayed && !run.backing_off) {
                self.wait(index);
            }
        }
    }

    pub fn claim(&mut self, index: usize) {
        let run = self.run(index);
        (run.state, run.started) = (State::Active, true);
        if let Some((priority, tag)) = run.rank {
            let latest = self.virtual_times.entry(-priority).or_default();
            *latest = tag.max(*latest);
        }
    }

    fn fail(&mut self, index: usize) {
        let run = self.run(index);
        run.placed = true;
        if run.rollback && run.started && !run.rolled_back {
            run.rolled_back = true;
            run.backing_off = false;
            run.stalls = 0;
            self.settle(index);
        } else {
            self.enter(index, State::Failed);
        }
    }

    /// Sets the state of a run without a worker.
    fn settle(&mut self, index: usize) {
        let run = self.run(index);
        run.placed = true;
        if run.cancelled && !run.rolled_back {
            self.fail(index);
        } else if (run.suspended || run.held > run.approved) && !run.rolled_back {
            self.enter(index, State::Parked);
        } else if run.backing_off {
            self.enter(index, State::Delayed);
        } else {
            self.wait(index);
        }
    }

    /// Applies the changes of a controller to an unfinished run.
    pub fn control(&mut self, index: usize, control: Control<'_>) {
        let run = self.run(index);
        let before = (run.suspended, run.approved, run.cancelled, run.priority);
        run.suspended = control.suspended;
        run.approved = control.approved;
        run.cancelled |= control.cancelled.is_some();
        run.priority = control.priority;
        let is_changed = before != (run.suspended, run.approved, run.cancelled, run.priority);
        if run.state != State::Active && (is_changed || !run.placed) {
            self.settle(index);
        }
    }

    /// Takes an active run from its worker, whose lease has ended.
    pub fn lose_worker(&mut self, index: usize) {
        let run = self.run(index);
        run.recoveries += 1;
        run.stalls += 1;
        let is_stalled = run.stalls > 5;
        run.backing_off = is_stalled && run.rolled_back;
        if is_stalled && !run.rolled_back && !run.is_recalled() {
            self.fail(index);
        } else {
            self.settle(index);
        }
    }

    /// Applies the release of an active run by its worker.
    pub fn release(&mut self, index: usize, how: ReleaseKind, step: usize) {
        let run = self.run(index);
        run.checkpoint = Some(step);
        run.backing_off = how == ReleaseKind::Retry;
        if !how.costs_no_attempt() {
            run.attempts = step as u32;
        }
        match how {
            ReleaseKind::Completed => (run.state, run.placed) = (State::Completed, true),
            ReleaseKind::Failed => self.fail(index),
            ReleaseKind::Retry | ReleaseKind::Release => self.settle(index),
            ReleaseKind::Hold(number) => {
                run.held = Some(number);
                self.settle(index);
            }
        }
    }

    /// Puts runs into the sets of their states.
    pub fn repair(&mut self) {
        for index in 0..UIDS.len() {
            let Some(run) = self.runs[index].as_mut().filter(|run| !run.placed) else { continue };
            run.placed = true;
            if run.state != State::Active && !run.has_ended() {
                self.settle(index);
            }
        }
    }

    /// Sets a state other than waiting and active.
    fn enter(&mut self, index: usize, state: State) {
        if self.run(index).state == State::Waiting {
            self.return_tag(index);
        }
        self.run(index).state = state;
    }

    pub fn wait(&mut self, index: usize) {
        let run = *self.run(index);
        let keeps = matches!(run.state, State::Waiting | State::Active);
        if !keeps || run.rank.is_none_or(|(priority, _)| priority != -run.priority) {
            if run.state == State::Waiting {
                self.return_tag(index);
            }
            self.run(index).rank = Some(self.next_rank(index, run));
        }
        self.run(index).state = State::Waiting;
    }

    fn next_rank(&mut self, index: usize, run: ModelRun) -> (i32, u64) {
        self.tags += 1;
        let waiting = self.runs.iter().flatten().filter(|other| other.placed && other.state == State::Waiting);
        let ranks = waiting.filter_map(|other| other.rank).filter(|(priority, _)| *priority == -run.priority);
        let first = ranks.map(|(_, tag)| tag).min().unwrap_or(self.tags);
        let virtual_time = *self.virtual_times.entry(run.priority).or_insert(first);
        let next = self.flows.entry((run.priority, NAMESPACES[index], run.started)).or_default();
        let tag = virtual_time.max(*next);
        *next = tag + 1;
        (-run.priority, tag)
    }

    pub fn return_tag(&mut self, index: usize) {
        let run = *self.run(index);
        let Some((priority, tag)) = run.rank else { return };
        let next = self.flows.get_mut(&(-priority, NAMESPACES[index], run.started));
        if let Some(next) = next.filter(|next| **next == tag + 1) {
            *next = tag;
        }
    }
}
