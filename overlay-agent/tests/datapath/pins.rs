use std::{
    fs,
    path::{Path, PathBuf},
    process, thread,
};

use aya::maps::MapData;
use overlay_agent::kernel::datapath::{PinPath, Programs};
use overlay_common::tables::{CONFIG_MAP, COUNTERS_MAP};

/// Goes with its pins, whatever the test came to.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// An upgrade puts its maps in the place of others, which somebody may be opening.
#[test]
fn a_pin_that_is_replaced_is_always_there() {
    const TIMES: usize = 200;
    let directory =
        Directory(Path::new("/sys/fs/bpf").join(format!("overlay-test-pins-{}", process::id())));
    let pins = PinPath::open(&directory.0).unwrap();
    let mut programs = [(); 2].map(|()| Programs::on_demand().unwrap());
    let tables = programs.each_mut().map(|programs| programs.take_tables().unwrap());
    let all = tables[0].ensure_pinned(&pins).unwrap();
    assert_eq!(tables[0].ensure_pinned(&pins).unwrap(), [""; 0], "they are pinned already");
    assert_eq!(all.last(), Some(&CONFIG_MAP), "with the version in it, it says that all are there");
    thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            for time in 0..TIMES {
                assert_eq!(tables[(time + 1) % 2].ensure_pinned(&pins).unwrap(), all);
            }
        });
        let mut opened = 0;
        while !replacing.is_finished() {
            for name in [CONFIG_MAP, COUNTERS_MAP] {
                MapData::from_pin(pins.map(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            opened += 1;
        }
        replacing.join().unwrap();
        assert!(opened > TIMES, "{opened}");
    });
}
