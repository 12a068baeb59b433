//! The lab's rows as a picture: what honest clients met second by second, an SVG without anything from elsewhere.

use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 34.0;
const STEP_TARGET: f64 = WIDTH - LEFT - 20.0;

/// One second of one act.
pub(super) struct Point {
    pub(super) phase: String,
    pub(super) served: f64,
    /// `None`: nothing was answered.
    pub(super) p99_ms: Option<f64>,
}

/// Both panels: requests answered well in each second, and how long the slowest hundredth took.
pub(super) fn svg(points: &[Point]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        height = 2.0 * (HEIGHT + TOP) + 40.0,
    );
    let served: Vec<Option<f64>> = points.iter().map(|point| Some(point.served)).collect();
    let p99: Vec<Option<f64>> = points.iter().map(|point| point.p99_ms).collect();
    panel(&mut svg, 0.0, "honest requests answered in a second", (points, &served));
    panel(&mut svg, HEIGHT + TOP, "99th percentile of their time, ms", (points, &p99));
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, top: f64, title: &str, (points, values): (&[Point], &[Option<f64>])) {
    let most = values.iter().flatten().copied().fold(1.0, f64::max);
    let x = |index: usize| LEFT + STEP_TARGET * (index as f64 + 0.5) / points.len().max(1) as f64;
    let base = top + TOP + HEIGHT - 20.0;
    let y = |value: f64| base - (HEIGHT - 40.0) * value / most;
    write(svg, format_args!("<text x=\"{LEFT}\" y=\"{}\">{title}</text>\n", top + 16.0));
    for share in [0.0, 0.5, 1.0] {
        let (value, at) = (most * share, y(most * share));
        write(
            svg,
            format_args!(
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>\n",
                WIDTH - 20.0,
                LEFT - 6.0,
                at + 4.0,
            ),
        );
    }
    let mut begun = 0;
    for (index, point) in points.iter().enumerate() {
        let is_last = points.get(index + 1).is_none_or(|next| next.phase != point.phase);
        if is_last {
            phase(svg, (x(begun), x(index), base), &point.phase);
            begun = index + 1;
        }
    }
    let places = values.iter().enumerate();
    let places =
        places.filter_map(|(index, value)| Some(format!("{:.1},{:.1}", x(index), y((*value)?))));
    let line = places.collect::<Vec<_>>().join(" ");
    write(
        svg,
        format_args!(
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\"/>\n"
        ),
    );
}

/// The name of a phase under its seconds; an attack has a ground of its own.
fn phase(svg: &mut String, (first, last, base): (f64, f64, f64), name: &str) {
    let half = 6.0;
    if name.starts_with("attack") || name.starts_with("flood") {
        write(
            svg,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#c00\" opacity=\"0.08\"/>\n",
                first - half,
                base - (HEIGHT - 40.0),
                last - first + 2.0 * half,
                HEIGHT - 40.0,
            ),
        );
    }
    let middle = f64::midpoint(first, last);
    write(
        svg,
        format_args!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\">{name}</text>\n",
            base + 14.0,
        ),
    );
}

fn write(svg: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes everything.
    svg.write_fmt(text).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_is_a_point_and_every_phase_has_its_name() {
        let point = |phase: &str, served, p99_ms| Point { phase: phase.to_owned(), served, p99_ms };
        let svg = svg(&[
            point("quiet", 100.0, Some(1.0)),
            point("attack", 50.0, None),
            point("attack", 100.0, Some(2.0)),
        ]);
        let lines: Vec<&str> = svg.lines().filter(|line| line.starts_with("<polyline")).collect();
        let places = |line: &&str| line.matches(',').count();
        assert_eq!(lines.iter().map(places).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(svg.matches(">attack<").count(), 2);
    }
}
