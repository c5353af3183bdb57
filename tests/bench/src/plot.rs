//! A picture of the rates: one bar per router, with its quartiles.

use std::path::Path;

use anyhow::Result;
use plotters::{
    drawing::IntoDrawingArea as _,
    element::{PathElement, Rectangle, Text},
    prelude::SVGBackend,
    style::{Color as _, IntoFont as _, RGBColor},
};

use crate::{bench::Rates, plan::LanePlan, statistics::Samples};

const WIDTH: i32 = 1000;
const ROW: i32 = 22;
const TOP: i32 = 48;
/// Where bars begin, and how much room behind them their figures have.
const LEFT: i32 = 400;
const RIGHT: i32 = 70;
const NATMIG: RGBColor = RGBColor(0, 114, 178);
const OTHER: RGBColor = RGBColor(150, 150, 150);
const INK: RGBColor = RGBColor(30, 30, 30);

/// Draws the rates of the lanes into an SVG file, fastest first.
pub fn rates(path: &Path, lanes: &[LanePlan], rates: &Rates) -> Result<()> {
    let mut rows: Vec<_> = lanes
        .iter()
        .filter(|lane| !lane.key.starts_with("direct"))
        .filter_map(|lane| Some((lane, rates.get(lane.key).and_then(Samples::middle)?)))
        .collect();
    rows.sort_by(|(_, one), (_, other)| other.median.total_cmp(&one.median));
    let Some(most) = rows.first().map(|(_, middle)| middle.high) else {
        return Ok(());
    };
    let height = TOP + ROW * i32::try_from(rows.len())? + 12;
    let area =
        SVGBackend::new(path, (WIDTH.cast_unsigned(), height.cast_unsigned())).into_drawing_area();
    area.fill(&plotters::style::WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(
        "Million packets per second, whole chain on one CPU, 64-byte UDP",
        (12, 14),
        font(17),
    ))?;
    let scale = f64::from(WIDTH - LEFT - RIGHT) / most;
    let at = |rate: f64| LEFT + (rate * scale) as i32;
    for (row, (lane, middle)) in (0..).zip(rows) {
        let top = TOP + row * ROW;
        let color = if lane.site.starts_with("natmig") {
            NATMIG
        } else {
            OTHER
        };
        area.draw(&Text::new(lane.label, (12, top + 2), font(14)))?;
        area.draw(&Rectangle::new(
            [(LEFT, top), (at(middle.median), top + ROW - 6)],
            color.filled(),
        ))?;
        let line = top + (ROW - 6) / 2;
        area.draw(&PathElement::new(
            [(at(middle.low), line), (at(middle.high), line)],
            INK.stroke_width(2),
        ))?;
        area.draw(&Text::new(
            format!("{:.2}", middle.median),
            (at(middle.high) + 6, top + 2),
            font(14),
        ))?;
    }
    area.present()?;
    Ok(())
}
