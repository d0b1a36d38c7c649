//! What is said about kernels in general against the one that runs.

use overlay_agent::kernel::datapath::Features;
use overlay_common::{Feature, feature::parse_version};

#[test]
fn this_kernel_has_exactly_what_the_table_says_of_its_version() {
    let features = Features::probe().unwrap();
    let (major, minor) = parse_version(features.release()).unwrap();
    for &feature in Feature::ALL {
        let there = features.has(feature);
        println!("{} {there}", feature.name());
        assert_eq!(
            there,
            feature.expected_in(major, minor),
            "{} on {}",
            feature.name(),
            features.release()
        );
    }
}
