//! Decides whether a walk through pages has proved that it listed all that the source has.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
};

use serde_json::Value;

use super::{
    RequestFailure, SourcePage,
    answer::{End, unusable},
};
use crate::{domain::source::Pages, sync::keys};

/// Largest number of results that a walk remembers: the table of their hashes then has 2^22 places, and takes 38 MiB.
const MAX_LISTED: usize = 3_500_000;

/// Reason for which a walk does not prove that the source has no more results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A full page has no next page, as where `pagination.nextPath` has a typing error.
    NoWayOn,
    /// A page reports more pages, but has no cursor or address for them.
    Stuck,
    /// A page listed only results of earlier pages.
    NothingNew,
    /// The walk found fewer results than the source counts.
    Fewer {
        /// Results with different keys.
        found: u64,
        /// The number at `pagination.totalPath`.
        total: u64,
    },
    /// No page has a number at `pagination.totalPath`.
    NoTotal,
    /// The source has more results than a walk remembers.
    TooMany(usize),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWayOn => {
                f.write_str("the first page does not report whether there are more pages: check source.pagination")
            }
            Self::Stuck => f.write_str("the last page reports more pages, but has no cursor or address for them"),
            Self::NothingNew => f.write_str("a page listed only results of earlier pages"),
            Self::Fewer { found, total } => {
                write!(f, "the pages listed {found} results, and source.pagination.totalPath says {total}")
            }
            Self::NoTotal => f.write_str("no page has a number at source.pagination.totalPath"),
            Self::TooMany(max) => {
                write!(f, "the source lists more than {max} results, which is the largest number that a run remembers")
            }
        }
    }
}

/// State of a walk through pages in an attempt.
pub struct Walk {
    /// Hashes of the keys on the pages of this attempt.
    listed: HashSet<u64>,
    /// Largest number of these hashes, and of those of pages.
    max_listed: usize,
    /// Hashes of the keys on the last page, once there are too many results.
    last_page: HashSet<u64>,
    /// True when there are more results than the walk remembers.
    is_full: bool,
    /// Hashes of the identifiers of its pages.
    seen_pages: HashSet<u64>,
    hasher: RandomState,
    /// Results with different keys, those of earlier attempts included.
    distinct: u64,
    /// Number of results that the source gave on the first page.
    total: Option<u64>,
    /// Total of the last page that has one: an empty last page, or 404, has none.
    last_total: Option<u64>,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            listed: HashSet::new(),
            max_listed: MAX_LISTED,
            last_page: HashSet::new(),
            is_full: false,
            seen_pages: HashSet::new(),
            hasher: RandomState::new(),
            distinct: 0,
            total: None,
            last_total: None,
        }
    }
}

impl Walk {
    /// A walk that continues after earlier attempts found `distinct` results, of `total` that the source gave.
    #[must_use]
    pub fn new(distinct: u64, total: Option<u64>) -> Self {
        Self { distinct, total, last_total: total, ..Self::default() }
    }

    /// Observes the page that was requested at `at` for about `size` results. Adds the values that need the complete
    /// walk, and ends a walk without new results.
    ///
    /// # Errors
    /// When the page links to an earlier page.
    pub fn observe(
        &mut self,
        page: &mut SourcePage,
        pages: &Pages,
        at: &Value,
        size: usize,
    ) -> Result<(), RequestFailure> {
        if self.seen_pages.len() < self.max_listed {
            self.seen_pages.insert(self.hash(&at.to_string()));
        }
        page.new = self.remember(page.results.iter().map(|(key, _)| self.hash(&keys::text(key))).collect());
        self.distinct += page.new as u64;
        self.total = self.total.or(page.total);
        self.last_total = page.total.or(self.last_total);
        let count = page.results.len() + page.unreadable;
        let is_short = pages.is_sized && count < size;
        if pages.ends_short && is_short {
            (page.next, page.end) = (None, End::Stated);
        }
        if page.next.as_ref().is_some_and(|next| self.seen_pages.contains(&self.hash(&next.to_string()))) {
            return Err(unusable("it leads to an earlier page"));
        }
        let is_repeated = count > 0 && page.new == 0;
        if is_repeated {
            page.next = None;
        }
        if page.next.is_none() {
            page.doubt = match (&pages.total, self.last_total, page.end) {
                _ if self.is_full => Some(Doubt::TooMany(self.max_listed)),
                (Some(_), None, _) => Some(Doubt::NoTotal),
                (Some(_), Some(last), _) => self.fewer_than(last),
                _ if is_repeated => Some(Doubt::NothingNew),
                (None, _, End::Stated) => None,
                (None, _, End::Absent) => (*at == pages.first() && !is_short).then_some(Doubt::NoWayOn),
                (None, _, End::Stuck) => Some(Doubt::Stuck),
            };
        }
        Ok(())
    }

    /// Remembers the keys of a page, and returns how many were on no earlier page. Of too many keys, only those of the
    /// page before are known.
    fn remember(&mut self, hashes: Vec<u64>) -> usize {
        self.is_full |= self.listed.len() + hashes.len() > self.max_listed;
        if !self.is_full {
            return hashes.into_iter().filter(|hash| self.listed.insert(*hash)).count();
        }
        let is_new = |hash: &&u64| !self.listed.contains(hash) && !self.last_page.contains(hash);
        let new = hashes.iter().filter(is_new).count();
        self.last_page = hashes.into_iter().collect();
        new
    }

    /// The number may have changed during the walk: the smaller one has to be reached.
    fn fewer_than(&self, last: u64) -> Option<Doubt> {
        let total = self.total.map_or(last, |first| first.min(last));
        (self.distinct < total).then_some(Doubt::Fewer { found: self.distinct, total })
    }

    fn hash(&self, value: &impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Doubt::{Fewer, NoTotal, NoWayOn, NothingNew, Stuck, TooMany},
        End::{Absent, Stated, Stuck as Lost},
        *,
    };
    use crate::{domain::source::By, sync::Found};
    use bson::Bson;
    use jsonptr::PointerBuf;

    fn page(keys: &[i32], next: Option<i32>, end: End, total: Option<u64>) -> SourcePage {
        let results = keys.iter().map(|key| (Bson::from(*key), Found::Missing)).collect();
        SourcePage { results, next: next.map(Value::from), end, total, ..SourcePage::default() }
    }

    #[test]
    fn a_walk_is_proved_by_how_it_ends() {
        let pages = |by: By| Pages { by, more: None, total: None, ends_short: false, is_sized: true };
        let cursor = || pages(By::Cursor(PointerBuf::default()));
        let total = || Pages { total: Some(PointerBuf::default()), ..cursor() };
        let (unsized_, short) =
            (Pages { is_sized: false, ..cursor() }, Pages { ends_short: true, ..pages(By::Number) });
        for (name, pages, walk, doubt) in [
            ("stated", cursor(), vec![page(&[1, 2], None, Stated, None)], None),
            ("absent on a full first page", cursor(), vec![page(&[1, 2], None, Absent, None)], Some(NoWayOn)),
            ("absent on a short first page", cursor(), vec![page(&[1], None, Absent, None)], None),
            ("a size that is not asked for", unsized_, vec![page(&[1], None, Absent, None)], Some(NoWayOn)),
            (
                "absent on the second page",
                cursor(),
                vec![page(&[1, 2], Some(2), Stated, None), page(&[3, 4], None, Absent, None)],
                None,
            ),
            ("more, and no way", cursor(), vec![page(&[1, 2], None, Lost, None)], Some(Stuck)),
            (
                "a clamped number",
                pages(By::Number),
                vec![page(&[1, 2], Some(2), Stated, None), page(&[1, 2], Some(3), Stated, None)],
                Some(NothingNew),
            ),
            (
                "an empty page",
                pages(By::Number),
                vec![page(&[1, 2], Some(2), Stated, None), page(&[], None, Stated, None)],
                None,
            ),
            ("a short page", short, vec![page(&[1], Some(2), Stated, None)], None),
            ("all of the total", total(), vec![page(&[1, 2], None, Absent, Some(2))], None),
            ("fewer", total(), vec![page(&[1, 2], None, Stated, Some(3))], Some(Fewer { found: 2, total: 3 })),
            ("no total", total(), vec![page(&[1, 2], None, Stated, None)], Some(NoTotal)),
            (
                "a total that moved",
                total(),
                vec![page(&[1, 2], Some(2), Stated, Some(4)), page(&[3], None, Stated, Some(3))],
                None,
            ),
            (
                "a last page without a total",
                total(),
                vec![page(&[1, 2], Some(2), Stated, Some(3)), page(&[], None, Stated, None)],
                Some(Fewer { found: 2, total: 3 }),
            ),
            (
                "twice the same does not count",
                total(),
                vec![page(&[1, 2], Some(2), Stated, Some(4)), page(&[2, 3], None, Stated, Some(4))],
                Some(Fewer { found: 3, total: 4 }),
            ),
        ] {
            let (mut state, mut at, mut last) = (Walk::default(), pages.first(), None);
            for mut page in walk {
                state.observe(&mut page, &pages, &at, 2).unwrap();
                at = page.next.clone().unwrap_or_default();
                last = page.doubt;
            }
            assert_eq!((last, at), (doubt, Value::Null), "{name}");
        }
    }

    #[test]
    fn more_results_than_are_remembered_prove_nothing() {
        let pages = Pages { by: By::Number, more: None, total: None, ends_short: false, is_sized: true };
        let mut walk = Walk { max_listed: 3, ..Walk::default() };
        let mut observe = |number: i32, keys: &[i32]| {
            let mut page = page(keys, Some(number + 1), End::Stated, None);
            walk.observe(&mut page, &pages, &Value::from(number), 2).unwrap();
            (page.new, page.next, page.doubt)
        };
        assert_eq!(observe(1, &[1, 2]), (2, Some(Value::from(2)), None));
        assert_eq!(observe(2, &[3, 4]), (2, Some(Value::from(3)), None));
        assert_eq!(observe(3, &[4, 5]), (1, Some(Value::from(4)), None));
        assert_eq!(observe(4, &[4, 5]), (0, None, Some(TooMany(3))), "the source repeats its last page");
    }

    #[test]
    fn a_way_back_is_no_way_on() {
        let pages = Pages { by: By::Link, more: None, total: None, ends_short: false, is_sized: true };
        let mut walk = Walk::default();
        let mut observe = |at: Value, keys: &[i32], next| {
            walk.observe(&mut page(keys, Some(next), End::Stated, None), &pages, &at, 2).is_ok()
        };
        assert!(observe(Value::Null, &[1, 2], 7));
        assert!(observe(Value::from(7), &[3, 4], 8));
        assert!(!observe(Value::from(8), &[5, 6], 7));
    }
}
