//! What a release says that it is made of.

use std::{collections::BTreeSet, fs};

use overlay_lab::workspace;
use serde_json::Value;

use crate::{ARCHS, file};

#[test]
fn every_crate_that_cargo_builds_is_named_and_no_other() {
    for (debian, kernel) in ARCHS {
        let text = fs::read(file(&format!("-linux-{debian}.cdx.json"))).unwrap();
        let bom: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        let agent = &bom["metadata"]["component"];
        let components = bom["components"].as_array().unwrap();
        let named: BTreeSet<_> = components
            .iter()
            .chain([agent])
            .map(|part| {
                let ours = part["name"].as_str().unwrap().starts_with("overlay-");
                // Of others it is said what exactly was built, and under which licence.
                assert!(ours || part["purl"].is_string() && part["hashes"].is_array(), "{part}");
                assert!(part["licenses"].is_array(), "{part}");
                format!("{} v{}", part["name"].as_str().unwrap(), part["version"].as_str().unwrap())
            })
            .collect();
        let printed = workspace::cargo()
            .args(["tree", "--locked", "--package", "overlay-agent", "--edges", "normal,build"])
            .args(["--prefix", "none", "--target", &format!("{kernel}-unknown-linux-musl")])
            .read()
            .unwrap();
        let built: BTreeSet<_> = printed
            .lines()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert!(built.len() > 200, "{built:?}");
        assert_eq!(named, built);
    }
}
