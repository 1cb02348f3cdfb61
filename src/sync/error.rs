//! Origin of an error: the spec (only a change helps), the attempt (a retry may help), or a document.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::error::{Error as MongoError, ErrorKind};

use crate::{
    api::{conditions::reasons, truncate_to},
    connection_error,
    domain::run::Outcome,
};
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;

const MAX_SERVER_TEXT: usize = 300;
/// Reason of a transaction that conflicted with another one.
pub(super) const WRITE_CONFLICT: &str = "WriteConflict";
/// Reason of a cursor or a session that the server no longer has.
pub(super) const CURSOR_LOST: &str = "CursorLost";

/// Error that ends an attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The target cannot be worked on as written.
    #[error("{0}")]
    InvalidTarget(String),
    /// The policy does not allow the target.
    #[error("{0}")]
    NotAllowed(String),
    /// The source cannot be used as specified.
    #[error("{0}")]
    InvalidSource(String),
    /// An answer of the source exceeds a limit that protects the workers and Redis.
    #[error("{0}")]
    BudgetExceeded(String),
    /// The source allows no requests for this time. No attempt has failed.
    #[error("the source limits requests")]
    Paused(Duration),
    /// Failure of a request to the database or the source, which ends the attempt. Worth another attempt.
    #[error("{message}")]
    Attempt {
        /// Reason, in one CamelCase word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// MongoDB cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub(super) String);

/// Server errors that no waiting cures, by code
/// (<https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml>).
const SPEC_ERRORS: [i32; 13] = [
    2,         // BadValue
    9,         // FailedToParse
    13,        // Unauthorized
    14,        // TypeMismatch
    27,        // IndexNotFound: $text needs one
    73,        // InvalidNamespace
    166,       // CommandNotSupportedOnView
    168,       // InvalidPipelineOperator
    291,       // NoQueryExecutionPlans: no index for $near
    16_020,    // wrong number of arguments of an expression
    17_262,    // cannot use a reserved field name
    51_091,    // bad regular expression
    5_626_500, // $near cannot be counted
];

/// Server errors that concern the one document of a statement, by code. All others concern the server: a document must
/// not be counted as failed because a shard could not be reached.
const DOCUMENT_ERRORS: [i64; 32] = [
    2,      // BadValue
    9,      // FailedToParse
    14,     // TypeMismatch
    28,     // PathNotViable
    40,     // ConflictingUpdateOperators
    52,     // DollarPrefixedFieldName
    54,     // NotSingleValueField
    55,     // InvalidDBRef
    56,     // EmptyFieldName
    57,     // DottedFieldName
    66,     // ImmutableField
    121,    // DocumentValidationFailure
    171,    // CannotIndexParallelArrays
    10_003, // a document of a capped collection cannot grow
    10_334, // BSONObjectTooLarge
    11_000, // DuplicateKey
    11_001, // DuplicateKey, of an update
    13_026, // a geographic index cannot take the value
    13_027, 13_068, 16_755, 16_766, // a hashed index cannot take an array
    16_804, 16_837, // an update that cannot be applied to the document
    17_261, // a text index cannot take the value
    17_262, 17_280, // KeyTooLong
    17_419, // the document would exceed 16 MiB
    17_420, 31_120, 34_435, 40_579, // an array of arrays in an index
];

/// True when the error of one statement concerns its document alone.
pub(super) fn is_document_error(code: i64) -> bool {
    DOCUMENT_ERRORS.contains(&code)
}

impl Error {
    /// Outcome of the run, for its status.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let reason = match self {
            Self::InvalidTarget(_) => reasons::INVALID_TARGET,
            Self::NotAllowed(_) => reasons::NOT_ALLOWED,
            Self::InvalidSource(_) => reasons::INVALID_SOURCE,
            Self::BudgetExceeded(_) => reasons::BUDGET_EXCEEDED,
            Self::Paused(_) => reasons::RATE_LIMITED,
            Self::Attempt { reason, .. } => reason,
        };
        Outcome { reason: reason.to_owned(), message: self.to_string() }
    }

    pub(super) fn timeout() -> Self {
        Self::Attempt { reason: "Timeout", message: "MongoDB did not answer in time".to_owned() }
    }

    /// Classifies an error answer of the server. Its text is only passed on where it can contain nothing but parts of
    /// the spec: other texts quote documents.
    pub(super) fn server(code: i32, name: &str, text: &str) -> Self {
        let name = if name.is_empty() { format!("code {code}") } else { name.to_owned() };
        match code {
            13 => Self::InvalidTarget(format!(
                "MongoDB does not allow the operator's user to work on this collection ({name}): grant it find and update there"
            )),
            _ if SPEC_ERRORS.contains(&code) => Self::InvalidTarget(format!(
                "MongoDB refuses the query ({name}): {}",
                truncate_to(text, MAX_SERVER_TEXT)
            )),
            43 | 136 | 206 | 228 | 237 => {
                Self::Attempt { reason: CURSOR_LOST, message: format!("MongoDB no longer has the cursor ({name})") }
            }
            50 => Self::timeout(),
            61 => Self::InvalidTarget(format!(
                "MongoDB cannot create documents in this sharded collection ({name}): target.keyField must be its shard key, or source.upsert false"
            )),
            292 => Self::InvalidTarget(format!(
                "MongoDB cannot sort so many documents in memory ({name}): create an index on target.keyField"
            )),
            112 => {
                Self::Attempt { reason: WRITE_CONFLICT, message: "another client writes the same documents".to_owned() }
            }
            _ => Self::Attempt { reason: "ServerError", message: format!("MongoDB answered with {name}") },
        }
    }
}

fn because(what: &str, text: &str) -> String {
    connection_error::known_cause(text).map_or_else(|| what.to_owned(), |cause| format!("{what}: {cause}"))
}

impl From<MongoError> for Error {
    fn from(error: MongoError) -> Self {
        let attempt = |reason, message: &str| Self::Attempt { reason, message: message.to_owned() };
        if error.contains_label(TRANSIENT_TRANSACTION_ERROR) {
            return attempt(
                WRITE_CONFLICT,
                "MongoDB ended the transaction, because other clients write the same documents",
            );
        }
        match &*error.kind {
            ErrorKind::Command(command) => Self::server(command.code, &command.code_name, &command.message),
            ErrorKind::ServerSelection { message, .. } => {
                attempt("Unreachable", &because("no MongoDB primary could be reached", message))
            }
            ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => {
                attempt("Unreachable", &because("the connection to MongoDB was lost", &error.to_string()))
            }
            ErrorKind::ProxyConnect { .. } => attempt("Unreachable", "MongoDB could not be reached"),
            ErrorKind::DnsResolve { .. } => {
                attempt("Unreachable", "the name of the MongoDB server could not be resolved")
            }
            ErrorKind::Authentication { .. } => attempt(
                "Unauthorized",
                "MongoDB does not accept the user or the password: check the Secret of target.uriSecretRef, or else MONGODB_URI",
            ),
            ErrorKind::InvalidTlsConfig { .. } => attempt("Unreachable", "the TLS settings in MONGODB_URI do not work"),
            _ => attempt("ServerError", "the answer of MongoDB could not be used"),
        }
    }
}

/// Reason and message of a document that the server refused to write, without quoting the document.
pub(super) fn refusal(error: &Document) -> (&'static str, String) {
    let code = error.get_i32("code").unwrap_or_default();
    let text = error.get_str("errmsg").unwrap_or_default();
    match code {
        121 => ("ValidationFailed", format!("the collection's validator refuses the document{}", rules(error))),
        11_000 | 11_001 => ("DuplicateKey", format!("another document has the same value{}", index(text))),
        66 => ("ImmutableField", "the field to stamp cannot be changed".to_owned()),
        10_334 | 17_419 | 17_420 => ("DocumentTooLarge", "the document would exceed 16 MiB".to_owned()),
        28 | 9 | 2 => ("FieldNotWritable", "the stamp's field path runs through a value that is no object".to_owned()),
        _ => ("WriteError", format!("MongoDB refuses to update the document (code {code})")),
    }
}

/// Names of the properties that break the validator's rules: `errInfo` also holds their values, which stay out.
fn rules(error: &Document) -> String {
    let mut properties = Vec::new();
    let details = error.get_document("errInfo").and_then(|info| info.get_document("details"));
    collect(details.unwrap_or(&doc! {}), &mut properties);
    properties.dedup();
    if properties.is_empty() { String::new() } else { format!(": {}", properties.join(", ")) }
}

fn collect(details: &Document, properties: &mut Vec<String>) {
    for (name, value) in details {
        match value {
            bson::Bson::String(property) if name == "propertyName" => properties.push(property.clone()),
            bson::Bson::Array(missing) if name == "missingProperties" => {
                properties.extend(missing.iter().filter_map(|name| Some(format!("{} is missing", name.as_str()?))));
            }
            bson::Bson::Array(rules) if name != "consideredValues" => {
                rules.iter().filter_map(bson::Bson::as_document).for_each(|rule| collect(rule, properties));
            }
            _ => {}
        }
    }
}

fn index(text: &str) -> String {
    let name = text.split("index: ").nth(1).and_then(|rest| rest.split_whitespace().next());
    name.map_or_else(String::new, |name| format!(" in the unique index {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_rule_and_never_the_value() {
        let validation = doc! {"code": 121, "errmsg": "Document failed validation", "errInfo": {"details": {
            "operatorName": "$jsonSchema",
            "schemaRulesNotSatisfied": [
                {"operatorName": "properties", "propertiesNotSatisfied": [
                    {"propertyName": "email", "details": [{"operatorName": "pattern", "consideredValue": "secret@example.org"}]}]},
                {"operatorName": "required", "missingProperties": ["username"]},
            ],
        }}};
        let duplicate = doc! {"code": 11000,
        "errmsg": "E11000 duplicate key error collection: codex.users index: email_1 dup key: { email: \"secret@example.org\" }"};
        for (error, reason, message) in [
            (
                validation,
                "ValidationFailed",
                "the collection's validator refuses the document: email, username is missing",
            ),
            (duplicate, "DuplicateKey", "another document has the same value in the unique index email_1"),
            (
                doc! {"code": 4242, "errmsg": "secret"},
                "WriteError",
                "MongoDB refuses to update the document (code 4242)",
            ),
        ] {
            assert_eq!(refusal(&error), (reason, message.to_owned()));
        }
    }

    #[test]
    fn only_errors_of_the_spec_are_final() {
        for (code, invalid) in
            [(2, true), (13, true), (73, true), (292, true), (50, false), (189, false), (11_602, false)]
        {
            assert_eq!(matches!(Error::server(code, "", "x"), Error::InvalidTarget(_)), invalid, "{code}");
        }
    }

    #[test]
    fn errors_of_the_server_are_no_documents_errors() {
        for (code, expected) in [
            (121, true),
            (11_000, true),
            (66, true),
            (6, false),      // HostUnreachable
            (24, false),     // LockTimeout
            (133, false),    // FailedToSatisfyReadPreference
            (189, false),    // PrimarySteppedDown
            (10_107, false), // NotWritablePrimary
            (11_601, false), // Interrupted
            (16_500, false), // CosmosDB: the request rate is large
        ] {
            assert_eq!(is_document_error(code), expected, "{code}");
        }
    }
}
