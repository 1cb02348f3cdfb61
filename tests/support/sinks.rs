//! Real sinks of alerts: an HTTP server with faulty answers, and a mail server.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::{certificates::Authority, eventually, free_port, unique, variable};

/// An HTTP server. Stopped when dropped.
pub struct HttpSink {
    pub url: String,
    state: Arc<Mutex<SinkState>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
pub struct SinkState {
    /// The answers to the next requests at a path, whose messages are not accepted.
    pub instead: Vec<(String, VecDeque<Instead>)>,
    /// The accepted messages.
    pub deliveries: Vec<Delivery>,
    /// Paths of all requests.
    pub requests: Vec<String>,
}

#[derive(Clone)]
pub enum Instead {
    Status(u16),
    /// Code 429, with the number of seconds to wait.
    Wait(u32),
    /// No answer for this time, which is longer than the timeout.
    Silence(Duration),
}

#[derive(Clone)]
pub struct Delivery {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Delivery {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl HttpSink {
    pub async fn start() -> Self {
        let state = Arc::<Mutex<SinkState>>::default();
        let router = Router::new().route("/{*path}", post(take)).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    pub fn state(&self) -> MutexGuard<'_, SinkState> {
        self.state.lock().unwrap()
    }

    pub fn answer(&self, path: &str, with: impl IntoIterator<Item = Instead>) {
        self.state().instead.push((path.to_owned(), with.into_iter().collect()));
    }

    pub fn deliveries(&self, path: &str) -> Vec<Delivery> {
        self.state().deliveries.iter().filter(|taken| taken.path == path).cloned().collect()
    }

    /// Waits until this number of messages was accepted at a path.
    pub async fn wait_for_deliveries(&self, path: &str, count: usize) -> Vec<Delivery> {
        let what = format!("{count} messages were taken at {path}");
        eventually(&what, async || Some(self.deliveries(path)).filter(|taken| taken.len() >= count)).await
    }

    /// The notifications at a path: `firing RunFailed s` for each alert in each message.
    pub fn notifications(&self, path: &str) -> Vec<String> {
        let mut notifications = Vec::new();
        for taken in self.deliveries(path) {
            let body = taken.json();
            for kind in ["firing", "resolved"] {
                for alert in body[kind].as_array().unwrap() {
                    let text = |field: &str| alert[field].as_str().unwrap().to_owned();
                    notifications.push(format!("{kind} {} {}", text("type"), text("schedule")));
                }
            }
        }
        notifications
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(state): State<Arc<Mutex<SinkState>>>, uri: Uri, headers: HeaderMap, body: String) -> Response {
    let path = uri.path().to_owned();
    let instead = {
        let mut state = state.lock().unwrap();
        state.requests.push(path.clone());
        let instead = state.instead.iter_mut().filter(|(at, _)| *at == path).find_map(|(_, next)| next.pop_front());
        if instead.is_none() {
            state.deliveries.push(Delivery { path, headers, body });
        }
        instead
    };
    match instead {
        None => "ok".into_response(),
        Some(Instead::Status(code)) => StatusCode::from_u16(code).unwrap().into_response(),
        Some(Instead::Wait(seconds)) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())]).into_response()
        }
        Some(Instead::Silence(time)) => {
            sleep(time).await;
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

/// A mail server that requires STARTTLS and a login. Stopped when dropped.
pub struct MailSink {
    pub port: u16,
    pub authority: Authority,
    folder: PathBuf,
    server: Child,
}

pub const USER: &str = "mailer";
pub const PASSWORD: &str = "pass word";

impl MailSink {
    pub async fn start() -> Self {
        let folder = std::env::temp_dir().join(unique("mail"));
        fs::create_dir(&folder).unwrap();
        let authority = Authority::new();
        let tls = authority.certify();
        let port = free_port();
        let server = Command::new("python3")
            .arg("tests/support/smtp.py")
            .arg(port.to_string())
            .args([&folder, &tls.certificate, &tls.key])
            .args([USER, PASSWORD])
            .env("PYTHONPATH", variable("AIOSMTPD"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let sink = Self { port, authority, folder, server };
        eventually("the mail server is up", async || sink.folder.join("ready").exists().then_some(())).await;
        sink
    }

    /// Refuses mails with this answer, or accepts them again.
    pub fn answer(&self, with: Option<&str>) {
        let file = self.folder.join("answer");
        match with {
            Some(answer) => fs::write(file, answer).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
    }

    /// Waits until this number of mails was accepted.
    pub async fn wait_for_mails(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} mails were taken"), async || Some(self.mails()).filter(|it| it.len() >= count))
            .await
    }

    pub fn mails(&self) -> Vec<String> {
        (0..).map_while(|number| fs::read_to_string(self.folder.join(format!("{number}.eml"))).ok()).collect()
    }
}

impl Drop for MailSink {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}
