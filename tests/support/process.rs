//! Processes, and their CPU time and memory, from /proc.

use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
};

/// Clock ticks per second in /proc, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Field of /proc/PID/status with the resident memory.
pub const RESIDENT: &str = "VmRSS";

/// Field of /proc/PID/status with the peak of the resident memory.
pub const PEAK: &str = "VmHWM";

/// User and system time of all threads so far, in seconds.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in brackets may contain spaces. The times are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS
}

/// Memory in a field of /proc/PID/status, in MiB.
pub fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    found.unwrap().trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// A process without input and standard output. Killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// As [`cpu_s`].
    pub fn cpu_s(&self) -> f64 {
        cpu_s(self.0.id())
    }

    /// As [`memory_mib`].
    pub fn memory_mib(&self, field: &str) -> f64 {
        memory_mib(self.0.id(), field)
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// The status of a process that has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
