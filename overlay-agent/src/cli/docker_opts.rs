//! `overlay-agent docker-opts`: options for dockerd, for those who start it from a file of
//! variables.

use std::{io, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    address_pools::{PoolSize, USUAL},
    docker_opts::{Wanted, gateway_of, render, variables},
    exit::{Exit, WithExit as _},
    subnet_env,
};

/// Arguments of `docker-opts`. They are those of flannel's script, which has short ones only.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct DockerOptsArgs {
    /// The subnet file to read
    #[arg(short = 'f', value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    pub subnet_file: PathBuf,

    /// The file to write
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub output: PathBuf,

    /// Write each option in a variable of its own; without -i and -c, both are done
    #[arg(short = 'i')]
    pub individual: bool,

    /// Write all options in one variable
    #[arg(short = 'c')]
    pub combined: bool,

    /// The name of that one variable
    #[arg(short = 'k', value_name = "NAME", default_value = "DOCKER_OPTS")]
    pub key: String,

    /// Leave --ip-masq out, for a dockerd that does not know it
    #[arg(short = 'm')]
    pub no_ip_masq: bool,

    /// Give the networks that Docker makes parts of this host's subnet, so that every other host reaches what is in them:
    /// Docker's own bridge gets the first, the others are for whatever networks come. SIZE is the prefix length of each,
    /// 28 at most if it is not said, which is 15 networks beside Docker's own in a subnet of 24 or less
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = USUAL)]
    pub address_pools: Option<PoolSize>,

    /// Fail while there is no subnet, for a Docker that must not start without one
    #[arg(long)]
    pub require_subnet: bool,
}

impl DockerOptsArgs {
    fn wanted(&self) -> Wanted {
        let both = !self.individual && !self.combined;
        Wanted {
            individual: self.individual || both,
            combined: (self.combined || both).then(|| self.key.clone()),
            ip_masq: !self.no_ip_masq,
            address_pools: self.address_pools,
        }
    }
}

/// Reads the subnet file and writes the options.
pub fn run(args: &DockerOptsArgs) -> anyhow::Result<()> {
    if args.require_subnet && subnet_env::read_subnet(&args.subnet_file)?.is_none() {
        let file = args.subnet_file.display();
        return Err(anyhow::anyhow!("there is no subnet in {file} yet: the agent writes it"))
            .exit(Exit::NotFound);
    }
    let text = match std::fs::read_to_string(&args.subnet_file) {
        Ok(text) => text,
        // As with the script: without an overlay, Docker starts with its own defaults.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            let path = args.subnet_file.display();
            return Err(error).with_context(|| format!("cannot read the subnet file {path}"));
        }
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let options = render(&variables(environment, &text), &args.wanted())
        .with_context(|| format!("cannot use {}", args.subnet_file.display()))?;
    subnet_env::replace(&args.output, options.as_bytes())
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    refuse_foreign_route(args)
}

/// The script's last check, made after the file is written.
fn refuse_foreign_route(args: &DockerOptsArgs) -> anyhow::Result<()> {
    let Some(subnet) = subnet_env::read_subnet(&args.subnet_file)? else {
        return Ok(());
    };
    let routes = std::fs::read_to_string("/proc/net/route")
        .context("cannot read the routes in /proc/net/route")?;
    if let Some(gateway) = gateway_of(subnet, &routes) {
        bail!("{subnet} is already routed via {gateway}: Docker will not use it for its bridge");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(individual: bool, combined: bool) -> DockerOptsArgs {
        DockerOptsArgs {
            subnet_file: PathBuf::new(),
            output: PathBuf::new(),
            individual,
            combined,
            key: "DOCKER_OPTS".to_owned(),
            no_ip_masq: false,
            address_pools: None,
            require_subnet: false,
        }
    }

    #[test]
    fn neither_i_nor_c_means_both() {
        for (individual, combined, expected) in [
            (false, false, (true, true)),
            (true, false, (true, false)),
            (false, true, (false, true)),
            (true, true, (true, true)),
        ] {
            let wanted = args(individual, combined).wanted();
            assert_eq!((wanted.individual, wanted.combined.is_some()), expected);
        }
    }

    #[test]
    fn a_docker_that_needs_a_subnet_is_not_started_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("docker_opts.env");
        let args = DockerOptsArgs {
            subnet_file: dir.path().join("none"),
            output: output.clone(),
            require_subnet: true,
            ..args(false, true)
        };
        let error = run(&args).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::NotFound);
        assert!(!output.exists());
    }

    #[test]
    fn a_missing_subnet_file_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let args = DockerOptsArgs {
            subnet_file: dir.path().join("none"),
            output: dir.path().join("docker_opts.env"),
            key: "OVERLAY_TEST_OPTIONS".to_owned(),
            ..args(false, true)
        };
        run(&args).unwrap();
        let text = std::fs::read_to_string(&args.output).unwrap();
        assert!(text.starts_with("OVERLAY_TEST_OPTIONS=\""), "{text}");
    }
}
