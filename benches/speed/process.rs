//! Processes, and their CPU time and memory, from /proc.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use crate::Result;

/// Clock ticks per second in /proc, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// User and system time so far, in seconds.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).ok_or("/proc is not readable");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Field of /proc with the peak of the resident memory.
pub const PEAK: &str = "VmHWM";

/// Resident memory of a field of /proc/PID/status, in MiB.
pub fn memory_mib(pid: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: f64 = found.ok_or("/proc has no such memory")?.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// An operator process. Killed when dropped.
pub struct Operator(Child);

impl Operator {
    /// Starts it, without its output.
    pub fn start(process: &mut Command) -> Result<Self> {
        Ok(Self(process.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }

    /// As [`cpu_s`].
    pub fn cpu_s(&self) -> Result<f64> {
        cpu_s(self.0.id())
    }

    /// As [`memory_mib`].
    pub fn memory_mib(&self, line: &str) -> Result<f64> {
        memory_mib(self.0.id(), line)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
