//! One SVG for each scenario, with one picture for each panel: bars with the range of the samples, or lines
//! if there is an axis.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::{Panel, Report};
use crate::statistics::Summary;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const WIDTH: u32 = 960;
const BAR: u32 = 26;
const LABELS: u32 = 330;
const LINES_HEIGHT: u32 = 340;
const OWN: RGBColor = RGBColor(214, 90, 30);
const PEER: RGBColor = RGBColor(96, 125, 155);
const OTHERS: [RGBColor; 5] =
    [PEER, RGBColor(40, 120, 90), RGBColor(130, 90, 160), RGBColor(150, 130, 40), RGBColor(40, 40, 40)];

/// Draws all panels of a report.
pub fn draw(report: &Report, path: &Path) -> Drawn {
    let heights: Vec<u32> = report.panels.iter().map(height).collect();
    let root = SVGBackend::new(path, (WIDTH, 40 + heights.iter().sum::<u32>())).into_drawing_area();
    root.fill(&WHITE)?;
    let (title, mut rest) = root.split_vertically(40);
    title.titled(&report.title, ("sans-serif", 20))?;
    for (panel, height) in report.panels.iter().zip(heights) {
        let (area, below) = rest.split_vertically(height);
        if panel.axis.is_some() {
            lines(&area, panel)?
        } else {
            bars(&area, panel)?
        }
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn height(panel: &Panel) -> u32 {
    if panel.axis.is_some() { LINES_HEIGHT } else { 80 + BAR * panel.figures.len() as u32 }
}

fn colour(name: &str) -> RGBColor {
    if name.starts_with("syncd") { OWN } else { PEER }
}

/// End of an axis that shows every sample.
fn end(panel: &Panel) -> f64 {
    let most = panel.figures.iter().flat_map(|f| f.samples.iter().copied()).fold(0.0, f64::max);
    if most > 0.0 { most * 1.12 } else { 1.0 }
}

fn bars(area: &Area<'_>, panel: &Panel) -> Drawn {
    let count = panel.figures.len();
    let mut chart = ChartBuilder::on(area)
        .caption(panel.heading(), ("sans-serif", 15))
        .margin_right(30)
        .y_label_area_size(LABELS)
        .x_label_area_size(28)
        .build_cartesian_2d(0.0..end(panel), 0.0..count as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().y_labels(0).max_light_lines(0).draw()?;
    for (place, figure) in panel.figures.iter().enumerate() {
        let Summary { median, least, most } = Summary::of(&figure.samples);
        // The first figure is at the top.
        let middle = (count - place) as f64 - 0.5;
        let (x, y) = chart.backend_coord(&(0.0, middle));
        let (left, top) = area.get_base_pixel();
        let place = (x - left - 8, y - top);
        let style = ("sans-serif", 13).into_text_style(area).pos(text_anchor());
        area.draw_text(&figure.name, &style, place)?;
        if !median.is_finite() {
            continue;
        }
        let colour = colour(&figure.name);
        chart.draw_series([Rectangle::new(
            [(0.0, middle - 0.32), (median, middle + 0.32)],
            colour.filled(),
        )])?;
        chart
            .draw_series([PathElement::new(vec![(least, middle), (most, middle)], BLACK.stroke_width(1))])?;
        let value = Text::new(format!("{median:.3}"), (most, middle + 0.2), ("sans-serif", 12).into_font());
        chart.draw_series([value])?;
    }
    Ok(())
}

fn text_anchor() -> plotters::style::text_anchor::Pos {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    Pos::new(HPos::Right, VPos::Center)
}

fn lines(area: &Area<'_>, panel: &Panel) -> Drawn {
    let xs = || panel.figures.iter().filter_map(|figure| figure.x);
    let (first, last) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
    if !(first > 0.0 && last >= first) {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area)
        .caption(panel.heading(), ("sans-serif", 15))
        .margin_right(30)
        .y_label_area_size(70)
        .x_label_area_size(40)
        .build_cartesian_2d((first * 0.9..last * 1.1).log_scale(), 0.0..end(panel))?;
    let mut mesh = chart.configure_mesh();
    mesh.max_light_lines(0).y_labels(6).x_label_formatter(&|x| format!("{x:.0}"));
    mesh.x_desc(panel.axis.unwrap_or_default()).draw()?;
    let mut names: Vec<&str> = Vec::new();
    for figure in &panel.figures {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    for (place, name) in names.into_iter().enumerate() {
        let own = place == 0 && name.starts_with("syncd");
        let colour = if own { OWN } else { OTHERS[place % OTHERS.len()] };
        let points: Vec<(f64, Summary)> = panel
            .figures
            .iter()
            .filter(|f| f.name == name && !f.samples.is_empty())
            .filter_map(|f| Some((f.x?, Summary::of(&f.samples))))
            .collect();
        let line = points.iter().map(|(x, summary)| (*x, summary.median));
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
        let ranges = points.iter().map(|(x, s)| PathElement::new([(*x, s.least), (*x, s.most)], colour));
        chart.draw_series(ranges)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_lines_become_a_picture_with_their_names() {
        let mut report = Report::new("some", "Some scenario");
        report.begin(1, 1);
        report.sample("time", "s", "rsync & others", 2.0);
        report.sample("time", "s", "syncd", 1.0);
        for x in [1.0, 2.0, 32.0] {
            report.point("fan-out", "s", "agents", "syncd", x, x);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("some.svg");
        draw(&report, &path).expect("a plot");
        let svg = std::fs::read_to_string(path).expect("read the plot");
        for word in ["Some scenario", "rsync &amp; others", "syncd", "agents", "</svg>"] {
            assert!(svg.contains(word), "no {word} in {svg}");
        }
    }
}
