//! YAML documents with the position of each field.
//!
//! A file is split at lines that begin with `---` before it is parsed, as in kubectl, so a document with a syntax
//! error does not affect the others.

mod builder;

use saphyr_parser::Parser;
use serde_json::{Map, Value};

use builder::Builder;

const SEPARATOR: &str = "---";

/// Line and column in a file, both from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

/// A part of a file that holds one YAML document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    pub text: &'a str,
    /// Lines of the file before it.
    pub lines_before: usize,
}

/// A value of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub at: Position,
    pub content: Content,
}

/// The content of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// A null, boolean, number or string.
    Scalar(Value),
    List(Vec<Node>),
    Mapping(Vec<KeyValue>),
}

/// A key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyValue {
    pub key: String,
    /// Text of the key in the file, when YAML reads another value.
    pub written: Option<String>,
    pub at: Position,
    pub value: Node,
    /// True when a merge key (`<<`) brought the entry in.
    is_merged: bool,
}

/// An error in a document. The document is invalid, whatever else is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub at: Position,
    pub message: String,
}

impl Node {
    /// The value of a key, when the node is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Content::Mapping(entries) = &self.content else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// The text, when the node is a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Content::Scalar(Value::String(text)) = &self.content { Some(text) } else { None }
    }

    /// The node without a key.
    pub fn without(&self, key: &str) -> Self {
        let mut node = self.clone();
        if let Content::Mapping(entries) = &mut node.content {
            entries.retain(|entry| entry.key != key);
        }
        node
    }

    /// Position of the first key of a mapping, or of any other value.
    pub fn first_position(&self) -> Position {
        match &self.content {
            Content::Mapping(entries) => entries.first().map_or(self.at, |entry| entry.at),
            _ => self.at,
        }
    }

    /// The value without positions.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Mapping(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }

    fn children(&self) -> impl Iterator<Item = &Node> {
        let (items, entries) = match &self.content {
            Content::Scalar(_) => (&[][..], &[][..]),
            Content::List(items) => (&items[..], &[][..]),
            Content::Mapping(entries) => (&[][..], &entries[..]),
        };
        items.iter().chain(entries.iter().map(|entry| &entry.value))
    }

    /// Number of nodes, and the depth of collections.
    fn size(&self) -> (usize, usize) {
        let own = usize::from(!matches!(self.content, Content::Scalar(_)));
        let (nodes, depth) = self.children().map(Self::size).fold((0, 0), |all, one| (all.0 + one.0, all.1.max(one.1)));
        (nodes + 1, depth + own)
    }
}

/// Splits a file into documents. Lines that only look like separators are errors.
pub(super) fn split(text: &str) -> (Vec<Chunk<'_>>, Vec<SyntaxError>) {
    let (mut chunks, mut errors) = (Vec::new(), Vec::new());
    let (mut start, mut lines_before, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if let Some(rest) = line.strip_prefix(SEPARATOR) {
            if !rest.trim().is_empty() && !rest.trim_start().starts_with('#') {
                let message =
                    "a separator of documents must be alone on its line: move what follows --- to the next line";
                errors.push(SyntaxError { at: Position { line: number + 1, column: 4 }, message: message.to_owned() });
            }
            chunks.push(Chunk { text: &text[start..offset], lines_before });
            (start, lines_before) = (offset + line.len(), number + 1);
        }
        offset += line.len();
    }
    chunks.push(Chunk { text: &text[start..], lines_before });
    (chunks, errors)
}

/// Parses a document. `None`: the document is empty, or has a syntax error. A document with duplicate keys is parsed.
pub(super) fn parse(chunk: Chunk<'_>) -> (Option<Node>, Vec<SyntaxError>) {
    let mut builder = Builder::new(chunk.lines_before);
    match build(&mut builder, chunk.text) {
        Ok(()) => builder.finish(),
        Err(error) => (None, builder.errors().chain([error]).collect()),
    }
}

fn build(builder: &mut Builder, text: &str) -> Result<(), SyntaxError> {
    let mut events = Parser::new_from_str(text);
    while let Some(event) = events.next_event() {
        let (event, span) = event.map_err(|error| builder.unreadable(&error, text))?;
        builder.add(event, span)?;
    }
    builder.check_tabs(text)
}
