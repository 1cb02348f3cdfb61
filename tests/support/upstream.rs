//! A server with a part of the GraphQL schema of GitLab, the same users by REST, and faulty answers.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use async_graphql::{Context, EmptyMutation, EmptySubscription, ID, NewType, Object, Request, Schema, SimpleObject};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query as Parameters, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::tls_rustls::RustlsConfig;
use futures::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

/// A server. Stopped when dropped.
pub struct Upstream {
    pub url: String,
    state: Arc<Mutex<UpstreamState>>,
    server: JoinHandle<()>,
}

/// The configuration of the server, and the requests that it received.
#[derive(Default)]
pub struct UpstreamState {
    /// Delay of each answer.
    pub delay: Duration,
    /// The only accepted token.
    pub token: Option<String>,
    /// The answers to the next requests, in place of the requested data.
    pub instead: VecDeque<Instead>,
    /// The answers to all requests for these paths and queries.
    pub fixed: HashMap<String, Instead>,
    /// Chooses the answer to each further request.
    pub next_answer: Option<Box<dyn FnMut() -> Option<Instead> + Send>>,
    /// Times at which the names of all users changed.
    pub versions: Vec<SystemTime>,
    /// Users that differ from the others, by the number in the id.
    pub users: HashMap<String, Peculiar>,
    /// Number of users that pages list. Their ids are numbers.
    pub people: usize,
    /// Numbers of the projects of every group.
    pub projects: Vec<u32>,
    /// Paths and queries of the REST requests.
    pub addresses: Vec<String>,
    /// Times of the requests.
    pub seen: Vec<Instant>,
    /// Headers of the last request.
    pub headers: HeaderMap,
    /// Total time of all answers.
    pub took: Duration,
    /// Present and highest number of concurrent requests.
    pub busy: (usize, usize),
}

#[derive(Clone)]
pub enum Instead {
    /// A status and headers. A value of +3 is the time in 3 s, in seconds since the epoch.
    Status(u16, Vec<(&'static str, String)>),
    /// A body, with status 200.
    Body(String),
    /// A status, and a body of JSON.
    Reply(u16, Value),
    /// A body in this encoding.
    Encoded(&'static str, Vec<u8>),
    /// A body of this number of MiB.
    Huge(usize),
    /// No answer for this time.
    Silence(Duration),
    /// The requested data, with another result for the first user.
    Twice,
    /// The requested REST data, with this header `Link`.
    Link(&'static str),
    /// A body of JSON, with this header `Link`.
    Linked(Value, &'static str),
}

#[derive(Clone)]
pub enum Peculiar {
    Named(String),
    Gone,
    /// A user whose name causes an error.
    Broken,
}

/// Text in the errors of the server that must not appear anywhere else.
pub const PRIVATE: &str = "row 7 of table payroll";

impl Upstream {
    pub async fn start() -> Self {
        Self::start_on(0).await
    }

    /// Starts the server on a port. 0: any free port.
    pub async fn start_on(port: u16) -> Self {
        let (state, router) = routes();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let url = format!("http://{}/api/graphql", listener.local_addr().unwrap());
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    /// Starts the server with TLS, with this certificate and key.
    pub async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let (state, router) = routes();
        rustls::crypto::ring::default_provider().install_default().ok();
        let tls = RustlsConfig::from_pem_file(certificate, key).await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}/api/graphql", listener.local_addr().unwrap());
        let server = axum_server::from_tcp_rustls(listener, tls).unwrap().serve(router.into_make_service());
        Self { url, state, server: tokio::spawn(async { server.await.unwrap() }) }
    }

    pub fn state(&self) -> MutexGuard<'_, UpstreamState> {
        self.state.lock().unwrap()
    }

    /// Starts the server with this number of users in its pages.
    pub async fn with_people(people: usize) -> Self {
        let upstream = Self::start().await;
        upstream.state().people = people;
        upstream
    }

    /// Chooses the answer to each further request by the number of the request, from 1 on.
    pub fn decide(&self, decide: impl Fn(usize) -> Option<Instead> + Send + 'static) {
        let mut number = 0;
        self.state().next_answer = Some(Box::new(move || {
            number += 1;
            decide(number)
        }));
    }

    /// Changes the names of all users.
    pub fn change(&self) {
        self.state().versions.push(SystemTime::now());
    }

    /// An address of its REST API.
    pub fn rest(&self, path: &str) -> String {
        self.url.replace("/api/graphql", path)
    }

    pub fn requests(&self) -> usize {
        self.state().seen.len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn routes() -> (Shared, Router) {
    let state = Shared::default();
    let schema = Schema::build(Query, EmptyMutation, EmptySubscription).data(state.clone()).finish();
    let router = Router::new().route("/api/graphql", post(answer)).fallback(answer);
    (state.clone(), router.with_state((state, schema)))
}

type Shared = Arc<Mutex<UpstreamState>>;
type Gitlab = Schema<Query, EmptyMutation, EmptySubscription>;

async fn answer(
    State((state, schema)): State<(Shared, Gitlab)>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let began = Instant::now();
    let (instead, delay, is_let_in) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Instant::now());
        state.busy.0 += 1;
        state.busy.1 = state.busy.1.max(state.busy.0);
        let is_let_in = state.token.as_ref().is_none_or(|token| {
            headers.get("authorization").is_some_and(|given| given.as_bytes() == format!("Bearer {token}").as_bytes())
        });
        state.headers = headers;
        if body.is_empty() {
            state.addresses.push(uri.to_string());
        }
        let next = state.instead.pop_front().or_else(|| state.fixed.get(&uri.to_string()).cloned());
        (next.or_else(|| state.next_answer.as_mut()?()), state.delay, is_let_in)
    };
    sleep(delay).await;
    let response = match instead {
        _ if !is_let_in => (StatusCode::UNAUTHORIZED, PRIVATE).into_response(),
        None if body.is_empty() => rest(&state.lock().unwrap(), &uri),
        None => json(execute(&schema, &body).await.to_string()),
        Some(Instead::Twice) => {
            let mut answer = execute(&schema, &body).await;
            if let Some(nodes) = answer.pointer_mut("/data/users/nodes").and_then(Value::as_array_mut) {
                nodes.extend(nodes.first().cloned());
                nodes.last_mut().into_iter().for_each(|last| last["name"] = "Nobody".into());
            }
            json(answer.to_string())
        }
        Some(Instead::Link(link)) => {
            let mut response = rest(&state.lock().unwrap(), &uri);
            response.headers_mut().insert("link", HeaderValue::from_static(link));
            response
        }
        Some(Instead::Status(code, headers)) => {
            let builder = Response::builder().status(code);
            let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, later(value)));
            builder.body(Body::from(PRIVATE)).unwrap()
        }
        Some(Instead::Body(body)) => json(body),
        Some(Instead::Linked(body, link)) => ([("link", link)], json(body.to_string())).into_response(),
        Some(Instead::Reply(code, body)) => {
            (StatusCode::from_u16(code).unwrap(), json(body.to_string())).into_response()
        }
        Some(Instead::Encoded(encoding, body)) => ([("content-encoding", encoding)], body).into_response(),
        Some(Instead::Huge(mebibytes)) => {
            let part = Bytes::from(vec![b' '; 1 << 20]);
            let parts = (0..mebibytes).map(move |_| Ok::<_, Infallible>(part.clone()));
            Body::from_stream(stream::iter(parts)).into_response()
        }
        Some(Instead::Silence(time)) => {
            sleep(time).await;
            StatusCode::NO_CONTENT.into_response()
        }
    };
    let mut state = state.lock().unwrap();
    state.busy.0 -= 1;
    state.took += began.elapsed();
    drop(state);
    response
}

fn later(value: &str) -> String {
    let Some(seconds) = value.strip_prefix('+') else { return value.to_owned() };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    (now.as_secs() + seconds.parse::<u64>().unwrap()).to_string()
}

async fn execute(schema: &Gitlab, body: &str) -> Value {
    let request: Request = serde_json::from_str(body).unwrap();
    serde_json::to_value(schema.execute(request).await).unwrap()
}

fn json(body: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Users by id (`/users/7`) and by ids (`/users?ids=7,8`), and all people in pages: by number, by cursor, and by link.
fn rest(state: &UpstreamState, uri: &Uri) -> Response {
    let Parameters(given) = Parameters::<HashMap<String, String>>::try_from_uri(uri).unwrap();
    let user = |id: &str| {
        let name = match state.users.get(id) {
            Some(Peculiar::Gone) => return None,
            Some(Peculiar::Named(name)) => name.clone(),
            _ => name(id, state.versions.len()),
        };
        let id = id.parse::<i64>().map_or_else(|_| json!(id), |id| json!(id));
        let (username, at) = (format!("user{id}"), "2024-05-06T07:08:09Z");
        Some(json!({"id": id, "username": username, "name": name, "state": "active", "created_at": at}))
    };
    let number = |name: &str| given.get(name).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let page = |from: usize| {
        let to = state.people.min(from + number("n"));
        let users: Vec<_> = (from..to).filter_map(|id| user(&id.to_string())).collect();
        (users, (to < state.people).then_some(to))
    };
    let earlier = number("page").max(1) - 1;
    match uri.path() {
        "/users" => {
            let ids = given.get("ids").map(String::as_str).unwrap_or_default();
            json(ids.split(',').filter_map(user).collect::<Value>().to_string())
        }
        "/numbered" => json(json!({"users": page(earlier * number("n")).0}).to_string()),
        "/after" => {
            let (users, next) = page(number("after"));
            json(json!({"users": users, "next": next.map(|next| next.to_string()).unwrap_or_default()}).to_string())
        }
        "/linked" => {
            let (size, next) = (number("n"), earlier + 2);
            let (users, more) = page(earlier * size);
            let mut links = format!("</linked?page=1&n={size}>; rel=\"first\"");
            if more.is_some() {
                links += &format!(", <?page={next}&n={size}>; rel=\"next\"");
            }
            ([("link", links)], json(Value::from(users).to_string())).into_response()
        }
        path => match path.strip_prefix("/users/").and_then(user) {
            Some(user) => json(user.to_string()),
            None => (StatusCode::NOT_FOUND, PRIVATE).into_response(),
        },
    }
}

#[derive(NewType)]
#[graphql(name = "IssueID")]
struct IssueId(String);

#[derive(NewType)]
#[graphql(name = "CiPipelineID")]
struct PipelineId(String);

#[derive(NewType)]
#[graphql(name = "UserID")]
struct UserId(String);

struct Query;

/// The number at the end of an id, such as 7 of `gid://gitlab/User/7`.
fn number(id: &str) -> &str {
    id.rsplit('/').next().unwrap()
}

fn lock_state<'a>(context: &Context<'a>) -> MutexGuard<'a, UpstreamState> {
    context.data_unchecked::<Shared>().lock().unwrap()
}

fn person(context: &Context<'_>, id: &str) -> Option<User> {
    let state = lock_state(context);
    let (peculiar, version) = (state.users.get(number(id)).cloned(), state.versions.len());
    (!matches!(peculiar, Some(Peculiar::Gone))).then(|| User { id: id.to_owned(), peculiar, version })
}

#[derive(SimpleObject)]
struct Users {
    nodes: Vec<Option<User>>,
}

#[derive(SimpleObject)]
struct UserPage {
    nodes: Vec<Option<User>>,
    page_info: PageInfo,
}

#[derive(SimpleObject)]
struct Projects {
    nodes: Vec<Option<Project>>,
}

#[Object]
impl Query {
    async fn users(&self, context: &Context<'_>, ids: Vec<ID>) -> Users {
        Users { nodes: ids.iter().filter_map(|id| person(context, id)).map(Some).collect() }
    }

    async fn people(&self, context: &Context<'_>, first: usize, after: Option<String>) -> UserPage {
        let from: usize = after.map_or(0, |cursor| cursor.parse().unwrap());
        let all = lock_state(context).people;
        let to = all.min(from + first);
        let nodes = (from..to).map(|id| person(context, &id.to_string())).collect();
        UserPage { nodes, page_info: PageInfo { has_next_page: to < all, end_cursor: Some(to.to_string()) } }
    }

    async fn user(&self, context: &Context<'_>, id: UserId) -> Option<User> {
        person(context, &id.0)
    }

    async fn projects(&self, ids: Vec<ID>) -> Projects {
        Projects { nodes: ids.into_iter().map(|id| Some(Project { id: id.to_string() })).collect() }
    }

    async fn group(&self, full_path: ID) -> Option<Group> {
        (*full_path == "example").then_some(Group)
    }

    async fn project(&self, full_path: ID) -> Option<Project> {
        (*full_path == "example/shop").then(|| Project { id: "gid://gitlab/Project/1".to_owned() })
    }

    async fn issue(&self, id: IssueId) -> Issue {
        Issue {
            title: format!("Issue {}", number(&id.0)),
            id: id.0.into(),
            state: "opened",
            due_date: Some("2026-03-01"),
            updated_at: "2026-02-03T04:05:06Z",
            closed_at: None,
        }
    }
}

struct User {
    id: String,
    peculiar: Option<Peculiar>,
    version: usize,
}

/// The name of a user after this number of changes.
pub fn name(number: &str, version: usize) -> String {
    if version == 0 { format!("User {number}") } else { format!("User {number} v{version}") }
}

#[Object]
impl User {
    async fn id(&self) -> ID {
        self.id.clone().into()
    }

    async fn username(&self) -> String {
        format!("user{}", number(&self.id))
    }

    #[allow(clippy::unused_async, reason = "the macro wants it")]
    async fn name(&self) -> async_graphql::Result<Option<String>> {
        match &self.peculiar {
            Some(Peculiar::Named(name)) => Ok(Some(name.clone())),
            Some(Peculiar::Broken) => Err(PRIVATE.into()),
            _ => Ok(Some(name(number(&self.id), self.version))),
        }
    }

    async fn public_email(&self) -> Option<String> {
        None
    }

    async fn state(&self) -> &'static str {
        "active"
    }

    async fn created_at(&self) -> &'static str {
        "2024-05-06T07:08:09Z"
    }
}

struct Group;

#[derive(SimpleObject)]
struct ProjectPage {
    nodes: Vec<Option<Project>>,
    page_info: PageInfo,
}

#[derive(SimpleObject)]
struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

#[Object]
impl Group {
    async fn projects(
        &self,
        context: &Context<'_>,
        first: usize,
        after: Option<String>,
        include_subgroups: Option<bool>,
    ) -> ProjectPage {
        assert!(include_subgroups.is_none_or(|include| include));
        let state = lock_state(context);
        let from: usize = after.map_or(0, |cursor| cursor.parse().unwrap());
        let page = state.projects.iter().skip(from).take(first);
        let nodes = page.map(|number| Some(Project { id: format!("gid://gitlab/Project/{number}") }));
        let nodes: Vec<_> = nodes.collect();
        let to = from + nodes.len();
        let page_info = PageInfo { has_next_page: to < state.projects.len(), end_cursor: Some(to.to_string()) };
        ProjectPage { nodes, page_info }
    }
}

struct Project {
    id: String,
}

#[Object]
impl Project {
    async fn id(&self) -> ID {
        self.id.clone().into()
    }

    async fn name(&self) -> String {
        format!("Project {}", number(&self.id))
    }

    async fn full_path(&self) -> ID {
        format!("example/project{}", number(&self.id)).into()
    }

    #[allow(clippy::unused_async, reason = "the macro wants it")]
    async fn description(&self, context: &Context<'_>) -> async_graphql::Result<Option<String>> {
        match lock_state(context).users.get(number(&self.id)) {
            Some(Peculiar::Named(name)) => Ok(Some(name.clone())),
            Some(Peculiar::Broken) => Err(PRIVATE.into()),
            _ => Ok(None),
        }
    }

    async fn archived(&self) -> bool {
        false
    }

    async fn star_count(&self) -> i32 {
        7
    }

    async fn last_activity_at(&self) -> &'static str {
        "2026-02-03T04:05:06Z"
    }

    async fn pipeline(&self, id: PipelineId) -> Option<Pipeline> {
        Some(Pipeline {
            id: id.0.into(),
            status: "SUCCESS",
            sha: "0123456789abcdef0123456789abcdef01234567",
            duration: Some(61),
            finished_at: Some("2026-02-03T04:05:06Z"),
        })
    }
}

#[derive(SimpleObject)]
struct Issue {
    id: ID,
    title: String,
    state: &'static str,
    due_date: Option<&'static str>,
    updated_at: &'static str,
    closed_at: Option<&'static str>,
}

#[derive(SimpleObject)]
struct Pipeline {
    id: ID,
    status: &'static str,
    sha: &'static str,
    duration: Option<i32>,
    finished_at: Option<&'static str>,
}
