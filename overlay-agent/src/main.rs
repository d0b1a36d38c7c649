//! The overlay's daemon and its command line.

use std::{io, process::ExitCode};

use overlay_agent::{
    cli::{
        Cli, Command, authority, checked::visible_password, cleanup, config, docker_opts, doctor,
        drops, env::HostEnvironment, etcd_cluster, expel, init, join, lease, leave, report, status,
    },
    control::run_config::RunConfig,
    exit::{Exit, WithExit as _},
    telemetry,
};

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = anyhow::Error::new(error).context("starting the runtime");
            return telemetry::print_failure(&error, io::stderr()).into();
        }
    };
    let code = runtime.block_on(run());
    // Whoever still asks a name server that does not answer is not waited for.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let cli = match Cli::from_command_line(std::env::args_os(), &HostEnvironment::read()) {
        Ok(cli) => cli,
        Err(error) => return telemetry::print_usage(&error).into(),
    };
    telemetry::start(cli.verbosity);
    for sentence in &cli.passed_over {
        tracing::warn!("{sentence}");
    }
    if let Some(warning) = visible_password(std::env::args_os()) {
        tracing::warn!("{warning}");
    }
    let result = match cli.command {
        Command::Run(args) => match RunConfig::try_from(*args).exit(Exit::Usage) {
            Ok(config) => overlay_agent::control::run::run(config).await.map(|()| Exit::Ok),
            Err(error) => Err(error),
        },
        Command::Status(args) => status::run(args).await,
        Command::Doctor(args) => Box::pin(doctor::run(*args)).await,
        Command::Drops(args) => Box::pin(drops::run(*args)).await.map(|()| Exit::Ok),
        Command::Report(args) => Box::pin(report::run(*args)).await.map(|()| Exit::Ok),
        Command::Init(args) => Box::pin(init::run(*args)).await.map(|()| Exit::Ok),
        Command::Join(args) => Box::pin(join::run(args)).await.map(|()| Exit::Ok),
        Command::Leave(args) => Box::pin(leave::run(*args)).await.map(|()| Exit::Ok),
        Command::Config(command) => config::run(command).await,
        Command::Lease(command) => lease::run(command).await,
        Command::Etcd(command) => Box::pin(etcd_cluster::run(command)).await,
        Command::Hosts(args) => Box::pin(expel::hosts(args)).await.map(|()| Exit::Ok),
        Command::Expel(args) => Box::pin(expel::run(args)).await.map(|()| Exit::Ok),
        Command::Authority(command) => Box::pin(authority::run(command)).await,
        Command::Cleanup(args) => cleanup::run(args).await.map(|()| Exit::Ok),
        Command::DockerOpts(args) => docker_opts::run(&args).map(|()| Exit::Ok),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => telemetry::print_failure(&error, io::stderr()).into(),
    }
}
