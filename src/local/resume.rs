//! The resume file: the progress of the runs of an interrupted process.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::run::Progress;
use crate::{api::SyncJob, domain::run::Subset};

/// Format of the file. One of another format is refused.
const FORMAT: u32 = 1;

/// A resume file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("could not read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{0} is not a resume file of this release of sync-operator: run again without --resume")]
    Unreadable(String),
    #[error(
        "{path} was written for another spec of {name}: undo the change of the manifest or of the flags, or run again without --resume"
    )]
    Changed { path: String, name: String },
    #[error("could not write {path}: {source}")]
    Write { path: String, source: std::io::Error },
}

/// Content of a resume file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Resume {
    format: u32,
    runs: Vec<StoredRun>,
}

/// Progress of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredRun {
    name: String,
    /// Hash of the spec and of the flags that affect the run.
    spec_hash: String,
    progress: Progress,
}

fn hash(job: &SyncJob, subset: &Subset) -> String {
    let spec = serde_json::to_vec(&(&job.spec, subset)).unwrap_or_default();
    let digest: [u8; 32] = Sha256::digest(spec).into();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

fn name(job: &SyncJob) -> String {
    let namespace = job.metadata.namespace.as_deref().unwrap_or("default");
    format!("{namespace}/{}", job.metadata.name.as_deref().unwrap_or_default())
}

impl Resume {
    /// Reads a resume file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| Error::Read { path: shown.clone(), source })?;
        let resume: Option<Self> = serde_json::from_str(&text).ok();
        resume.filter(|resume| resume.format == FORMAT).ok_or(Error::Unreadable(shown))
    }

    /// Returns the progress of the run of `job`. `None`: it had not started.
    pub fn progress_of(&self, job: &SyncJob, subset: &Subset, path: &Path) -> Result<Option<Progress>, Error> {
        let name = name(job);
        let Some(entry) = self.runs.iter().find(|entry| entry.name == name) else { return Ok(None) };
        if entry.spec_hash != hash(job, subset) {
            return Err(Error::Changed { path: path.display().to_string(), name });
        }
        Ok(Some(entry.progress.clone()))
    }

    /// Adds the progress of the run of `job`.
    pub fn add(&mut self, job: &SyncJob, subset: &Subset, progress: &Progress) {
        self.format = FORMAT;
        self.runs.push(StoredRun { name: name(job), spec_hash: hash(job, subset), progress: progress.clone() });
    }

    /// Writes the file as a whole. Only its owner can read it: failures name keys of documents.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let written = || {
            let temporary = path.with_extension("tmp");
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        written().map_err(|source| Error::Write { path: path.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SyncJobSpec;
    use jiff::Timestamp;

    fn job(name: &str, batch_size: i32) -> SyncJob {
        SyncJob::new(name, SyncJobSpec { batch_size, ..SyncJobSpec::default() })
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("sync-operator-{}-{name}.json", std::process::id()))
    }

    #[test]
    fn a_run_is_found_again_by_its_name_and_spec() {
        let (path, subset) = (path("found"), Subset::default());
        let progress = Progress::new("u".to_owned(), Timestamp::UNIX_EPOCH);
        let mut resume = Resume::default();
        resume.add(&job("a", 100), &subset, &progress);
        resume.write(&path).unwrap();
        let read = Resume::load(&path).unwrap();
        assert_eq!(read, resume);
        assert_eq!(read.progress_of(&job("a", 100), &subset, &path).unwrap(), Some(progress));
        assert_eq!(read.progress_of(&job("b", 100), &subset, &path).unwrap(), None);
        let limited = Subset { limit: Some(1), ..Subset::default() };
        for (job, subset) in [(job("a", 200), &subset), (job("a", 100), &limited)] {
            let error = read.progress_of(&job, subset, &path).unwrap_err().to_string();
            assert!(error.contains("another spec of default/a"), "{error}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_resume_file_is_refused() {
        let path = path("refused");
        for text in ["", "{}", "[]", r#"{"format": 2, "runs": []}"#] {
            fs::write(&path, text).unwrap();
            let error = Resume::load(&path).unwrap_err().to_string();
            assert!(error.contains("is not a resume file"), "{text}: {error}");
        }
        fs::remove_file(path).unwrap();
    }
}
