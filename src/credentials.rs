//! Passwords and certificates in files, which others may exchange while the program runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at. A kubelet brings a changed Secret within about a minute.
const LOOK: Duration = Duration::from_secs(5);

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or may not be read.
    #[error("{setting}: could not read {path}: {source}; mount the Secret that holds it, or correct the path", path = path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why it could not be read.
        source: std::io::Error,
    },
    /// It holds nothing, or something that is no text.
    #[error("{setting}: {path} is empty, or no text", path = path.display())]
    NoText {
        /// The setting that names the file.
        setting: &'static str,
        /// Where it is.
        path: PathBuf,
    },
}

/// Files that were read at the start, with what they held.
#[derive(Default)]
pub struct Files(Vec<Known>);

struct Known {
    setting: &'static str,
    path: PathBuf,
    held: Vec<u8>,
}

impl Files {
    /// Reads a file, and remembers it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&mut self, setting: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
        let unreadable = |source| Error::Unreadable { setting, path: path.to_owned(), source };
        let held = fs::read(path).map_err(unreadable)?;
        self.0.push(Known { setting, path: path.to_owned(), held: held.clone() });
        Ok(held)
    }

    /// Reads a file with one line of text. A line break at its end does not count.
    ///
    /// # Errors
    /// When it cannot be read, or holds no text.
    pub fn read_line(&mut self, setting: &'static str, path: &Path) -> Result<String, Error> {
        let text = String::from_utf8(self.read(setting, path)?).unwrap_or_default();
        let line = text.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            return Err(Error::NoText { setting, path: path.to_owned() });
        }
        Ok(line.to_owned())
    }

    /// The line of a file where one is named, or else what is given itself.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no text.
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

    /// True when there is nothing to watch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until one of the files holds something else. Returns the setting that names it. A file that is away for a
    /// while has not changed. Can be cancelled at any time.
    pub async fn changed(self) -> &'static str {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(setting) = self.look() {
                return setting;
            }
        }
    }

    fn look(&self) -> Option<&'static str> {
        let changed = |known: &&Known| fs::read(&known.path).is_ok_and(|now| now != known.held);
        self.0.iter().find(changed).map(|known| known.setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_something_else_is_noticed_and_one_that_is_away_is_not() {
        let path = std::env::temp_dir().join(format!("sync-operator-{:016x}", rand::random::<u64>()));
        let mut files = Files::default();
        assert!(files.read_line("REDIS_URL_FILE", &path).unwrap_err().to_string().starts_with("REDIS_URL_FILE: could"));
        fs::write(&path, "\n").unwrap();
        let error = Files::default().read_line("REDIS_URL_FILE", &path).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
        fs::write(&path, "redis://one\n").unwrap();
        assert_eq!(files.read_line("REDIS_URL_FILE", &path).unwrap(), "redis://one");
        assert_eq!(files.look(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(files.look(), None);
        fs::write(&path, "redis://two\n").unwrap();
        assert_eq!(files.look(), Some("REDIS_URL_FILE"));
        fs::remove_file(&path).unwrap();
    }
}
