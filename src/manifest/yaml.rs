//! YAML documents with the position of each field.
//!
//! A file is split at lines that begin with `---` before it is parsed, as kubectl does, so a document with a syntax error
//! does not affect the others.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag as YamlTag};
use serde_json::{Map, Value};

use super::scalar::{self, Tag};

/// Deepest nesting. MongoDB allows documents of 100 levels.
const MAX_DEPTH: usize = 100;
/// Largest document, in nodes, with aliases expanded: a few nested anchors can stand for billions.
const MAX_NODES: usize = 100_000;
const SEPARATOR: &str = "---";
const MERGE: &str = "<<";

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
    Mapping(Vec<Entry>),
}

/// A key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    /// The key as it is written, when YAML reads something else.
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

/// Parses a document. `None`: it is empty, or a syntax error makes it unreadable. Duplicate keys leave it readable.
pub(super) fn parse(chunk: Chunk<'_>) -> (Option<Node>, Vec<SyntaxError>) {
    let mut builder = Builder { lines_before: chunk.lines_before, ..Builder::default() };
    let mut events = Parser::new_from_str(chunk.text);
    while let Some(event) = events.next_event() {
        let added = match event {
            Ok((event, span)) => builder.add(event, span.start),
            Err(error) => Err(builder.unreadable(&error, chunk.text)),
        };
        if let Err(error) = added {
            builder.errors.push(error);
            return (None, builder.errors);
        }
    }
    let root = builder.root.filter(|root| root.content != Content::Scalar(Value::Null));
    (root, builder.errors)
}

/// A collection whose end has not been read.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<Key>,
}

/// A key whose value has not been read.
struct Key {
    text: String,
    written: Option<String>,
    at: Position,
    is_merge: bool,
}

#[derive(Default)]
struct Builder {
    lines_before: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
    errors: Vec<SyntaxError>,
}

impl Builder {
    fn position(&self, mark: Marker) -> Position {
        Position { line: self.lines_before + mark.line(), column: mark.col() + 1 }
    }

    fn unreadable(&self, error: &ScanError, text: &str) -> SyntaxError {
        let mut at = self.position(*error.marker());
        let line = text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
        let indent = &line[..line.len() - line.trim_start().len()];
        let mut advice = "";
        if let Some(tab) = indent.find('\t') {
            at.column = tab + 1;
            advice = ": indent with spaces instead of tabs";
        }
        SyntaxError { at, message: format!("not valid YAML: {}{advice}", error.info()) }
    }

    fn add(&mut self, event: Event<'_>, mark: Marker) -> Result<(), SyntaxError> {
        let at = self.position(mark);
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                let message = "kubectl ignores a document after ...: separate documents with ---";
                Err(SyntaxError { at, message: message.to_owned() })
            }
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_ref(), at),
            Event::SequenceStart(anchor, _) => self.begin(Content::List(Vec::new()), anchor, at),
            Event::MappingStart(anchor, _) => self.begin(Content::Mapping(Vec::new()), anchor, at),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { node, anchor, .. }) = self.open.pop() else { return Ok(()) };
                self.place(node, anchor)
            }
            Event::Alias(anchor) => {
                let found = self.anchors.get(&anchor).cloned();
                let itself =
                    || SyntaxError { at, message: "an anchor must not contain itself: remove the alias".to_owned() };
                let node = found.ok_or_else(itself)?;
                let (nodes, depth) = node.size();
                self.spend(nodes, at)?;
                self.descend(depth, at)?;
                if self.expects_key() && node.as_str().is_none() {
                    return Err(no_key(at));
                }
                self.place(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn spend(&mut self, nodes: usize, at: Position) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("the document is larger than {MAX_NODES} values: split it, or use fewer aliases");
        Err(SyntaxError { at, message })
    }

    fn descend(&self, levels: usize, at: Position) -> Result<(), SyntaxError> {
        if self.open.len() + levels <= MAX_DEPTH {
            return Ok(());
        }
        let message = format!("the document is nested deeper than {MAX_DEPTH} levels: flatten it");
        Err(SyntaxError { at, message })
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { node: Node { content: Content::Mapping(_), .. }, key: None, .. }))
    }

    fn begin(&mut self, content: Content, anchor: usize, at: Position) -> Result<(), SyntaxError> {
        self.spend(1, at)?;
        if self.expects_key() {
            return Err(no_key(at));
        }
        self.descend(1, at)?;
        self.open.push(Open { node: Node { at, content }, anchor, key: None });
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Cow<'_, YamlTag>>,
        at: Position,
    ) -> Result<(), SyntaxError> {
        self.spend(1, at)?;
        let tag = tag.map(|tag| if tag.is_yaml_core_schema() { Tag::Core(tag.suffix.clone()) } else { Tag::Custom });
        let is_plain = style == ScalarStyle::Plain;
        let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        if is_block && text.trim_start_matches([' ', '\n']).starts_with('\t') {
            // YAML 1.1 takes the tab for a part of the indentation, YAML 1.2 for a part of the text.
            let message = "a block of text must not begin with a tab: indent with spaces instead of tabs";
            return Err(SyntaxError { at, message: message.to_owned() });
        }
        let value = scalar::resolve(text, is_plain, tag.as_ref()).map_err(|message| SyntaxError { at, message })?;
        let expects_key = self.expects_key();
        let node = Node { at, content: Content::Scalar(value) };
        if !expects_key {
            return self.place(node, anchor);
        }
        let key = match &node.content {
            Content::Scalar(Value::String(key)) => key.clone(),
            Content::Scalar(Value::Null) | Content::List(_) | Content::Mapping(_) => return Err(no_key(at)),
            Content::Scalar(value) => value.to_string(),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node);
        }
        let is_merge = is_plain && tag.is_none() && text == MERGE;
        let written = (key != text).then(|| text.to_owned());
        if let Some(open) = self.open.last_mut() {
            open.key = Some(Key { text: key, written, at, is_merge });
        }
        Ok(())
    }

    /// Puts a node that is complete into the collection around it.
    fn place(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.content, open.key.take()) {
            (Content::List(items), _) => items.push(node),
            (Content::Mapping(entries), Some(key)) if key.is_merge => merge(entries, node, key.at, &mut self.errors)?,
            (Content::Mapping(entries), Some(Key { text, written, at, .. })) => {
                let entry = Entry { key: text, written, at, value: node, is_merged: false };
                insert(entries, entry, &mut self.errors);
            }
            // An alias that is a key.
            (Content::Mapping(_), None) => {
                let text = node.as_str().unwrap_or_default().to_owned();
                open.key = Some(Key { text, written: None, at: node.at, is_merge: false });
            }
            (Content::Scalar(_), _) => {}
        }
        Ok(())
    }
}

fn no_key(at: Position) -> SyntaxError {
    let message = "a key must be text: quote a value that begins with { or [, and write a name before each colon";
    SyntaxError { at, message: message.to_owned() }
}

/// Adds an entry. It replaces one that a merge key brought in, and must not repeat another one.
fn insert(entries: &mut Vec<Entry>, entry: Entry, errors: &mut Vec<SyntaxError>) {
    let Some(found) = entries.iter_mut().find(|found| found.key == entry.key) else {
        entries.push(entry);
        return;
    };
    if found.is_merged {
        *found = entry;
        return;
    }
    let (key, line) = (&entry.key, found.at.line);
    let message = if entry.is_merged {
        format!("the merge key << would replace {key:?} of line {line}: write << before the other keys")
    } else {
        format!("duplicate key {key:?}: line {line} has it already, so remove one of them")
    };
    errors.push(SyntaxError { at: entry.at, message });
}

/// Adds the entries of one mapping, or of a list of them in which earlier ones go first.
fn merge(entries: &mut Vec<Entry>, node: Node, at: Position, errors: &mut Vec<SyntaxError>) -> Result<(), SyntaxError> {
    let mappings = match node.content {
        Content::List(items) => items,
        _ => vec![node],
    };
    for mapping in mappings.into_iter().rev() {
        let Content::Mapping(merged) = mapping.content else {
            let message = "the merge key << needs a mapping or a list of mappings, such as an alias of one";
            return Err(SyntaxError { at, message: message.to_owned() });
        };
        for entry in merged {
            let position = Entry { at, is_merged: true, ..entry };
            insert(entries, position, errors);
        }
    }
    Ok(())
}
