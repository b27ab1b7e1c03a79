//! The picture of the saturated servers: deliveries a second, and the CPU time of each. SVG, written by hand:
//! a dozen rectangles need no library.

use std::fmt::Write as _;

use super::Peer;
use super::measurement::{Form, Metric};
use super::results::{Entry, Figure, Results};

const WIDTH: usize = 1160;
const PANEL: usize = WIDTH / 2;
/// Where the names end and the bars begin.
const BARS_AT: usize = 110;
/// Leaves room for the figure, and what it has to be read with, behind the longest.
const BAR_MAX: f64 = 190.0;
const ROW: usize = 32;
const BAR_HEIGHT: usize = 18;
const TOP: usize = 96;

/// `None` if nothing was measured that it could show.
pub(super) fn draw(results: &Results) -> Option<String> {
    let measurement = results.done("saturated")?;
    let entries = results.entries(measurement);
    let height = TOP + entries.len() * ROW + 44;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13" fill="#222">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="20" y="32" font-size="18" font-weight="600">As many messages as a server can take, each to everyone</text>
"##
    );
    // The first two of its metrics, and which way they are good.
    for (at, good) in ["more is better", "less is better"].into_iter().enumerate() {
        let rows =
            entries.iter().map(|(peer, entry)| Row::of(measurement.metrics, at, *peer, entry));
        panel(&mut svg, at * PANEL, measurement.metrics[at].name, good, &rows.collect::<Vec<_>>());
    }
    let about = format!(
        "{}{}; {}; {}, commit {}",
        if results.quick { "A quick run. " } else { "" },
        results.machine(),
        results.placement,
        results.date(),
        results.commit
    );
    let at = height - 18;
    let _ = writeln!(
        svg,
        r##"<text x="20" y="{at}" font-size="11" fill="#666">{}</text>"##,
        escaped(&about)
    );
    svg.push_str("</svg>\n");
    Some(svg)
}

/// A server in a panel.
struct Row {
    peer: Peer,
    /// The bar, if there is one.
    figure: Option<Figure>,
    label: String,
}

impl Row {
    fn of(metrics: &[Metric], at: usize, peer: Peer, entry: &Entry) -> Self {
        match entry {
            Entry::Figures(figures) => {
                let mut label = metrics[at].form.show(figures[at].median);
                if at == 0 {
                    label.push_str(&reservations(metrics, figures));
                }
                let figure = Some(figures[at]).filter(|figure| !figure.median.is_nan());
                Self { peer, figure, label }
            }
            Entry::None(why) => {
                let why = if why.starts_with("missing") { "missing" } else { "no figures" };
                Self { peer, figure: None, label: why.to_owned() }
            }
        }
    }
}

/// How much was lost or came out of order belongs to how much was delivered.
fn reservations(metrics: &[Metric], figures: &[Figure]) -> String {
    let all = metrics.iter().zip(figures);
    let bad = all.filter(|(metric, figure)| metric.form == Form::Share && figure.median > 0.0);
    let shown = bad.map(|(m, figure)| format!("{} {}", m.form.show(figure.median), m.name));
    let shown = shown.collect::<Vec<_>>().join(", ");
    if shown.is_empty() { shown } else { format!(" ({shown})") }
}

fn panel(svg: &mut String, left: usize, name: &str, good: &str, rows: &[Row]) {
    let (x, y) = (left + 20, TOP - 26);
    let _ = writeln!(
        svg,
        r##"<text x="{x}" y="{y}"><tspan font-weight="600">{name}</tspan> <tspan fill="#666">({good})</tspan></text>"##
    );
    let most = rows.iter().filter_map(|row| row.figure).map(|figure| figure.most);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let left = left + BARS_AT;
    for (at, row) in rows.iter().enumerate() {
        let top = TOP + at * ROW;
        let baseline = top + 14;
        let (x, name) = (left - 8, row.peer.name());
        let _ = writeln!(svg, r#"<text x="{x}" y="{baseline}" text-anchor="end">{name}</text>"#);
        let label_at = left as f64
            + row.figure.map_or(0.0, |figure| {
                bar(svg, left, top, figure, most, row.peer);
                figure.most / most * BAR_MAX + 6.0
            });
        let style = if row.figure.is_some() { "" } else { r##" fill="#666" font-style="italic""## };
        let label = escaped(&row.label);
        let _ = writeln!(svg, r#"<text x="{label_at:.1}" y="{baseline}"{style}>{label}</text>"#);
    }
}

/// As long as the median, with a line from the least to the most of the rounds.
fn bar(svg: &mut String, left: usize, top: usize, figure: Figure, most: f64, peer: Peer) {
    let colour = match peer {
        Peer::Antiphon => "#1e88e5",
        Peer::Floor => "#bdbdbd",
        _ => "#90a4ae",
    };
    let length = |figure: f64| figure / most * BAR_MAX;
    let x = |figure: f64| left as f64 + length(figure);
    let (median, middle) = (length(figure.median), top + BAR_HEIGHT / 2);
    let _ = writeln!(
        svg,
        r##"<rect x="{left}" y="{top}" width="{median:.1}" height="{BAR_HEIGHT}" fill="{colour}"/>
<line x1="{:.1}" x2="{:.1}" y1="{middle}" y2="{middle}" stroke="#222"/>"##,
        x(figure.least),
        x(figure.most)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
