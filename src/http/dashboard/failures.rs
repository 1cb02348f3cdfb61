//! The documents of a run that failed: a page of them, and all as a file for spreadsheets.

use axum::{
    extract::State,
    http::header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use super::Visitor;
use crate::{
    api::syncjob::DocumentFailure,
    http::{
        App,
        extract::{ObjectPath, Path},
        jobs,
        problem::{Problem, ProblemKind},
    },
};

/// Failures on a page.
const PAGE: usize = 10;

/// Page of the failures in a status.
pub(super) struct Part {
    pub shown: Vec<DocumentFailure>,
    /// The number of the first one shown, and of the last one; from 1.
    pub from: usize,
    pub to: usize,
    /// Number of failures in the status.
    pub kept: usize,
    /// Number of failures of the run.
    pub total: i64,
    /// The pages before and after this one.
    pub before: Option<usize>,
    pub after: Option<usize>,
}

impl Part {
    /// A page of failures; the last one when there are fewer pages. Pages are numbered from 1.
    pub fn new(kept: Vec<DocumentFailure>, total: i64, page: usize) -> Self {
        let pages = kept.len().div_ceil(PAGE).max(1);
        let page = page.clamp(1, pages);
        let (skipped, count) = ((page - 1) * PAGE, kept.len());
        let shown: Vec<_> = kept.into_iter().skip(skipped).take(PAGE).collect();
        Self {
            from: skipped + 1,
            to: skipped + shown.len(),
            shown,
            kept: count,
            total: total.max(count as i64),
            before: (page > 1).then(|| page - 1),
            after: (page < pages).then(|| page + 1),
        }
    }

    /// True when the run has more failures than its status.
    pub fn is_cut(&self) -> bool {
        self.total > self.kept as i64
    }
}

/// Sends all failures in the status, as CSV (RFC 4180).
pub(super) async fn download(
    State(app): State<App>,
    visitor: Visitor,
    Path(path): Path<ObjectPath>,
) -> Result<Response, Problem> {
    visitor.scope(&app, "syncjobs", Some(&path.namespace)).await?;
    let job = jobs::load_whole(&app, &path).await?;
    let failures = job.status.as_ref().map(|status| status.failures.as_slice()).unwrap_or_default();
    if failures.is_empty() {
        return Err(Problem::new(ProblemKind::NotFound, format!("no document of {} failed", path.name)));
    }
    let file = format!("attachment; filename=\"{}-failures.csv\"", path.name);
    let headers = [(CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()), (CONTENT_DISPOSITION, file)];
    Ok((headers, csv(failures)).into_response())
}

fn csv(failures: &[DocumentFailure]) -> String {
    let rows = failures.iter().map(|failure| [&failure.key, &failure.reason, &failure.message].map(|text| cell(text)));
    let rows = rows.map(|cells| cells.join(",") + "\r\n");
    std::iter::once("key,reason,message\r\n".to_owned()).chain(rows).collect()
}

/// Quoted text. Spreadsheets read a text that begins like a formula as one, even in quotes; an apostrophe before it
/// prevents that. <https://owasp.org/www-community/attacks/CSV_Injection>
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    format!("\"{}{}\"", if formula { "'" } else { "" }, text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(count: usize) -> Vec<DocumentFailure> {
        let failure =
            |i| DocumentFailure { key: format!("u{i}"), reason: "Rejected".to_owned(), message: String::new() };
        (1..=count).map(failure).collect()
    }

    #[test]
    fn a_page_of_failures_has_its_range() {
        for (kept, total, page, expected) in [
            (3, 3, 1, ("u1", 1, 3, None, None, false)),
            (20, 500, 1, ("u1", 1, 10, None, Some(2), true)),
            (20, 500, 2, ("u11", 11, 20, Some(1), None, true)),
            (20, 20, 9, ("u11", 11, 20, Some(1), None, false)),
            (11, 11, 0, ("u1", 1, 10, None, Some(2), false)),
        ] {
            let part = Part::new(failures(kept), total, page);
            let seen = (part.shown[0].key.as_str(), part.from, part.to, part.before, part.after, part.is_cut());
            assert_eq!(seen, expected, "{kept} {total} {page}");
        }
        assert_eq!(Part::new(Vec::new(), 0, 1).kept, 0);
    }

    #[test]
    fn no_cell_breaks_its_quotes_or_is_a_formula() {
        for (text, expected) in [
            ("plain", "\"plain\""),
            ("", "\"\""),
            ("a,b\nc", "\"a,b\nc\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("=HYPERLINK(\"http://evil\")", "\"'=HYPERLINK(\"\"http://evil\"\")\""),
            ("+1", "\"'+1\""),
            ("-5", "\"'-5\""),
            ("@SUM(1)", "\"'@SUM(1)\""),
            ("\t=1", "\"'\t=1\""),
            ("＝1", "\"'＝1\""),
            ("a=1", "\"a=1\""),
        ] {
            assert_eq!(cell(text), expected);
        }
        assert_eq!(csv(&failures(1)), "key,reason,message\r\n\"u1\",\"Rejected\",\"\"\r\n");
    }
}
