//! JSON merge patches (RFC 7386).

use serde_json::{Map, Value};

/// Merge patch that turns `old` into `new`. Fields that neither has stay as they are: a release that does not know
/// them does not remove them.
#[must_use]
pub fn between(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let ended = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, value)| {
        let change = old.get(key).map_or_else(|| value.clone(), |old| between(old, value));
        (key.clone(), change)
    });
    Value::Object(ended.chain(changed).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Applies a merge patch as the API server does.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let Value::Object(target) = target else { return };
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                apply(target.entry(key).or_insert(Value::Null), value);
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![(0..4).prop_map(|number| json!(number)), Just(json!(["a"])), Just(json!({}))];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop::collection::hash_map("[a-d]", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect()))
        })
    }

    fn objects() -> impl Strategy<Value = Value> {
        prop::collection::hash_map("[a-d]", values(), 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_one_the_other(old in objects(), new in objects()) {
            let mut patched = old.clone();
            apply(&mut patched, &between(&old, &new));
            prop_assert_eq!(patched, new);
        }
    }

    #[test]
    fn fields_that_the_writer_does_not_know_stay() {
        let (old, new) =
            (json!({"runs": {"total": 1}, "gone": 1, "same": [1]}), json!({"runs": {"total": 2}, "same": [1]}));
        let patch = between(&old, &new);
        assert_eq!(patch, json!({"gone": null, "runs": {"total": 2}}));
        let mut stored = json!({"runs": {"total": 1, "newer": 5}, "gone": 1, "same": [1], "newer": {"a": 1}});
        apply(&mut stored, &patch);
        assert_eq!(stored, json!({"runs": {"total": 2, "newer": 5}, "same": [1], "newer": {"a": 1}}));
    }
}
