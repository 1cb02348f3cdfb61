//! Messages of MongoDB's wire protocol: which answers the relay forwards. The driver trusts its server. It allocates
//! as many bytes as a message announces, reads nested values recursively, and computes as many rounds of a hash as the
//! server asks for.

use bson::{RawArray, RawBsonRef, RawDocument};

/// Length of the header of a message.
pub(super) const HEADER: usize = 16;
/// Bytes of a request that show its command.
pub(super) const PREFIX: usize = 48;
/// Largest request. The driver splits larger ones.
pub(super) const MAX_REQUEST: usize = 48 << 20;
/// Largest answer: a document of 16 MiB with the rest of a batch.
const MAX_ANSWER: usize = 17 << 20;
/// Largest answer to `hello` or to a step of a login. The driver starts a monitor for each host that `hello` lists.
const MAX_SMALL_ANSWER: usize = 16 << 10;
/// Code of the only kind of message that the driver uses.
const OP_MSG: i32 = 2013;
/// Flags, and the kind of the only section, before the document of a message.
const BEFORE_DOCUMENT: usize = 5;
/// Levels of a document. A server allows 180 in stored documents.
const MAX_LEVELS: usize = 256;
/// Values of an answer that the driver reads as a whole.
const MAX_VALUES: usize = 250_000;
/// Rounds of the hash of a password. A server uses 15,000, unless its owner sets another number.
const MAX_ROUNDS: u32 = 100_000;
/// Longest text of a server in a login. The driver keeps its salt for the life of the process.
const MAX_LOGIN: usize = 512;

/// Reason for which an answer is not forwarded. The text continues "the answer of the server".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Not one document in a message without flags.
    #[error("is no message of MongoDB's protocol")]
    Malformed,
    /// More bytes than the command needs.
    #[error("is larger than {0} bytes")]
    Large(usize),
    /// Too many levels.
    #[error("has more than {MAX_LEVELS} levels")]
    Deep,
    /// Too many values.
    #[error("has more than {MAX_VALUES} values")]
    Many,
    /// A socket file as a host, to which the driver would connect without the relay.
    #[error("names a socket file as a host")]
    SocketFile,
    /// A login that would occupy the process.
    #[error("asks for a login with too many rounds")]
    Login,
}

/// Kind of a command, by the size of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandKind {
    /// `hello`, and the steps of a login.
    Small,
    /// Commands that return documents, which the program reads one by one.
    Documents,
    /// All other commands.
    Other,
}

/// Header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of bytes that follow the header.
    pub rest: usize,
    is_op_msg: bool,
}

impl Header {
    /// Parses a header. `None`: the length is not that of a message.
    pub fn parse(bytes: [u8; HEADER]) -> Option<Self> {
        let [length, _, _, code] = [0, 4, 8, 12].map(|at| number(&bytes[at..]));
        let rest = usize::try_from(length?).ok()?.checked_sub(HEADER)?;
        Some(Self { rest, is_op_msg: code == Some(OP_MSG) })
    }

    /// Checks the header of an answer.
    ///
    /// # Errors
    /// When the answer is of another kind, or too large.
    pub fn check_answer(self, command: CommandKind) -> Result<(), BadAnswer> {
        let max = if command == CommandKind::Small { MAX_SMALL_ANSWER } else { MAX_ANSWER };
        match self {
            Self { is_op_msg: false, .. } => Err(BadAnswer::Malformed),
            Self { rest, .. } if rest + HEADER > max => Err(BadAnswer::Large(max)),
            _ => Ok(()),
        }
    }
}

fn number(bytes: &[u8]) -> Option<i32> {
    bytes.first_chunk().map(|bytes| i32::from_le_bytes(*bytes))
}

impl CommandKind {
    /// Kind of the command of a request, of which `prefix` has the first bytes after the header. The name of the command
    /// is the first field of the document.
    pub fn of_request(prefix: &[u8]) -> Self {
        const NAME: usize = BEFORE_DOCUMENT + 4 + 1;
        let name = prefix.get(NAME..).and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default();
        match name.to_ascii_lowercase().as_slice() {
            b"find" | b"getmore" | b"aggregate" => Self::Documents,
            b"hello" | b"ismaster" | b"saslstart" | b"saslcontinue" => Self::Small,
            _ => Self::Other,
        }
    }

    /// Checks an answer, without its header.
    ///
    /// # Errors
    /// When the answer could exhaust the memory, the stack or the time of the process.
    pub fn check_answer(self, answer: &[u8]) -> Result<(), BadAnswer> {
        let document = answer.strip_prefix(&[0; BEFORE_DOCUMENT]).ok_or(BadAnswer::Malformed)?;
        let document = RawDocument::from_bytes(document).map_err(|_| BadAnswer::Malformed)?;
        self.check_values(document)
    }

    /// Counts the levels and values of a document, without recursion.
    fn check_values(self, document: &RawDocument) -> Result<(), BadAnswer> {
        let max_values = if self == Self::Documents { usize::MAX } else { MAX_VALUES };
        let (mut open, mut values) = (vec![document.iter()], 0);
        while let Some(innermost) = open.last_mut() {
            let Some(element) = innermost.next() else {
                open.pop();
                continue;
            };
            values += 1;
            if values > max_values {
                return Err(BadAnswer::Many);
            }
            let (name, value) = element.map_err(|_| BadAnswer::Malformed)?;
            let inner = match value {
                RawBsonRef::Document(inner) => inner,
                RawBsonRef::Array(inner) => as_document(inner)?,
                RawBsonRef::JavaScriptCodeWithScope(code) => code.scope,
                // A document may have a field twice, so each one is checked.
                RawBsonRef::Binary(payload) if self == Self::Small && name == "payload" => {
                    check_login(payload.bytes)?;
                    continue;
                }
                RawBsonRef::String(host) if self == Self::Small && host.as_bytes().ends_with(b".sock") => {
                    return Err(BadAnswer::SocketFile);
                }
                _ => continue,
            };
            if open.len() == MAX_LEVELS {
                return Err(BadAnswer::Deep);
            }
            open.push(inner.iter());
        }
        Ok(())
    }
}

fn as_document(array: &RawArray) -> Result<&RawDocument, BadAnswer> {
    RawDocument::from_bytes(array.as_bytes()).map_err(|_| BadAnswer::Malformed)
}

/// Checks the first message of the server in SCRAM: `r=NONCE,s=SALT,i=ROUNDS`.
fn check_login(payload: &[u8]) -> Result<(), BadAnswer> {
    let mut rounds = payload.split(|byte| *byte == b',').filter_map(|part| part.strip_prefix(b"i="));
    let is_few = |rounds: &[u8]| {
        let rounds = std::str::from_utf8(rounds).ok().and_then(|rounds| rounds.parse::<u32>().ok());
        rounds.is_some_and(|rounds| rounds <= MAX_ROUNDS)
    };
    if payload.len() <= MAX_LOGIN && rounds.all(is_few) { Ok(()) } else { Err(BadAnswer::Login) }
}

#[cfg(test)]
mod tests {
    use bson::{Binary, Document, doc, spec::BinarySubtype};

    use super::*;

    fn message(document: &Document) -> Vec<u8> {
        [&[0; BEFORE_DOCUMENT], bson::serialize_to_vec(document).unwrap().as_slice()].concat()
    }

    fn header(length: i32, code: i32) -> Option<Header> {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[12..].copy_from_slice(&code.to_le_bytes());
        Header::parse(bytes)
    }

    #[test]
    fn the_limit_of_an_answer_depends_on_its_command() {
        use CommandKind::{Documents, Other, Small};
        for (command, kind, max) in [
            ("hello", Small, 16 << 10),
            ("isMaster", Small, 16 << 10),
            ("saslStart", Small, 16 << 10),
            ("saslContinue", Small, 16 << 10),
            ("find", Documents, 17 << 20),
            ("getMore", Documents, 17 << 20),
            ("aggregate", Documents, 17 << 20),
            ("update", Other, 17 << 20),
            ("hello2", Other, 17 << 20),
        ] {
            let request = message(&doc! {command: 1, "$db": "admin"});
            assert_eq!(CommandKind::of_request(&request[..request.len().min(PREFIX)]), kind, "{command}");
            assert_eq!(header(max, OP_MSG).unwrap().check_answer(kind), Ok(()));
            let larger = header(max + 1, OP_MSG).unwrap().check_answer(kind);
            assert_eq!(larger, Err(BadAnswer::Large(max as usize)), "{command}");
        }
        assert_eq!(CommandKind::of_request(&[]), Other);
        for length in [-1, 0, 15, i32::MIN] {
            assert_eq!(header(length, OP_MSG), None, "{length}");
        }
        assert_eq!(header(16, 2012).unwrap().check_answer(Other), Err(BadAnswer::Malformed), "compressed");
    }

    #[test]
    fn answers_that_exhaust_the_process_are_refused() {
        let nested = |levels: usize| (1..levels).fold(doc! {}, |inner, _| doc! {"a": inner});
        let arrays = (0..300).fold(bson::Bson::Null, |inner, _| bson::Bson::Array(vec![inner]));
        let many = |count: usize| doc! {"a": vec![1; count]};
        let mut flagged = message(&doc! {});
        flagged[0] = 2;
        for (name, answer, kind, expected) in [
            ("plain", message(&doc! {"ok": 1}), CommandKind::Other, Ok(())),
            ("levels of a server", message(&nested(MAX_LEVELS)), CommandKind::Documents, Ok(())),
            ("deep", message(&nested(MAX_LEVELS + 1)), CommandKind::Documents, Err(BadAnswer::Deep)),
            ("deep array", message(&doc! {"a": arrays}), CommandKind::Documents, Err(BadAnswer::Deep)),
            ("many documents", message(&many(MAX_VALUES)), CommandKind::Documents, Ok(())),
            ("many values", message(&many(MAX_VALUES)), CommandKind::Other, Err(BadAnswer::Many)),
            ("more to come", flagged, CommandKind::Other, Err(BadAnswer::Malformed)),
            (
                "socket",
                message(&doc! {"hosts": ["a:1", "%2Ftmp%2Fa.sock"]}),
                CommandKind::Small,
                Err(BadAnswer::SocketFile),
            ),
            ("document", message(&doc! {"a": "a.sock"}), CommandKind::Documents, Ok(())),
            ("short", vec![0; 7], CommandKind::Other, Err(BadAnswer::Malformed)),
            ("empty", Vec::new(), CommandKind::Other, Err(BadAnswer::Malformed)),
        ] {
            assert_eq!(kind.check_answer(&answer), expected, "{name}");
        }
    }

    #[test]
    fn a_login_has_a_limited_number_of_rounds() {
        let step = |text: &str| {
            doc! {"payload": Binary { subtype: BinarySubtype::Generic, bytes: text.as_bytes().to_vec() }}
        };
        for (text, expected) in [
            ("r=abc,s=c2FsdA==,i=15000".to_owned(), Ok(())),
            ("v=rmF9pqV8S7suAoZWja4dJRkFsKQ=".to_owned(), Ok(())),
            (String::new(), Ok(())),
            ("r=abc,s=c2FsdA==,i=100001".to_owned(), Err(BadAnswer::Login)),
            ("r=abc,s=c2FsdA==,i=99999999999".to_owned(), Err(BadAnswer::Login)),
            ("r=abc,s=c2FsdA==,i=1,i=4000000000".to_owned(), Err(BadAnswer::Login)),
            (format!("r=abc,s={},i=1", "A".repeat(600)), Err(BadAnswer::Login)),
        ] {
            assert_eq!(CommandKind::Small.check_answer(&message(&step(&text))), expected, "{text}");
            let hello = doc! {"ok": 1, "speculativeAuthenticate": step(&text)};
            assert_eq!(CommandKind::Small.check_answer(&message(&hello)), expected, "{text}");
            assert_eq!(CommandKind::Documents.check_answer(&message(&step(&text))), Ok(()), "{text}");
        }
    }
}
