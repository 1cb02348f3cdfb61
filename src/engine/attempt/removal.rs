//! The end of a walk: removes documents that the source does not have any more, as far as the guard lets the run.

use std::{collections::HashSet, pin::pin};

use futures::StreamExt;
use jiff::Timestamp;

use super::{AttemptResult, RunAttempt};
use crate::{
    api::conditions::reasons,
    domain::{
        guard::{Hold, Removals},
        run::{LeaseState, Outcome, Paging},
        source::Missing,
    },
    sync::{Error, RemovalCandidates, States},
};

impl RunAttempt {
    /// Marks and deletes the documents that the walk did not find in the source. Returns `None` when the removal is
    /// complete, or not needed.
    pub(super) async fn remove(&mut self) -> Option<AttemptResult> {
        let removes = self.spec.source.as_ref().is_some_and(|source| matches!(source.missing, Missing::Remove(_)));
        if !removes || !self.spec.subset.is_everything() {
            return None;
        }
        if !self.target.removes() {
            self.checkpoint.removal_skipped = Some(Outcome {
                reason: reasons::SOURCE_UNNAMED.to_owned(),
                message: "the source has no name, so the run marks and deletes nothing: set source.name".to_owned(),
            });
        }
        // Looking for candidates reads the whole collection.
        let has_candidates = self.is_paged() || self.checkpoint.absent > 0;
        if self.checkpoint.removal_skipped.is_some() || self.target.has_tried_removal() || !has_candidates {
            return None;
        }
        let recalled = self.coordinator.signals().recalled.clone();
        let now = self.coordinator.now();
        let paging = self.checkpoint.paging.clone().unwrap_or_default();
        let listed = self.listed(&paging);
        let counted = match recalled.run_until_cancelled(self.count_removals(&paging, &listed, now)).await {
            Some(Ok(counted)) => counted,
            Some(Err(error)) => return Some(AttemptResult::from(&error)),
            None => return Some(AttemptResult::Released),
        };
        match counted {
            Err(hold) => Some(self.hold_run(hold)),
            Ok(removals) => self.remove_candidates(removals, &listed, now).await,
        }
    }

    fn is_paged(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.pages().is_some())
    }

    /// Counts the documents to remove, and checks the guard.
    async fn count_removals(
        &mut self,
        paging: &Paging,
        listed: &HashSet<String>,
        now: Timestamp,
    ) -> Result<Result<u64, Hold>, Error> {
        let (mut removals, mut keys) = (Removals::default(), Vec::new());
        {
            let mut candidates = pin!(self.target.candidates(now, listed));
            while let Some(some) = candidates.next().await {
                some?.count(&mut removals, &mut keys);
            }
        }
        let is_paged = self.is_paged();
        if !is_paged && removals.total() == 0 {
            return Ok(Ok(0));
        }
        let states = self.target.count_states().await?;
        if is_paged {
            self.checkpoint.counts.unconfirmed = Some(states.unconfirmed);
        }
        self.add_lost_marks(states.marked, is_paged);
        let confirmed = self.confirmed(states);
        let results = is_paged.then_some(paging.results);
        let changed = self.approved_changes(confirmed);
        let approved = self.approved.map(|approved| approved.saturating_sub(changed));
        Ok(match self.spec.guard.check(removals, confirmed, results, approved) {
            Some(hold) if !self.spec.dry_run => Err(Hold { number: hold.number + changed, keys, ..hold }),
            hold => {
                self.checkpoint.counts.held = hold.map(|hold| hold.number as i64);
                Ok(removals.total())
            }
        })
    }

    /// Returns how many documents the source had confirmed and not marked when the run started.
    fn confirmed(&mut self, states: States) -> u64 {
        let since = self.checkpoint.first_confirmed + self.checkpoint.counts.unmarked.unwrap_or(0);
        let counted = u64::try_from(states.confirmed - since).unwrap_or(0);
        *self.checkpoint.confirmed.get_or_insert(counted)
    }

    /// Returns how many changed documents needed an approval. That approval does not cover as many removals, which no
    /// user has seen.
    fn approved_changes(&self, confirmed: u64) -> u64 {
        let changed = u64::try_from(self.checkpoint.changed).unwrap_or(0);
        self.spec.guard.max_changed(confirmed, None).filter(|max| changed > *max).map_or(0, |_| changed)
    }

    /// Counts the marks of an earlier claim of the run that ended before it saved their number.
    fn add_lost_marks(&mut self, marked: i64, is_paged: bool) {
        let counts = &mut self.checkpoint.counts;
        let lost = marked - counts.marked.unwrap_or(0);
        if lost <= 0 {
            return;
        }
        *counts.marked.get_or_insert(0) += lost;
        counts.updated += lost;
        if is_paged {
            counts.processed += lost;
        } else {
            counts.unchanged -= lost;
        }
    }

    /// Removes at most `most` of the counted documents.
    async fn remove_candidates(
        &mut self,
        most: u64,
        listed: &HashSet<String>,
        now: Timestamp,
    ) -> Option<AttemptResult> {
        let recalled = self.coordinator.signals().recalled.clone();
        let (target, mut left) = (self.target.clone(), most as usize);
        let mut candidates = pin!(target.candidates(now, listed));
        while left > 0
            && let Some(some) = candidates.next().await
        {
            if recalled.is_cancelled() {
                return Some(AttemptResult::Released);
            }
            let removed = match some {
                Ok(mut some) => {
                    some.truncate(left);
                    left -= some.len();
                    self.remove_batch(&some, now).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                return Some(AttemptResult::from(&error));
            }
            match self.save().await {
                LeaseState::Held => {}
                LeaseState::Recalled => recalled.cancel(),
                LeaseState::Lost => return Some(AttemptResult::LeaseLost),
            }
        }
        if !self.spec.dry_run {
            self.checkpoint.counts.held = None;
            self.checkpoint.hold = None;
        }
        None
    }

    async fn remove_batch(&mut self, candidates: &RemovalCandidates, now: Timestamp) -> Result<(), Error> {
        if candidates.is_empty() {
            return Ok(());
        }
        let removed = super::timed(self.type_, self.trace, self.target.remove(candidates, now)).await?;
        self.add(removed);
        Ok(())
    }

    /// Determines the number of confirmed documents that the run may change.
    pub(super) async fn limit_changes(&mut self) -> Result<(), Error> {
        if self.spec.guard.max_changed(0, None).is_none() {
            return Ok(());
        }
        if self.checkpoint.confirmed.is_none() {
            let states = self.target.count_states().await?;
            self.confirmed(states);
        }
        let confirmed = self.checkpoint.confirmed.unwrap_or(0);
        self.max_changed = self.spec.guard.max_changed(confirmed, self.approved);
        Ok(())
    }

    /// Hold of a run that has changed more documents than its guard allows. `None`: the guard allows them.
    pub(super) fn exceeds_changes(&self) -> Option<Hold> {
        let max = self.max_changed.filter(|_| !self.spec.dry_run)?;
        self.spec.guard.check_changes(u64::try_from(self.checkpoint.changed).unwrap_or(0), max)
    }
}
