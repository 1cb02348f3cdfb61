//! Random cases: a collection, its sources, and the steps. The seed determines the case.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, Document, Uuid, doc, oid::ObjectId};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

/// Numbers below this one are those of people that sources may list.
const PEOPLE: u32 = 8;
/// Numbers from this one on are those of people that no source ever lists.
const LOCALS: u32 = 100;
/// The namespace of all SyncJobs.
pub const NAMESPACE: &str = "model";

/// The types of keys in documents and in results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Numbers of all types in documents, numbers in results.
    Numbers,
    /// Texts in both.
    Texts,
    /// Texts in documents, numbers in results, by keyType.
    NumbersToTexts,
    /// Numbers in documents, texts in results, by keyType.
    TextsToNumbers,
    ObjectIds,
    Uuids,
    Decimals,
}

impl Keys {
    /// The key of a document. Forms are other ways to write the same number.
    pub fn bson(self, number: u32, form: u8) -> Bson {
        match (self, form) {
            (Self::Texts, 0) => format!("User-{number}").into(),
            (Self::Texts, _) => format!("USER-{number}").into(),
            (Self::NumbersToTexts, _) => number.to_string().into(),
            (Self::ObjectIds, _) => ObjectId::parse_str(format!("{number:024x}")).unwrap().into(),
            (Self::Uuids, _) => Uuid::parse_str(uuid(number)).unwrap().into(),
            (Self::Decimals, _) | (_, 3) => Bson::Decimal128(number.to_string().parse().unwrap()),
            (_, 0) => Bson::Int32(number as i32),
            (_, 1) => Bson::Int64(number.into()),
            _ => Bson::Double(number.into()),
        }
    }

    /// The key of a result.
    pub fn json(self, number: u32) -> Value {
        match self {
            Self::Numbers | Self::NumbersToTexts => number.into(),
            Self::Texts => format!("User-{number}").into(),
            Self::TextsToNumbers | Self::Decimals => number.to_string().into(),
            Self::ObjectIds => format!("{number:024x}").into(),
            Self::Uuids => uuid(number).into(),
        }
    }

    /// The number of a key in a text. The text has the form of results, or with `any` another form.
    pub fn number(self, text: &str, any: bool) -> Option<u32> {
        let number = match self {
            Self::Texts => text.strip_prefix("User-").or(text.strip_prefix("USER-").filter(|_| any))?.parse().ok()?,
            Self::ObjectIds => u32::from_str_radix(text, 16).ok()?,
            Self::Uuids => u32::from_str_radix(text.rsplit('-').next()?, 16).ok()?,
            _ => text.parse().ok()?,
        };
        Some(number)
    }

    /// The number and the form of a document's key.
    pub fn read(self, key: &Bson) -> Option<(u32, u8)> {
        (0..4).find_map(|form| {
            let number = match key {
                Bson::Int32(number) => (*number).try_into().ok()?,
                Bson::Int64(number) => (*number).try_into().ok()?,
                Bson::Double(number) => *number as u32,
                Bson::Decimal128(number) => number.to_string().parse().ok()?,
                Bson::String(text) => self.number(text, true)?,
                Bson::ObjectId(id) => self.number(&id.to_hex(), true)?,
                Bson::Binary(binary) => self.number(&binary.to_uuid().ok()?.to_string(), true)?,
                _ => return None,
            };
            (self.bson(number, form) == *key).then_some((number, form))
        })
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::Numbers | Self::Texts => "Any",
            Self::NumbersToTexts => "String",
            Self::TextsToNumbers => "Int",
            Self::ObjectIds => "ObjectId",
            Self::Uuids => "UUID",
            Self::Decimals => "Decimal",
        }
    }
}

fn uuid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// The way of batching or paging of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Cursor,
    Number,
    Link,
    PerUser,
    PerBatch,
}

/// The way in which a source reports a missing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    Status(u16),
    Null,
    EmptyList,
}

/// The way in which the last page by cursor declares itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastPage {
    Null,
    Empty,
    False,
    Absent,
    /// A separate field.
    More,
}

/// The action of a run for documents that the source lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    Fail,
    Ignore,
    Mark,
    Delete,
}

/// A source, and the part of the spec that all its runs share.
#[derive(Clone, Debug)]
pub struct SourceCase {
    pub name: Option<&'static str>,
    /// Object of the document with the mapped fields.
    pub field: &'static str,
    pub way: Way,
    pub is_graph_ql: bool,
    pub gone: Gone,
    pub last: LastPage,
    /// The request names the number of results.
    pub is_sized: bool,
    pub has_total: bool,
    pub ends_short: bool,
    /// `pagination.nextPath` has a typing error.
    pub typo: bool,
    pub on_missing: OnMissing,
    pub delete_after: i64,
    pub missing_field: String,
    pub sets: bool,
    pub guard: Value,
    pub upsert: bool,
    pub filter: bool,
    pub batch_size: usize,
    pub parallelism: usize,
    pub transaction: bool,
    pub rollback: bool,
    pub retries: u32,
    pub max_failed_percent: Option<u32>,
    /// The people that it lists at first.
    pub people: BTreeSet<u32>,
}

/// The kind of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Good,
    /// A value that cannot be mapped.
    Unmappable,
    /// A value that the validator of the collection refuses.
    Refused,
}

/// A change outside of runs.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The source adds a person, or changes it.
    List(usize, u32, Flavour),
    /// The source drops a person.
    Drop(usize, u32),
    /// The application inserts a document with this key.
    Insert(u32, u8),
    /// The application inserts a document without a key.
    InsertKeyless,
    /// The application changes another field of documents with this key.
    Touch(u32),
    /// The application sets the field that a mark sets.
    Activate(u32),
    /// The application deletes documents with this key.
    Delete(u32),
}

/// A fault of a request or its answer.
#[derive(Clone, Copy, Debug)]
pub enum RequestFault {
    Status(u16),
    /// A rate limit for this number of seconds.
    Limited(u32),
    NoJson,
    /// The next page is the first one again.
    Loop,
    /// The list has a null.
    Null,
    /// The answer has the first result twice, equal (`true`) or not.
    Twice(bool),
    /// The answer takes this number of milliseconds.
    Slow(u64),
}

/// Behaviour of a source during one run.
#[derive(Clone, Debug, Default)]
pub struct Quirks {
    /// Most results of a page.
    pub cap: Option<usize>,
    /// People that the source leaves out after it has cut the list into pages.
    pub hidden: BTreeSet<u32>,
    /// By page number, the last page again instead of an empty page.
    pub clamps: bool,
    /// By page number, 404 instead of an empty page.
    pub not_found: bool,
    /// The list ends after this number of results.
    pub truncated: Option<usize>,
    /// Error of the total.
    pub total_off: i64,
    /// By number of the request.
    pub request_faults: BTreeMap<u32, RequestFault>,
}

/// The point at which an attempt is killed.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// At its request with this number.
    Request(u32),
    /// At its request with this number, but requests in flight complete.
    Recall(u32),
    /// At the checkpoint with half of this number. An even number saves this checkpoint.
    Save(u32),
    /// After this number of polls.
    Polls(u32),
}

/// One run.
#[derive(Clone, Debug)]
pub struct RunCase {
    /// `None`: a run without a source.
    pub source: Option<usize>,
    pub dry: bool,
    pub incremental: bool,
    /// `source.adopt`
    pub adopts: bool,
    pub quirks: Quirks,
    /// Changes before the answer to the request with this number.
    pub drift: BTreeMap<u32, Vec<Change>>,
    pub kills: Vec<Kill>,
    /// Approvals of the run when it is held: the difference to the held number.
    pub approvals: Vec<i64>,
}

/// A step of a case.
#[derive(Clone, Debug)]
pub enum Step {
    Changes(Vec<Change>),
    /// Time passes, in milliseconds.
    Wait(i64),
    Run(Box<RunCase>),
    /// Two concurrent runs. The second run starts after this number of requests of the first run.
    Both(Box<RunCase>, Box<RunCase>, u32),
}

/// A document at the beginning.
#[derive(Clone, Debug)]
pub enum Start {
    Keyed { number: u32, form: u8, team: &'static str, stamped: bool },
    Keyless,
    NullKey,
    ArrayKey,
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub keys: Keys,
    pub key_field: &'static str,
    pub collation: bool,
    /// True when the index on the key is unique. `None`: the key has no index.
    pub index: Option<bool>,
    pub documents: Vec<Start>,
    pub sources: Vec<SourceCase>,
    pub steps: Vec<Step>,
}

/// Random decisions.
struct Dice(StdRng);

impl Dice {
    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }
    fn below(&mut self, end: u32) -> u32 {
        self.0.random_range(0..end)
    }
    fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items.choose(&mut self.0).unwrap().clone()
    }
    fn some(&mut self, range: std::ops::Range<u32>, percent: u32) -> BTreeSet<u32> {
        range.filter(|_| self.chance(percent)).collect()
    }
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let dice = &mut dice;
        let keys = if dice.chance(50) {
            dice.of(&[Keys::Numbers, Keys::Texts])
        } else {
            dice.of(&[Keys::NumbersToTexts, Keys::TextsToNumbers, Keys::ObjectIds, Keys::Uuids, Keys::Decimals])
        };
        let key_field = dice.of(&["_id", "uid", "uid", "account.id"]);
        let collation = keys == Keys::Texts && dice.chance(40);
        let index = if key_field == "_id" { None } else { dice.of(&[None, Some(false), Some(true), Some(true)]) };
        let is_unique = key_field == "_id" || index == Some(true);
        let documents = documents(dice, keys, key_field, collation, is_unique);
        let count = if dice.chance(30) { 2 } else { 1 };
        let mut sources: Vec<_> = (0..count).map(|at| source(dice, at, is_unique)).collect();
        if count == 2 && dice.chance(50) {
            let field = sources[0].missing_field.clone();
            sources[1].missing_field = field;
        }
        let steps = steps(dice, &sources, is_unique, collation);
        Self { seed, keys, key_field, collation, index, documents, sources, steps }
    }

    /// A document of this key, with an unused `_id`.
    pub fn document(&self, id: i32, key: Option<Bson>, team: &str) -> Document {
        let mut document = doc! {"_id": id, "team": team, "note": 0, "active_a": true, "active_b": true};
        match (self.key_field, key) {
            (_, None) => {}
            ("_id", Some(key)) => drop(document.insert("_id", key)),
            ("uid", Some(key)) => drop(document.insert("uid", key)),
            (_, Some(key)) => drop(document.insert("account", doc! {"id": key})),
        }
        document
    }

    /// The key of a document, if it has one.
    pub fn key<'a>(&self, document: &'a Document) -> Option<&'a Bson> {
        match self.key_field {
            "account.id" => document.get_document("account").ok()?.get("id"),
            field => document.get(field),
        }
    }

    /// Number and form of a document's key, if a source may know it.
    pub fn number(&self, document: &Document) -> Option<(u32, u8)> {
        self.keys.read(self.key(document)?)
    }

    /// The manifest's spec of a run, whose source is at this address.
    pub fn spec(&self, run: &RunCase, collection: &str, base: &str) -> Value {
        let target = json!({"collection": collection, "keyField": self.key_field});
        let Some(at) = run.source else { return json!({"syncType": "Full", "batchSize": 3, "target": target}) };
        let source = &self.sources[at];
        let mut spec = json!({
            "syncType": if run.incremental { "Incremental" } else { "Full" },
            "target": target,
            "batchSize": source.batch_size,
            "parallelism": source.parallelism,
            "dryRun": run.dry,
            "source": self.source_spec(source, run.adopts, base),
            "mapping": [
                {"from": "/name", "to": format!("{}.name", source.field), "type": "String"},
                {"from": "/version", "to": format!("{}.version", source.field), "type": "Int"},
                {"from": "/extra", "to": format!("{}.extra", source.field), "onNull": "Unset"},
            ],
        });
        if source.filter {
            spec["target"]["filter"] = json!({"team": "x"});
        }
        if !source.guard.is_null() {
            spec["guard"] = source.guard.clone();
        }
        if source.transaction {
            spec["transaction"] = "Batch".into();
        }
        if source.rollback {
            spec["onFailure"] = "Rollback".into();
        }
        if let Some(percent) = source.max_failed_percent {
            spec["failurePolicy"] = json!({"maxFailedPercent": percent});
        }
        spec
    }

    fn source_spec(&self, source: &SourceCase, adopts: bool, base: &str) -> Value {
        let mut spec = json!({
            "batching": match source.way {
                Way::PerUser => "PerUser",
                Way::PerBatch => "PerBatch",
                _ => "Pages",
            },
            "concurrency": 3,
            "upsert": source.upsert,
            "adopt": adopts,
            "keyType": self.keys.type_name(),
            "onMissing": format!("{:?}", source.on_missing),
            "requestRetries": source.retries,
            "caSecretRef": {"name": "authority", "key": "pem"},
        });
        let fields = spec.as_object_mut().unwrap();
        if let Some(name) = source.name {
            fields.insert("name".to_owned(), name.into());
        }
        if matches!(source.on_missing, OnMissing::Mark | OnMissing::Delete) {
            let set = json!([{"to": format!("active_{}", source.field), "value": false}]);
            let set = if source.sets { set } else { json!([]) };
            fields.insert("missing".to_owned(), json!({"field": source.missing_field, "set": set}));
        }
        if source.on_missing == OnMissing::Delete {
            fields.insert("deleteAfter".to_owned(), format!("{}ms", source.delete_after).into());
        }
        if source.is_paged() {
            fields.insert("pagination".to_owned(), source.pagination().into());
        }
        let result = source.result_path();
        let kind = if source.is_graph_ql {
            let query = "query ($first: Int, $after: String, $page: Int, $id: ID, $ids: [ID!]) { users }";
            let endpoint = format!("{base}/graphql");
            ("graphQL", json!({"endpoint": endpoint, "query": query, "resultPath": result}))
        } else {
            let first = if source.is_sized { "first={first}" } else { "all=1" };
            let path = match source.way {
                Way::Cursor => format!("list?{first}&after={{after}}"),
                Way::Number => format!("list?{first}&page={{page}}"),
                Way::Link => format!("list?{first}"),
                Way::PerUser => "one/{id}".to_owned(),
                Way::PerBatch => "batch?ids={ids}".to_owned(),
            };
            ("rest", json!({"endpoint": format!("{base}/{path}"), "resultPath": result}))
        };
        fields.insert(kind.0.to_owned(), kind.1);
        spec
    }
}

impl SourceCase {
    pub fn is_paged(&self) -> bool {
        !matches!(self.way, Way::PerUser | Way::PerBatch)
    }

    pub fn removes(&self) -> bool {
        self.name.is_some() && matches!(self.on_missing, OnMissing::Mark | OnMissing::Delete)
    }

    fn result_path(&self) -> &'static str {
        match (self.is_graph_ql, self.way, self.gone) {
            (true, Way::PerUser, _) => "/data/user",
            (true, _, _) => "/data/users/nodes",
            (false, Way::PerUser, Gone::EmptyList) => "/0",
            (false, Way::PerUser, _) => "",
            (false, _, _) => "/items",
        }
    }

    fn pagination(&self) -> Map<String, Value> {
        let place = |name: &str| if self.is_graph_ql { format!("/data/users/{name}") } else { format!("/{name}") };
        let mut pagination = Map::new();
        pagination.insert("by".to_owned(), format!("{:?}", self.way).into());
        if self.way == Way::Cursor {
            pagination.insert("nextPath".to_owned(), place(if self.typo { "nxet" } else { "next" }).into());
            if self.last == LastPage::More {
                pagination.insert("morePath".to_owned(), place("more").into());
            }
        }
        if self.has_total {
            pagination.insert("totalPath".to_owned(), place("total").into());
        }
        if self.ends_short {
            pagination.insert("lastPage".to_owned(), "Short".into());
        }
        pagination
    }

    /// True when a proved walk of this run has listed every document that the source had during the whole walk.
    pub fn is_honest(&self, quirks: &Quirks) -> bool {
        let is_shortened = quirks.cap.is_some() || !quirks.hidden.is_empty();
        let ends_early = self.ends_short || self.typo || self.way == Way::Number;
        quirks.truncated.is_none() && !(is_shortened && ends_early)
    }
}

fn documents(dice: &mut Dice, keys: Keys, key_field: &str, collation: bool, is_unique: bool) -> Vec<Start> {
    let mut documents = Vec::new();
    let share = dice.of(&[40, 70, 95]);
    let numbers = dice.some(0..PEOPLE, share).into_iter().chain(LOCALS..LOCALS + dice.below(4));
    for number in numbers.collect::<Vec<_>>() {
        let form = match keys {
            Keys::Numbers | Keys::TextsToNumbers if dice.chance(40) => dice.below(4) as u8,
            Keys::Texts if collation && dice.chance(10) => 1,
            _ => 0,
        };
        let team = dice.of(&["x", "x", "x", "y"]);
        let keyed = Start::Keyed { number, form, team, stamped: dice.chance(20) };
        if !is_unique && dice.chance(8) {
            documents.push(keyed.clone());
        }
        documents.push(keyed);
    }
    if key_field != "_id" {
        documents.extend((0..dice.below(3)).map(|_| Start::Keyless));
        if dice.chance(20) {
            documents.push(Start::NullKey);
        }
        if dice.chance(10) && key_field == "uid" {
            documents.push(Start::ArrayKey);
        }
    }
    documents
}

fn source(dice: &mut Dice, at: usize, is_unique: bool) -> SourceCase {
    let way = dice.of(&[
        Way::Cursor,
        Way::Cursor,
        Way::Number,
        Way::Number,
        Way::Link,
        Way::Link,
        Way::PerUser,
        Way::PerUser,
        Way::PerBatch,
    ]);
    let is_graph_ql = way != Way::Link && dice.chance(20);
    let on_missing = match way {
        Way::PerBatch => dice.of(&[OnMissing::Fail, OnMissing::Ignore]),
        _ if dice.chance(10) => dice.of(&[OnMissing::Fail, OnMissing::Ignore]),
        _ => dice.of(&[OnMissing::Mark, OnMissing::Delete, OnMissing::Delete]),
    };
    let removes = matches!(on_missing, OnMissing::Mark | OnMissing::Delete);
    let guard = guard(dice);
    let is_paged = !matches!(way, Way::PerUser | Way::PerBatch);
    let is_sized = is_graph_ql || dice.chance(80);
    let transaction = dice.chance(12);
    let gone = if is_graph_ql {
        Gone::Null
    } else {
        dice.of(&[Gone::Status(404), Gone::Status(404), Gone::Status(410), Gone::Null, Gone::EmptyList])
    };
    let people = dice.of(&[60, 80, 100]);
    SourceCase {
        name: (!dice.chance(4)).then_some(if at == 0 { "hr.main" } else { "gitlab" }),
        field: if at == 0 { "a" } else { "b" },
        way,
        is_graph_ql,
        gone,
        last: dice.of(&[LastPage::Null, LastPage::Empty, LastPage::False, LastPage::Absent, LastPage::More]),
        is_sized,
        has_total: is_paged && dice.chance(25),
        ends_short: way == Way::Number && is_sized && dice.chance(20),
        typo: way == Way::Cursor && dice.chance(8),
        on_missing,
        delete_after: dice.of(&[0, 0, 1000]),
        missing_field: if dice.chance(50) { "missingSince".to_owned() } else { format!("left_{at}") },
        sets: removes && dice.chance(40),
        guard,
        upsert: is_paged && is_unique && dice.chance(40),
        filter: dice.chance(15),
        batch_size: dice.of(&[1, 2, 3, 3, 4, 5]),
        parallelism: 1 + dice.below(4) as usize,
        transaction,
        rollback: transaction && dice.chance(30),
        retries: u32::from(way != Way::PerUser && dice.chance(2)),
        max_failed_percent: dice.of(&[None, Some(100), Some(100), Some(100)]),
        people: dice.some(0..PEOPLE, people),
    }
}

fn guard(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => Value::Null,
        1 => json!({"maxMissing": 100}),
        _ => {
            let max = dice.of(&[json!(0), json!(1), json!(2), json!(3), json!("10%"), json!("30%"), Value::Null]);
            let mut guard = json!({"action": if dice.chance(85) { "Hold" } else { "Fail" }});
            if !max.is_null() {
                guard["maxMissing"] = max;
            }
            if dice.chance(15) {
                guard["minResults"] = dice.below(10).into();
            }
            if dice.chance(15) {
                guard["maxChanged"] = dice.of(&[json!(2), json!(5), json!("50%")]);
            }
            guard
        }
    }
}

fn steps(dice: &mut Dice, sources: &[SourceCase], is_unique: bool, collation: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let runs = dice.of(&[3, 3, 3, 3, 4, 4, 5, 6]);
    let calm = dice.chance(25);
    for number in 0..runs {
        if number > 0 && dice.chance(80) {
            let count = 1 + dice.below(6);
            steps.push(Step::Changes((0..count).map(|_| change(dice, sources, is_unique, collation)).collect()));
        }
        if dice.chance(50) {
            steps.push(Step::Wait(dice.of(&[100, 2000])));
        }
        // The first runs confirm documents.
        let fault = !calm && number > 0;
        let run = run(dice, sources, is_unique, collation, fault);
        if fault && run.source.is_some() && !run.dry && dice.chance(20) {
            let is_troubled = dice.chance(50);
            let other = self::run(dice, sources, is_unique, collation, is_troubled);
            let other = RunCase { source: run.source, dry: false, incremental: false, adopts: false, ..other };
            steps.push(Step::Both(run.into(), other.into(), dice.below(5)));
        } else {
            steps.push(Step::Run(run.into()));
        }
    }
    steps
}

fn change(dice: &mut Dice, sources: &[SourceCase], is_unique: bool, collation: bool) -> Change {
    // A few people are often added and dropped.
    let number = if dice.chance(60) { dice.below(3) } else { dice.below(PEOPLE) };
    let source = dice.below(sources.len() as u32) as usize;
    match dice.below(100) {
        0..38 => Change::Drop(source, number),
        38..55 => Change::List(source, number, Flavour::Good),
        55..66 => Change::List(source, number, dice.of(&[Flavour::Unmappable, Flavour::Refused])),
        66..78 => {
            let number = if dice.chance(20) { LOCALS + dice.below(8) } else { number };
            Change::Insert(number, u8::from(collation && dice.chance(15)))
        }
        78..80 if !is_unique => Change::InsertKeyless,
        86..92 => Change::Activate(number),
        92..95 => Change::Delete(number),
        _ => Change::Touch(number),
    }
}

fn run(dice: &mut Dice, sources: &[SourceCase], is_unique: bool, collation: bool, fault: bool) -> RunCase {
    let at = dice.below(sources.len() as u32) as usize;
    let source = &sources[at];
    let drifts = fault && dice.chance(50);
    let drift = |dice: &mut Dice| {
        let mut drift: BTreeMap<u32, Vec<Change>> = BTreeMap::new();
        for _ in 0..dice.below(6) {
            let request = dice.below(12);
            drift.entry(request).or_default().push(change(dice, sources, is_unique, collation));
        }
        drift
    };
    let kills = if fault && dice.chance(25) { (0..=dice.below(3)).map(|_| kill(dice)).collect() } else { Vec::new() };
    let mut quirks = if fault && dice.chance(45) { quirks(dice, source) } else { Quirks::default() };
    if !kills.is_empty() && dice.chance(40) {
        // Checkpoints are not saved more often.
        quirks.request_faults.insert(dice.below(6), RequestFault::Slow(260));
    }
    RunCase {
        source: (!(fault && dice.chance(3))).then_some(at),
        dry: fault && dice.chance(5),
        incremental: !source.is_paged() && dice.chance(20),
        adopts: source.is_paged() && source.removes() && dice.chance(6),
        quirks,
        drift: if drifts { drift(dice) } else { BTreeMap::new() },
        kills,
        approvals: if dice.chance(60) {
            (0..=dice.below(2)).map(|_| dice.of(&[0, 0, 0, 2, -1])).collect()
        } else {
            Vec::new()
        },
    }
}

fn kill(dice: &mut Dice) -> Kill {
    match dice.below(4) {
        0 => Kill::Request(dice.below(8)),
        1 => Kill::Recall(dice.below(8)),
        2 => Kill::Save(dice.below(4)),
        _ => Kill::Polls(1 << dice.below(9)),
    }
}

fn quirks(dice: &mut Dice, source: &SourceCase) -> Quirks {
    let mut quirks = Quirks::default();
    if dice.chance(25) {
        quirks.cap = Some(1 + dice.below(3) as usize);
    }
    if dice.chance(15) {
        let first = dice.below(PEOPLE);
        quirks.hidden = (first..first + 1 + dice.below(6)).collect();
    }
    quirks.clamps = dice.chance(15);
    quirks.not_found = dice.chance(30);
    if dice.chance(12) {
        quirks.truncated = Some(dice.below(8) as usize);
    }
    if source.has_total && dice.chance(30) {
        quirks.total_off = dice.of(&[-2, 1, 3]);
    }
    for _ in 0..dice.below(3) {
        let fault = match dice.below(12) {
            0..3 => RequestFault::Status(dice.of(&[500, 503, 404, 400, 403, 504])),
            3 | 4 => RequestFault::Limited(dice.of(&[1, 60])),
            5 => RequestFault::NoJson,
            6 => RequestFault::Loop,
            7 => RequestFault::Null,
            8 => RequestFault::Twice(true),
            9 => RequestFault::Twice(false),
            _ => RequestFault::Slow(u64::from(1 + dice.below(4))),
        };
        quirks.request_faults.insert(dice.below(8), fault);
    }
    quirks
}
