//! Checks what the documentation says about the code.

use std::{fs, path::Path};

#[test]
fn each_test_that_is_documented_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/testing.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let named: Vec<_> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 20, "the table was found: {named:?}");
    for (file, test) in named {
        let sources = ["integration", "faults"].map(|folder| root.join(format!("tests/{folder}/{file}.rs")));
        let source = sources.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        assert!(source.contains(&format!("async fn {test}(")), "{file}::{test}");
    }
}
