//! Three-way merge that restores a document to its state before a run, and keeps later changes of other clients.

use bson::{Bson, Document};

/// Result of a merge.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Restored {
    /// The document stays as it is.
    AsIs,
    /// The document becomes this one.
    Is(Document),
    /// The document is deleted, since the run created it.
    Gone,
}

/// Merges a document that was `before`, that the run left as `after`, and that is `now`. None: the document did, or
/// does, not exist. A document that another client removed, created again, or used since the run created it, stays.
/// So does a document that another run of the same source, which writes `confirmation`, has confirmed since.
pub(super) fn restored(
    before: Option<&Document>,
    after: Option<&Document>,
    now: Option<&Document>,
    confirmation: &str,
) -> Restored {
    match (before, after, now) {
        (_, Some(after), Some(now)) if is_confirmed_again(after, now, confirmation) => Restored::AsIs,
        (Some(before), None, None) => Restored::Is(before.clone()),
        (None, Some(after), Some(now)) if is_same(after, now) => Restored::Gone,
        (Some(before), Some(after), Some(now)) => Restored::Is(merged(before, after, now)),
        _ => Restored::AsIs,
    }
}

fn is_confirmed_again(after: &Document, now: &Document, confirmation: &str) -> bool {
    at_path(now, confirmation).is_some_and(|found| at_path(after, confirmation) != Some(found))
}

fn at_path<'a>(document: &'a Document, path: &str) -> Option<&'a Bson> {
    match path.split_once('.') {
        None => document.get(path),
        Some((head, rest)) => at_path(document.get_document(head).ok()?, rest),
    }
}

/// Restores each field to its former value, unless another client changed the value of the run. The order of the fields
/// is the old one.
fn merged(before: &Document, after: &Document, now: &Document) -> Document {
    let mut whole = Document::new();
    for (name, old) in before {
        match (after.get(name), now.get(name)) {
            (left, found) if left == found => whole.insert(name, old.clone()),
            (Some(Bson::Document(left)), Some(Bson::Document(found))) => {
                let empty = Document::new();
                whole.insert(name, merged(old.as_document().unwrap_or(&empty), left, found))
            }
            (_, Some(found)) => whole.insert(name, found.clone()),
            (_, None) => None,
        };
    }
    for (name, found) in now.iter().filter(|(name, _)| !before.contains_key(name)) {
        match (after.get(name), found) {
            (Some(left), found) if left == found => None,
            (Some(Bson::Document(left)), Bson::Document(found)) => {
                whole.insert(name, merged(&Document::new(), left, found))
            }
            _ => whole.insert(name, found.clone()),
        };
    }
    whole
}

/// Compares the order of the fields too, and NaN equals NaN.
fn is_same(a: &Document, b: &Document) -> bool {
    let bytes = |document| bson::serialize_to_vec(document).ok();
    bytes(a) == bytes(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn is(before: &Document, after: &Document, now: &Document) -> Document {
        match restored(Some(before), Some(after), Some(now), "s.at") {
            Restored::Is(document) => document,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unchanged_fields_are_restored_in_order() {
        let before = doc! {"_id": 1, "name": "a", "profile": {"x": 1, "y": f64::NAN}, "old": [1, 2]};
        for after in [
            doc! {"_id": 1, "name": "b", "profile": {"x": 1, "y": f64::NAN, "z": 2}, "old": [1, 2], "new": true},
            doc! {"_id": 1, "profile": {"y": f64::NAN}, "old": 3},
            doc! {"_id": 1, "profile": 7, "new": {"a": {"b": 1}}},
        ] {
            assert!(is_same(&is(&before, &after, &after), &before), "{after}");
        }
    }

    #[test]
    fn what_others_changed_meanwhile_stays() {
        for (before, after, now, expected) in [
            (doc! {"a": 1, "b": 1}, doc! {"a": 2, "b": 1}, doc! {"a": 2, "b": 5}, doc! {"a": 1, "b": 5}),
            (doc! {"a": 1}, doc! {"a": 2}, doc! {"a": 3}, doc! {"a": 3}),
            (doc! {"a": 1}, doc! {"a": 2}, doc! {}, doc! {}),
            (doc! {"a": 1}, doc! {}, doc! {"a": 9}, doc! {"a": 9}),
            (doc! {}, doc! {"a": 1}, doc! {"a": 1, "b": 2}, doc! {"b": 2}),
            (doc! {}, doc! {"a": 1}, doc! {"a": 4}, doc! {"a": 4}),
            (doc! {"p": {"x": 1}}, doc! {"p": {"x": 2}}, doc! {"p": {"x": 2, "y": 3}}, doc! {"p": {"x": 1, "y": 3}}),
            (doc! {}, doc! {"p": {"x": 2}}, doc! {"p": {"x": 2, "y": 3}}, doc! {"p": {"y": 3}}),
            (doc! {"p": 1}, doc! {"p": {"x": 2}}, doc! {"p": {"x": 2, "y": 3}}, doc! {"p": {"y": 3}}),
        ] {
            assert_eq!(is(&before, &after, &now), expected, "{before} {after} {now}");
        }
    }

    #[test]
    fn only_unchanged_documents_are_restored_or_deleted() {
        let (a, b) = (&doc! {"_id": 1, "a": 1}, &doc! {"_id": 1, "a": 2});
        for (before, after, now, expected) in [
            (Some(a), None, None, Restored::Is(a.clone())),
            (Some(a), None, Some(b), Restored::AsIs),
            (Some(a), Some(b), None, Restored::AsIs),
            (None, Some(a), Some(a), Restored::Gone),
            (None, Some(a), Some(b), Restored::AsIs),
            (None, Some(a), None, Restored::AsIs),
        ] {
            assert_eq!(restored(before, after, now, "s.at"), expected);
        }
    }

    #[test]
    fn what_another_run_of_the_source_found_right_stays() {
        let (before, after) = (doc! {"a": 1, "s": {"at": 1}}, doc! {"a": 2, "s": {"at": 2}});
        let (later, stamped) = (doc! {"a": 2, "s": {"at": 3}}, doc! {"a": 2, "s": {"at": 2}, "stamp": 9});
        assert_eq!(restored(Some(&before), Some(&after), Some(&later), "s.at"), Restored::AsIs);
        assert_eq!(is(&before, &after, &stamped), doc! {"a": 1, "s": {"at": 1}, "stamp": 9});
    }
}
