//! Evaluation of the CEL rules in the schema of a CustomResourceDefinition, as when an object is created.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use kube::core::cel::{
    KubeCelExt,
    cel::{
        Context, Program, Value as CelValue,
        objects::{Key, Map},
    },
};
use serde_json::Value;

use super::{finding::Report, schema::join};

/// Evaluator of rules. Compiling a rule takes longer than evaluating it, so each text is compiled once, when it is needed.
pub(super) struct Evaluator {
    context: Context<'static>,
    /// Programs by their texts. `None`: the text cannot be compiled.
    programs: HashMap<String, Option<Program>>,
}

impl Default for Evaluator {
    fn default() -> Self {
        Self { context: Context::default().with_all(), programs: HashMap::new() }
    }
}

impl Evaluator {
    /// Reports the rules that a value breaks. Defaults are filled in already. Rules of fields with an invalid structure are
    /// left out, and so are those of the fields around them. No rule applies to null.
    pub fn check(&mut self, schema: &Value, value: &Value, path: &str, report: &mut Report<'_>) {
        if value.is_null() {
            return;
        }
        if !report.is_invalid(path) {
            let mut own = None;
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let Some(text) = rule["rule"].as_str().filter(|_| is_for_creation(rule)) else { continue };
                let own = own.get_or_insert_with(|| convert(schema, value));
                if !self.holds(text, own) {
                    let field = rule["fieldPath"].as_str().unwrap_or_default();
                    let message =
                        rule["message"].as_str().map_or_else(|| format!("breaks the rule {text}"), str::to_owned);
                    report.error_naming(format!("{path}{field}").trim_start_matches('.'), message);
                }
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.check(&schema["properties"][name], value, &join(path, name), report);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check(&schema["items"], item, &format!("{path}[{index}]"), report);
                }
            }
            _ => {}
        }
    }

    /// True when a rule holds. One that cannot be evaluated, as with a duration out of range, does not.
    fn holds(&mut self, rule: &str, value: &CelValue) -> bool {
        let program = match self.programs.entry(rule.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Program::compile(rule).ok()),
        };
        let mut scope = self.context.new_inner_scope();
        scope.add_variable_from_value("self", value.clone());
        scope.add_variable_from_value("oldSelf", CelValue::Null);
        program.as_ref().is_some_and(|program| matches!(program.execute(&scope), Ok(CelValue::Bool(true))))
    }
}

/// False for a rule that compares an object with its state before an update.
pub(super) fn is_for_creation(rule: &Value) -> bool {
    rule["optionalOldSelf"] == true || !rule["rule"].as_str().is_some_and(|rule| rule.contains("oldSelf"))
}

/// The value as rules see it: nulls in objects are absent, and numbers are of the type that the schema has.
fn convert(schema: &Value, value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(value) => CelValue::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if schema["type"] != "number" => CelValue::Int(integer),
            _ => CelValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => CelValue::String(Arc::new(text.clone())),
        Value::Array(items) => {
            CelValue::List(Arc::new(items.iter().map(|item| convert(&schema["items"], item)).collect()))
        }
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            let fields = fields.map(|(name, value)| {
                (Key::String(Arc::new(name.clone())), convert(&schema["properties"][name], value))
            });
            CelValue::Map(Map { map: Arc::new(fields.collect()) })
        }
    }
}
