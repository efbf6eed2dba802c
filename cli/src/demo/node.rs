//! Drives a `farlan` node in a machine as a person would: by its commands and what they print.

use super::eventually;
use crate::lab::{Machine, Process};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;

/// How long a node may take to join and to have its interface up. The goal is 5 s; this is a hang limit.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may take to answer on its local API after its start.
const API_TIMEOUT: Duration = Duration::from_secs(20);

/// A running node.
pub struct Node {
    machine: Machine,
    program: String,
    process: Process,
}

impl Node {
    /// Starts an infrastructure node and returns it with the address that others bootstrap from.
    pub fn fabric(machine: &Machine, program: &str, listen: &str) -> Result<(Self, String)> {
        Self::fabric_with(machine, program, listen, &[])
    }

    /// The same with further options.
    pub fn fabric_with(
        machine: &Machine,
        program: &str,
        listen: &str,
        options: &[&str],
    ) -> Result<(Self, String)> {
        let mut words = vec![program, "fabric", "--no-mdns", "--listen", listen];
        words.extend(options);
        let process = machine.spawn("farlan", &words)?;
        let mut node = Self {
            machine: machine.clone(),
            program: program.to_owned(),
            process,
        };
        let ip = listen.rsplit_once(':').map_or(listen, |(ip, _)| ip);
        let prefix = format!("/ip4/{ip}/udp/");
        let line = node.process.wait_for_line(&prefix, READY_TIMEOUT)?;
        let address = line
            .split(|c: char| c.is_whitespace() || c == '"' || c == ',')
            .find(|word| word.starts_with(&prefix) && word.contains("/p2p/"))
            .with_context(|| {
                format!("the fabric node printed no address to bootstrap from: {line}")
            })?;
        Ok((node, address.to_owned()))
    }

    /// Starts an infrastructure node at every address of its machine, and returns it with all that others bootstrap from.
    pub fn fabric_everywhere(machine: &Machine, program: &str) -> Result<(Self, Vec<String>)> {
        Self::fabric_everywhere_with(machine, program, &[])
    }

    /// The same with further options.
    pub fn fabric_everywhere_with(
        machine: &Machine,
        program: &str,
        options: &[&str],
    ) -> Result<(Self, Vec<String>)> {
        let words = [&[program, "fabric", "--no-mdns"], options].concat();
        let mut process = machine.spawn("farlan", &words)?;
        let is_ready = |line: &str| line.starts_with("ready ");
        process.wait_for("ready", READY_TIMEOUT, is_ready)?;
        let said = process.log();
        let addresses = said.lines().filter(|line| line.starts_with("/ip"));
        let addresses = addresses.map(str::to_owned).collect();
        let node = Self {
            machine: machine.clone(),
            program: program.to_owned(),
            process,
        };
        Ok((node, addresses))
    }

    /// Starts a member that is in no network yet.
    pub fn up(machine: &Machine, program: &str) -> Result<Self> {
        Self::up_with(machine, program, &[])
    }

    /// The same with further options.
    pub fn up_with(machine: &Machine, program: &str, options: &[&str]) -> Result<Self> {
        let words = [&[program, "up"], options].concat();
        let process = machine.spawn("farlan", &words)?;
        let node = Self {
            machine: machine.clone(),
            program: program.to_owned(),
            process,
        };
        eventually(API_TIMEOUT, || node.status())?;
        Ok(node)
    }

    /// Starts a member that joins by an invite, and waits until its interface carries its address.
    /// Returns it with the line that said so.
    pub fn up_with_invite(
        machine: &Machine,
        program: &str,
        invite: &str,
    ) -> Result<(Self, String)> {
        Self::up_with_invite_and(machine, program, invite, &[])
    }

    /// The same with further options.
    pub fn up_with_invite_and(
        machine: &Machine,
        program: &str,
        invite: &str,
        options: &[&str],
    ) -> Result<(Self, String)> {
        let words = [&[program, "up", "--invite", invite], options].concat();
        let process = machine.spawn("farlan", &words)?;
        let mut node = Self {
            machine: machine.clone(),
            program: program.to_owned(),
            process,
        };
        let line = node
            .process
            .wait_for("ready", READY_TIMEOUT, |line| line.starts_with("ready "))?;
        Ok((node, line))
    }

    /// Where it runs.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs a `farlan` command against this node.
    pub fn farlan(&self, arguments: &[&str]) -> Result<String> {
        let mut argv = vec![self.program.as_str()];
        argv.extend(arguments);
        self.machine.run(&argv)
    }

    /// Runs a command whose output is JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let said = self.farlan(&arguments)?;
        serde_json::from_str(&said)
            .with_context(|| format!("farlan {}: not JSON: {said}", arguments.join(" ")))
    }

    /// `farlan status --json`.
    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// This node's entry for a network in its status, once the network is there.
    pub fn network(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        let networks = status["networks"].as_array().cloned().unwrap_or_default();
        networks
            .into_iter()
            .find(|network| network["name"] == name)
            .with_context(|| format!("{} is not in network {name}", self.machine.name()))
    }

    /// This node's IPv4 address in a network, once it has one.
    pub fn address(&self, network: &str) -> Result<String> {
        let entry = self.network(network)?;
        match entry["address"].as_str() {
            Some(address) => Ok(address.to_owned()),
            None => bail!(
                "{} has no address in {network}: {}",
                self.machine.name(),
                entry["state"]
            ),
        }
    }

    /// The peers of a network.
    pub fn peers(&self, network: &str) -> Result<Vec<Value>> {
        let peers = self.json(&["peers", "--network", network])?;
        Ok(peers.as_array().cloned().unwrap_or_default())
    }

    /// One peer of a network, by name.
    pub fn peer(&self, network: &str, name: &str) -> Result<Value> {
        self.peers(network)?
            .into_iter()
            .find(|peer| peer["name"] == name)
            .with_context(|| format!("{} does not know {name} in {network}", self.machine.name()))
    }

    /// An invite into a network: the one string that goes from site to site.
    pub fn invite(&self, network: &str) -> Result<String> {
        let said = self.farlan(&["invite", "--network", network])?;
        // The token is the one long word of what is printed.
        let token = said
            .split_whitespace()
            .max_by_key(|word| word.len())
            .unwrap_or_default();
        if token.len() < 40 {
            bail!("farlan invite printed no invite: {said}");
        }
        Ok(token.to_owned())
    }

    /// The running program: its log, its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Gives the handle up; the node runs until its machine ends.
    pub fn leave_running(self) {
        self.process.leave_running();
    }
}
