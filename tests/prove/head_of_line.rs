//! How long small messages take through a TLS stream over a link that loses, beside a TCP connection of their own: a lost segment
//! holds up what is behind it in either.

use crate::overlay::{FARLAN, await_path, eventually, fabric, founder, lab, ping};
use crate::{Amount, Measured, wire};
use anyhow::{Context, Result};
use cli::demo::Node;
use cli::lab::Machine;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// The link, each way.
const DELAY: Duration = Duration::from_millis(20);
const LOSS: f64 = 0.01;
/// The fabric node's end of it, and the member's.
const ENDS: [&str; 2] = ["198.18.200.1", "198.18.200.2"];

const PORT: u16 = 7777;
const EVERY: Duration = Duration::from_millis(20);
/// What has not come back so long after the last was sent never will.
const LATE: Duration = Duration::from_secs(3);
/// How long a path's size takes to be found out, at most.
const SETTLING: Duration = Duration::from_secs(8);
/// What the slowest hundredth may take, beside TCP's.
const GOAL: f64 = 1.25;

/// For `nft`: only TCP gets out.
const NO_UDP: &str = "table inet firewall {
  chain out {
    type filter hook output priority 0;
    oifname \"wire\" meta l4proto udp drop
  }
}
";

type Message = [u8; 64];

/// Sends a message every 20 ms, with its number first, and says how long each took that came back.
fn latencies(
    count: u64,
    mut send: impl FnMut(&Message) -> Result<()> + Send,
    mut receive: impl FnMut(&mut Message) -> bool + Send,
) -> Result<Vec<Duration>> {
    let sent = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut took, mut message) = (Vec::new(), [0; 64]);
            while took.len() < count as usize && receive(&mut message) {
                let number = u64::from_be_bytes(message[..8].try_into().expect("eight bytes"));
                let at: Instant = sent.lock().unwrap()[number as usize];
                took.push(at.elapsed());
            }
            took
        });
        let began = Instant::now();
        for number in 0..count {
            thread::sleep((EVERY * number as u32).saturating_sub(began.elapsed()));
            let mut message = [0; 64];
            message[..8].copy_from_slice(&number.to_be_bytes());
            sent.lock().unwrap().push(Instant::now());
            send(&message)?;
        }
        Ok(receiver.join().expect("it does not panic"))
    })
}

/// Over a TCP connection outside.
fn outside(from: &Machine, to: &Machine, count: u64) -> Result<Vec<Duration>> {
    let at: SocketAddr = (ENDS[0].parse::<Ipv4Addr>()?, PORT).into();
    let listener = to.tcp_listener(at)?;
    let echo = thread::spawn(move || {
        let (mut far, _) = listener.accept()?;
        far.set_nodelay(true)?;
        let mut message = [0; 64];
        while far.read_exact(&mut message).is_ok() {
            far.write_all(&message)?;
        }
        std::io::Result::Ok(())
    });
    let mut near: TcpStream = from.tcp_connect(at, LATE)?;
    near.set_nodelay(true)?;
    near.set_read_timeout(Some(LATE))?;
    let mut reader = near.try_clone()?;
    let took = latencies(
        count,
        |message| Ok(near.write_all(message)?),
        |message| reader.read_exact(message).is_ok(),
    )?;
    near.shutdown(std::net::Shutdown::Both)?;
    let _ended = echo.join().expect("it does not panic");
    Ok(took)
}

/// In datagrams inside.
fn inside(from: &Machine, to: &Machine, address: &str, count: u64) -> Result<Vec<Duration>> {
    let at: SocketAddr = (address.parse::<Ipv4Addr>()?, PORT).into();
    let far = to.udp_socket(at)?;
    far.set_read_timeout(Some(LATE))?;
    let echo = thread::spawn(move || {
        let mut message = [0; 64];
        while let Ok((_, from)) = far.recv_from(&mut message) {
            let _lost = far.send_to(&message, from);
        }
    });
    let near: UdpSocket = from.udp_socket((Ipv4Addr::UNSPECIFIED, 0))?;
    near.connect(at)?;
    near.set_read_timeout(Some(LATE))?;
    let took = latencies(
        count,
        |message| Ok(near.send(message).map(drop)?),
        |message| near.recv(message).is_ok(),
    )?;
    echo.join().expect("it does not panic");
    Ok(took)
}

/// So many of a thousand took no longer.
fn permille(sorted: &[Duration], of_thousand: usize) -> Duration {
    sorted[(sorted.len() - 1) * of_thousand / 1000]
}

fn line(what: &str, took: &[Duration], sent: u64) -> String {
    let cell = |of_thousand| format!("{} ms", permille(took, of_thousand).as_millis());
    let cells: Vec<_> = [500, 900, 990, 1000].map(cell).to_vec();
    format!(
        "| {what} | {} | {} of {sent} |",
        cells.join(" | "),
        took.len()
    )
}

/// By turns, so many sites.
pub(crate) fn head_of_line(amount: Amount) -> Result<Measured> {
    let seconds = if amount.runs > 2 { 30 } else { 10 };
    let count = seconds * 1000 / EVERY.as_millis() as u64;
    let (mut by_tcp, mut by_overlay) = (Vec::new(), Vec::new());
    for _ in 0..amount.runs {
        let lab = lab("head-of-line");
        let (relay, bootstrap) = fabric(&lab);
        let far = lab.public_host("founder")?;
        let first = founder(&far, &bootstrap, "lab", &[]);
        let (relay, host) = (relay.machine().clone(), lab.machine("inmate")?);
        wire::lay((&relay, &host), "wire", DELAY, LOSS)?;
        for (machine, address) in [(&relay, ENDS[0]), (&host, ENDS[1])] {
            let address = format!("address add {address}/24 dev wire");
            machine.ip(&[&address, "link set wire up"])?;
        }
        host.ip(&[&format!("route add default via {}", ENDS[0])])?;
        host.nft(NO_UDP)?;
        let invite = first.invite("lab")?;
        let (second, _) = Node::up_with_invite_and(&host, FARLAN, &invite, &[])?;
        let address = first.address("lab")?;
        eventually(|| ping(&host, &address))?;
        await_path(&second, "lab", "founder", "stream")?;
        thread::sleep(SETTLING);
        by_tcp.extend(outside(&host, &relay, count)?);
        by_overlay.extend(inside(&host, &far, &address, count)?);
    }
    by_tcp.sort_unstable();
    by_overlay.sort_unstable();
    let sent = amount.runs as u64 * count;
    let [outside, inside] = [&by_tcp, &by_overlay].map(|took| permille(took, 990).as_secs_f64());
    let share = inside / outside;
    let came = by_overlay.len() as f64 / sent as f64;
    by_overlay.first().context("something came")?;
    Ok(Measured {
        kept: share <= GOAL && came > 0.999,
        lines: vec![
            "| 64 bytes every 20 ms, there and back | median | 90 % | 99 % | worst | came |"
                .to_owned(),
            "|---|---:|---:|---:|---:|---:|".to_owned(),
            line("by a TCP connection", &by_tcp, sent),
            line("by UDP inside, through a TLS stream", &by_overlay, sent),
            format!(
                "\n{} sites, {seconds} s by turns; the link takes {} ms there and back and loses {} % each way. The slowest hundredth takes {share:.2} of TCP's (goal: at most {GOAL}).",
                amount.runs,
                2 * DELAY.as_millis(),
                100.0 * LOSS,
            ),
        ],
    })
}
