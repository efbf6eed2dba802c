//! Recording what crosses an interface with tcpdump, and reading the record.

use super::{Machine, Process};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long tcpdump may take to open the interface or to write its record out.
const TCPDUMP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long frames that crossed already may take to reach tcpdump.
const SETTLING_TIME: Duration = Duration::from_millis(100);

/// A recording that is going on.
pub struct Capture {
    machine: Machine,
    file: String,
    tcpdump: Process,
}

/// A frame as it crossed the interface, cut at the length that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedFrame {
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
    /// How long it really was.
    pub length: usize,
}

/// The UDP datagram in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpView<'a> {
    /// Where it came from.
    pub source: SocketAddrV4,
    /// Where it went.
    pub destination: SocketAddrV4,
    /// What of it was recorded.
    pub payload: &'a [u8],
}

impl Capture {
    pub(super) fn start(
        machine: &Machine,
        interface: &str,
        filter: &str,
        snap: u32,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let label = format!("tcpdump-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let file = format!("/run/lab/{label}.pcap");
        let snap = snap.to_string();
        // -U: write each frame at once; -B: room (KiB) for bursts. The shell opens the record, for tcpdump may not after it
        // gave up root; to keep that by -Z crashes Ubuntu 24.04's.
        let script = "exec tcpdump --immediate-mode -n -U -B 16384 -i \"$1\" -s \"$2\" -w - ${3:+\"$3\"} > \"$0\"";
        let argv = ["sh", "-c", script, &file, interface, &snap, filter];
        let mut tcpdump = machine.spawn(&label, &argv)?;
        tcpdump.wait_for_line("listening on", TCPDUMP_TIMEOUT)?;
        Ok(Self {
            machine: machine.clone(),
            file,
            tcpdump,
        })
    }

    /// What was recorded until now; the recording goes on.
    pub fn frames(&self) -> Result<Vec<CapturedFrame>> {
        parse(&self.machine.read_file(&self.file)?)
    }

    /// Ends the recording and returns it.
    pub fn stop(mut self) -> Result<Vec<CapturedFrame>> {
        self.end()?;
        self.frames()
    }

    /// Ends the recording and tells the machine's file that has it (pcap).
    pub fn into_file(mut self) -> Result<String> {
        self.end()?;
        Ok(self.file)
    }

    fn end(&mut self) -> Result<()> {
        std::thread::sleep(SETTLING_TIME);
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(TCPDUMP_TIMEOUT)?;
        Ok(())
    }
}

impl CapturedFrame {
    /// The type field of the Ethernet header.
    pub fn ethertype(&self) -> Option<u16> {
        self.bytes
            .get(12..14)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// The IPv4 packet in it.
    pub fn ipv4(&self) -> Option<&[u8]> {
        (self.ethertype()? == 0x0800)
            .then(|| self.bytes.get(14..))
            .flatten()
            .filter(|packet| packet.len() >= 20)
    }

    /// The IPv4 packet's protocol number.
    pub fn protocol(&self) -> Option<u8> {
        self.ipv4().map(|packet| packet[9])
    }

    /// Source and destination of the IPv4 packet in it.
    pub fn addresses(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let packet = self.ipv4()?;
        let address =
            |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        Some((address(12), address(16)))
    }

    /// The UDP datagram in it; `None` for anything else, later fragments included.
    pub fn udp(&self) -> Option<UdpView<'_>> {
        let packet = self.ipv4()?;
        let is_later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
        if packet[9] != 17 || is_later_fragment {
            return None;
        }
        let (source, destination) = self.addresses()?;
        let header = usize::from(packet[0] & 0x0f) * 4;
        let udp = packet.get(header..).filter(|udp| udp.len() >= 8)?;
        Some(UdpView {
            source: SocketAddrV4::new(source, u16::from_be_bytes([udp[0], udp[1]])),
            destination: SocketAddrV4::new(destination, u16::from_be_bytes([udp[2], udp[3]])),
            payload: &udp[8..],
        })
    }

    /// Whether these bytes occur anywhere in what was recorded of it.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.bytes
            .windows(needle.len())
            .any(|window| window == needle)
    }
}

/// Reads a pcap file of Ethernet frames. A last record that is still being written is left out.
fn parse(file: &[u8]) -> Result<Vec<CapturedFrame>> {
    let header = file
        .get(..24)
        .context("the capture file has no header yet")?;
    let word: fn([u8; 4]) -> u32 = match &header[..4] {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => u32::from_le_bytes,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => u32::from_be_bytes,
        _ => bail!("not a pcap file"),
    };
    let field =
        |bytes: &[u8], at: usize| word([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if field(header, 20) != 1 {
        bail!("the capture is not of Ethernet frames");
    }
    let mut frames = Vec::new();
    let mut rest = &file[24..];
    while rest.len() >= 16 {
        let (kept, length) = (field(rest, 8) as usize, field(rest, 12) as usize);
        let Some(bytes) = rest.get(16..16 + kept) else {
            break;
        };
        frames.push(CapturedFrame {
            bytes: bytes.to_vec(),
            length,
        });
        rest = &rest[16 + kept..];
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pcap(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        file.extend([0; 8]);
        file.extend(256u32.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for frame in frames {
            file.extend([0; 8]);
            file.extend((frame.len() as u32).to_le_bytes());
            file.extend(1514u32.to_le_bytes());
            file.extend(*frame);
        }
        file
    }

    #[test]
    fn a_datagram_is_found_in_its_frame() {
        let mut frame = vec![0; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 10, 198, 18, 1, 1,
        ]);
        frame.extend([0x12, 0x34, 0x00, 0x35, 0, 12, 0, 0, 0x84, 1, 2, 3]);

        let frames = parse(&pcap(&[&frame])).unwrap();

        let udp = frames[0].udp().unwrap();
        assert_eq!(udp.source, "198.18.0.10:4660".parse().unwrap());
        assert_eq!(udp.destination, "198.18.1.1:53".parse().unwrap());
        assert_eq!(udp.payload, [0x84, 1, 2, 3]);
        assert_eq!(frames[0].length, 1514);
        assert!(frames[0].contains(&[1, 2, 3]) && !frames[0].contains(b"SSH"));
    }

    #[test]
    fn a_record_cut_short_is_left_out() {
        let file = pcap(&[&[7; 60], &[8; 60]]);

        let frames = parse(&file[..file.len() - 1]).unwrap();

        assert_eq!(frames.len(), 1);
    }
}
