//! The sources of all cases: one HTTP server, which also applies the changes during a run, and records its answers with
//! times.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use bson::{Bson, Document, doc};
use jiff::Timestamp;
use mongodb::Collection;
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, RwLock},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::case::{Case, Change, Flavour, Gone, Kill, LastPage, RequestFault, RunCase, Way};

/// A clock in milliseconds. Each reading advances it, so a later reading has a later time.
pub struct Clock(AtomicI64);

impl Clock {
    pub fn new() -> Self {
        Self(AtomicI64::new(1_700_000_000_000))
    }

    pub fn tick(&self) -> i64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.tick()).unwrap()
    }
}

/// The data of a source about a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub version: u32,
    pub flavour: Flavour,
}

impl Item {
    fn json(self, key: &Value) -> Value {
        let Self { version, flavour } = self;
        let name = match flavour {
            Flavour::Good => json!(format!("name {version}")),
            Flavour::Unmappable => json!({"version": version}),
            Flavour::Refused => json!(format!("refused {version}")),
        };
        let mut item = json!({"id": key, "name": name, "version": version});
        match version % 3 {
            0 => item["extra"] = json!([version]),
            1 => item["extra"] = Value::Null,
            _ => {}
        }
        item
    }
}

/// The report of a source about a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    Item(Item),
    Gone,
    /// A result that cannot be used.
    Broken,
}

/// The content of one answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub at: i64,
    pub run: usize,
    pub attempt: u32,
    pub reported: Vec<(u32, Reported)>,
    /// Number of results without a key.
    pub keyless: usize,
}

/// A change of a document by the application.
#[derive(Clone, Debug)]
pub enum Done {
    /// The insertion begins.
    Inserted(Document),
    /// The insertion has ended.
    Arrived,
    Deleted,
    Activated,
}

/// The present and past data of a source.
#[derive(Default)]
pub struct SourceContent {
    pub items: BTreeMap<u32, Item>,
    /// The data about each person, with the time from which it was valid.
    pub history: BTreeMap<u32, Vec<(i64, Option<Item>)>>,
    version: u32,
}

impl SourceContent {
    fn put(&mut self, at: i64, number: u32, flavour: Flavour) {
        self.version += 1;
        let item = Item { version: self.version, flavour };
        self.items.insert(number, item);
        self.history.entry(number).or_default().push((at, Some(item)));
    }

    fn take(&mut self, at: i64, number: u32) {
        if self.items.remove(&number).is_some() {
            self.history.entry(number).or_default().push((at, None));
        }
    }

    /// True when the source had data about a person during the whole time.
    pub fn had_throughout(&self, number: u32, from: i64, to: i64) -> bool {
        let Some(history) = self.history.get(&number) else { return false };
        let before = history.iter().rev().find(|(at, _)| *at <= from);
        let between = history.iter().filter(|(at, _)| *at > from && *at <= to);
        before.is_some_and(|(_, item)| item.is_some()) && between.into_iter().all(|(_, item)| item.is_some())
    }

    /// True when the version was not replaced before this time.
    pub fn is_from(&self, number: u32, version: u32, at: i64) -> bool {
        let history = self.history.get(&number).map(Vec::as_slice).unwrap_or_default();
        let place = history.iter().position(|(_, item)| item.is_some_and(|item| item.version == version));
        place.is_some_and(|place| history.get(place + 1).is_none_or(|(until, _)| *until >= at))
    }
}

/// The state of a run in the server.
pub struct ActiveRun {
    pub case: RunCase,
    pub attempt: u32,
    pub requests: u32,
    pub kill: Option<Kill>,
    pub killed: CancellationToken,
    pub recalled: CancellationToken,
}

/// The record of a case.
#[derive(Default)]
pub struct Record {
    pub contents: Vec<SourceContent>,
    pub active_runs: Vec<ActiveRun>,
    pub answers: Vec<Answer>,
    /// By `_id`, as text.
    pub done: Vec<(i64, String, Done)>,
    next_id: i32,
}

/// A case that is played.
pub struct Stage {
    pub case: Case,
    pub clock: Clock,
    pub collection: Collection<Document>,
    pub requested: Notify,
    /// A lock that each change of the collection holds.
    pub busy: Arc<RwLock<()>>,
    record: Mutex<Record>,
}

pub fn id_of(document: &Document) -> String {
    document.get("_id").cloned().unwrap_or(Bson::Null).into_relaxed_extjson().to_string()
}

impl Stage {
    pub fn new(case: Case, collection: Collection<Document>) -> Self {
        let (clock, mut record) = (Clock::new(), Record { next_id: 10_000, ..Record::default() });
        for source in &case.sources {
            let mut content = SourceContent::default();
            for number in &source.people {
                content.put(clock.tick(), *number, Flavour::Good);
            }
            record.contents.push(content);
        }
        Self { case, clock, collection, requested: Notify::new(), busy: Arc::default(), record: Mutex::new(record) }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    pub async fn apply(&self, change: Change) {
        match change {
            Change::List(source, number, flavour) => {
                let mut record = self.record();
                record.contents[source].put(self.clock.tick(), number, flavour);
            }
            Change::Drop(source, number) => {
                let mut record = self.record();
                record.contents[source].take(self.clock.tick(), number);
            }
            Change::Insert(number, form) => self.insert(Some(self.case.keys.bson(number, form))).await,
            Change::InsertKeyless => self.insert(None).await,
            Change::Touch(number) => {
                let update = doc! {"$inc": {"note": 1}};
                self.collection.update_many(self.of_number(number), update).await.unwrap();
            }
            Change::Activate(number) => {
                for document in self.find(number).await {
                    let update = doc! {"$set": {"active_a": "by hand", "active_b": "by hand"}};
                    let these = doc! {"_id": document.get("_id").unwrap()};
                    self.note(&document, Done::Activated);
                    self.collection.update_one(these, update).await.unwrap();
                    self.note(&document, Done::Activated);
                }
            }
            Change::Delete(number) => {
                for document in self.find(number).await {
                    self.note(&document, Done::Deleted);
                    self.collection.delete_one(doc! {"_id": document.get("_id").unwrap()}).await.unwrap();
                }
            }
        }
    }

    fn note(&self, document: &Document, done: Done) {
        let mut record = self.record();
        record.done.push((self.clock.tick(), id_of(document), done));
    }

    fn of_number(&self, number: u32) -> Document {
        doc! {self.case.key_field: self.case.keys.bson(number, 0)}
    }

    async fn find(&self, number: u32) -> Vec<Document> {
        use futures::TryStreamExt;
        self.collection.find(self.of_number(number)).await.unwrap().try_collect().await.unwrap()
    }

    async fn insert(&self, key: Option<Bson>) {
        let id = {
            let mut record = self.record();
            record.next_id += 1;
            record.next_id
        };
        let document = self.case.document(id, key, "x");
        self.note(&document, Done::Inserted(document.clone()));
        // With a unique index, the key may exist already.
        if self.collection.insert_one(&document).await.is_err() {
            let (id, mut record) = (id_of(&document), self.record());
            let is_this = |(_, other, done): &(i64, String, Done)| *other == id && matches!(done, Done::Inserted(_));
            if let Some(last) = record.done.iter().rposition(is_this) {
                record.done.remove(last);
            }
            return;
        }
        self.note(&document, Done::Arrived);
    }

    /// Counts a request, applies the changes before its answer, and returns its fault.
    async fn count_request(self: &Arc<Self>, run: usize) -> (u32, Option<RequestFault>) {
        let (attempt, changes, fault) = {
            let mut record = self.record();
            let active = &mut record.active_runs[run];
            let request = active.requests;
            active.requests += 1;
            match active.kill {
                Some(Kill::Request(at)) if at <= request => active.killed.cancel(),
                Some(Kill::Recall(at)) if at <= request => active.recalled.cancel(),
                _ => {}
            }
            let changes = active.case.drift.get(&request).cloned().unwrap_or_default();
            (active.attempt, changes, active.case.quirks.request_faults.get(&request).copied())
        };
        self.requested.notify_waiters();
        if !changes.is_empty() {
            // The client may cancel this request.
            let (stage, busy) = (Arc::clone(self), Arc::clone(&self.busy).read_owned().await);
            let done = tokio::spawn(async move {
                for change in changes {
                    stage.apply(change).await;
                }
                drop(busy);
            });
            done.await.unwrap();
        }
        (attempt, fault)
    }

    async fn answer(self: &Arc<Self>, run: usize, asked: Asked) -> Response {
        let (attempt, fault) = self.count_request(run).await;
        if let Some(reply) = faulty_answer(fault, &asked) {
            let at = self.clock.tick();
            self.record().answers.push(Answer { at, run, attempt, reported: Vec::new(), keyless: 0 });
            return reply;
        }
        if let Some(RequestFault::Slow(millis)) = fault {
            sleep(Duration::from_millis(millis)).await;
        }
        let mut record = self.record();
        let at = self.clock.tick();
        let case = record.active_runs[run].case.clone();
        let source = case.source.unwrap();
        let (reply, reported, keyless) = match asked {
            Asked::One(key) => self.one(&record, source, &key),
            Asked::Batch(keys) => self.batch(&record, source, &keys),
            Asked::List { start, size, base } => self.list(&record, &case, fault, &start, size, &base),
        };
        record.answers.push(Answer { at, run, attempt, reported, keyless });
        reply
    }

    fn one(&self, record: &Record, source: usize, key: &str) -> Reply {
        let (number, is_graph_ql) = (self.case.keys.number(key, false), self.case.sources[source].is_graph_ql);
        let item = number.and_then(|number| record.contents[source].items.get(&number));
        let reported = number.map(|number| (number, item.map_or(Reported::Gone, |item| Reported::Item(*item))));
        let body = match (item, number) {
            (Some(item), Some(number)) => item.json(&self.case.keys.json(number)),
            _ => Value::Null,
        };
        let reply = match (self.case.sources[source].gone, body) {
            (_, body) if is_graph_ql => axum::Json(json!({"data": {"user": body}})).into_response(),
            (Gone::Status(status), Value::Null) => StatusCode::from_u16(status).unwrap().into_response(),
            (Gone::EmptyList, Value::Null) => axum::Json(json!([])).into_response(),
            (Gone::EmptyList, body) => axum::Json(json!([body])).into_response(),
            (_, body) => axum::Json(body).into_response(),
        };
        (reply, reported.into_iter().collect(), 0)
    }

    fn batch(&self, record: &Record, source: usize, keys: &[String]) -> Reply {
        let numbers = keys.iter().filter_map(|key| self.case.keys.number(key, false));
        let found = numbers.filter_map(|number| Some((number, *record.contents[source].items.get(&number)?)));
        let found: Vec<(u32, Item)> = found.collect();
        let items: Vec<_> = found.iter().map(|(number, item)| item.json(&self.case.keys.json(*number))).collect();
        let is_graph_ql = self.case.sources[source].is_graph_ql;
        let body = if is_graph_ql { json!({"data": {"users": {"nodes": items}}}) } else { json!({"items": items}) };
        (
            axum::Json(body).into_response(),
            found.into_iter().map(|(number, item)| (number, Reported::Item(item))).collect(),
            0,
        )
    }

    fn list(
        &self,
        record: &Record,
        run: &RunCase,
        fault: Option<RequestFault>,
        start: &PlaceOf,
        size: Option<usize>,
        base: &str,
    ) -> Reply {
        let (at, quirks) = (run.source.unwrap(), &run.quirks);
        let (source, has) = (&self.case.sources[at], &record.contents[at]);
        let size = size.unwrap_or(3).min(quirks.cap.unwrap_or(usize::MAX)).max(1);
        let mut entries: Vec<u32> = has.items.keys().chain(&quirks.hidden).copied().collect();
        entries.sort_unstable();
        entries.dedup();
        let hidden = |number: &u32| quirks.hidden.contains(number);
        let total = entries.iter().filter(|number| !hidden(number)).count() as i64 + quirks.total_off;
        entries.truncate(quirks.truncated.unwrap_or(usize::MAX));
        let mut from = match start {
            PlaceOf::Page(page) => (page.max(&1) - 1) * size,
            PlaceOf::After(None) => 0,
            PlaceOf::After(Some(after)) => entries.partition_point(|number| number <= after),
        };
        if matches!(start, PlaceOf::Page(_)) && from >= entries.len() {
            if quirks.not_found && from > 0 {
                return (StatusCode::NOT_FOUND.into_response(), Vec::new(), 0);
            }
            if quirks.clamps {
                from = entries.len().saturating_sub(1) / size * size;
            }
        }
        let page: Vec<u32> = entries.iter().skip(from).take(size).copied().collect();
        let next = page.last().copied().filter(|_| from + size < entries.len());
        let mut reported = Vec::new();
        let mut items = Vec::new();
        for number in page.iter().filter(|number| !hidden(number)) {
            let item = has.items[number];
            items.push(item.json(&self.case.keys.json(*number)));
            reported.push((*number, Reported::Item(item)));
        }
        let (mut keyless, mut next) = (0, next.map(|number| json!(format!("k{number}"))));
        match fault {
            Some(RequestFault::Null) => {
                items.push(Value::Null);
                keyless = 1;
            }
            Some(RequestFault::Twice(is_same)) if !items.is_empty() => {
                let mut again = items[0].clone();
                if !is_same {
                    again["version"] = json!(-1);
                    reported[0].1 = Reported::Broken;
                }
                items.push(again);
            }
            Some(RequestFault::Loop) if next.is_some() => next = Some(json!("k0")),
            _ => {}
        }
        let mut body = Map::new();
        body.insert(if source.is_graph_ql { "nodes" } else { "items" }.to_owned(), items.into());
        body.insert("total".to_owned(), total.into());
        body.insert("more".to_owned(), next.is_some().into());
        match (&next, source.last) {
            (Some(next), _) => drop(body.insert("next".to_owned(), next.clone())),
            (None, LastPage::Null | LastPage::More) => drop(body.insert("next".to_owned(), Value::Null)),
            (None, LastPage::Empty) => drop(body.insert("next".to_owned(), "".into())),
            (None, LastPage::False) => drop(body.insert("next".to_owned(), false.into())),
            (None, LastPage::Absent) => {}
        }
        let body = if source.is_graph_ql { json!({"data": {"users": body}}) } else { body.into() };
        let mut reply = axum::Json(body).into_response();
        if source.way == Way::Link {
            let first = if source.is_sized { format!("first={size}") } else { "all=1".to_owned() };
            let address = |place: &str| format!("{base}/list?{first}&after={place}");
            let link = match next.as_ref().and_then(Value::as_str) {
                Some(next) => Some(format!("<{}>; rel=\"next\", <{}>; rel=first", address(next), address(""))),
                None if source.last == LastPage::Absent => None,
                None => Some(format!("<{}>; rel=\"first\"", address(""))),
            };
            if let Some(link) = link {
                reply.headers_mut().insert("link", link.parse().unwrap());
            }
        }
        (reply, reported, keyless)
    }
}

/// The faulty answer to a request.
fn faulty_answer(fault: Option<RequestFault>, asked: &Asked) -> Option<Response> {
    Some(match fault? {
        // The code 404 would report the person as missing.
        RequestFault::Status(404) if matches!(asked, Asked::One(_)) => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        RequestFault::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        RequestFault::Limited(seconds) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())]).into_response()
        }
        RequestFault::NoJson => "<html>".into_response(),
        _ => return None,
    })
}

type Reply = (Response, Vec<(u32, Reported)>, usize);

enum PlaceOf {
    Page(usize),
    After(Option<u32>),
}

enum Asked {
    One(String),
    Batch(Vec<String>),
    List { start: PlaceOf, size: Option<usize>, base: String },
}

/// The cases that are played, by seed.
pub type Stages = Arc<Mutex<HashMap<u64, Arc<Stage>>>>;

/// Starts the server, and returns its address.
pub async fn serve(stages: Stages) -> String {
    let router = Router::new()
        .route("/{seed}/{run}/{what}", any(handle))
        .route("/{seed}/{run}/{what}/{key}", any(handle_one))
        .with_state(stages);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    address
}

async fn handle_one(
    State(stages): State<Stages>,
    Path((seed, run, _, key)): Path<(u64, usize, String, String)>,
) -> Response {
    let stage = stages.lock().unwrap().get(&seed).cloned();
    match stage {
        Some(stage) => stage.answer(run, Asked::One(key)).await,
        None => StatusCode::GONE.into_response(),
    }
}

async fn handle(
    State(stages): State<Stages>,
    Path((seed, run, what)): Path<(u64, usize, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let stage = stages.lock().unwrap().get(&seed).cloned();
    let Some(stage) = stage else { return StatusCode::GONE.into_response() };
    let host = headers.get(HeaderName::from_static("host")).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let base = format!("http://{host}/{seed}/{run}");
    let number = |text: &str| text.strip_prefix('k').and_then(|text| text.parse().ok());
    let asked = if what == "graphql" {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let variables = &body["variables"];
        if let Some(id) = variables["id"].as_str() {
            Asked::One(id.to_owned())
        } else if let Some(ids) = variables["ids"].as_array() {
            Asked::Batch(ids.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        } else {
            let start = match variables["page"].as_u64() {
                Some(page) => PlaceOf::Page(page as usize),
                None => PlaceOf::After(variables["after"].as_str().and_then(number)),
            };
            Asked::List { start, size: variables["first"].as_u64().map(|size| size as usize), base }
        }
    } else if let Some(ids) = query.get("ids") {
        Asked::Batch(ids.split(',').map(str::to_owned).collect())
    } else {
        let start = match query.get("page").and_then(|page| page.parse().ok()) {
            Some(page) => PlaceOf::Page(page),
            None => PlaceOf::After(query.get("after").and_then(|after| number(after))),
        };
        Asked::List { start, size: query.get("first").and_then(|size| size.parse().ok()), base }
    };
    stage.answer(run, asked).await
}
