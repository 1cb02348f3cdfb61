//! Operator processes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    eventually,
    process::{PEAK, Process, RESIDENT},
    unique,
};

/// An operator process, and its log. Killed when dropped.
pub struct Operator {
    process: Process,
    log: PathBuf,
}

impl Operator {
    /// Starts the process of a test environment.
    pub fn start(mut process: Command, env: &str) -> Self {
        let log = env::temp_dir().join(format!("{}.log", unique(env)));
        let file = fs::File::create(&log).unwrap();
        Self { process: Process::start(process.stderr(file)), log }
    }

    /// Creates another link to the log, which stays when the process is dropped.
    pub fn keep_log(&self, name: &Path) {
        fs::hard_link(&self.log, name).unwrap();
    }

    /// Resident memory in MiB.
    pub fn resident_mib(&self) -> u64 {
        self.process.memory_mib(RESIDENT) as u64
    }

    /// Peak of the resident memory in MiB.
    pub fn peak_mib(&self) -> u64 {
        self.process.memory_mib(PEAK) as u64
    }

    /// CPU time so far, of all threads.
    pub fn cpu(&self) -> Duration {
        Duration::from_secs_f64(self.process.cpu_s())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM to the process, and waits for its exit code.
    pub async fn stop(mut self) -> Option<i32> {
        self.stop_and_wait().await
    }

    /// Sends SIGTERM to the process, and waits for its exit code. The log can be read afterwards.
    pub async fn stop_and_wait(&mut self) -> Option<i32> {
        self.signal("TERM");
        eventually("the operator ends after SIGTERM", async || self.process.ended()).await.code()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // The log is complete when the process has ended.
        if self.process.is_running() {
            self.process.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the operator ---\n{}", self.log());
        }
        fs::remove_file(&self.log).ok();
    }
}
