//! A reason without a test is a reason nobody has seen.

use std::{fs, path::Path};

use overlay_common::Reason;

/// What no test can bring about, and why.
const UNREACHABLE: [(Reason, &str); 1] =
    [(Reason::HelperFailed, "the kernel would have to refuse what it has just agreed to")];

fn read_tests(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_tests(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_reason_is_expected_by_a_test_of_a_loaded_program() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut text = String::new();
    for layer in ["datapath", "network"] {
        read_tests(&tests.join(layer), &mut text);
    }
    let unseen: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !UNREACHABLE.iter().any(|(unreachable, _)| unreachable == *reason))
        .filter(|reason| {
            let by_name = format!("\"{}\"", reason.name());
            let by_variant = format!("Reason::{reason:?}");
            !text.contains(&by_name) && !text.contains(&by_variant)
        })
        .collect();
    assert!(unseen.is_empty(), "no test expects {unseen:?}");
}
