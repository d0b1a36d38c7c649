//! Another network config, or another MTU of the uplink, while the agent runs.

use anyhow::Result;
use overlay_lease::{
    config::change::{ConfigChange, changes},
    member::network::{ConfigUpdate, StoredConfig},
};

use super::{ControlLoop, joining::Purpose, specs::overlay_mtu};

impl ControlLoop {
    /// Does what can be done about another network config while the agent runs, and says what cannot.
    pub(super) async fn config_update(&mut self, update: ConfigUpdate) {
        self.config_problems.clear();
        match update {
            ConfigUpdate::Changed(stored) => self.change_config(&stored).await,
            ConfigUpdate::Malformed(error) => self.config_problem(&format!(
                "{error}; this host goes on with the last good one, others cannot start"
            )),
            ConfigUpdate::Gone(key) => self.config_problem(&format!(
                "the network config at {key} has been deleted; this host goes on with the last one, \
                 others cannot start"
            )),
        }
    }

    async fn change_config(&mut self, stored: &StoredConfig) {
        let (running, wanted) = (&mut self.network.config, &stored.config);
        let all = changes(running, wanted);
        // Subnets are chosen, and written, by the config of now.
        (running.subnet_len, running.subnet_min, running.subnet_max) =
            (wanted.subnet_len, wanted.subnet_min, wanted.subnet_max);
        (running.mtu, running.direct_routing) = (wanted.mtu, wanted.direct_routing);
        running.rules = wanted.rules;
        running.policy.clone_from(&wanted.policy);
        for change in all.iter().filter(|change| change.parts_hosts()) {
            self.config_problem(&format!(
                "the network config has changed: {change}; that needs a restart of the agent on every \
                 host, and until then this one goes on as before"
            ));
        }
        self.network.text.clone_from(&stored.text);
        if self.config_problems.is_empty() {
            // Otherwise, whoever takes a subnet by it must read it first.
            self.network.mod_revision = stored.mod_revision;
        }
        if !stored.config.admits(self.lease.subnet) && self.config.peers.is_none() {
            self.config_problem(&format!(
                "the network config does not allow our subnet {} any more: at its next start, this \
                 host takes another one",
                self.lease.subnet
            ));
        }
        // By the config of now there may be room.
        match self.moving.as_ref().map(|moving| moving.purpose) {
            Some(Purpose::AnotherSubnet) => self.join_again(stored.clone(), None),
            Some(Purpose::AnotherAddress(subnet)) => self.join_again(stored.clone(), Some(subnet)),
            Some(Purpose::Confirmation) | None => {}
        }
        if all.iter().any(|change| matches!(change, ConfigChange::Mtu(..))) {
            let outcome = self.change_mtu().await;
            self.note("changing the MTU", outcome);
        }
        if all.iter().any(|change| matches!(change, ConfigChange::Policy(..))) {
            let policy = stored.config.policy.clone();
            let rules = policy.len();
            let outcome = self.dataplane.set_policy(policy).await;
            tracing::warn!(rules, in_force = outcome.is_ok(), "the network has another policy");
            self.note("putting the policy in force", outcome);
        }
        if let Some(direct) = all.iter().find_map(ConfigChange::direct_routing) {
            let outcome = self.dataplane.set_direct_routing(direct).await;
            // Whoever reads it may rely on it.
            tracing::warn!(direct, done = outcome.is_ok(), "direct routing was switched");
            self.note("switching direct routing", outcome);
            self.firewall = self.keep_firewall();
        }
        if all.iter().any(|change| matches!(change, ConfigChange::Rules(..)))
            && self.config.rules.is_none()
        {
            self.firewall = self.keep_firewall();
            self.follow_rules();
        }
    }

    /// The overlay's MTU follows the uplink's.
    pub(super) async fn follow_uplink_mtu(&mut self) {
        let Some(mtu) = self.dataplane.uplink_mtu() else { return };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        if mtu == self.uplink.mtu {
            return;
        }
        let before = overlay_mtu(&self.network.config, &self.uplink);
        self.uplink.mtu = mtu;
        if overlay_mtu(&self.network.config, &self.uplink) != before {
            let outcome = self.change_mtu().await;
            self.note("changing the MTU", outcome);
        }
    }

    async fn change_mtu(&mut self) -> Result<()> {
        let mtu = overlay_mtu(&self.network.config, &self.uplink);
        self.dataplane.set_mtu(mtu.into()).await?;
        tracing::warn!(mtu, "the overlay has another MTU: restart Docker for containers to use it");
        self.write_subnet_env()
    }

    /// Says it once, and keeps it for `status`.
    fn config_problem(&mut self, problem: &str) {
        tracing::error!("{problem}");
        self.config_problems.push(problem.to_owned());
    }
}
