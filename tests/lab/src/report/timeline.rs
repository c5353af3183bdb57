//! Every packet of every flow around a cutover, and the whole run at a glance, as pictures.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Observations, Step, span};
use crate::{
    account::{Fate, Window, fates},
    traffic::{Kind, Record},
};

const WIDTH: u32 = 1100;
const LANE: u32 = 15;
const LEFT: i32 = 250;
const HEAD: i32 = 46;
const FOOT: i32 = 34;

const ARRIVED: RGBColor = RGBColor(47, 158, 68);
const EXCUSED: RGBColor = RGBColor(245, 159, 0);
const LOST: RGBColor = RGBColor(224, 49, 49);
const GREY: RGBColor = RGBColor(73, 80, 87);
const PAUSE: RGBColor = RGBColor(233, 236, 239);
const GAP: RGBColor = RGBColor(255, 216, 168);
const DECISION: RGBColor = RGBColor(112, 72, 232);
const COMMITS: RGBColor = RGBColor(25, 113, 194);

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn drawn<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

/// Maps times to places from left to right.
struct Scale {
    from: u64,
    to: u64,
}

impl Scale {
    fn x(&self, time: u64) -> i32 {
        let time = time.clamp(self.from, self.to);
        let share = (time - self.from) as f64 / (self.to - self.from).max(1) as f64;
        LEFT + (share * f64::from(WIDTH as i32 - LEFT - 16)) as i32
    }
}

fn text(area: &Area<'_>, words: &str, at: (i32, i32), size: u32, colour: RGBColor) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(&colour);
    drawn(area.draw(&Text::new(words.to_owned(), at, style)))
}

fn block(area: &Area<'_>, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
    drawn(area.draw(&Rectangle::new(corners, colour.filled())))
}

fn lanes(run: &Observations, shown: impl Fn(&Record) -> bool) -> Vec<&Record> {
    let datagrams =
        |record: &&Record| matches!(record.flow.kind, Kind::Udp | Kind::Ping) && shown(record);
    run.records.iter().filter(datagrams).collect()
}

fn label(area: &Area<'_>, record: &Record, y: i32) -> Result<()> {
    let flow = &record.flow;
    text(
        area,
        &format!("{} {} → {}", flow.label(), flow.from, flow.to),
        (8, y + 2),
        11,
        BLACK,
    )?;
    text(area, &flow.relation, (158, y + 2), 11, GREY)
}

/// Axis with about eight marks, in milliseconds or seconds from `zero`.
fn axis(area: &Area<'_>, scale: &Scale, zero: u64, height: i32) -> Result<()> {
    let range = (scale.to - scale.from) as f64 / 8.0;
    let unit = 10f64.powf(range.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * unit)
        .find(|step| *step >= range)
        .unwrap_or(range) as i64;
    let relative = |time: u64| time as i64 - zero as i64;
    let mut mark = relative(scale.from).div_euclid(step) * step + step;
    while mark <= relative(scale.to) {
        let x = scale.x((zero as i64 + mark) as u64);
        drawn(area.draw(&PathElement::new(
            [(x, HEAD - 4), (x, height - FOOT)],
            RGBColor(206, 212, 218).stroke_width(1),
        )))?;
        let words = if step >= 1_000_000_000 {
            format!("{} s", mark / 1_000_000_000)
        } else {
            format!("{} ms", mark / 1_000_000)
        };
        text(area, &words, (x - 14, height - FOOT + 6), 11, GREY)?;
        mark += step;
    }
    Ok(())
}

/// The packets that the moved VMs send and are sent, from shortly before the unplug until all is well again.
pub(super) fn cutover(run: &Observations, step: &Step) -> Result<String> {
    let moved = |name: &str| step.moves.iter().any(|m| m.vm == name);
    let lanes = lanes(run, |record| {
        moved(&record.flow.from) || moved(&record.flow.to)
    });
    let last = step
        .commits
        .values()
        .max()
        .copied()
        .unwrap_or(step.decided)
        .max(step.replug());
    let zero = step.unplug();
    let scale = Scale {
        from: zero - 120_000_000,
        to: last + 200_000_000,
    };
    let height = HEAD + FOOT + (lanes.len() as u32 * LANE) as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        let anchors = step.windows.iter().map(Window::end).max().unwrap_or(zero);
        block(
            &area,
            [
                (scale.x(zero), HEAD),
                (scale.x(step.replug()), height - FOOT),
            ],
            PAUSE,
        )?;
        block(
            &area,
            [
                (scale.x(step.replug()), HEAD),
                (scale.x(anchors), height - FOOT),
            ],
            GAP,
        )?;
        axis(&area, &scale, zero, height)?;
        let windows = run.windows();
        for (index, record) in lanes.iter().enumerate() {
            let y = HEAD + (index as u32 * LANE) as i32;
            label(&area, record, y)?;
            for (fate, sent) in fates(&record.flow, &record.datagrams, &windows)
                .into_iter()
                .zip(&record.datagrams.sent)
            {
                if (scale.from..=scale.to).contains(sent) {
                    let colour = match fate {
                        Fate::Arrived => ARRIVED,
                        Fate::Excused => EXCUSED,
                        Fate::Lost => LOST,
                    };
                    let x = scale.x(*sent);
                    block(&area, [(x, y + 3), (x + 2, y + 12)], colour)?;
                }
            }
        }
        line(&area, scale.x(step.decided), height, DECISION)?;
        for commit in step.commits.values() {
            line(&area, scale.x(*commit), height, COMMITS)?;
        }
        let legend = [
            (ARRIVED, "arrived".to_owned()),
            (EXCUSED, "excused".to_owned()),
            (LOST, "lost".to_owned()),
            (
                PAUSE,
                format!("unplugged {}", span(step.replug().saturating_sub(zero))),
            ),
            (GAP, format!("natmig gap {}", span(step.natmig_gap()))),
            (DECISION, "commit asked for".to_owned()),
            (
                COMMITS,
                format!("routers commit, spread {}", span(step.spread())),
            ),
        ];
        draw_legend(&area, &legend)?;
        drawn(area.present())?;
    }
    Ok(svg)
}

fn line(area: &Area<'_>, x: i32, height: i32, colour: RGBColor) -> Result<()> {
    drawn(area.draw(&PathElement::new(
        [(x, HEAD - 8), (x, height - FOOT)],
        colour.stroke_width(1),
    )))
}

fn draw_legend(area: &Area<'_>, entries: &[(RGBColor, String)]) -> Result<()> {
    let mut x = 8;
    for (colour, words) in entries {
        block(area, [(x, 10), (x + 10, 20)], *colour)?;
        text(area, words, (x + 15, 8), 12, BLACK)?;
        x += 30 + 7 * words.chars().count() as i32;
    }
    Ok(())
}

/// The whole run: where in which flow packets are missing, and when migrations committed.
pub(super) fn overview(run: &Observations) -> Result<String> {
    let lanes = lanes(run, |_| true);
    let times = || {
        lanes
            .iter()
            .flat_map(|record| record.datagrams.sent.iter().copied())
    };
    let scale = Scale {
        from: times().min().unwrap_or(0),
        to: times().max().unwrap_or(1),
    };
    let height = HEAD + FOOT + (lanes.len() as u32 * LANE) as i32;
    let windows = run.windows();
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        axis(&area, &scale, scale.from, height)?;
        for step in &run.steps {
            let x = scale.x(step.decided);
            line(&area, x, height, COMMITS)?;
            text(&area, &step.id.to_string(), (x - 4, HEAD - 20), 11, COMMITS)?;
        }
        for (index, record) in lanes.iter().enumerate() {
            let y = HEAD + (index as u32 * LANE) as i32;
            label(&area, record, y)?;
            let (Some(first), Some(last)) =
                (record.datagrams.sent.first(), record.datagrams.sent.last())
            else {
                continue;
            };
            block(
                &area,
                [(scale.x(*first), y + 6), (scale.x(*last), y + 9)],
                RGBColor(178, 242, 187),
            )?;
            for (fate, sent) in fates(&record.flow, &record.datagrams, &windows)
                .into_iter()
                .zip(&record.datagrams.sent)
            {
                let x = scale.x(*sent);
                match fate {
                    Fate::Arrived => {}
                    Fate::Excused => block(&area, [(x, y + 4), (x + 1, y + 11)], EXCUSED)?,
                    Fate::Lost => block(&area, [(x - 1, y + 2), (x + 2, y + 13)], LOST)?,
                }
            }
        }
        let legend = [
            (RGBColor(178, 242, 187), "arrived".to_owned()),
            (EXCUSED, "excused".to_owned()),
            (LOST, "lost".to_owned()),
            (COMMITS, "commit of a migration".to_owned()),
        ];
        draw_legend(&area, &legend)?;
        drawn(area.present())?;
    }
    Ok(svg)
}
