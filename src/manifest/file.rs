//! Files with manifests: their names and texts.

use std::{
    io::{self, Read as _},
    path::Path,
};

/// Name of the standard input as a file.
pub(crate) const STANDARD_INPUT: &str = "-";

/// Returns the name of a file in findings.
pub(crate) fn name(path: &Path) -> String {
    if path == Path::new(STANDARD_INPUT) { "stdin".to_owned() } else { path.display().to_string() }
}

/// Reads a file, or standard input. The error names the file and the fix.
pub(crate) fn read_to_string(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = if path == Path::new(STANDARD_INPUT) {
        io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else if path.is_dir() {
        return Err(format!("{} is a directory: name the files in it", path.display()));
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    read.map_err(|error| format!("could not read {}: {error}: check its name and its permissions", name(path)))?;
    String::from_utf8(bytes).map_err(|_| format!("{} is not encoded as UTF-8: convert it", name(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_files_are_named_with_the_fix() {
        let error = read_to_string(Path::new("/no/such/file.yaml")).unwrap_err();
        assert!(error.starts_with("could not read /no/such/file.yaml") && error.contains("check its name"), "{error}");
        assert!(read_to_string(Path::new("/")).unwrap_err().contains("name the files in it"));
    }
}
