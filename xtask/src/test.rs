//! `test`: the layers of tests, each really run, and one line that counts them all.

mod failures;

use std::{
    fmt, fs,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use overlay_lab::{command::Cmd, interrupt, release::Release, workspace};

use self::failures::Failures;
use crate::{build, counts::Counts, dist, setup, vm};

/// How long one layer may take: a test that hangs must not hang CI.
const LAYER_WITHIN: Duration = Duration::from_mins(20);

/// What a layer runs.
#[derive(Debug, Clone, Copy)]
enum Runs {
    /// The tests beside the code, and the examples in the documentation.
    Units,
    /// The integration tests of the agent named as the layer, one at a time: they measure, or would take
    /// each other's ports and time.
    Integration,
    /// The same, of which only those under these names need the time for themselves: of all others, which wait more than
    /// they work, two run at a time.
    MostlyWaiting(&'static [&'static str]),
    /// The integration tests of that name, of the agent and of the library of leases, as many at a time as there are
    /// processors, with this machine's etcd and with a newer one.
    Store,
    /// Some of the others' tests, on other kernels.
    Machines,
    /// The integration tests of that name, of what `cargo xtask dist` makes first. By hand only, for it takes long.
    Releases,
    /// Some of the others' tests, on another processor. By hand only, for it takes long.
    OtherProcessor,
}

/// The etcd that `store` talks to besides the machine's own, which on Debian 12 is 3.4.
const OTHER_ETCD: (&str, &str) = ("trixie", "3.5");

/// Tests of `network` that hold the agent to a second, count every packet of a stream, or fill the wire.
const PUNCTUAL: &[&str] = &[
    "chaos::",
    "damage::",
    "policy::",
    "rules::",
    "side_by_side::",
    "survival::",
    "switching::",
    "throughput::",
    "two_hundred_thousand_routes",
];

/// A layer of tests.
#[derive(Debug)]
struct Layer {
    name: &'static str,
    about: &'static str,
    runs: Runs,
}

/// All layers, from the fastest to the slowest. A new one is one line here.
const LAYERS: &[Layer] = &[
    layer("unit", "every decision, without a kernel", Runs::Units),
    layer("datapath", "the BPF programs, packet by packet", Runs::Integration),
    layer("store", "the lease protocol, against a real etcd of each version", Runs::Store),
    layer(
        "control",
        "agents, etcd and what operators see",
        Runs::MostlyWaiting(&["health::", "monitoring::"]),
    ),
    layer("network", "hosts and containers in namespaces", Runs::MostlyWaiting(PUNCTUAL)),
    layer("attack", "a malicious container and a malicious wire", Runs::Integration),
    layer("world", "random hosts, traffic and events by three datapaths", Runs::Integration),
    layer("docker", "real Docker daemons", Runs::MostlyWaiting(&[])),
    layer("install", "the package on whole machines", Runs::MostlyWaiting(&["ready::"])),
    layer("vm", "the kernels that people run, in virtual machines", Runs::Machines),
    layer("releases", "what users install, built for it (by hand)", Runs::Releases),
    layer("arm64", "another processor, emulated (by hand)", Runs::OtherProcessor),
];

const fn layer(name: &'static str, about: &'static str, runs: Runs) -> Layer {
    Layer { name, about, runs }
}

/// The command line of `test`.
#[derive(Debug, Clone, Args)]
#[command(after_help = layers_help())]
pub(crate) struct Options {
    /// Which layers; otherwise all that are not by hand. Layer vm runs on all kernels or on those named here
    #[arg(value_name = "LAYER|KERNEL", value_parser = layer_names())]
    pub(crate) layers: Vec<String>,
    /// What the test programs get: a part of a test's name, `--nocapture`, …
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) arguments: Vec<String>,
}

fn layer_names() -> Vec<&'static str> {
    let kernels = vm::KERNELS.iter().map(|kernel| kernel.series);
    LAYERS.iter().map(|layer| layer.name).chain(kernels).collect()
}

fn layers_help() -> String {
    let lines: Vec<String> =
        LAYERS.iter().map(|layer| format!("  {:<10} {}", layer.name, layer.about)).collect();
    format!("Layers:\n{}", lines.join("\n"))
}

/// What came of a layer.
struct Outcome {
    name: &'static str,
    counts: Counts,
    time: Duration,
    failures: Failures,
    /// What went wrong apart from failed tests.
    trouble: Option<String>,
}

/// Tests have failed. There is nothing to add: the closing line has said it, and stays the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("tests failed")
    }
}

impl std::error::Error for Failed {}

/// Runs the layers.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    build::object()?;
    build::agent(false)?;

    let mut outcomes = Vec::new();
    for layer in LAYERS {
        if is_chosen(layer, &options.layers) {
            interrupt::check()?;
            println!("\n━━━━ {}: {}", layer.name, layer.about);
            outcomes.push(run_layer(layer, options));
        }
    }
    interrupt::check()?;

    println!("\n{}\n", summary(&outcomes));
    let mut total = Counts::default();
    for outcome in &outcomes {
        total.add(outcome.counts);
        for line in outcome.failures.told() {
            println!("{}: {line}", outcome.name);
        }
        if let Some(trouble) = &outcome.trouble {
            println!("{}: {trouble}", outcome.name);
        }
        if outcome.counts.failed > 0 {
            println!("{}: all of it is in target/test-logs/{}.log", outcome.name, outcome.name);
        }
    }
    println!("{}", total.closing_line());
    if total.failed > 0 {
        return Err(Failed.into());
    }
    Ok(())
}

/// Whoever names a kernel means the layer that runs it.
fn is_chosen(layer: &Layer, names: &[String]) -> bool {
    let contains = |wanted: &str| names.iter().any(|name| name == wanted);
    let by_hand = matches!(layer.runs, Runs::Releases | Runs::OtherProcessor);
    (names.is_empty() && !by_hand)
        || contains(layer.name)
        || matches!(layer.runs, Runs::Machines)
            && vm::KERNELS.iter().any(|kernel| contains(kernel.series))
}

fn run_layer(layer: &Layer, options: &Options) -> Outcome {
    let start = Instant::now();
    // Of the last run, whatever it was.
    let log = log_of(layer).and_then(|log| Ok(fs::write(log, "")?));
    let mut counts = Counts::default();
    let mut failures = Failures::default();
    let mut trouble = log.err().map(|error| format!("its log cannot be kept: {error:#}"));
    let mut add = |result: Result<(Counts, Option<String>)>| match result {
        Ok((found, complaint)) => {
            counts.add(found);
            trouble = trouble.take().or(complaint);
        }
        Err(error) => trouble = Some(format!("{error:#}")),
    };
    match layer.runs {
        Runs::Machines => {
            add(vm::layer::test(&vm::layer::chosen(&options.layers), &options.arguments));
        }
        Runs::OtherProcessor => add(setup::ensure_for(setup::For::Releases)
            .and_then(|()| vm::layer::test(&[vm::ARM64], &options.arguments))),
        Runs::Releases => add(dist::run(&dist::Options::release()).map(|()| Default::default())),
        _ => {}
    }
    for arguments in invocations(layer, &options.arguments) {
        add(invoke(layer, &arguments, &[], &mut failures));
        if matches!(layer.runs, Runs::Store) {
            add(other_etcd().and_then(|etcd| {
                invoke(layer, &arguments, &[("OVERLAY_ETCD", etcd)], &mut failures)
            }));
        }
    }
    if trouble.is_none() && counts.passed + counts.failed == 0 {
        trouble = Some("no test was run".to_owned());
    }
    if trouble.is_some() {
        // Whatever it is, a layer in trouble must not look as if it had passed.
        counts.failed += 1;
    }
    Outcome { name: layer.name, counts, time: start.elapsed(), failures, trouble }
}

/// One test at a time.
const ONE: &str = "--test-threads=1";

/// Those of `cargo test` for the integration tests of that name, with these for the test program.
fn of_agent(layer: &Layer, arguments: &[&str]) -> Vec<String> {
    let words = ["--package", "overlay-agent", "--test", layer.name, "--"];
    words.iter().chain(arguments).map(|&word| word.to_owned()).collect()
}

/// The arguments of `cargo test`, once for each time it runs.
fn invocations(layer: &Layer, arguments: &[String]) -> Vec<Vec<String>> {
    let owned =
        |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let mut invocations = match layer.runs {
        Runs::Units => vec![
            owned(&[
                "--package",
                "overlay-common",
                "--package",
                "overlay-agent",
                "--package",
                "overlay-lease",
                "--package",
                "xtask",
                "--package",
                "overlay-lab",
                "--lib",
                "--bins",
                "--",
            ]),
            owned(&["--package", "overlay-common", "--package", "overlay-lab", "--doc", "--"]),
        ],
        Runs::Machines | Runs::OtherProcessor => Vec::new(),
        // Who names a test waits for that one.
        Runs::MostlyWaiting(_) if !arguments.is_empty() => vec![of_agent(layer, &[ONE])],
        Runs::MostlyWaiting(punctual) => {
            let others: Vec<_> = punctual.iter().flat_map(|name| ["--skip", *name]).collect();
            let alone =
                (!punctual.is_empty()).then(|| of_agent(layer, &[&[ONE], punctual].concat()));
            let others = of_agent(layer, &[&["--test-threads=2"], &others[..]].concat());
            alone.into_iter().chain([others]).collect()
        }
        Runs::Integration | Runs::Releases => vec![of_agent(layer, &[ONE])],
        Runs::Store => vec![owned(&[
            "--package",
            "overlay-agent",
            "--package",
            "overlay-lease",
            "--test",
            layer.name,
            "--",
        ])],
    };
    for invocation in &mut invocations {
        invocation.extend_from_slice(arguments);
    }
    invocations
}

/// Where all that a layer's tests print is kept.
fn log_of(layer: &Layer) -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("test-logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.join(format!("{}.log", layer.name)))
}

/// The binary of [`OTHER_ETCD`].
fn other_etcd() -> Result<PathBuf> {
    let (suite, version) = OTHER_ETCD;
    let etcd = Release::new(suite)?.unpacked("etcd-server")?.join("usr/bin/etcd");
    let said = Cmd::new(&etcd).arg("--version").read()?;
    ensure!(
        said.contains(&format!("etcd Version: {version}.")),
        "it is not etcd {version}: {said}"
    );
    println!("\n━━ once more, with etcd {version} of Debian's {suite}");
    Ok(etcd)
}

/// Runs `cargo test` once: its counts, and what went wrong apart from failed tests.
fn invoke(
    layer: &Layer,
    arguments: &[String],
    environment: &[(&str, PathBuf)],
    failures: &mut Failures,
) -> Result<(Counts, Option<String>)> {
    if !matches!(layer.runs, Runs::Units) {
        let tests = workspace::root().join("overlay-agent/tests");
        let [file, folder] = [format!("{}.rs", layer.name), format!("{}/main.rs", layer.name)];
        if !tests.join(&file).exists() && !tests.join(&folder).exists() {
            bail!("there is neither overlay-agent/tests/{file} nor overlay-agent/tests/{folder}");
        }
    }
    let mut counts = Counts::default();
    let path = log_of(layer)?;
    let mut log = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let cargo = environment
        .iter()
        .fold(workspace::cargo(), |cargo, (variable, value)| cargo.env(variable, value));
    let status = cargo
        .args(["test", "--locked", "--no-fail-fast"])
        .args(arguments)
        .deadline(LAYER_WITHIN)
        .stream_lines(|line| {
            // What is on the screen is there, too, and has no end.
            writeln!(log, "{line}").ok();
            if let Some(found) = Counts::parse(line) {
                counts.add(found);
            }
            failures.read(line);
        })?;
    // A test program that crashes, or does not compile, prints no result.
    let trouble = (!status.success() && counts.failed == 0)
        .then(|| format!("cargo test ended with {status}, but no test failed"));
    Ok((counts, trouble))
}

fn summary(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["LAYER", "PASSED", "FAILED", "SKIPPED", "TIME"]);
    for outcome in outcomes {
        table.add_row([
            outcome.name.to_owned(),
            outcome.counts.passed.to_string(),
            outcome.counts.failed.to_string(),
            outcome.counts.skipped.to_string(),
            format!("{:.1} s", outcome.time.as_secs_f64()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_punctual_runs_alone_and_everything_runs_once() {
        let waiting = layer("network", "", Runs::MostlyWaiting(&["chaos::", "rules::"]));
        let words = |arguments: &[&str]| {
            let owned: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();
            let all = invocations(&waiting, &owned).into_iter();
            all.map(|words| words[5..].join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(
            words(&[]),
            ["--test-threads=1 chaos:: rules::", "--test-threads=2 --skip chaos:: --skip rules::"]
        );
        assert_eq!(words(&["rules::one"]), ["--test-threads=1 rules::one"]);
    }

    #[test]
    fn a_layer_without_tests_has_failed() {
        let missing = layer("no-such-layer", "", Runs::Integration);
        let options = Options { layers: Vec::new(), arguments: Vec::new() };
        let outcome = run_layer(&missing, &options);
        assert_eq!(outcome.counts.failed, 1);
        let trouble = outcome.trouble.unwrap();
        assert!(trouble.contains("overlay-agent/tests/no-such-layer.rs"), "{trouble}");
    }
}
