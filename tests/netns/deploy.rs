//! `farlan deploy apply` over plain SSH to ten hosts with a real sshd, each with a place of its own for binary and state.

use crate::overlay::{FARLAN, eventually, fabric, founder, lab, ping, program, ssh_key, sshd};
use cli::demo::Node;
use cli::lab::{Host, Lab, Process};
use serde_json::Value;
use std::time::Duration;

/// How many hosts there are.
const HOSTS: usize = 10;

/// How long a roll-out may take; hangs only.
const PATIENCE: Duration = Duration::from_secs(300);

/// A public address at which no host is.
const NOBODY: &str = "198.18.0.250";

/// From where it is deployed, and where to.
struct Stage {
    desk: Node,
    hosts: Vec<Host>,
    _others: (Node, Vec<Process>),
}

fn stage(lab: &Lab) -> Stage {
    let (fabric, bootstrap) = fabric(lab);
    let machine = lab.public_host("desk").unwrap();
    let desk = founder(&machine, &bootstrap, "lab", &[]);
    let key = ssh_key(&machine);
    let hosts: Vec<Host> = (0..HOSTS)
        .map(|n| lab.public_host(&format!("h{n}")).unwrap())
        .collect();
    let daemons = hosts.iter().map(|host| sshd(host, &key)).collect();
    // Without what only a debugger reads, ten copies are a tenth of the traffic.
    let slim = lab.directory().join("logs/farlan-slim");
    let stripped = std::process::Command::new("strip")
        .arg("-o")
        .args([&slim, &program()])
        .status()
        .unwrap();
    assert!(stripped.success());
    machine
        .write_file("/root/farlan", std::fs::read(&slim).unwrap())
        .unwrap();
    machine.run(&["chmod", "755", "/root/farlan"]).unwrap();
    Stage {
        desk,
        hosts,
        _others: (fabric, daemons),
    }
}

/// Where the host's node has its state.
fn state_of(number: usize) -> String {
    format!("/var/lib/far-{number}")
}

impl Stage {
    fn hosts_file(&self, more: &str) {
        let lines = self.hosts.iter().enumerate().map(|(number, host)| {
            format!(
                "root@{} name=node-{number} dir=/root/bin-{number} state={} service=detach\n",
                host.address(),
                state_of(number)
            )
        });
        let text: String = lines.collect();
        self.desk
            .machine()
            .write_file("/root/hosts.txt", text + more)
            .unwrap();
    }

    /// Deploys; the exit status and the report, a line of it for each host.
    fn apply(&self) -> (i32, Vec<Value>) {
        let argv = [
            FARLAN,
            "deploy",
            "apply",
            "/root/hosts.txt",
            "--binary",
            "/root/farlan",
            "--known-hosts",
            "/root/known",
            "--json",
        ];
        let output = self.desk.machine().try_run_for(PATIENCE, &argv).unwrap();
        let report: Value = serde_json::from_str(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
        assert_eq!(report["ok"] == true, output.is_success());
        (
            output.status.code().unwrap(),
            report["hosts"].as_array().cloned().unwrap_or_default(),
        )
    }

    /// What a deployed node knows of its peers, and its log.
    fn story(&self, number: usize) -> String {
        let state = state_of(number);
        let script = format!("/root/bin-{number}/farlan --state {state} peers; cat {state}/*.log");
        self.hosts[number]
            .sh(&script)
            .unwrap_or_else(|e| format!("{e:#}"))
    }

    /// Process id and address of every node that was deployed.
    fn nodes(&self) -> Vec<(Value, Value)> {
        let status = |number: usize, host: &Host| {
            let binary = format!("/root/bin-{number}/farlan");
            let state = state_of(number);
            let said = host
                .run(&[&binary, "--state", &state, "status", "--json"])
                .unwrap();
            let status: Value = serde_json::from_str(&said).unwrap();
            (status["node"]["pid"].clone(), status["address"].clone())
        };
        (0..).zip(&self.hosts).map(|(n, h)| status(n, h)).collect()
    }
}

#[test]
fn ten_hosts_are_joined_over_ssh_and_ping_one_another_and_a_second_run_changes_nothing() {
    let lab = lab("deploy");
    let stage = stage(&lab);

    stage.hosts_file("");
    let (status, report) = stage.apply();
    assert_eq!((status, report.len()), (0, HOSTS), "{report:#?}");
    for (number, host) in report.iter().enumerate() {
        assert_eq!(host["ok"], true, "{host}");
        assert_eq!(host["changed"], true, "{host}");
        assert_eq!(host["name"], format!("node-{number}"), "{host}");
    }
    let nodes = stage.nodes();
    let addresses = nodes.iter().map(|(_, address)| address.as_str().unwrap());
    let addresses: Vec<&str> = addresses.collect();
    for (number, from) in stage.hosts.iter().enumerate() {
        for to in &addresses {
            eventually(|| ping(from, to)).unwrap_or_else(|error| {
                panic!("{error:#}\n{}", stage.story(number));
            });
        }
    }
    for number in 0..HOSTS {
        eventually(|| ping(stage.desk.machine(), &format!("node-{number}"))).unwrap();
    }

    let (status, report) = stage.apply();
    assert_eq!(status, 0, "{report:#?}");
    for host in &report {
        assert_eq!(host["changed"], false, "{host}");
    }
    assert_eq!(stage.nodes(), nodes, "nobody was restarted or moved");

    stage.hosts_file(&format!("root@{NOBODY} name=nobody\n"));
    let (status, report) = stage.apply();
    assert_eq!((status, report.len()), (1, HOSTS + 1), "{report:#?}");
    for host in &report[..HOSTS] {
        assert_eq!(
            (&host["ok"], &host["changed"]),
            (&true.into(), &false.into()),
            "{host}"
        );
    }
    assert_eq!(report[HOSTS]["ok"], false);
    let why = report[HOSTS]["error"].as_str().unwrap();
    assert!(why.contains("ssh cannot log in"), "{why}");
}
