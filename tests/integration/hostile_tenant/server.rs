//! The servers of the hostile tenant: a source that answers wrongly, and a server that pretends to be a MongoDB. The
//! servers record all that they receive. The source of the honest tenants is here too.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bson::{Bson, DateTime, Document, doc};
use futures::stream;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

const MIB: usize = 1 << 20;

/// All bytes that servers received, as text.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<String>>);

impl Received {
    fn add(&self, bytes: &[u8]) {
        self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
    }

    pub fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// Starts an HTTP server on a free port of a loopback address, and returns its URL.
async fn serve(address: &str, router: Router) -> String {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    url
}

/// Starts the source of the honest tenants. It names each user, and records the paths of the requests.
pub async fn honest_source(address: &str) -> (String, Received) {
    let received = Received::default();
    let answer = async |State(received): State<Received>, request: Request| {
        let path = request.uri().to_string();
        received.add(format!("{path}\n").as_bytes());
        axum::Json(json!({"name": format!("user {}", path.rsplit('/').next().unwrap_or_default())}))
    };
    (serve(address, Router::new().fallback(answer).with_state(received.clone())).await, received)
}

#[derive(Clone)]
struct HostileSource {
    received: Received,
    /// URL of the source of the honest tenants.
    other: String,
    compressed: Bytes,
}

/// Starts the source of the hostile tenant.
pub async fn hostile_source(address: &str, received: Received, other: String) -> String {
    let source = HostileSource { received, other, compressed: compressed_zeros(64) };
    serve(address, Router::new().fallback(answer).with_state(source)).await
}

/// This number of MiB of zeros, as gzip.
fn compressed_zeros(mebibytes: usize) -> Bytes {
    let mut gzip = Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let writer = std::thread::spawn(move || (0..mebibytes).for_each(|_| input.write_all(&vec![0; MIB]).unwrap()));
    let output = gzip.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    output.into()
}

async fn answer(State(source): State<HostileSource>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MIB).await.unwrap_or_default();
    source.received.add(format!("{} {:?}\n", head.uri, head.headers).as_bytes());
    source.received.add(&body);
    let page = head.uri.query().and_then(|query| query.strip_prefix("page=")?.parse::<usize>().ok()).unwrap_or(0);
    let items = || (0..100).map(|item| json!({"id": 100 * page + item, "name": "x"})).collect::<Value>();
    let redirect = |status: StatusCode, name: &'static str, value: String| (status, [(name, value)]).into_response();
    let stolen = format!("{}/stolen", source.other);
    match head.uri.path() {
        "/late-bomb" if page < 2 => axum::Json(items()).into_response(),
        "/bomb" | "/late-bomb" => format!("[{}0]", "0,".repeat(8 * MIB - 2)).into_response(),
        "/values" => format!(r#"{{"name": "x", "more": [{}0]}}"#, "0,".repeat(240_000)).into_response(),
        "/endless" => axum::Json(items()).into_response(),
        "/cursor" => axum::Json(json!({"items": items(), "next": "x".repeat(15 * MIB)})).into_response(),
        "/deep" => "[".repeat(MIB).into_response(),
        "/compressed" => ([("content-encoding", "gzip")], source.compressed).into_response(),
        "/drip" => Body::from_stream(stream::unfold((), async |()| {
            sleep(Duration::from_millis(500)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        }))
        .into_response(),
        "/silent" => {
            sleep(Duration::from_hours(1)).await;
            StatusCode::NO_CONTENT.into_response()
        }
        "/redirect" => redirect(StatusCode::TEMPORARY_REDIRECT, "location", stolen),
        "/link" => {
            let mut answer = axum::Json(items()).into_response();
            answer.headers_mut().insert("link", format!("<{stolen}>; rel=\"next\"").parse().unwrap());
            answer
        }
        "/later" => redirect(StatusCode::TOO_MANY_REQUESTS, "retry-after", "86400".to_owned()),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "no").into_response(),
    }
}

/// Starts the server that pretends to be a MongoDB, and returns its port. Each connection gets other wrong answers.
/// `others` are the addresses that the server names as members of its replica set.
pub async fn hostile_mongodb(received: Received, others: Vec<String>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = AtomicUsize::new(0);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let behaviour = connections.fetch_add(1, Ordering::Relaxed) % 8;
            tokio::spawn(converse(client, behaviour, port, received.clone(), others.clone()));
        }
    });
    port
}

/// Answers the messages of a client until it closes the connection.
/// <https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/>
async fn converse(
    mut client: TcpStream,
    behaviour: usize,
    port: u16,
    received: Received,
    others: Vec<String>,
) -> Option<()> {
    loop {
        let mut header = [0; 16];
        client.read_exact(&mut header).await.ok()?;
        let part = |at: usize| header[at..at + 4].try_into().map(i32::from_le_bytes).ok();
        let (length, id) = (part(0)?, part(4)?);
        let mut body = vec![0; usize::try_from(length).ok()?.checked_sub(16)?];
        client.read_exact(&mut body).await.ok()?;
        received.add(&body);
        let command = Document::from_reader(body.get(5..)?).ok()?;
        let name = command.keys().next()?.to_lowercase();
        let is_hello = matches!(name.as_str(), "hello" | "ismaster");
        let reply = match behaviour {
            1 if is_hello => hello(&others.iter().chain([&format!("localhost:{port}")]).cloned().collect::<Vec<_>>()),
            2 => {
                let announced = [1 << 30, id, id, 2013].map(i32::to_le_bytes).concat();
                client.write_all(&announced).await.ok()?;
                continue;
            }
            3 if is_hello => hello(&(0..5_000).map(|at| format!("db-{at}.localhost:{port}")).collect::<Vec<_>>()),
            4 => (0..300).fold(hello(&[]), |inner, _| doc! {"ok": 1, "a": inner}),
            5 => continue,
            6 if is_hello => {
                let mut reply = hello(&[]);
                reply.insert("saslSupportedMechs", vec!["MONGODB-OIDC", "MONGODB-AWS", "PLAIN"]);
                reply
            }
            _ if is_hello => hello(&[]),
            _ => endless(&name),
        };
        let mut bytes = Vec::new();
        reply.to_writer(&mut bytes).ok()?;
        let length = i32::try_from(bytes.len()).ok()? + 21;
        let head = [length, id, id, 2013, 0].map(i32::to_le_bytes).concat();
        client.write_all(&[&head[..], &[0], &bytes].concat()).await.ok()?;
    }
}

/// The answer to `hello` of a server alone, or of the primary of these members.
fn hello(members: &[String]) -> Document {
    let mut reply = doc! {
        "ok": 1, "helloOk": true, "isWritablePrimary": true, "ismaster": true, "maxBsonObjectSize": 16_777_216,
        "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "localTime": DateTime::now(),
        "minWireVersion": 0, "maxWireVersion": 25, "logicalSessionTimeoutMinutes": 30,
    };
    if let Some(last) = members.last() {
        reply.extend(doc! {"setName": "own", "hosts": members, "me": last, "primary": last, "setVersion": 1});
    }
    reply
}

/// The answer to any other command. A cursor never ends.
fn endless(command: &str) -> Document {
    let batch = |name: &str| {
        let documents: Vec<Bson> =
            (0..1_000).map(|_| doc! {"_id": bson::oid::ObjectId::new(), "x": "x".repeat(1_000)}.into()).collect();
        doc! {"ok": 1, "cursor": {"id": 1_i64, "ns": "crm.users", name: documents}}
    };
    match command {
        "find" | "aggregate" | "listindexes" | "listcollections" => batch("firstBatch"),
        "getmore" => batch("nextBatch"),
        "update" | "delete" => doc! {"ok": 1, "n": 1_000, "nModified": 1_000},
        _ => doc! {"ok": 1, "n": 1_000_000_000_i64},
    }
}
