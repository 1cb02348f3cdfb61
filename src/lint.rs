//! `sync-operator lint`: validates manifests without a server.

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
};

use crate::{
    cli::LintOutput,
    manifest::{self, Finding, Manifest, Object, Severity, file},
};

/// Validates files and prints the findings. Returns true when all files can be read and have no errors.
#[must_use]
pub fn run(files: &[PathBuf], output: LintOutput) -> bool {
    let mut summary = Summary { files: files.len(), ..Summary::default() };
    let (mut all, mut is_readable) = (Vec::new(), true);
    for path in files {
        match file::read_to_string(path) {
            Ok(text) => {
                let parsed = manifest::parse(&file::name(path), &text);
                summary.documents += parsed.documents;
                report_skipped(&parsed.manifests);
                all.extend(parsed.findings);
            }
            Err(error) => {
                is_readable = false;
                eprintln!("error: {error}");
            }
        }
    }
    for finding in &all {
        match finding.level {
            Severity::Error => summary.errors += 1,
            Severity::Warning => summary.warnings += 1,
        }
    }
    // A reader that has seen enough closes the pipe.
    print(&all, output, &mut io::stdout().lock()).ok();
    eprintln!("{summary}");
    is_readable && summary.errors == 0
}

fn report_skipped(manifests: &[Manifest]) {
    for Manifest { origin, object } in manifests {
        if let Object::Other { api_version, kind, name } = object {
            eprintln!("{origin}: skipped: {api_version} {kind} {name:?} is not of a kind of this operator");
        }
    }
}

fn print(findings: &[Finding], output: LintOutput, to: &mut impl Write) -> io::Result<()> {
    match output {
        LintOutput::Text => findings.iter().try_for_each(|finding| writeln!(to, "{finding}")),
        LintOutput::Json => {
            serde_json::to_writer_pretty(&mut *to, findings)?;
            writeln!(to)
        }
    }
}

/// Counts of a call.
#[derive(Default)]
struct Summary {
    files: usize,
    documents: usize,
    errors: usize,
    warnings: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, documents, errors, warnings } = *self;
        let counted = |count, noun| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let (files, documents) = (counted(files, "file"), counted(documents, "document"));
        write!(f, "{files}, {documents}: {}, {}", counted(errors, "error"), counted(warnings, "warning"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_in_words() {
        let summary = Summary { files: 2, documents: 3, errors: 1, warnings: 0 };
        assert_eq!(summary.to_string(), "2 files, 3 documents: 1 error, 0 warnings");
    }

    #[test]
    fn findings_are_printed_as_lines_or_json() {
        let findings = manifest::parse("a.yaml", "apiVersion: v1alpha1\nkind: SyncJob\n").findings;
        let printed = |output| {
            let mut text = Vec::new();
            print(&findings, output, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert!(
            printed(LintOutput::Text).starts_with("a.yaml:1:1: error: apiVersion: must be sync.codex.dev/v1alpha1")
        );
        let json: serde_json::Value = serde_json::from_str(&printed(LintOutput::Json)).unwrap();
        assert_eq!(json[0]["line"], 1);
        assert_eq!(json[0]["level"], "error");
        assert_eq!(json[0]["field"], "apiVersion");
    }
}
