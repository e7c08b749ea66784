//! A plot of one row: a bar for each side, with its runs as dots.

use std::fmt::Write;

use crate::pairs::{Measured, median, shown};
use crate::rows::Row;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 70.0;
const BAR: f64 = 460.0;

pub(crate) fn svg(row: &Row, measured: &Measured) -> String {
    let all = measured.ours_s.iter().chain(&measured.peer_s);
    let longest = all.copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"140\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<text x=\"10\" y=\"22\" font-weight=\"bold\">{}: {:.2} times as fast</text>\n\
         <text x=\"10\" y=\"128\" fill=\"#666\">{}; peer: {}</text>\n",
        row.name,
        measured.ratio(),
        row.work,
        row.peer
    );
    for (name, runs, y, colour) in
        [("ours", &measured.ours_s, 40.0, "#2a7f4f"), ("peer", &measured.peer_s, 78.0, "#999")]
    {
        let width = BAR * median(runs) / longest;
        let at = LEFT + width + 12.0;
        let (label, middle) = (y + 18.0, y + 14.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{label}\">{name}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"28\" fill=\"{colour}\"/>\n\
             <text x=\"{at:.1}\" y=\"{label}\">{}</text>",
            shown(median(runs))
        );
        for run in runs {
            let x = LEFT + BAR * run / longest;
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{middle}\" r=\"3\" fill=\"#000\"/>");
        }
    }
    svg.push_str("</svg>\n");
    svg
}
