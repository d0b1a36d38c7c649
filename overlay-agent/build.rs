//! Embeds the BPF object that `cargo xtask build` makes. Without one, the crate still compiles, so that
//! an editor needs no BPF toolchain; the agent then says what is missing when it is run.
use std::{env, fs, path::PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // <target>/<profile>/build/<package>/out
    let target = out.ancestors().nth(4).expect("OUT_DIR lies in the target directory");
    // Of another build, for `cargo xtask load --object`.
    println!("cargo:rerun-if-env-changed=OVERLAY_BPF_OBJECT");
    let object = env::var_os("OVERLAY_BPF_OBJECT")
        .map_or_else(|| target.join("bpf/overlay.bpf.o"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(out.join("overlay.bpf.o"), bytes).expect("OUT_DIR is writable");
}
