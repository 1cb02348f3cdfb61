//! Checks after each run, from the answers of the sources and the changes of the application. The oracle does not use
//! the decisions of the engine.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bson::{Bson, Document};

use crate::{
    case::{Case, LastPage, NAMESPACE, OnMissing, SourceCase, Way},
    play::{End, RunResult, Snapshot},
    stage::{Answer, Done, Record, Reported, Stage},
};

/// Failed documents whose keys a run keeps.
const SHOWN_FAILURES: i64 = 20;

/// Number of each kind of event. A model without events proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Sums(BTreeMap<&'static str, u64>);

impl Sums {
    fn add(&mut self, name: &'static str, number: usize) {
        *self.0.entry(name).or_default() += number as u64;
    }
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, number)| (*name, *number))
    }
}

/// The state of a source in a document.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    at: Option<i64>,
    none: Option<i64>,
    gone: Option<i64>,
    /// True when the values of before the mark are recorded.
    has_values: bool,
}

/// The oracle, with its state between runs.
pub struct Oracle<'a> {
    stage: &'a Stage,
    pub sums: Sums,
    /// Insertion times of documents, by `_id`, without the documents of the beginning.
    born: HashMap<String, i64>,
    /// Ends of the insertions by the application, by `_id`. A run that began between the two may have read the document or
    /// not.
    arrived: HashMap<String, i64>,
    /// Start of the run that marked a document, by `_id` and source.
    marked: HashMap<(String, usize), i64>,
    /// Time at which a source last listed a person in a used answer.
    listed: HashMap<(usize, u32), i64>,
    /// Value of a field before the mark set it, by `_id` and source.
    before_mark: HashMap<(String, usize), Option<Bson>>,
    /// Time at which a run adopted a document, by `_id` and source.
    adopted: HashMap<(String, usize), i64>,
    answers: Vec<Answer>,
}

/// A run, and the reports of its source.
struct ObservedRun<'a> {
    run: &'a RunResult,
    at: usize,
    source: &'a SourceCase,
    /// The last report on each person, in attempts that used all their answers.
    used: BTreeMap<u32, (i64, Reported)>,
    /// All reports in these attempts.
    all: Vec<(u32, i64, Reported)>,
    /// Time of the last answer.
    walked: i64,
    pages: usize,
    failed: BTreeSet<u32>,
    keyless: usize,
}

/// Requests by which an attempt checks that the source has any results.
struct Probe {
    size: u32,
    left: u32,
    found: bool,
}

/// The violated conditions.
struct Violations(Vec<String>);

impl Violations {
    fn require(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.0.push(text());
        }
    }
}

fn date(document: &Document, name: &str) -> Option<i64> {
    document.get_datetime(name).ok().map(|date| date.timestamp_millis())
}

fn short(time: i64) -> i64 {
    time % 1_000_000
}

impl<'a> Oracle<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self {
            stage,
            sums: Sums::default(),
            born: HashMap::new(),
            arrived: HashMap::new(),
            marked: HashMap::new(),
            listed: HashMap::new(),
            before_mark: HashMap::new(),
            adopted: HashMap::new(),
            answers: Vec::new(),
        }
    }

    fn case(&self) -> &'a Case {
        &self.stage.case
    }

    fn state_name(source: &SourceCase) -> Option<String> {
        source.name.map(|name| format!("{NAMESPACE}/{}", name.replace('.', "_")))
    }

    fn state(&self, source: usize, document: &Document) -> State {
        let name = Self::state_name(&self.case().sources[source]);
        let all = document.get_document("_sync").ok();
        let state = name.and_then(|name| all?.get_document(&name).ok());
        state.map_or_else(State::default, |state| State {
            at: date(state, "at"),
            none: date(state, "none"),
            gone: date(state, "gone"),
            has_values: state.contains_key("was"),
        })
    }

    fn number(&self, document: &Document) -> Option<(u32, u8)> {
        self.case().number(document)
    }

    /// Records the changes of the application between runs.
    pub fn forget_done(&mut self) {
        let done = std::mem::take(&mut self.stage.record().done);
        for (at, id, done) in done {
            if matches!(done, Done::Inserted(_)) {
                self.born.insert(id.clone(), at);
            }
            if matches!(done, Done::Arrived) {
                self.arrived.insert(id.clone(), at);
            }
            if matches!(done, Done::Activated | Done::Deleted) {
                self.before_mark.retain(|(other, _), _| *other != id);
            }
        }
    }

    /// Checks a step. `before` is the collection before it.
    pub fn check(&mut self, mut before: Snapshot, after: &Snapshot, runs: &[RunResult]) -> Result<(), Vec<String>> {
        let mut record = self.stage.record();
        let (answers, done) = (std::mem::take(&mut record.answers), std::mem::take(&mut record.done));
        let used = self.without_probes(answers.clone(), runs);
        let mut violations = Violations(Vec::new());
        let (mut deleted, mut activated) = (BTreeSet::new(), BTreeSet::new());
        for (at, id, done) in &done {
            match done {
                Done::Inserted(document) => {
                    deleted.remove(id);
                    before.insert(id.clone(), document.clone());
                    self.born.insert(id.clone(), *at);
                }
                Done::Arrived => drop(self.arrived.insert(id.clone(), *at)),
                Done::Deleted => drop(deleted.insert(id.clone())),
                Done::Activated => drop(activated.insert(id.clone())),
            }
        }
        let seen: Vec<ObservedRun<'_>> = runs.iter().filter_map(|run| self.observe(run, &used)).collect();
        for run in runs {
            self.tally(run);
            let counts = &run.checkpoint.counts;
            violations.require(counts.processed == counts.updated + counts.unchanged + counts.failed, || {
                format!("run {}: counts do not add up: {counts:?}", run.number)
            });
        }
        self.answers.extend(answers.iter().cloned());
        let touched = Touched { deleted: &deleted, activated: &activated, is_quiet: done.is_empty() };
        let shared = self.shared(&before, after);
        let mut happened = Happened::default();
        for id in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let documents = (before.get(id), after.get(id));
            let document = Subject { id, shared: &shared, touched: &touched };
            match documents {
                (Some(_), _) if deleted.contains(id) && documents.1.is_none() => {}
                (None, Some(new)) => {
                    happened.made += 1;
                    self.check_new(&document, new, after, runs, &seen, &mut violations);
                }
                (Some(_), Some(new)) if deleted.contains(id) => {
                    self.check_new(&document, new, after, runs, &seen, &mut violations);
                }
                (Some(old), None) => {
                    happened.deleted += 1;
                    happened.gone.insert(id.clone());
                    self.check_deleted(&document, old, &seen, &mut violations);
                }
                (Some(old), Some(new)) => {
                    self.check_kept(&document, old, new, runs, &seen, &record, &mut happened, &mut violations);
                }
                (None, None) => {}
            }
        }
        if let [seen] = seen.as_slice() {
            // One write may change several documents, or a document with another form of the key.
            let is_exact = shared.is_empty() && !self.case().collation;
            check_counts(seen, &touched, &happened, is_exact, &mut violations);
            self.check_guard(seen, &before, after, &touched, &happened, &mut violations);
            self.check_completeness(seen, &before, after, &shared, &touched, &happened, &mut violations);
            check_proof(seen, &mut violations);
        }
        for seen in &seen {
            self.check_listed(seen, &seen_versions(&answers, runs, seen.at), &before, after, &touched, &mut violations);
        }
        self.before_mark.retain(|(id, _), _| !activated.contains(id));
        self.sums.add("marked", happened.marked.len());
        self.sums.add("deleted", happened.deleted);
        self.sums.add("unmarked", happened.unmarked);
        self.remember(&seen, &before, after, &happened);
        if violations.0.is_empty() { Ok(()) } else { Err(violations.0) }
    }

    fn tally(&mut self, run: &RunResult) {
        self.sums.add("runs", 1);
        self.sums.add("attempts", run.attempts as usize);
        self.sums.add("killed", usize::from(run.was_killed));
        self.sums.add("held", run.holds as usize);
        self.sums.add("failed", usize::from(matches!(run.end, End::Failed(_))));
        let is_skipped = run.end == End::Completed && run.checkpoint.removal_skipped.is_some();
        self.sums.add("skipped", usize::from(is_skipped));
        let approved = run.holds > 0 && run.end == End::Completed;
        self.sums.add("approved", usize::from(approved));
    }

    fn observe<'r>(&self, run: &'r RunResult, answers: &[Answer]) -> Option<ObservedRun<'r>>
    where
        'a: 'r,
    {
        let at = run.case.source?;
        let source = &self.case().sources[at];
        let (mut used, mut all, mut keyless) = (BTreeMap::new(), Vec::new(), 0);
        let (mut walked, mut pages) = (run.started, 0);
        for answer in answers.iter().filter(|answer| answer.run == run.number) {
            walked = answer.at;
            pages += 1;
            if run.whole.contains(&answer.attempt) {
                used.extend(answer.reported.iter().map(|(number, reported)| (*number, (answer.at, *reported))));
                all.extend(answer.reported.iter().map(|(number, reported)| (*number, answer.at, *reported)));
                keyless += answer.keyless;
            }
        }
        let failures = run.checkpoint.failures.iter();
        let failed = failures.filter_map(|failure| self.case().keys.number(&failure.key, true)).collect();
        Some(ObservedRun { run, at, source, used, all, walked, pages, failed, keyless })
    }

    /// The answers without probes. An attempt with a request for each document first checks that the source has any of
    /// them, with 1, 2, 4 and so on requests, and does not use these answers otherwise.
    fn without_probes(&self, answers: Vec<Answer>, runs: &[RunResult]) -> Vec<Answer> {
        let mut probing: HashMap<(usize, u32), Probe> = HashMap::new();
        let probes = |answer: &Answer| {
            let source = runs.iter().find(|run| run.number == answer.run)?.case.source?;
            let source = &self.case().sources[source];
            Some(source.way == Way::PerUser && source.removes())
        };
        let is_used = |answer: &Answer| {
            if probes(answer) != Some(true) {
                return true;
            }
            let probe = probing.entry((answer.run, answer.attempt)).or_insert(Probe { size: 1, left: 1, found: false });
            if probe.left == 0 {
                return true;
            }
            probe.left -= 1;
            probe.found |= answer.reported.iter().any(|(_, reported)| matches!(reported, Reported::Item(_)));
            if probe.left == 0 && !probe.found {
                probe.size *= 2;
                probe.left = probe.size;
            }
            false
        };
        let mut is_used = is_used;
        answers.into_iter().filter(|answer| is_used(answer)).collect()
    }

    /// Numbers that several documents share, before or after.
    /// The documents of each number that several documents have.
    fn shared(&self, before: &Snapshot, after: &Snapshot) -> Shared {
        let mut holders = Shared::new();
        for (id, document) in before.iter().chain(after) {
            if let Some((number, _)) = self.number(document) {
                holders.entry(number).or_default().insert(id.clone());
            }
        }
        holders.retain(|_, ids| ids.len() > 1);
        holders
    }

    /// True when a run must know that another document has the number. The run looks for one after its last answer, and
    /// cannot know a document that was inserted since.
    fn is_shared(&self, subject: &Subject<'_>, number: u32, run: usize) -> bool {
        let last = self.answers.iter().filter(|answer| answer.run == run).map(|answer| answer.at).max();
        let is_known = |id: &str| self.arrived.get(id).is_none_or(|at| last.is_none_or(|last| *at < last));
        subject.shared.get(&number).is_some_and(|ids| ids.iter().any(|id| id != subject.id && is_known(id)))
    }

    fn is_selected(source: &SourceCase, document: &Document) -> bool {
        !source.filter || document.get_str("team").is_ok_and(|team| team == "x")
    }

    /// Checks a document that a run inserted.
    fn check_new(
        &mut self,
        subject: &Subject<'_>,
        new: &Document,
        after: &Snapshot,
        runs: &[RunResult],
        seen: &[ObservedRun<'_>],
        violations: &mut Violations,
    ) {
        self.born.insert(subject.id.to_owned(), runs.iter().map(|run| run.started).min().unwrap_or_default());
        self.marked.retain(|(id, _), _| id != subject.id);
        let number = self.number(new).map(|(number, _)| number);
        let is_listed = |seen: &ObservedRun<'_>| {
            let item =
                |answer: &&Answer| answer.run == seen.run.number && number.is_some_and(|n| reports_item(answer, n));
            seen.source.upsert && !seen.run.case.dry && self.answers.iter().any(|answer| item(&answer))
        };
        violations.require(seen.iter().any(is_listed), || {
            format!("{} was inserted, and no source lists it: {new}", subject.id)
        });
        let twins = after.values().filter(|other| self.number(other).map(|(number, _)| number) == number).count();
        violations.require(twins == 1, || format!("{} was inserted, and its key existed: {new}", subject.id));
    }

    /// The reasons why this run must not mark or delete a document.
    fn refusals(&self, subject: &Subject<'_>, old: &Document, seen: &ObservedRun<'_>, since: i64) -> Vec<String> {
        let mut violations = Violations(Vec::new());
        let run = seen.run;
        violations.require(seen.source.removes(), || "the source removes nothing".to_owned());
        violations.require(!run.case.dry, || "it is a dry run".to_owned());
        violations.require(Self::is_selected(seen.source, old), || "the filter leaves it out".to_owned());
        let is_skipped = run.end == End::Completed && run.checkpoint.removal_skipped.is_some();
        // A lost attempt may have removed documents after a walk of its own.
        violations.require(!is_skipped || run.was_killed, || {
            format!("removal was skipped: {:?}", run.checkpoint.removal_skipped)
        });
        // A run that was held for its changes may still remove as many documents as its guard allows: see
        // `check_guard`.
        violations
            .require(run.held.is_none() || run.approved.is_some(), || "the run was held, and not approved".to_owned());
        let Some((number, _)) = self.number(old) else {
            violations.0.push("it has no key".to_owned());
            return violations.0;
        };
        violations.require(!self.is_shared(subject, number, run.number), || "another document has its key".to_owned());
        violations.require(!seen.failed.contains(&number), || "its result failed".to_owned());
        if let Some((at, Reported::Item(_) | Reported::Broken)) = seen.used.get(&number)
            && !self.is_gone_after(seen, number, *at)
        {
            violations.0.push(format!("the walk listed it at {}", short(*at)));
        }
        let born = self.born.get(subject.id).copied().unwrap_or(0);
        violations.require(born < since, || {
            format!("it was inserted at {} and the walk began at {}", short(born), short(since))
        });
        // A confirmation is the time of the request. The answer to a request of an overlapping run may follow after this
        // run began.
        let is_before = |answer: &Answer| {
            answer.at < since || (seen.source.way == Way::PerUser && answer.run < run.number && since == run.started)
        };
        let confirms = |answer: &&Answer| {
            is_before(answer) && answer.at >= born && self.is_of(answer, seen.at) && reports_item(answer, number)
        };
        let is_adopted = self.adopted.get(&(subject.id.to_owned(), seen.at)).is_some_and(|at| *at < since);
        violations.require(is_adopted || self.answers.iter().any(|answer| confirms(&answer)), || {
            format!("the source never listed it before {}", short(since))
        });
        if seen.source.way == Way::PerUser {
            // A run also uses the reports that another run of the source has received since the run began.
            let reported = |answer: &Answer| {
                answer.at > run.started && self.is_of(answer, seen.at) && reports_gone(answer, number)
            };
            violations
                .require(self.answers.iter().any(reported), || "the source never reported it as missing".to_owned());
        }
        violations.0
    }

    /// True when a source with a request for each document later reported this document as missing, to any run.
    fn is_gone_after(&self, seen: &ObservedRun<'_>, number: u32, at: i64) -> bool {
        let is_later = |answer: &Answer| answer.at > at && self.is_of(answer, seen.at) && reports_gone(answer, number);
        seen.source.way == Way::PerUser && self.answers.iter().any(is_later)
    }

    fn is_of(&self, answer: &Answer, source: usize) -> bool {
        self.runs_source(answer.run) == Some(source)
    }

    fn runs_source(&self, run: usize) -> Option<usize> {
        // Runs are numbered in the order of the steps.
        self.sources_of_runs().get(run).copied().flatten()
    }

    fn sources_of_runs(&self) -> Vec<Option<usize>> {
        use crate::case::Step;
        let runs = self.case().steps.iter().flat_map(|step| match step {
            Step::Run(run) => vec![run.source],
            Step::Both(one, other, _) => vec![one.source, other.source],
            _ => Vec::new(),
        });
        runs.collect()
    }

    /// Checks a document that a run deleted.
    fn check_deleted(
        &self,
        subject: &Subject<'_>,
        old: &Document,
        seen: &[ObservedRun<'_>],
        violations: &mut Violations,
    ) {
        let mut all = Vec::new();
        for this in seen {
            let mut why = self.refusals_of_deletion(subject, old, this, seen);
            if why.is_empty() {
                return;
            }
            why.insert(0, format!("run {}", this.run.number));
            all.push(why.join(", "));
        }
        violations.0.push(format!("{} was deleted: {}: {old}", subject.id, all.join("; ")));
    }

    fn refusals_of_deletion(
        &self,
        subject: &Subject<'_>,
        old: &Document,
        this: &ObservedRun<'_>,
        seen: &[ObservedRun<'_>],
    ) -> Vec<String> {
        let mut why = Violations(Vec::new());
        why.require(this.source.on_missing == OnMissing::Delete, || "its source deletes nothing".to_owned());
        let gone = self.state(this.at, old).gone;
        let key = (subject.id.to_owned(), this.at);
        // The other of two runs may have marked it before this run began.
        let other =
            seen.iter().find(|other| other.run.number != this.run.number && other.run.started < this.run.started);
        let number = self.number(old).map_or(u32::MAX, |(number, _)| number);
        let since = match (gone, self.marked.get(&key), other) {
            (Some(gone), Some(since), _) => {
                why.require(gone < this.run.started, || "it was marked after the run began".to_owned());
                why.require(gone + this.source.delete_after <= this.run.ended, || {
                    "deleteAfter has not passed".to_owned()
                });
                let listed = self.listed.get(&(this.at, number)).copied().unwrap_or(0);
                why.require(listed < *since, || {
                    format!("the walk before, or one since, listed it at {}", short(listed))
                });
                *since
            }
            (None, _, Some(other)) => {
                why.0.extend(self.refusals(subject, old, other, other.run.started));
                other.run.started
            }
            _ => {
                why.0.push("it was not marked before".to_owned());
                this.run.started
            }
        };
        why.0.extend(self.refusals(subject, old, this, since));
        why.0
    }

    /// Checks a document that existed before and after the run.
    #[allow(clippy::too_many_arguments)]
    fn check_kept(
        &mut self,
        subject: &Subject<'_>,
        old: &Document,
        new: &Document,
        runs: &[RunResult],
        seen: &[ObservedRun<'_>],
        record: &Record,
        happened: &mut Happened,
        violations: &mut Violations,
    ) {
        let id = subject.id;
        let number = self.number(old).map(|(number, _)| number);
        if number.is_none() || runs.iter().all(|run| run.case.dry) {
            violations.require(same(old, new, &["note", "lastSynced", "active_a", "active_b"]), || {
                format!("{id} is not part of the run, and was changed: {old} -> {new}")
            });
        }
        for (at, source) in self.case().sources.iter().enumerate() {
            let of_source: Vec<&ObservedRun<'_>> = seen.iter().filter(|seen| seen.at == at).collect();
            let (was, is) = (self.state(at, old), self.state(at, new));
            if of_source.is_empty() || !Self::is_selected(source, old) {
                let own = |document: &Document| document.get(source.field).cloned();
                violations.require(was == is && own(old) == own(new), || {
                    format!("{id} is not part of source {at}, and was changed: {old} -> {new}")
                });
                continue;
            }
            let number = number.unwrap_or(u32::MAX);
            let was_reported = |gone: bool| {
                self.answers.iter().any(|answer| {
                    of_source.iter().any(|seen| seen.run.number == answer.run)
                        && (reports_listed(answer, number) || (gone && reports_gone(answer, number)))
                })
            };
            let adopts = |seen: &&&ObservedRun<'_>| seen.run.case.adopts && seen.run.approved.is_some();
            let adopting =
                of_source.iter().find(adopts).filter(|_| was.at.is_none() && is.at.is_some() && !was_reported(false));
            if let Some(seen) = adopting {
                happened.adopted += 1;
                self.adopted.insert((id.to_owned(), at), seen.run.ended);
            } else if is.at != was.at {
                violations.require(was_reported(source.way == Way::PerUser), || {
                    format!("{id} was confirmed, and the source {at} did not list it: {old} -> {new}")
                });
            }
            let own = (old.get_document(source.field).ok(), new.get_document(source.field).ok());
            if own.0 != own.1 {
                // A source with a request for each document may have reported it as missing in a later answer.
                let stamp = if is.none.is_some() { was.at } else { is.at };
                self.check_content(subject, at, number, own.1, stamp, record, violations);
            }
            match (was.gone, is.gone) {
                (was, Some(now)) if was != Some(now) => {
                    happened.marked.insert(id.to_owned());
                    self.check_marked(subject, old, new, now, &of_source, record, violations);
                    // Of overlapping runs, one may have taken the mark away and another one have set it again since
                    // `old`.
                    if was.is_none() {
                        let field = old.get(format!("active_{}", source.field)).cloned();
                        self.before_mark.insert((id.to_owned(), at), field);
                    }
                }
                (Some(_), None) => {
                    happened.unmarked += 1;
                    violations.require(was_reported(false), || {
                        format!("{id} lost its mark, and the source {at} did not list it: {new}")
                    });
                    let field = format!("active_{}", source.field);
                    let before = self.before_mark.remove(&(id.to_owned(), at));
                    if let Some(before) = before.filter(|_| source.sets && !subject.touched.activated.contains(id)) {
                        violations.require(new.get(&field) == before.as_ref(), || {
                            format!("{id}: {field} was {before:?} before the mark, and is not restored: {new}")
                        });
                    }
                }
                _ => {}
            }
        }
        // The removal of a mark from a document with a failed result is no update.
        let has_failed = number.is_some_and(|number| seen.iter().any(|seen| seen.failed.contains(&number)));
        if !has_failed && (!same(old, new, &["note", "lastSynced", "_sync"]) || self.lost_values(old, new)) {
            happened.changed.insert(id.to_owned());
        }
        // Of two concurrent runs, one may mark the document after the other has read it. The next listing corrects
        // that.
        if runs.len() == 1 && self.wrong_mark(old).is_none() {
            let wrong_mark = self.wrong_mark(new);
            violations.require(wrong_mark.is_none(), || {
                format!("{id}: {} does not fit its marks: {new}", wrong_mark.unwrap_or_default())
            });
        }
    }

    /// True when a run removed the values of before a mark that no longer exists. Of two concurrent runs, one recorded
    /// them after the other had read the document, and the other one then removed the mark.
    fn lost_values(&self, old: &Document, new: &Document) -> bool {
        (0..self.case().sources.len()).any(|at| {
            let (was, is) = (self.state(at, old), self.state(at, new));
            was.has_values && was.gone.is_none() && !is.has_values
        })
    }

    /// The field of a mark that a document has although no source marked it, or lacks although a source marked it.
    fn wrong_mark(&self, document: &Document) -> Option<&str> {
        let sources = || self.case().sources.iter().enumerate();
        sources().map(|(_, source)| source.missing_field.as_str()).find(|field| {
            let is_marked =
                sources().any(|(at, source)| source.missing_field == *field && self.state(at, document).gone.is_some());
            is_marked != document.contains_key(field)
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn check_content(
        &self,
        subject: &Subject<'_>,
        at: usize,
        number: u32,
        content: Option<&Document>,
        stamp: Option<i64>,
        record: &Record,
        violations: &mut Violations,
    ) {
        let version = content.and_then(|content| content.get_i32("version").ok()).map(|version| version as u32);
        let name = content.and_then(|content| content.get_str("name").ok());
        let Some(version) = version else {
            violations.0.push(format!("{}: the data of source {at} is none of its results: {content:?}", subject.id));
            return;
        };
        violations.require(name == Some(&format!("name {version}")), || format!("{}: {content:?}", subject.id));
        let extra = content.and_then(|content| content.get("extra"));
        violations.require(extra.is_some() == (version % 3 == 0), || format!("{}: {content:?}", subject.id));
        let is_new_enough = stamp.is_none_or(|stamp| record.contents[at].is_from(number, version, stamp));
        violations.require(is_new_enough || self.case().sources[at].name.is_none(), || {
            format!("{}: version {version} is older than its confirmation {stamp:?}", subject.id)
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn check_marked(
        &mut self,
        subject: &Subject<'_>,
        old: &Document,
        new: &Document,
        now: i64,
        seen: &[&ObservedRun<'_>],
        record: &Record,
        violations: &mut Violations,
    ) {
        let mut all = Vec::new();
        for this in seen {
            let mut why = Violations(self.refusals(subject, old, this, this.run.started));
            let (started, ended) = (this.run.started, this.run.ended);
            why.require(started < now && now <= ended, || format!("the mark is of {}", short(now)));
            let number = self.number(old).map_or(u32::MAX, |(number, _)| number);
            let is_exact = this.source.way != Way::Number && this.source.is_honest(&this.run.case.quirks);
            let is_hidden = this.run.case.quirks.hidden.contains(&number);
            why.require(
                !is_exact || is_hidden || !record.contents[this.at].had_throughout(number, started, this.walked),
                || "the source had it all the time".to_owned(),
            );
            if why.0.is_empty() {
                self.marked.insert((subject.id.to_owned(), this.at), self.absent_since(this, number));
                violations
                    .require(date(new, &this.source.missing_field).is_some(), || format!("{}: {new}", subject.id));
                let field = format!("active_{}", this.source.field);
                let is_set = !this.source.sets || new.get_bool(&field).is_ok_and(|is_active| !is_active);
                violations.require(is_set || subject.touched.activated.contains(subject.id), || {
                    format!("{}: {field} was not set with the mark: {new}", subject.id)
                });
                return;
            }
            all.push(format!("run {}, {}", this.run.number, why.0.join(", ")));
        }
        violations.0.push(format!("{} was marked: {}: {old}", subject.id, all.join("; ")));
    }

    /// Time since which no answer may list a number that a run has marked: the begin of its walk. Where each document has
    /// a request, only the answer about this number counts, and another run may have listed it shortly before.
    fn absent_since(&self, this: &ObservedRun<'_>, number: u32) -> i64 {
        let is_own =
            |answer: &&Answer| answer.run == this.run.number && answer.reported.iter().any(|(it, _)| *it == number);
        let own = self.answers.iter().filter(is_own).map(|answer| answer.at).max();
        own.filter(|_| this.source.way == Way::PerUser).unwrap_or(this.run.started)
    }

    #[allow(clippy::too_many_arguments)]
    fn check_guard(
        &self,
        seen: &ObservedRun<'_>,
        before: &Snapshot,
        after: &Snapshot,
        touched: &Touched<'_>,
        happened: &Happened,
        violations: &mut Violations,
    ) {
        let (run, marks, deletions) = (seen.run, happened.marked.len() as u64, happened.deleted as u64);
        let is_confirmed = |document: &&Document| {
            let state = self.state(seen.at, document);
            Self::is_selected(seen.source, document)
                && self.number(document).is_some()
                && state.at.is_some()
                && state.gone.is_none()
        };
        let mut confirmed = before.values().filter(is_confirmed).count();
        // A lost attempt does not record the number of documents that it confirmed for the first time, so these
        // documents count as confirmed.
        if run.was_killed {
            let was_confirmed = |id: &String| before.get(id).is_some_and(|old| self.state(seen.at, old).at.is_some());
            confirmed += after.iter().filter(|(id, new)| is_confirmed(new) && !was_confirmed(id)).count();
        }
        let confirmed = confirmed as u64;
        let limit = &seen.source.guard["maxMissing"];
        let allowed = match (limit.as_u64(), limit.as_str()) {
            (Some(count), _) => count,
            (None, Some(share)) => confirmed * share.trim_end_matches('%').parse::<u64>().unwrap_or(0) / 100,
            (None, None) => (confirmed * 20 / 100).max(5),
        };
        let is_approved = seen.run.approved.is_some_and(|approved| marks + deletions <= approved);
        let is_allowed = marks <= allowed && deletions <= allowed;
        violations.require(is_approved || is_allowed || !touched.deleted.is_empty(), || {
            format!(
                "run {} marked {marks} and deleted {deletions} of {confirmed}: allowed {allowed}, approved {:?}",
                seen.run.number, seen.run.approved
            )
        });
        // The run removes exactly the approved documents.
        let is_exact = run.end == End::Completed && run.held.is_some() && touched.is_quiet && run.case.drift.is_empty();
        let removed = marks + deletions + happened.adopted as u64;
        violations.require(!is_exact || seen.source.delete_after > 0 || run.held == Some(removed), || {
            format!("run {} was held for {:?}, and removed {removed}", run.number, run.held)
        });
        let least = seen.source.guard["minResults"].as_u64().unwrap_or(0);
        let is_enough = !seen.source.is_paged() || seen.used.len() as u64 >= least || seen.run.attempts > 1;
        violations.require(is_enough || is_approved || marks + deletions == 0, || {
            format!("run {} removed {} with fewer than {least} results", seen.run.number, marks + deletions)
        });
    }

    /// Checks that a run without special conditions removes all documents that it should.
    #[allow(clippy::too_many_arguments)]
    fn check_completeness(
        &self,
        seen: &ObservedRun<'_>,
        before: &Snapshot,
        after: &Snapshot,
        shared: &Shared,
        touched: &Touched<'_>,
        happened: &Happened,
        violations: &mut Violations,
    ) {
        let run = seen.run;
        let is_plain = run.attempts == 1 && run.end == End::Completed && !run.case.dry && !run.case.incremental;
        if !is_plain || !touched.is_quiet || !seen.source.removes() || run.checkpoint.removal_skipped.is_some() {
            return;
        }
        for (id, document) in before {
            let Some((number, _)) = self.number(document) else { continue };
            let state = self.state(seen.at, document);
            let is_missing = match seen.source.way {
                Way::PerUser => matches!(seen.used.get(&number), Some((_, Reported::Gone))),
                _ => !seen.used.contains_key(&number),
            };
            let may_be = Self::is_selected(seen.source, document) && state.at.is_some_and(|at| at < run.started);
            if !is_missing || !may_be || shared.contains_key(&number) || seen.failed.contains(&number) {
                continue;
            }
            match state.gone {
                None => violations.require(happened.marked.contains(id), || {
                    format!("{id} was not marked by run {}, and should be: {document}", run.number)
                }),
                Some(gone) if seen.source.on_missing == OnMissing::Delete => {
                    let is_due = gone + seen.source.delete_after < run.started;
                    violations.require(!is_due || !after.contains_key(id), || {
                        format!("{id} was not deleted by run {}, and should be: {document}", run.number)
                    });
                }
                Some(_) => {}
            }
        }
    }

    /// Checks that the results of used answers are in the documents, or named as failed.
    fn check_listed(
        &self,
        seen: &ObservedRun<'_>,
        versions: &BTreeMap<u32, BTreeSet<u32>>,
        before: &Snapshot,
        after: &Snapshot,
        touched: &Touched<'_>,
        violations: &mut Violations,
    ) {
        let run = seen.run;
        // An Incremental run also receives documents that are not due when it checks that the source has any results.
        if run.end != End::Completed || run.case.dry || run.case.incremental {
            return;
        }
        let counts = &run.checkpoint.counts;
        for (number, (_, reported)) in &seen.used {
            let Reported::Item(item) = reported else { continue };
            if counts.failed > SHOWN_FAILURES || seen.failed.contains(number) {
                continue;
            }
            for (id, document) in after {
                let Some((_, form)) = self.number(document).filter(|(found, _)| found == number) else { continue };
                let is_older = |times: &HashMap<String, i64>| times.get(id).is_none_or(|at| *at < run.started);
                let is_known = before.contains_key(id) && is_older(&self.born) && is_older(&self.arrived);
                if !is_known || !Self::is_selected(seen.source, document) || touched.deleted.contains(id) {
                    continue;
                }
                let is_of_another = self.answers.iter().any(|answer| {
                    answer.at > run.started
                        && answer.run != run.number
                        && self.is_of(answer, seen.at)
                        && answer.reported.iter().any(|(other, _)| other == number)
                });
                // The other run of the source has requested it since this run began.
                if seen.source.way == Way::PerUser && is_of_another {
                    continue;
                }
                let is_other = self.case().collation && form != 0;
                if is_other && !seen.source.is_paged() {
                    continue;
                }
                let content = document.get_document(seen.source.field).ok();
                let version = content.and_then(|content| content.get_i32("version").ok()).unwrap_or(-1);
                let is_said = versions.get(number).is_some_and(|versions| versions.contains(&(version as u32)));
                violations.require(is_said, || {
                    format!("{id} lacks the result of run {} ({item:?}), and has not failed: {document}", run.number)
                });
            }
        }
    }

    fn remember(&mut self, seen: &[ObservedRun<'_>], before: &Snapshot, after: &Snapshot, happened: &Happened) {
        for seen in seen.iter().filter(|seen| !seen.run.case.dry) {
            let items = seen.all.iter().filter(|(_, _, reported)| matches!(reported, Reported::Item(_)));
            for (number, at, _) in items {
                // Before it requests each document, a run checks that the source has any of them.
                let is_last = matches!(seen.used.get(number), Some((_, Reported::Item(_))));
                if (seen.source.is_paged() || is_last) && !self.is_gone_after(seen, *number, *at) {
                    let last = self.listed.entry((seen.at, *number)).or_default();
                    *last = (*last).max(*at);
                }
            }
        }
        for (id, document) in after {
            for at in 0..self.case().sources.len() {
                let state = self.state(at, document);
                let was = before.get(id).map(|before| self.state(at, before)).unwrap_or_default();
                if let (Some(stamp), Some((number, _))) = (state.at, self.number(document))
                    && was.at != state.at
                    && state.none.is_none()
                {
                    let last = self.listed.entry((at, number)).or_default();
                    *last = (*last).max(stamp);
                }
                if state.gone.is_none() {
                    self.marked.remove(&(id.clone(), at));
                }
            }
        }
        self.marked.retain(|(id, _), _| !happened.gone.contains(id));
    }
}

/// Checks whether a run had to prove its walk, or to skip the removal.
fn check_proof(seen: &ObservedRun<'_>, violations: &mut Violations) {
    let (run, source) = (seen.run, seen.source);
    if run.attempts > 1 || run.end != End::Completed || !source.is_paged() || source.name.is_none() {
        return;
    }
    let quirks = &run.case.quirks;
    let is_plain = quirks.request_faults.is_empty() && !quirks.clamps && quirks.total_off == 0 && !source.typo;
    // A first page that may be full must state whether a next page exists.
    let says_end = source.last != LastPage::Absent || seen.pages > 1;
    let is_plain = is_plain && says_end && source.is_honest(quirks);
    let is_still = run.case.drift.is_empty();
    let is_stable = source.way != Way::Number && !source.has_total;
    let skipped = run.checkpoint.removal_skipped.as_ref();
    let is_cut = quirks.truncated.is_some() && source.has_total;
    violations.require(!is_plain || is_cut || !(is_still || is_stable) || skipped.is_none(), || {
        format!("run {} skipped the removal without a reason: {skipped:?}", run.number)
    });
    let too_few = source.has_total && quirks.total_off > 0 && is_still;
    violations.require(!(too_few || seen.keyless > 0) || skipped.is_some(), || {
        format!("run {} has not proved its walk, and did not skip the removal", run.number)
    });
}

/// Checks that the counts are equal to the changes of the documents.
fn check_counts(
    seen: &ObservedRun<'_>,
    touched: &Touched<'_>,
    happened: &Happened,
    is_exact: bool,
    violations: &mut Violations,
) {
    let (run, counts) = (seen.run, &seen.run.checkpoint.counts);
    if run.was_killed || run.case.dry || !touched.is_quiet || run.attempts > 1 || seen.source.rollback {
        return;
    }
    let is = |count: Option<i64>| count.unwrap_or(0);
    // A document that two pages in flight list counts for each of them.
    let twice = if seen.source.is_paged() { (seen.all.len() - seen.used.len()) as i64 } else { 0 };
    let is_counted = |found: i64, counted: i64| (found..=found + twice).contains(&counted);
    let found = (happened.marked.len() as i64, happened.deleted as i64, happened.unmarked as i64);
    let counted = (is(counts.marked), is(counts.deleted), is(counts.unmarked));
    let is_right = (found.0, found.1) == (counted.0, counted.1) && is_counted(found.2, counted.2);
    violations.require(is_right || !seen.source.removes(), || {
        format!("run {} counted (marked, deleted, unmarked) {counted:?}, and it is {found:?}", run.number)
    });
    let updated = (happened.changed.len() + happened.made + happened.deleted + happened.adopted) as i64;
    violations.require(!is_exact || is_counted(updated, counts.updated) || run.end != End::Completed, || {
        format!("run {} counted {} updated, and it is {updated}", run.number, counts.updated)
    });
}

/// The documents of each number that several documents have.
type Shared = BTreeMap<u32, BTreeSet<String>>;

/// A document that is checked.
struct Subject<'a> {
    id: &'a str,
    shared: &'a Shared,
    touched: &'a Touched<'a>,
}

/// The changes of the application during a step.
struct Touched<'a> {
    deleted: &'a BTreeSet<String>,
    activated: &'a BTreeSet<String>,
    is_quiet: bool,
}

/// The changes of documents in a step.
#[derive(Default)]
struct Happened {
    marked: BTreeSet<String>,
    changed: BTreeSet<String>,
    gone: BTreeSet<String>,
    deleted: usize,
    made: usize,
    unmarked: usize,
    adopted: usize,
}

fn reports_item(answer: &Answer, number: u32) -> bool {
    answer.reported.iter().any(|(other, reported)| *other == number && matches!(reported, Reported::Item(_)))
}

/// True when an answer lists a person, even with a result that cannot be used.
fn reports_listed(answer: &Answer, number: u32) -> bool {
    answer.reported.iter().any(|(other, reported)| *other == number && *reported != Reported::Gone)
}

fn reports_gone(answer: &Answer, number: u32) -> bool {
    answer.reported.iter().any(|(other, reported)| *other == number && matches!(reported, Reported::Gone))
}

/// The versions that the runs of a source received in a step.
fn seen_versions(answers: &[Answer], runs: &[RunResult], source: usize) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut versions: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let of_source =
        |answer: &&Answer| runs.iter().any(|run| run.number == answer.run && run.case.source == Some(source));
    for (number, reported) in answers.iter().filter(of_source).flat_map(|answer| &answer.reported) {
        if let Reported::Item(item) = reported {
            versions.entry(*number).or_default().insert(item.version);
        }
    }
    versions
}

/// True when two documents are equal except for these fields.
fn same(one: &Document, other: &Document, apart: &[&str]) -> bool {
    let rest = |document: &Document| {
        let fields = document.iter().filter(|(name, _)| !apart.contains(&name.as_str()));
        fields.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    rest(one) == rest(other)
}
