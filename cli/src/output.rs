//! How answers look: tables that fit the terminal, JSON for scripts, and lengths of time and data as people say them.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;
use std::{
    io::Write,
    time::{Duration, SystemTime},
};

/// Narrower than this, a table is not squeezed further.
const WIDTH_MIN: u16 = 40;

/// Where there is no terminal, text is as wide as one usually is.
const WIDTH_DEFAULT: usize = 80;

/// Longer lines of text are hard to read.
const READABLE: usize = 100;

/// From here on there is room for wider gaps between columns.
const WIDE: u16 = 100;

/// Prints one line on standard output. A reader that went away (`farlan peers | head -1`) is no failure.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a paragraph in the terminal's width, its first line after `mark` and the others below.
pub(crate) fn say_paragraph(mark: &str, text: &str) {
    let terminal = Table::new().width().map_or(WIDTH_DEFAULT, usize::from);
    say(&paragraph(mark, text, terminal.min(READABLE)));
}

fn paragraph(mark: &str, text: &str, width: usize) -> String {
    let indent = " ".repeat(mark.chars().count());
    let (mut lines, mut line) = (Vec::new(), mark.to_owned());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        let gap = usize::from(!is_empty);
        if !is_empty && line.chars().count() + gap + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, indent.clone()));
        } else if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines.join("\n")
}

/// Prints a note for people on standard error, where it does not disturb what scripts read.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints `value` as JSON.
pub(crate) fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a table in the terminal's width; at full width where there is no terminal.
pub(crate) fn say_table(header: &[&str], rows: Vec<Vec<String>>) {
    say(&table(header, rows, None));
}

/// `width: None` means the terminal's.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width.max(WIDTH_MIN));
    }
    let columns = header.len();
    let first_width = rows.iter().map(|row| row[0].chars().count()).max();
    table.add_rows(rows);
    let gap = if table.width().is_some_and(|width| width < WIDE) {
        1
    } else {
        2
    };
    for column in table.column_iter_mut() {
        column.set_padding((0, gap));
    }
    // The first column is what people look for: it keeps a useful width whatever else is long.
    if columns > 1
        && let Some(first) = table.column_mut(0)
    {
        let whole = u16::try_from(first_width.unwrap_or_default()).unwrap_or(u16::MAX);
        first.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
            whole.clamp(10, 19) + gap,
        )));
    }
    table.trim_fmt()
}

/// Line breaks become spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A failure with its causes as one line; a cause that an outer message tells already is not told again.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| one_line(&cause.to_string())) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// `1.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `0.31 ms`, `12.4 ms`, `1.20 s`.
pub(crate) fn rtt(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// `45 s`, `12 min`, `23 h`, `30 d`: the largest unit that is there twice, cut down.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How far off a Unix time is: `in 23 h`, `12 min ago`.
pub(crate) fn until(unix: u64) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    if unix >= now {
        format!("in {}", span(unix - now))
    } else {
        format!("{} ago", span(now - unix))
    }
}

/// A value or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_say_them() {
        assert_eq!(
            ["0 B", "999 B", "1.0 kB", "1.4 MB", "250 GB"],
            [0, 999, 1000, 1_400_000, 250_000_000_000].map(bytes)[..]
        );
        assert_eq!(
            ["0.31 ms", "12.4 ms", "1.20 s"],
            [310, 12_400, 1_200_000].map(rtt)[..]
        );
        assert_eq!(
            ["45 s", "12 min", "23 h", "30 d"],
            [45, 720, 86_300, 2_592_000].map(span)[..]
        );
    }

    #[test]
    fn a_failure_is_one_line_that_says_nothing_twice() {
        let cause = anyhow::anyhow!("no such\nfile")
            .context("cannot read it: no such file")
            .context("cannot start");
        assert_eq!(
            explain(&cause),
            "cannot start: cannot read it: no such file"
        );
    }

    #[test]
    fn a_paragraph_is_broken_between_words_and_hangs_from_its_mark() {
        let text = "one two three four";
        assert_eq!(paragraph("- ", text, 9), "- one two\n  three\n  four");
        assert_eq!(paragraph("", text, 80), text);
        assert_eq!(paragraph("  ", "verylongword x", 6), "  verylongword\n  x");
    }

    #[test]
    fn a_table_keeps_to_the_width_of_the_terminal() {
        let header = [
            "NAME", "ADDRESS", "PATH", "RTT", "MTU", "SENT", "RECEIVED", "NAT",
        ];
        let row = || {
            [
                "a-rather-long-name-for-a-node",
                "10.77.255.254",
                "relay [2001:db8:1:2:3:4:5:6]:40780",
                "123.4 ms",
                "1440",
            ]
            .into_iter()
            .chain(["999 GB", "1.4 TB", "address-and-port-dependent"])
            .map(str::to_owned)
            .collect::<Vec<_>>()
        };
        for width in [80, 120] {
            let text = table(&header, vec![row(), row()], Some(width));
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(width), "{longest} > {width}\n{text}");
        }
    }
}
