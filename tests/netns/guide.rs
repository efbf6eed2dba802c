//! The guide of the README, word for word: its blocks are run on the machines that they name.

use crate::overlay::{host_behind, lab, ssh_key, sshd};
use cli::lab::{Machine, Nat, Process};
use std::collections::BTreeMap;
use std::time::Duration;

const README: &str = include_str!("../../README.md");

/// How long a block may take; hangs only.
const PATIENCE: Duration = Duration::from_secs(120);

/// A block that says where it is run.
struct Block {
    options: BTreeMap<&'static str, &'static str>,
    script: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let script: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let options: BTreeMap<_, _> = info
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        if options.contains_key("machine") {
            blocks.push(Block {
                options,
                script: script.join("\n"),
            });
        }
    }
    blocks
}

#[test]
fn the_two_machine_guide_works_word_for_word() {
    let lab = lab("guide");
    let machines: BTreeMap<&str, Machine> = [
        ("fabric", lab.public_host("fabric").unwrap()),
        ("owner", host_behind(&lab, Nat::PortRestricted, "here")),
        ("joiner", host_behind(&lab, Nat::PortRestricted, "there")),
    ]
    .map(|(name, host)| (name, host.machine().clone()))
    .into();
    let mut variables = BTreeMap::new();
    let mut daemons: Vec<Process> = Vec::new();
    let blocks = blocks();
    assert!(
        blocks.len() >= 8,
        "the guide has its steps: {}",
        blocks.len()
    );

    for block in &blocks {
        let machine = &machines[block.options["machine"]];
        if let Some(server) = block.options.get("sshd") {
            daemons.push(sshd(&machines[server], &ssh_key(machine)));
        }
        let given: String = variables
            .iter()
            .map(|(name, value)| format!("{name}='{value}'\n"))
            .collect();
        let script = given + &block.script;
        let said = machine
            .run_for(PATIENCE, &["bash", "-euo", "pipefail", "-c", &script])
            .unwrap();
        if let Some(name) = block.options.get("gives") {
            let value = said.lines().next().unwrap();
            assert!(!value.contains('\''), "{value}");
            variables.insert(*name, value.to_owned());
        }
    }

    for (name, machine) in machines {
        let left = machine
            .sh("cat /proc/[0-9]*/comm 2>/dev/null | grep -x farlan || :")
            .unwrap();
        assert_eq!(left, "", "a node still runs on {name}");
        let hosts = machine.read_file("/etc/hosts").unwrap();
        assert!(!String::from_utf8(hosts).unwrap().contains("farlan"));
    }
}
