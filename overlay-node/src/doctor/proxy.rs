//! Whether something answers in place of a fabric node: a captive portal, or a proxy that opens TLS.

use super::{counted, finding, ok, unknown};
use overlay_types::doctor::{Check, CheckKind};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// Who answered where a fabric node takes streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsAnswer {
    /// That fabric node.
    Itself,
    /// Somebody else, and how that showed.
    Another(String),
    /// Nobody.
    Nobody(String),
}

/// What answered plain HTTP at a fabric node's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpAnswer {
    /// A portal, and where it sends people.
    Portal(String),
    /// A web server.
    Server,
    /// Nobody.
    Nobody,
}

/// Judges who answered.
pub(super) fn check(tls: &[(SocketAddr, TlsAnswer)], http: &[(SocketAddr, HttpAnswer)]) -> Check {
    let kind = CheckKind::Proxy;
    for (at, answer) in tls {
        if let TlsAnswer::Another(how) = answer {
            return finding(
                kind,
                format!("something else than the fabric node answers at {at}: {how}"),
                "a proxy or portal is in between: log in to the portal if there is one, or have TLS to that address let through unopened; `farlan up --via` names a proxy",
            );
        }
    }
    for (at, answer) in http {
        if let HttpAnswer::Portal(to) = answer {
            return finding(
                kind,
                format!("plain HTTP to {} is redirected to {to}", at.ip()),
                "log in to that portal with a browser",
            );
        }
    }
    let itself = tls
        .iter()
        .filter(|(_, answer)| *answer == TlsAnswer::Itself);
    match (itself.count(), tls.first()) {
        (0, None) => unknown(kind, "no fabric node that takes streams is known"),
        (0, Some((at, TlsAnswer::Nobody(why)))) => {
            unknown(kind, format!("nobody answers at {at}: {why}"))
        }
        (count, _) => {
            let addresses = counted(count, "address");
            ok(
                kind,
                format!("at {addresses} fabric nodes answer themselves in TLS"),
            )
        }
    }
}

/// Who speaks TLS and is not the right one, or speaks something else, is another; who hangs up is nobody.
pub(super) fn judge_failure(error: &io::Error) -> TlsAnswer {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::General(_)) => {
            TlsAnswer::Another("its certificate is another's".into())
        }
        Some(tls) => TlsAnswer::Another(tls.to_string()),
        None => TlsAnswer::Nobody(error.to_string()),
    }
}

/// A redirection to somewhere else, or the status of RFC 6585 §6, is a portal's.
pub(super) fn judge_http(answer: &str, ip: IpAddr) -> HttpAnswer {
    /// More of an address tells nobody more.
    const SHOWN_CHARS: usize = 120;
    let mut lines = answer.lines();
    let status = lines.next().unwrap_or_default();
    let Some(code) = status
        .strip_prefix("HTTP/")
        .and_then(|s| s.split(' ').nth(1))
    else {
        return HttpAnswer::Nobody;
    };
    let location = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim())
    });
    let shown = |text: &str| -> String {
        let plain = text.chars().filter(|c| c.is_ascii_graphic());
        plain.take(SHOWN_CHARS).collect()
    };
    let is_elsewhere = |to: &&str| to.contains("://") && !to.contains(&ip.to_string());
    match (code, location) {
        ("301" | "302" | "303" | "307" | "308", Some(to)) if is_elsewhere(&to) => {
            HttpAnswer::Portal(shown(to))
        }
        ("511", to) => HttpAnswer::Portal(to.map_or_else(|| "a login page".into(), shown)),
        _ => HttpAnswer::Server,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::doctor::Verdict;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_redirection_elsewhere_is_a_portals_and_a_web_servers_own_is_not() {
        let portal = |to: &str| HttpAnswer::Portal(to.into());
        for (answer, expected) in [
            (
                "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n",
                portal("http://login.example/"),
            ),
            (
                "HTTP/1.0 307 X\r\nlocation:\thttp://10.0.0.1/\x1b[31m\r\n\r\n",
                portal("http://10.0.0.1/[31m"),
            ),
            (
                "HTTP/1.1 511 Network Authentication Required\r\n\r\n",
                portal("a login page"),
            ),
            (
                "HTTP/1.1 301 Moved\r\nLocation: https://192.0.2.1/\r\n\r\n",
                HttpAnswer::Server,
            ),
            (
                "HTTP/1.1 302 Found\r\nLocation: /index\r\n\r\n",
                HttpAnswer::Server,
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\nLocation: http://x/",
                HttpAnswer::Server,
            ),
            ("SSH-2.0-OpenSSH", HttpAnswer::Nobody),
            ("", HttpAnswer::Nobody),
        ] {
            assert_eq!(judge_http(answer, IP), expected, "{answer}");
        }
    }

    #[test]
    fn who_answers_decides() {
        let at = SocketAddr::new(IP, 443);
        let another = || TlsAnswer::Another("its certificate is another's".into());
        let nobody = || TlsAnswer::Nobody("refused".into());
        for (tls, http, verdict) in [
            (vec![], vec![], Verdict::Unknown),
            (vec![nobody()], vec![HttpAnswer::Server], Verdict::Unknown),
            (
                vec![nobody(), TlsAnswer::Itself],
                vec![HttpAnswer::Nobody],
                Verdict::Ok,
            ),
            (vec![TlsAnswer::Itself, another()], vec![], Verdict::Finding),
            (
                vec![TlsAnswer::Itself],
                vec![HttpAnswer::Portal("x".into())],
                Verdict::Finding,
            ),
        ] {
            let tls: Vec<_> = tls.into_iter().map(|answer| (at, answer)).collect();
            let http: Vec<_> = http.into_iter().map(|answer| (at, answer)).collect();
            assert_eq!(check(&tls, &http).verdict, verdict, "{tls:?} {http:?}");
        }
    }

    #[test]
    fn who_hangs_up_is_nobody_and_who_proves_to_be_somebody_else_is_another() {
        let hung_up = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(matches!(judge_failure(&hung_up), TlsAnswer::Nobody(_)));
        let wrong = rustls::CertificateError::ApplicationVerificationFailure;
        let wrong = io::Error::other(rustls::Error::InvalidCertificate(wrong));
        assert!(matches!(judge_failure(&wrong), TlsAnswer::Another(_)));
    }
}
