//! Nodes from the events of the YAML parser: keys, anchors, merge keys, and the limits of a document.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, ScalarStyle, ScanError, Span, Tag as YamlTag};
use serde_json::Value;

use super::{Content, KeyValue, Node, Position, SyntaxError};
use crate::{
    domain::free_form::MAX_LEVELS,
    manifest::scalar::{self, Tag},
};

/// Deepest nesting. MongoDB allows documents of 100 levels.
const MAX_DEPTH: usize = 100;
/// Largest number of nodes of a document, with aliases expanded: a few nested anchors can expand to billions.
const MAX_NODES: usize = 100_000;
const MERGE: &str = "<<";
const NO_TABS: &str = ": indent with spaces instead of tabs";

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

/// Builder of a document from the events of the parser.
#[derive(Default)]
pub(super) struct Builder {
    lines_before: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    /// First and last lines, in the chunk, of values that may hold tabs at the beginning of all lines but the first.
    multi_line: Vec<(usize, usize)>,
    root: Option<Node>,
    errors: Vec<SyntaxError>,
}

impl Builder {
    pub fn new(lines_before: usize) -> Self {
        Self { lines_before, ..Self::default() }
    }

    /// The document, unless it is empty, and its errors.
    pub fn finish(self) -> (Option<Node>, Vec<SyntaxError>) {
        (self.root.filter(|root| root.content != Content::Scalar(Value::Null)), self.errors)
    }

    /// The errors of a document that cannot be read.
    pub fn errors(self) -> impl Iterator<Item = SyntaxError> {
        self.errors.into_iter()
    }

    fn position(&self, mark: Marker) -> Position {
        Position { line: self.lines_before + mark.line(), column: mark.col() + 1 }
    }

    /// The error of a text that is not YAML.
    pub fn unreadable(&self, error: &ScanError, text: &str) -> SyntaxError {
        let mut at = self.position(*error.marker());
        let line = text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
        let mut advice = "";
        if let Some(tab) = indenting_tab(line) {
            at.column = tab + 1;
            advice = NO_TABS;
        }
        SyntaxError { at, message: format!("not valid YAML: {}{advice}", error.info()) }
    }

    /// Finds the first tab that indents a line. YAML 1.2 treats some of them as spaces between words.
    pub fn check_tabs(&self, text: &str) -> Result<(), SyntaxError> {
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let is_covered = |(first, last): &(usize, usize)| *first < number && number <= *last;
            // Outer values end last.
            if let Some(tab) = indenting_tab(line).filter(|_| !self.multi_line.iter().rev().any(is_covered)) {
                let at = Position { line: self.lines_before + number, column: tab + 1 };
                return Err(SyntaxError { at, message: format!("not valid YAML: a tab in the indentation{NO_TABS}") });
            }
        }
        Ok(())
    }

    /// Adds the node of an event.
    pub fn add(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let at = self.position(span.start);
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                let message = "kubectl ignores a document after ...: separate documents with ---";
                Err(SyntaxError { at, message: message.to_owned() })
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.multi_line
                    .extend((span.end.line() > span.start.line()).then_some((span.start.line(), span.end.line())));
                self.scalar(&text, style, anchor, tag.as_ref(), at)
            }
            Event::SequenceStart(anchor, _) => self.begin(Content::List(Vec::new()), anchor, at),
            Event::MappingStart(anchor, _) => self.begin(Content::Mapping(Vec::new()), anchor, at),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { node, anchor, .. }) = self.open.pop() else { return Ok(()) };
                // Only collections in brackets have a text as their end.
                if !span.is_empty() {
                    self.multi_line.push((node.at.line - self.lines_before, span.end.line()));
                }
                self.insert(node, anchor)
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
                self.insert(node, 0)
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
        let message = format!(
            "the document is nested deeper than {MAX_DEPTH} levels, and a free-form field must have at most {MAX_LEVELS}: flatten it"
        );
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
            // YAML 1.1 treats the tab as a part of the indentation, YAML 1.2 as a part of the text.
            let message = format!("a block of text must not begin with a tab{NO_TABS}");
            return Err(SyntaxError { at, message });
        }
        let value = scalar::resolve(text, is_plain, tag.as_ref()).map_err(|message| SyntaxError { at, message })?;
        let expects_key = self.expects_key();
        let node = Node { at, content: Content::Scalar(value) };
        if !expects_key {
            return self.insert(node, anchor);
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

    /// Adds a complete node to the collection that contains it.
    fn insert(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
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
                let entry = KeyValue { key: text, written, at, value: node, is_merged: false };
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

/// Index of the first tab before the first value of a line.
fn indenting_tab(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let is_followed_by_space = bytes.get(index + 1).is_some_and(|next| b" \t".contains(next));
        match byte {
            b'\t' => return Some(index),
            b' ' => {}
            b'-' | b'?' if is_followed_by_space => {}
            _ => return None,
        }
    }
    None
}

fn no_key(at: Position) -> SyntaxError {
    let message = "a key must be text: quote a value that begins with { or [, and write a name before each colon";
    SyntaxError { at, message: message.to_owned() }
}

/// Adds an entry. The entry replaces one from a merge key, and must not repeat any other entry.
fn insert(entries: &mut Vec<KeyValue>, entry: KeyValue, errors: &mut Vec<SyntaxError>) {
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
fn merge(
    entries: &mut Vec<KeyValue>,
    node: Node,
    at: Position,
    errors: &mut Vec<SyntaxError>,
) -> Result<(), SyntaxError> {
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
            let position = KeyValue { at, is_merged: true, ..entry };
            insert(entries, position, errors);
        }
    }
    Ok(())
}
