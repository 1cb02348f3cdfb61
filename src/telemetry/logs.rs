//! The log: one event a line, on standard error. What is logged can change while the program runs.

use std::{
    fs,
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Registry, filter::filter_fn, fmt as lines, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Interval between reads of the file with the filter. A kubelet writes a changed ConfigMap within about a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text, for users.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// Log filter: the given one, such as `info` or `sync_operator=debug,warn`, unless a file overrides it.
pub struct LogFilter {
    default: String,
    file: Option<PathBuf>,
    /// Content of the file when it was last read.
    content: Option<String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Starts logging.
///
/// # Errors
/// When the filter cannot be read, or logging was started before.
pub fn init(format: Format, default: String, file: Option<PathBuf>) -> Result<LogFilter, String> {
    let filter = EnvFilter::try_new(&default).map_err(|error| format!("--log-level: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(|event| !has_answer(event)));
    let started = match format {
        Format::Text => registry
            .with(lines::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).with_target(false))
            .try_init(),
        Format::Json => registry
            .with(
                lines::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(io::stderr),
            )
            .try_init(),
    };
    started.map_err(|error| error.to_string())?;
    let mut filter = LogFilter { default, file, content: None, handle };
    filter.reload_if_changed();
    Ok(filter)
}

impl LogFilter {
    /// Applies the log filter of the file when it changes, and at once on SIGHUP, which does not end the program.
    /// Returns only when the process cannot listen for signals, which is logged. Can be cancelled at any time.
    pub async fn follow(mut self) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return tracing::warn!(%error, "could not listen for SIGHUP; the log filter stays as it is"),
        };
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                _ = ticks.tick() => {}
            }
            self.reload_if_changed();
        }
    }

    fn reload_if_changed(&mut self) {
        let Some(file) = &self.file else { return };
        // A missing file, or one without text, is ignored.
        let content = fs::read_to_string(file).ok().and_then(|text| parse_filter(&text));
        if content == self.content {
            return;
        }
        let wanted = content.as_deref().unwrap_or(&self.default);
        match EnvFilter::try_new(wanted) {
            Ok(filter) => self.change(wanted, filter),
            Err(error) => {
                tracing::warn!(
                    filter = wanted, %error, "LOG_FILTER_FILE: no valid log filter; the log filter is not changed"
                );
            }
        }
        self.content = content;
    }

    /// The filter of the two that lets it through logs the change.
    fn change(&self, wanted: &str, filter: EnvFilter) {
        let log_change = || tracing::info!(filter = wanted, "log filter changed");
        let is_logged = tracing::enabled!(tracing::Level::INFO);
        if is_logged {
            log_change();
        }
        if let Err(error) = self.handle.reload(filter) {
            tracing::warn!(%error, "could not change the log filter");
        } else if !is_logged {
            log_change();
        }
    }
}

/// True for warnings of kube's client, which contain the whole text of an answer that it cannot read: a list of
/// objects, or a Secret. The caller logs the error without the text.
fn has_answer(event: &Metadata<'_>) -> bool {
    event.target() == "kube_client::client" && *event.level() == Level::WARN
}

/// Filter in a file, when the file is not empty.
fn parse_filter(text: &str) -> Option<String> {
    Some(text.trim()).filter(|line| !line.is_empty()).map(str::to_owned)
}
