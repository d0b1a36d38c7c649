//! What the documentation says of attackers is shown by tests that exist.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_documentation_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("../docs/security.md")).unwrap();
    let layers = ["attack", "network", "control"];
    let mut named = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let parts: Vec<_> = name.split("::").collect();
        let [layer, path @ .., name_of_test] = &parts[..] else { continue };
        if !layers.contains(layer) || name_of_test.ends_with('…') {
            continue;
        }
        let folder = path.iter().fold(root.join("tests").join(layer), |at, part| at.join(part));
        let file = [folder.with_extension("rs"), folder.join("mod.rs")]
            .into_iter()
            .find(|file| file.exists())
            .unwrap_or_else(|| panic!("there is no file for {name}"));
        let source = fs::read_to_string(&file).unwrap();
        assert!(
            source.contains(&format!("fn {name_of_test}()")),
            "{name} is not in {}",
            file.display()
        );
        named += 1;
    }
    assert!(named > 30, "{named} tests are named");
}
