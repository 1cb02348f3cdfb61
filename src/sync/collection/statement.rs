//! Statements of update commands. They are serialized once: a run sends as many as it changes documents.

use bson::{Bson, DateTime, Document, RawArrayBuf, RawDocumentBuf, cstr, doc, rawdoc};
use mongodb::ClientSession;

use super::{TargetCollection, WRITE_LIMIT, integer, within};
use crate::sync::{Error, error::is_document_error};

/// Conditions that the statements of a batch have in common, in addition to the keys.
pub(super) struct WriteGuard(Vec<RawDocumentBuf>);

/// A document as MongoDB gets it.
///
/// # Errors
/// When a name has a NUL byte.
pub(super) fn raw(document: &Document) -> Result<RawDocumentBuf, Error> {
    RawDocumentBuf::try_from(document)
        .map_err(|error| Error::InvalidTarget(format!("the documents cannot be written as BSON: {error}")))
}

/// Bytes that a statement takes in its command.
pub(super) fn raw_size(statement: &RawDocumentBuf) -> usize {
    statement.as_bytes().len() + 16
}

impl WriteGuard {
    /// Statement that updates the documents of these keys. The statement is for many documents even where there is
    /// one: in a sharded collection, MongoDB updates a single document only by its `_id` or the shard key.
    ///
    /// # Errors
    /// When a name has a NUL byte.
    pub fn statement(&self, keys: &Document, update: &Document) -> Result<RawDocumentBuf, Error> {
        let mut conditions = RawArrayBuf::new();
        conditions.push(raw(keys)?);
        for condition in &self.0 {
            conditions.push(condition);
        }
        Ok(rawdoc! {"q": {"$and": conditions}, "u": raw(update)?, "multi": true})
    }
}

impl TargetCollection {
    /// The guard of a batch: its statements update documents of the run that carry no such stamp and no later one.
    /// `$not $gte` also takes missing, null and wrongly typed values.
    ///
    /// # Errors
    /// When a name has a NUL byte.
    pub(super) fn guard(&self, stamp: DateTime) -> Result<WriteGuard, Error> {
        let by_stamp = doc! {"$or": [
            {&self.progress: {"$not": {"$gte": stamp}}},
            {&self.progress: {"$type": "array"}},
            {&self.progress: {"$gt": self.future}},
        ]};
        let selection = Some(&self.selection).filter(|selection| !selection.is_empty());
        Ok(WriteGuard([&by_stamp].into_iter().chain(selection).map(raw).collect::<Result<_, _>>()?))
    }

    /// Sends statements as one update command, and returns the reply.
    ///
    /// # Errors
    /// When MongoDB does not answer or refuses the whole command. Statements that it refuses are in the reply.
    pub(super) async fn update(
        &self,
        statements: &[RawDocumentBuf],
        session: Option<&mut ClientSession>,
    ) -> Result<Document, Error> {
        let mut updates = RawArrayBuf::new();
        for statement in statements {
            updates.push(statement);
        }
        self.send(rawdoc! {"update": self.collection.name(), "updates": updates, "ordered": false}, session).await
    }

    /// Sends a write command, as [`TargetCollection::update`] does.
    pub(super) async fn command(
        &self,
        command: Document,
        session: Option<&mut ClientSession>,
    ) -> Result<Document, Error> {
        self.send(raw(&command)?, session).await
    }

    async fn send(&self, mut command: RawDocumentBuf, session: Option<&mut ClientSession>) -> Result<Document, Error> {
        command.append(cstr!("maxTimeMS"), WRITE_LIMIT.as_millis() as i64);
        let reply = if let Some(session) = session {
            within(async { Ok(self.database.run_raw_command(command).session(session).await?) }).await?
        } else {
            command.append(cstr!("writeConcern"), rawdoc! {"w": "majority"});
            within(async { Ok(self.database.run_raw_command(command).await?) }).await?
        };
        if let Ok(concern) = reply.get_document("writeConcernError") {
            return Err(Error::server(integer(concern, "code") as i32, concern.get_str("codeName").unwrap_or(""), ""));
        }
        // A server that cannot write reports an error for each statement, and not for the command.
        let errors = reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
        let of_server = |error: &&Document| !is_document_error(integer(error, "code"));
        if let Some(error) = errors.into_iter().find(of_server) {
            let text = error.get_str("errmsg").unwrap_or_default();
            let code = integer(error, "code") as i32;
            return Err(Error::server(code, if code == 166 { "CommandNotSupportedOnView" } else { "" }, text));
        }
        Ok(reply)
    }
}
