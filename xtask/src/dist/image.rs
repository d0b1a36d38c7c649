//! The image: the static binary and nothing else, for every processor in one archive.
//!
//! The layout is OCI's (image-spec, image-layout.md); what Docker's `load` reads besides is a file more, as in the archives
//! that its `save` writes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::{
    PACKAGE, VERSION,
    tree::{self, Effort},
};
use crate::arch::Arch;

const BINARY: &str = "usr/bin/overlay-agent";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An archive in the making.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// Adds content, and returns what others refer to it by.
    fn blob(&self, kind: &str, content: &[u8]) -> Result<Value> {
        let digest = sha256(content);
        write(&self.folder.join("blobs/sha256").join(&digest), content)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len()}))
    }

    fn json(&self, kind: &str, content: &Value) -> Result<Value> {
        self.blob(kind, content.to_string().as_bytes())
    }
}

/// Packs the agents that were built for these processors.
pub(super) fn pack(
    agents: &[(Arch, Vec<tree::File>)],
    time: u64,
    output: &Path,
) -> Result<PathBuf> {
    let folder = output.join("image");
    tree::remove(&folder)?;
    let layout = Layout { folder: folder.join("layout") };
    let created = super::date(time)?;
    let mut manifests = Vec::new();
    let mut dockers = Vec::new();
    for (arch, files) in agents {
        let layer = layer(files, time, &folder.join(arch.name()))?;
        let config = json!({
            "created": created,
            "architecture": arch.name(),
            "os": "linux",
            "config": {
                "Env": [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    // Without the tools nobody knows which rules there are: netfilter is asked, which does.
                    "OVERLAY_RULES=honour",
                ],
                "Entrypoint": [format!("/{BINARY}")],
                "Cmd": ["run"],
                "Labels": labels(&created),
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer.plain))]},
            "history": [{"created": created, "created_by": "cargo xtask dist"}],
        });
        let config = layout.json(CONFIG, &config)?;
        let layer = layout.blob(LAYER, &layer.compressed)?;
        dockers.push(json!({
            "Config": path(&config)?,
            "RepoTags": [format!("{PACKAGE}:{VERSION}-{arch}")],
            "Layers": [path(&layer)?],
        }));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": labels(&created),
        });
        let mut manifest = layout.json(MANIFEST, &manifest)?;
        manifest["platform"] = json!({"architecture": arch.name(), "os": "linux"});
        manifests.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut index = layout.json(INDEX, &index)?;
    index["annotations"] = json!({
        "org.opencontainers.image.ref.name": VERSION,
        // The name that containerd gives it.
        "io.containerd.image.name": format!("docker.io/library/{PACKAGE}:{VERSION}"),
    });
    let root = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});
    let parts = [
        ("index.json", root),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ("manifest.json", Value::Array(dockers)),
    ];
    for (name, content) in parts {
        write(&layout.folder.join(name), content.to_string().as_bytes())?;
    }
    let archive = output.join(format!("{PACKAGE}-{VERSION}.oci.tar"));
    tree::pack(&layout.folder, ".", time, &archive)?;
    tree::remove(&folder)?;
    Ok(archive)
}

struct Layer {
    plain: Vec<u8>,
    compressed: Vec<u8>,
}

/// The image's file system.
fn layer(files: &[tree::File], time: u64, folder: &Path) -> Result<Layer> {
    let root = folder.join("root");
    let binary = files
        .iter()
        .find(|file| file.path == Path::new(BINARY))
        .with_context(|| format!("the package has no {BINARY}"))?;
    tree::copy(&binary.source, &root.join(BINARY))?;
    for name in tree::LICENCES {
        tree::copy(&tree::ours(name), &root.join("usr/share/licenses").join(PACKAGE).join(name))?;
    }
    let archive = folder.join("layer.tar");
    tree::pack(&root, "usr", time, &archive)?;
    let plain = read(&archive)?;
    let compressed = read(&tree::compress(&archive, Effort::BEST)?)?;
    Ok(Layer { plain, compressed })
}

/// `org.opencontainers.image.…` (image-spec, annotations.md).
fn labels(created: &str) -> BTreeMap<String, &str> {
    let labels = [
        ("created", created),
        ("description", "Overlay network for Docker hosts, carried by eBPF programs"),
        ("licenses", "(Apache-2.0 OR MIT) AND GPL-2.0-only"),
        ("title", PACKAGE),
        ("version", VERSION),
    ];
    labels.map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)).into()
}

/// Where a blob is in the archive.
fn path(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().context("a blob without a digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn sha256(content: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest(&SHA256, content).as_ref() {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
    }
    text
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
