//! What `--via` names: a machine through which streams may leave where nothing else does.

use serde::Deserialize;
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// A way out for streams.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Via {
    /// The system's `ssh`, with the user's own configuration.
    Ssh {
        /// As ssh takes it: `ssh://[user@]host[:port]`.
        destination: String,
    },
    /// An HTTP proxy that understands CONNECT (RFC 9110 §9.3.6).
    Proxy {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
        /// `user:password`, for proxies that ask.
        credentials: Option<Zeroizing<String>>,
    },
}

/// The text names no way out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no way out; use ssh://[USER@]HOST[:PORT] for an SSH gateway or http://[USER:PASSWORD@]HOST:PORT for a proxy"
)]
pub struct InvalidVia(String);

impl FromStr for Via {
    type Err = InvalidVia;

    fn from_str(text: &str) -> Result<Self, InvalidVia> {
        let refused = || InvalidVia(without_password(text).chars().take(120).collect());
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (user, place) = rest
                .rsplit_once('@')
                .map_or((None, rest), |(u, p)| (Some(u), p));
            let (host, port) = host_and_port(place).ok_or_else(refused)?;
            // What begins with '-' would be an option to ssh.
            let is_plain = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_.:%+@[]".contains(&b))
            };
            if !is_plain(host) || user.is_some_and(|user| !is_plain(user)) || port == Some(0) {
                return Err(refused());
            }
            return Ok(Self::Ssh {
                destination: text.trim_end_matches('/').to_owned(),
            });
        }
        let rest = text.strip_prefix("http://").ok_or_else(refused)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = rest
            .rsplit_once('@')
            .map_or((None, rest), |(c, p)| (Some(c), p));
        let (host, port) = host_and_port(place).ok_or_else(refused)?;
        match port {
            Some(port) if port != 0 && !host.is_empty() => Ok(Self::Proxy {
                host: host.to_owned(),
                port,
                credentials: credentials.map(|text| Zeroizing::new(text.to_owned())),
            }),
            _ => Err(refused()),
        }
    }
}

/// `host`, `host:port` or `[v6]:port`.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(str::parse).transpose().ok()?;
    Some((host, port))
}

/// For messages.
fn without_password(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((before, place))) if before.matches(':').count() > 1 => {
            format!("{scheme}://…@{place}")
        }
        _ => text.to_owned(),
    }
}

impl TryFrom<String> for Via {
    type Error = InvalidVia;
    fn try_from(text: String) -> Result<Self, InvalidVia> {
        text.parse()
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh { destination } => f.write_str(destination),
            Self::Proxy { host, port, .. } => write!(f, "http://{host}:{port}"), // not the password
        }
    }
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Via, InvalidVia> {
        text.parse()
    }

    #[test]
    fn gateways_and_proxies_are_read() {
        for text in ["ssh://gw", "ssh://me@gw:2222", "ssh://me@[2001:db8::1]:22"] {
            assert_eq!(
                read(text),
                Ok(Via::Ssh {
                    destination: text.into()
                })
            );
        }
        let proxy = |host: &str, credentials: Option<&str>| {
            Ok(Via::Proxy {
                host: host.into(),
                port: 3128,
                credentials: credentials.map(|text| Zeroizing::new(text.into())),
            })
        };
        assert_eq!(read("http://proxy:3128"), proxy("proxy", None));
        assert_eq!(
            read("http://me:se:cr@t@10.0.0.1:3128/"),
            proxy("10.0.0.1", Some("me:se:cr@t"))
        );
        assert_eq!(read("http://[::1]:3128"), proxy("::1", None));
    }

    #[test]
    fn what_would_be_an_option_or_a_command_is_refused() {
        for text in [
            "",
            "gw",
            "ssh://",
            "ssh://-oProxyCommand=sh",
            "ssh://-l@gw",
            "ssh://gw:0",
            "ssh://gw:port",
            "ssh://g w",
            "ssh://gw;reboot",
            "http://proxy",
            "http://:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        let via = read("http://me:secret@proxy:3128").unwrap();
        let refused = read("http://me:secret@proxy").unwrap_err();
        for shown in [
            via.to_string(),
            format!("{via:?}"),
            refused.to_string(),
            format!("{refused:?}"),
        ] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
}
