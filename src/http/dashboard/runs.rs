//! `/ui/runs`: the runs that match the filters.

use askama::Template;
use axum::{extract::State, response::Response};
use jiff::Timestamp;

use super::{
    Filled, Frame, RunRow, Visitor,
    bulk::BulkAction,
    format::{PHASES, filters},
    page,
};
use crate::{
    api::syncjob::SyncType,
    http::{
        App,
        jobs::{self, RunSelection},
        problem::Problem,
    },
};

const TYPES: [SyncType; 4] = [SyncType::User, SyncType::Project, SyncType::Issue, SyncType::Pipeline];
/// Default number of runs on a page.
const PAGE: usize = 50;

#[derive(Template)]
#[template(path = "runs.html")]
struct List {
    frame: Frame,
    selection: RunSelection,
    lines: Vec<RunRow>,
    /// Number of matching runs.
    total: usize,
    /// True when errors and keys of all runs can be searched.
    is_whole: bool,
    /// Actions that the visitor may use on some of the matching runs.
    actions: Vec<BulkAction>,
    /// Filters, in the format of the address.
    filter: String,
    next: Option<String>,
}

/// Lists the runs that match the filters in the address.
pub(super) async fn list(
    State(app): State<App>,
    visitor: Visitor,
    Filled(mut selection): Filled<RunSelection>,
) -> Result<Response, Problem> {
    let scope = visitor.scope(&app, "syncjobs", selection.namespace.as_deref()).await?;
    let objects = app.listed()?;
    selection.limit.get_or_insert(PAGE);
    let found = jobs::page(objects, &selection, scope.0.as_ref())?;
    let (total, is_whole) = {
        let index = objects.index();
        let asks = selection.error.is_some() || selection.key.is_some();
        (index.count(&selection.query(scope.0.as_ref()), None), !asks || index.is_whole())
    };
    let mut actions = Vec::new();
    for action in BulkAction::ALL {
        let reach = visitor.actionable_scope(&app, action, selection.namespace.as_deref()).await?;
        actions.extend(reach.0.is_none_or(|some| !some.is_empty()).then_some(action));
    }
    let now = Timestamp::now();
    let lines = found.items.into_iter().map(|job| RunRow::new(job, now)).collect();
    let (filter, next) = (selection.address(), found.next_cursor);
    page(&List { frame: visitor.frame("runs", &scope), selection, lines, total, is_whole, actions, filter, next })
}

impl RunSelection {
    /// Filters, in the format of an address after the `?`.
    pub(super) fn address(&self) -> String {
        let (phase, type_) =
            (self.phase.map(|phase| format!("{phase:?}")), self.type_.map(|type_| format!("{type_:?}")));
        let fields = [
            ("text", &self.text),
            ("namespace", &self.namespace),
            ("schedule", &self.schedule),
            ("error", &self.error),
            ("key", &self.key),
            ("phase", &phase),
            ("type", &type_),
        ];
        let pair = |(name, value): (&str, &Option<String>)| {
            let value = askama::filters::urlencode_strict(value.as_ref()?).ok()?;
            Some(format!("{name}={value}"))
        };
        fields.into_iter().filter_map(pair).collect::<Vec<_>>().join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::dashboard::read_query;

    #[test]
    fn filters_stand_in_the_address_and_are_read_from_it() {
        let address =
            "text=a%26b&namespace=team%2Da&schedule=users&error=%3Cb%3E%20x&key=%C3%BC&phase=Failed&type=User";
        let selection: RunSelection = read_query(address).unwrap();
        assert_eq!((selection.text.as_deref(), selection.error.as_deref()), (Some("a&b"), Some("<b> x")));
        let again: RunSelection = read_query(&selection.address()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{selection:?}"));
        assert_eq!(read_query::<RunSelection>("").unwrap().address(), "");
    }
}
