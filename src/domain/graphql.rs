//! Operations of GraphQL documents.

use std::fmt;

use async_graphql_parser::{Error, parse_query, types::OperationType};

/// Largest depth of brackets in a document. The parser is recursive, and a deeper document could exhaust its stack.
const MAX_DEPTH: usize = 64;

/// Kind of operation of a GraphQL document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Operation that reads data.
    Query,
    /// Operation that changes data.
    Mutation,
    /// Operation that receives data until it is ended.
    Subscription,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Query, Self::Mutation, Self::Subscription];
}

impl fmt::Display for Operation {
    /// Writes the keyword of GraphQL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
        })
    }
}

/// Writes operations as an annotation of a Secret has them.
#[must_use]
pub fn annotation(operations: &[Operation]) -> String {
    let named = Operation::ALL.iter().filter(|operation| operations.contains(operation));
    named.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A text that is no GraphQL document with operations. The text of the error follows the name of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocument {
    /// A mistake at a position.
    #[error("is no GraphQL document: correct it at line {line}, column {column}")]
    Syntax {
        /// Line of the document.
        line: usize,
        /// Column in the line.
        column: usize,
    },
    /// A document without an operation, or an unfinished text in quotes.
    #[error("is no GraphQL document: correct it")]
    Incomplete,
    /// Too many brackets within each other.
    #[error("must have at most {MAX_DEPTH} brackets within each other: simplify it")]
    Deep,
}

/// Returns the kinds of all operations of a document, each of them once. The server may choose any of them.
///
/// # Errors
/// When the text is no GraphQL document with operations.
pub fn operations(document: &str) -> Result<Vec<Operation>, InvalidDocument> {
    if depth(document).ok_or(InvalidDocument::Incomplete)? > MAX_DEPTH {
        return Err(InvalidDocument::Deep);
    }
    let parsed = parse_query(document).map_err(|error| match (&error, error.positions().next()) {
        (Error::RecursionLimitExceeded, _) => InvalidDocument::Deep,
        (_, Some(at)) => InvalidDocument::Syntax { line: at.line, column: at.column },
        (_, None) => InvalidDocument::Incomplete,
    })?;
    let mut operations: Vec<_> = parsed
        .operations
        .iter()
        .map(|(_, operation)| match operation.node.ty {
            OperationType::Query => Operation::Query,
            OperationType::Mutation => Operation::Mutation,
            OperationType::Subscription => Operation::Subscription,
        })
        .collect();
    operations.sort_unstable();
    operations.dedup();
    Ok(operations)
}

/// Depth of the brackets outside of texts and comments. `None`: a text has no end.
fn depth(document: &str) -> Option<usize> {
    let (mut rest, mut depth, mut deepest) = (document, 0_usize, 0);
    while let Some(at) = rest.find(['{', '(', '[', '}', ')', ']', '"', '#']) {
        let found = &rest[at..];
        rest = &found[1..];
        if found.starts_with(['{', '(', '[']) {
            depth += 1;
            deepest = deepest.max(depth);
        } else if found.starts_with('#') {
            rest = &rest[rest.find(['\n', '\r']).unwrap_or(rest.len())..];
        } else if found.starts_with('"') {
            rest = after_text(found)?;
        } else {
            depth = depth.saturating_sub(1);
        }
    }
    Some(deepest)
}

/// The part of a document after the text in quotes that it begins with. `None`: the text has no end.
fn after_text(document: &str) -> Option<&str> {
    let (mut rest, end) = match document.strip_prefix(r#"""""#) {
        Some(rest) => (rest, r#"""""#),
        None => (document.strip_prefix('"')?, "\""),
    };
    loop {
        let (close, escaped) = (rest.find(end)?, rest.find('\\').unwrap_or(rest.len()));
        if close < escaped {
            return Some(&rest[close + end.len()..]);
        }
        rest = &rest[escaped + 1..];
        // In a block, only the end can be escaped.
        rest = rest.strip_prefix(end).or_else(|| (end.len() == 1).then(|| rest.get(1..)).flatten()).unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Mutation, Query, Subscription};
    use proptest::prelude::*;

    #[test]
    fn operations_are_found_wherever_they_are() {
        for (document, expected) in [
            ("{ a }", &[Query][..]),
            ("query ($ids: [ID!]!) { users(ids: $ids) { nodes { id } } }", &[Query]),
            ("mutation { a }", &[Mutation]),
            ("\u{feff}#query\r,mutation M { a }", &[Mutation]),
            ("subscription { a }", &[Subscription]),
            ("query A { a } mutation B { a } query C { a }", &[Query, Mutation]),
            ("fragment F on T { mutation } query { ...F subscription: mutation }", &[Query]),
            (r#"{ a(text: "mutation { a }", block: """ } mutation { \""" { a """) }"#, &[Query]),
            ("query { a } # mutation M { a }", &[Query]),
            ("query A { a } # mutation\rmutation M { a }", &[Query, Mutation]),
        ] {
            assert_eq!(operations(document).as_deref(), Ok(expected), "{document}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for (document, error) in [
            ("", "is no GraphQL document: correct it at line 1, column 1"),
            ("q", "is no GraphQL document: correct it at line 1, column 1"),
            ("query {\n  a(\n}", "is no GraphQL document: correct it at line 3, column 1"),
            ("fragment F on T { a }", "is no GraphQL document: correct it"),
            ("{ a } mutation { a }", "is no GraphQL document: correct it at line 1, column 7"),
            ("type Query { a: Int }", "is no GraphQL document: correct it at line 1, column 1"),
            ("{ a(b: \"c }", "is no GraphQL document: correct it"),
            (r#"{ a(b: """c" ) }"#, "is no GraphQL document: correct it"),
            (r#"{ a(b: "c\" ) }"#, "is no GraphQL document: correct it"),
        ] {
            assert_eq!(operations(document).unwrap_err().to_string(), error, "{document}");
        }
    }

    #[test]
    fn a_deep_document_is_refused_before_it_is_parsed() {
        let nested = |levels: usize| format!("{}{}", "{a".repeat(levels), "}".repeat(levels));
        assert_eq!(operations(&nested(63)), Ok(vec![Query]));
        let hidden = ["{a#}\n", "{a(b:\"}\") ", "{a(b:\"\"\"}\\\"\"\"}\"\"\") ", "{a(b:\"\\\\\") ", "{a(b:[\"]\""];
        for levels in [65, 8000] {
            let deep = Err(InvalidDocument::Deep);
            for document in hidden.map(|level| level.repeat(levels)).iter().chain([&nested(levels)]) {
                assert_eq!(operations(document), deep, "{}", &document[..20]);
            }
            let list = format!("{{ a(b: {}1{}) }}", "[".repeat(levels), "]".repeat(levels));
            let kind = format!("query ($a: {}B{}) {{ a }}", "[".repeat(levels), "]".repeat(levels));
            assert_eq!((operations(&list), operations(&kind)), (deep.clone(), deep));
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_result(text in r##"([{}()"#a:$ \\\n\[\]]|query|mutation|"""|\.\.\.|on ){0,60}"##) {
            let _ = operations(&text);
        }
    }
}
