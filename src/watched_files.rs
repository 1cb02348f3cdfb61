//! Files with passwords and certificates, which may be replaced while the program runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

/// Interval between reads of the files. A kubelet writes a changed Secret within about a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Error of a file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not exist, or may not be read.
    #[error("{setting}: could not read {path}: {source}; mount the Secret that holds it, or correct the path", path = path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the read.
        source: std::io::Error,
    },
    /// The file is empty, or contains no text.
    #[error("{setting}: {path} is empty, or no text", path = path.display())]
    NoText {
        /// The setting that names the file.
        setting: &'static str,
        /// Path of the file.
        path: PathBuf,
    },
}

/// Files that were read at the start, with their contents.
#[derive(Default)]
pub struct WatchedFiles(Vec<WatchedFile>);

struct WatchedFile {
    setting: &'static str,
    path: PathBuf,
    content: Vec<u8>,
}

impl WatchedFiles {
    /// Reads a file, and adds it to the watched files.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self, setting: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
        let unreadable = |source| Error::Unreadable { setting, path: path.to_owned(), source };
        let content = fs::read(path).map_err(unreadable)?;
        self.0.push(WatchedFile { setting, path: path.to_owned(), content: content.clone() });
        Ok(content)
    }

    /// Reads a file with one line of text, without a line break at its end.
    ///
    /// # Errors
    /// When the file cannot be read, or contains no text.
    pub fn read_line(&mut self, setting: &'static str, path: &Path) -> Result<String, Error> {
        let text = String::from_utf8(self.read(setting, path)?).unwrap_or_default();
        let line = text.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            return Err(Error::NoText { setting, path: path.to_owned() });
        }
        Ok(line.to_owned())
    }

    /// Reads the line of `file`, or returns `given` when no file is named.
    ///
    /// # Errors
    /// When the file cannot be read, or contains no text.
    pub fn read_line_or(
        &mut self,
        setting: &'static str,
        file: Option<&Path>,
        given: Option<&str>,
    ) -> Result<Option<String>, Error> {
        match file {
            Some(file) => self.read_line(setting, file).map(Some),
            None => Ok(given.map(str::to_owned)),
        }
    }

    /// True when no file is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until the content of a file changes, and returns the setting that names the file. A missing file counts as unchanged. Can be
    /// cancelled at any time.
    pub async fn changed(self) -> &'static str {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(setting) = self.changed_setting() {
                return setting;
            }
        }
    }

    fn changed_setting(&self) -> Option<&'static str> {
        let changed = |known: &&WatchedFile| fs::read(&known.path).is_ok_and(|now| now != known.content);
        self.0.iter().find(changed).map(|known| known.setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_noticed_and_a_missing_one_is_not() {
        let path = std::env::temp_dir().join(format!("sync-operator-{:016x}", rand::random::<u64>()));
        let mut files = WatchedFiles::default();
        assert!(files.read_line("REDIS_URL_FILE", &path).unwrap_err().to_string().starts_with("REDIS_URL_FILE: could"));
        fs::write(&path, "\n").unwrap();
        let error = WatchedFiles::default().read_line("REDIS_URL_FILE", &path).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
        fs::write(&path, "redis://one\n").unwrap();
        assert_eq!(files.read_line("REDIS_URL_FILE", &path).unwrap(), "redis://one");
        assert_eq!(files.changed_setting(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(files.changed_setting(), None);
        fs::write(&path, "redis://two\n").unwrap();
        assert_eq!(files.changed_setting(), Some("REDIS_URL_FILE"));
        fs::remove_file(&path).unwrap();
    }
}
