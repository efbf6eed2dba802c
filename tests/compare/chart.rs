//! Pictures of bars, as SVG: one bar for each tunnel, with a line from the least to the most of its runs.

use std::fmt::Write;

/// One bar.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Drawn in our colour.
    pub(crate) is_ours: bool,
}

const WIDTH: f64 = 720.0;
const LABEL_WIDTH: f64 = 130.0;
/// Room behind the longest bar for its figure.
const VALUE_WIDTH: f64 = 70.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;

/// A picture of `bars` with this title. Bars are as long as their medians say, the longest as long as there is room.
pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars
        .iter()
        .map(|bar| bar.most)
        .fold(0.0, f64::max)
        .max(1e-9);
    let scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / most;
    let height = TOP + ROW * bars.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}, {unit}</text>\n"
    );
    for (row, bar) in bars.iter().enumerate() {
        let top = TOP + ROW * row as f64;
        let middle = top + ROW / 2.0;
        let fill = if bar.is_ours { "#1f6feb" } else { "#9aa4b2" };
        let end = |value: f64| LABEL_WIDTH + value * scale;
        // Writing into a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{label}</text>\n\
             <rect x=\"{LABEL_WIDTH}\" y=\"{bar_top}\" width=\"{width:.1}\" height=\"{bar_height}\" fill=\"{fill}\"/>\n\
             <line x1=\"{least:.1}\" x2=\"{most:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#333333\"/>\n\
             <text x=\"{value_x:.1}\" y=\"{y}\">{value}</text>\n",
            x = LABEL_WIDTH - 8.0,
            y = middle + 4.5,
            label = bar.label,
            bar_top = top + 4.0,
            width = bar.median * scale,
            bar_height = ROW - 8.0,
            least = end(bar.least),
            most = end(bar.most),
            value_x = end(bar.most) + 6.0,
            value = figure(bar.median),
        );
    }
    svg + "</svg>\n"
}

/// A figure with as many digits as mean something.
pub(crate) fn figure(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
