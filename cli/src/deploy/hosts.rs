//! The hosts file of a deployment: which hosts, and what is special about each.

use crate::args::Service;
use overlay_node::config::IfName;
use overlay_types::Name;
use std::{collections::BTreeSet, fmt, net::Ipv6Addr, path::PathBuf};

/// More than any testbed; a longer file is not a hosts file.
const HOSTS_MAX: usize = 4096;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// `USER@HOST`, or only `HOST`, as ssh takes it.
    pub(crate) destination: String,
    /// Where sshd listens, unless ssh knows better.
    pub(crate) port: Option<u16>,
    /// The node's name; the host's own when not given.
    pub(crate) name: Option<Name>,
    /// The TAP's name.
    pub(crate) tap: Option<IfName>,
    /// Where the binary goes.
    pub(crate) dir: Option<PathBuf>,
    /// The node's state directory.
    pub(crate) state: Option<PathBuf>,
    /// What keeps the node running.
    pub(crate) service: Option<Service>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.destination),
            None => write!(f, "{}", self.destination),
        }
    }
}

/// What is wrong, and in which line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {why}")]
pub(crate) struct InvalidHosts {
    line: usize,
    why: String,
}

/// Reads a hosts file: `user@host[:port] [key=value]…` a line; `#` begins a comment.
pub(crate) fn parse(text: &str) -> Result<Vec<Host>, InvalidHosts> {
    let mut hosts = Vec::new();
    let (mut places, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (index, line) in text.lines().enumerate() {
        let wrong = |why| InvalidHosts {
            line: index + 1,
            why,
        };
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let Some(target) = words.next() else { continue };
        let host = parse_host(target, words).map_err(wrong)?;
        if !places.insert((host.to_string(), host.state.clone())) {
            return Err(wrong(format!(
                "{host} is there twice; two nodes on one host need their own state=DIR"
            )));
        }
        if let Some(name) = host.name.clone().filter(|name| !names.insert(name.clone())) {
            return Err(wrong(format!(
                "the name {name} is taken by a line above; give each node its own"
            )));
        }
        if hosts.len() == HOSTS_MAX {
            return Err(wrong(format!(
                "more than {HOSTS_MAX} hosts; split the file"
            )));
        }
        hosts.push(host);
    }
    if hosts.is_empty() {
        return Err(InvalidHosts {
            line: 1,
            why: "no host is in the file; write user@host, one a line".into(),
        });
    }
    Ok(hosts)
}

fn parse_host<'a>(target: &str, options: impl Iterator<Item = &'a str>) -> Result<Host, String> {
    let (destination, port) = parse_target(target)?;
    let mut host = Host {
        destination,
        port,
        name: None,
        tap: None,
        dir: None,
        state: None,
        service: None,
    };
    for option in options {
        let (key, value) = option
            .split_once('=')
            .ok_or_else(|| format!("'{option}' is not KEY=VALUE"))?;
        match key {
            "name" => host.name = Some(value.parse().map_err(|e| format!("{e}"))?),
            "tap" => host.tap = Some(value.parse().map_err(|e| format!("{e}"))?),
            "dir" => host.dir = Some(parse_path(value)?),
            "state" => host.state = Some(parse_path(value)?),
            "service" => host.service = Some(parse_service(value)?),
            _ => {
                return Err(format!(
                    "'{key}' is no option; use name, tap, dir, state or service"
                ));
            }
        }
    }
    Ok(host)
}

/// Nothing that ssh would take for an option, nor a shell for anything but a word.
fn parse_target(target: &str) -> Result<(String, Option<u16>), String> {
    let wrong = || {
        format!("'{target}' is no host; write user@host, user@host:port or user@[2001:db8::1]:port")
    };
    let (user, rest) = target
        .split_once('@')
        .map_or((None, target), |(user, rest)| (Some(user), rest));
    let (host, port) = match rest
        .strip_prefix('[')
        .map(|rest| rest.split_once(']').ok_or_else(wrong))
    {
        Some(bracketed) => {
            let (host, port) = bracketed?;
            host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or_else(wrong)?)
                },
            )
        }
        None => {
            let (host, port) = rest
                .split_once(':')
                .map_or((rest, None), |(host, port)| (host, Some(port)));
            if !is_word(host) {
                return Err(wrong());
            }
            (host, port)
        }
    };
    let port = port
        .map(|p| p.parse().ok().filter(|p| *p != 0).ok_or_else(wrong))
        .transpose()?;
    match user {
        Some(user) if is_word(user) => Ok((format!("{user}@{host}"), port)),
        Some(_) => Err(wrong()),
        None => Ok((host.to_owned(), port)),
    }
}

fn is_word(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && !text.starts_with(['-', '.'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b));
    if text.starts_with('/') && text.len() > 1 && plain && !text.split('/').any(|part| part == "..")
    {
        Ok(text.trim_end_matches('/').into())
    } else {
        Err(format!(
            "'{text}' is not an absolute path of plain letters, digits, '.', '_' and '-'"
        ))
    }
}

fn parse_service(text: &str) -> Result<Service, String> {
    use clap::ValueEnum;
    Service::from_str(text, false)
        .map_err(|_| format!("'{text}' is no service; use auto, systemd or detach"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_host_and_its_options() {
        let text = "# lab\nroot@10.0.0.1\n\nme@h.example:2222 name=b dir=/opt/x/ state=/tmp/s tap=t0 service=detach # far\nroot@[2001:db8::1]:22\n";
        let hosts = parse(text).unwrap();
        assert_eq!(
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["root@10.0.0.1", "me@h.example:2222", "root@2001:db8::1:22"]
        );
        assert_eq!(hosts[1].name.as_ref().unwrap().as_str(), "b");
        assert_eq!(hosts[1].dir, Some("/opt/x".into()));
        assert_eq!(hosts[1].service, Some(Service::Detach));
    }

    #[test]
    fn what_ssh_or_a_shell_could_take_for_something_else_is_no_host() {
        for bad in [
            "-oProxyCommand=x",
            "root@-oX",
            "a b=c d",
            "root@h;reboot",
            "root@h:0",
            "root@h:99999",
            "@h",
            "root@",
            "root@[::1",
            "root@h state=/tmp/$(x)",
            "root@h dir=relative",
            "root@h dir=/a/../b",
            "root@h nam=b",
            "root@h service=cron",
            "",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn twice_the_same_place_or_name_is_refused_with_its_line() {
        let error = parse("a\nb name=x\nc name=x\n").unwrap_err();
        assert!(
            error.to_string().starts_with("line 3: the name x"),
            "{error}"
        );
        assert!(parse("a\na").is_err());
        assert!(parse("a state=/s/1\na state=/s/2").is_ok());
    }
}
