//! Bulk actions on the selected runs, or on all runs that match the filters. The first page asks for a confirmation
//! with the number of runs; each later request acts on a limited number.

mod actions;

use std::collections::{BTreeSet, HashSet};

use askama::Template;
use axum::{extract::State, response::Response};

use super::{Frame, Scope, Sent, Visitor, format::filters, namespaces, page, read_query};
use crate::{
    api::syncjob::Phase,
    http::{
        App,
        auth::Right,
        extract::{ObjectPath, Path},
        jobs::{self, RunSelection, read_cursor, write_cursor},
        problem::Problem,
        search::{RunIndex, RunQuery, SortKey},
    },
};
use actions::ActionResult;
pub(super) use actions::BulkAction;

/// Largest number of runs that one request acts on: some seconds of work.
const MOST: usize = 200;
/// Number of names on the confirmation page, and of failures on the result page.
const SHOWN: usize = 10;

/// Fields of the form.
#[derive(Debug, Default, PartialEq)]
struct Fields {
    action: String,
    /// Runs that were chosen: namespace and name.
    runs: Vec<(String, String)>,
    /// True for all runs that match the filters, instead of `runs`.
    all: bool,
    /// Filters, in the format of the address of the list.
    filter: String,
    /// Cursor at which the next request continues.
    from: Option<String>,
}

impl Fields {
    fn new(pairs: Vec<(String, String)>) -> Self {
        let mut fields = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "action" => fields.action = value,
                "run" => {
                    let path = value.split_once('/');
                    fields.runs.extend(path.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())));
                }
                "all" => fields.all = true,
                "filter" => fields.filter = value,
                "from" => fields.from = Some(value),
                _ => {}
            }
        }
        fields
    }
}

/// Runs that an action applies to, and on which the user may see and perform it.
enum Chosen {
    These(Vec<SortKey>),
    Fitting(Box<Fitting>),
}

/// Runs that match the filters and sort after a key.
struct Fitting {
    selection: RunSelection,
    phases: Vec<Phase>,
    scope: Scope,
    from: SortKey,
}

/// Fields of the next form.
struct NextForm {
    runs: Vec<SortKey>,
    filter: Option<String>,
    from: String,
}

#[derive(Template)]
#[template(path = "bulk.html")]
struct ConfirmationPage {
    frame: Frame,
    action: BulkAction,
    count: usize,
    /// The first of them.
    shown: Vec<SortKey>,
    /// Number of selected runs that the action does not apply to.
    left_out: usize,
    next_form: NextForm,
}

#[derive(Template)]
#[template(path = "bulk_done.html")]
struct ResultPage {
    frame: Frame,
    action: BulkAction,
    done: usize,
    unchanged: usize,
    failed: usize,
    /// First runs whose action failed, with the reason.
    failures: Vec<(SortKey, String)>,
    /// Reason for which the request stopped early.
    stopped: Option<String>,
    left: usize,
    next_form: NextForm,
}

/// Shows the number of runs, and asks for a confirmation.
pub(super) async fn ask(
    State(app): State<App>,
    visitor: Visitor,
    Sent(pairs): Sent<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let fields = Fields::new(pairs);
    let action: BulkAction = fields.action.parse()?;
    let chosen = select_runs(&app, &visitor, action, &fields).await?;
    let (count, shown) = {
        let index = app.listed()?.index();
        (chosen.count(&index), chosen.first(&index, SHOWN))
    };
    let left_out = if fields.all { 0 } else { fields.runs.len().saturating_sub(count) };
    page(&ConfirmationPage {
        frame: static_frame(visitor),
        action,
        count,
        shown,
        left_out,
        next_form: chosen.next_form(),
    })
}

/// Does it to the next ones.
pub(super) async fn carry_out(
    State(app): State<App>,
    visitor: Visitor,
    Path(action): Path<BulkAction>,
    Sent(pairs): Sent<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let chosen = select_runs(&app, &visitor, action, &Fields::new(pairs)).await?;
    let batch = chosen.first(&app.listed()?.index(), MOST);
    let (outcomes, stopped) = actions::carry_out(&app, &visitor.caller, action, &batch).await;
    let chosen = chosen.after(&batch[..outcomes.len()]);
    let count = |wanted: fn(&ActionResult) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
    let failures = batch.iter().zip(&outcomes).filter_map(|(sort_key, outcome)| match outcome {
        ActionResult::Failed(problem) => Some((sort_key.clone(), problem.detail().to_owned())),
        _ => None,
    });
    page(&ResultPage {
        frame: static_frame(visitor),
        action,
        done: count(|outcome| matches!(outcome, ActionResult::Done)),
        unchanged: count(|outcome| matches!(outcome, ActionResult::Unchanged)),
        failed: count(|outcome| matches!(outcome, ActionResult::Failed(_))),
        failures: failures.take(SHOWN).collect(),
        stopped: stopped.map(|problem| problem.detail().to_owned()),
        left: chosen.count(&app.listed()?.index()),
        next_form: chosen.next_form(),
    })
}

/// Frame of a page without live updates.
fn static_frame(visitor: Visitor) -> Frame {
    Frame { path: String::new(), events: None, ..visitor.frame("runs", &Scope(None)) }
}

async fn select_runs(app: &App, visitor: &Visitor, action: BulkAction, fields: &Fields) -> Result<Chosen, Problem> {
    if !fields.all {
        return select_listed(app, visitor, action, &fields.runs).await.map(Chosen::These);
    }
    let selection: RunSelection = read_query(&fields.filter)?;
    let scope = visitor.actionable_scope(app, action, selection.namespace.as_deref()).await?;
    if scope.0.as_ref().is_some_and(BTreeSet::is_empty) {
        app.access.check(&visitor.caller, action.right(selection.namespace.as_deref())).await?;
    }
    let mut phases = action.phases().to_vec();
    phases.retain(|phase| selection.phase.is_none_or(|wanted| wanted == *phase));
    let from = fields.from.as_deref().map(read_cursor).transpose()?;
    let fitting = Fitting { selection, phases, scope, from: from.unwrap_or_else(SortKey::first) };
    let fitting = if fields.from.is_some() { fitting } else { fitting.up_to_now(&app.listed()?.index()) };
    Ok(Chosen::Fitting(Box::new(fitting)))
}

/// Returns those of the selected runs that the action applies to.
async fn select_listed(
    app: &App,
    visitor: &Visitor,
    action: BulkAction,
    runs: &[(String, String)],
) -> Result<Vec<SortKey>, Problem> {
    let (mut seen, mut found, mut refused) = (HashSet::new(), Vec::new(), Vec::new());
    for (namespace, name) in runs {
        let rights = [Right::new("list", "syncjobs", Some(namespace)), action.right(Some(namespace)).on(name)];
        if !seen.insert((namespace, name)) {
            continue;
        }
        if !visitor.may(app, &rights).await? {
            refused.extend(rights);
            continue;
        }
        let job = jobs::find_job(app, &ObjectPath { namespace: namespace.clone(), name: name.clone() }).ok();
        found.extend(job.filter(|job| action.suits(job)).map(|job| SortKey::from_job(&job)));
    }
    // A user without a right to any of the actions gets an error.
    for right in refused.into_iter().filter(|_| found.is_empty()) {
        app.access.check(&visitor.caller, right).await?;
    }
    Ok(found)
}

impl Visitor {
    /// Namespaces in which a visitor may see runs and act on all of them.
    pub(super) async fn actionable_scope(
        &self,
        app: &App,
        action: BulkAction,
        namespace: Option<&str>,
    ) -> Result<Scope, Problem> {
        let seen = self.scope(app, "syncjobs", namespace).await?;
        let right = action.right(namespace);
        if app.access.has(&self.caller, &right).await? {
            return Ok(seen);
        }
        let some = match seen.0 {
            _ if namespace.is_some() => BTreeSet::new(),
            Some(some) => some,
            None => namespaces(app.listed()?),
        };
        Ok(Scope(Some(app.access.among(&self.caller, &right, some).await?)))
    }
}

impl Fitting {
    fn query(&self) -> RunQuery<'_> {
        RunQuery { phases: Some(&self.phases), ..self.selection.query(self.scope.0.as_ref()) }
    }

    /// Leaves out runs that are created from the next second on, by the clock of Kubernetes: they were not counted.
    fn up_to_now(self, index: &RunIndex) -> Self {
        let newest = index.page(&self.query(), None, 1).pop();
        let from = newest.map_or_else(SortKey::first, |newest| SortKey { created: newest.created, ..SortKey::first() });
        Self { from, ..self }
    }
}

impl Chosen {
    fn count(&self, index: &RunIndex) -> usize {
        match self {
            Self::These(sort_keys) => sort_keys.len(),
            Self::Fitting(fitting) => index.count(&fitting.query(), Some(&fitting.from)),
        }
    }

    fn first(&self, index: &RunIndex, count: usize) -> Vec<SortKey> {
        match self {
            Self::These(sort_keys) => sort_keys.iter().take(count).cloned().collect(),
            Self::Fitting(fitting) => index.page(&fitting.query(), Some(&fitting.from), count),
        }
    }

    /// Runs that remain after the first ones were processed.
    fn after(self, passed: &[SortKey]) -> Self {
        match self {
            Self::These(sort_keys) => Self::These(sort_keys.into_iter().skip(passed.len()).collect()),
            Self::Fitting(fitting) => {
                let from = passed.last().cloned().unwrap_or_else(|| fitting.from.clone());
                Self::Fitting(Box::new(Fitting { from, ..*fitting }))
            }
        }
    }

    fn next_form(self) -> NextForm {
        match self {
            Self::These(runs) => NextForm { runs, filter: None, from: String::new() },
            Self::Fitting(fitting) => {
                let Fitting { selection, from, .. } = *fitting;
                NextForm { runs: Vec::new(), filter: Some(selection.address()), from: write_cursor(&from) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;

    #[test]
    fn a_form_names_runs_or_takes_all_that_fit() {
        let field = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let sent = [
            ("run", "a/b"),
            ("run", "none"),
            ("run", "c/d/e"),
            ("action", "cancel"),
            ("filter", "text=x"),
            ("other", "1"),
        ];
        let pair = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let expected = Fields {
            action: "cancel".to_owned(),
            runs: vec![pair("a", "b"), pair("c", "d/e")],
            filter: "text=x".to_owned(),
            ..Fields::default()
        };
        assert_eq!(Fields::new(sent.map(field).to_vec()), expected);
        let all = Fields::new([("all", "true"), ("from", "5~a~b")].map(field).to_vec());
        assert_eq!((all.all, all.from.as_deref()), (true, Some("5~a~b")));
    }

    #[test]
    fn processed_runs_are_removed_from_the_selection() {
        let sort_key = |name: &str| SortKey { created: Reverse(5), namespace: "a".into(), name: name.into() };
        let chosen = Chosen::These(vec![sort_key("a"), sort_key("b"), sort_key("c")]);
        let index = RunIndex::default();
        let first = chosen.first(&index, 2);
        assert_eq!(chosen.after(&first).first(&index, 9), [sort_key("c")]);
    }
}
