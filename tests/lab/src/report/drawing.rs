//! The topology as a picture, with the places of VMs before and after a migration.

use std::{collections::BTreeMap, fmt::Write as _};

use super::Step;
use crate::topology::{Tier, Topology};

const WIDTH: f64 = 900.0;
const ROW: f64 = 92.0;
const TOP: f64 = 34.0;

type Places = BTreeMap<String, (f64, f64)>;

fn spread(names: &[&str], y: f64, places: &mut Places) {
    for (index, name) in names.iter().enumerate() {
        let x = WIDTH * (index as f64 + 0.5) / names.len() as f64;
        places.insert((*name).to_owned(), (x, y));
    }
}

fn places(topology: &Topology) -> Places {
    let mut places = Places::new();
    let outside: Vec<&str> = topology
        .outside
        .iter()
        .map(|outside| outside.name.as_str())
        .collect();
    spread(&outside, TOP, &mut places);
    for (row, tier) in [
        (1.0, Tier::Core),
        (2.0, Tier::Aggregation),
        (3.0, Tier::Edge),
    ] {
        let names: Vec<&str> = topology
            .routers
            .iter()
            .filter(|router| router.tier == tier)
            .map(|router| router.name.as_str())
            .collect();
        spread(&names, TOP + row * ROW, &mut places);
    }
    let segments: Vec<&str> = topology
        .segments
        .iter()
        .map(|segment| segment.name.as_str())
        .collect();
    spread(&segments, TOP + 4.0 * ROW, &mut places);
    places
}

/// The topology; `elsewhere` says where the VMs are that do not move in `step`.
pub(super) fn draw(
    topology: &Topology,
    step: &Step,
    elsewhere: &BTreeMap<String, String>,
) -> String {
    let places = places(topology);
    let height = TOP + 4.0 * ROW + 150.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0L10 5L0 10z\" fill=\"#d9480f\"/></marker></defs>\n"
    );
    draw_links(topology, &places, &mut svg);
    draw_nodes(topology, step, &places, &mut svg);
    let guests = draw_machines(topology, step, elsewhere, &places, &mut svg);
    for (index, m) in step.moves.iter().enumerate() {
        let old = guests.get(&(m.vm.clone(), m.from.clone()));
        let new = guests.get(&(m.vm.clone(), m.to.clone()));
        if let (Some((x, y)), Some((u, v))) = (old, new) {
            let (y, v) = (y + 15.0, v + 15.0);
            let bend = y.max(v) + 30.0 + 14.0 * index as f64;
            put(
                &mut svg,
                format_args!(
                    "<path d=\"M{x} {y}C{x} {bend} {u} {bend} {u} {v}\" fill=\"none\" stroke=\"#d9480f\" stroke-width=\"2\" marker-end=\"url(#tip)\"/>"
                ),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{element}");
}

fn draw_links(topology: &Topology, places: &Places, svg: &mut String) {
    let mut line = |a: &str, b: &str, colour: &str| {
        if let (Some((x, y)), Some((u, v))) = (places.get(a), places.get(b)) {
            put(
                svg,
                format_args!(
                    "<line x1=\"{x}\" y1=\"{y}\" x2=\"{u}\" y2=\"{v}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
                ),
            );
        }
    };
    for link in topology.routed_links() {
        line(
            &link.ends[0].node,
            &link.ends[1].node,
            if link.external { "#ae3ec9" } else { "#adb5bd" },
        );
    }
    for segment in &topology.segments {
        for router in &segment.routers {
            line(router, &segment.name, "#4c6ef5");
        }
    }
}

fn draw_nodes(topology: &Topology, step: &Step, places: &Places, svg: &mut String) {
    let first = step.commits.values().min().copied().unwrap_or(0);
    for (name, (x, y)) in places {
        let (fill, stroke, note) = if topology.router(name).is_some() {
            let commit = step
                .commits
                .get(name)
                .map(|time| format!("+{:.1} ms", (time - first) as f64 / 1e6));
            ("#e7f5ff", "#1971c2", commit.unwrap_or_default())
        } else if let Some(segment) = topology.segment(name) {
            ("#f1f3f5", "#868e96", segment.prefix.to_string())
        } else {
            (
                "#f8f0fc",
                "#ae3ec9",
                topology
                    .outside
                    .as_ref()
                    .map(|outside| outside.address.to_string())
                    .unwrap_or_default(),
            )
        };
        let (left, top) = (x - 52.0, y - 19.0);
        put(
            svg,
            format_args!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"104\" height=\"38\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\"/>"
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"600\" fill=\"#212529\">{name}</text>",
                y - 3.0
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#495057\">{note}</text>",
                y + 12.0
            ),
        );
    }
}

/// Draws hosts and VMs under their racks; returns where each VM stands, by VM and segment.
fn draw_machines(
    topology: &Topology,
    step: &Step,
    elsewhere: &BTreeMap<String, String>,
    places: &Places,
    svg: &mut String,
) -> BTreeMap<(String, String), (f64, f64)> {
    let mut guests = BTreeMap::new();
    for segment in &topology.segments {
        let Some((centre, y)) = places.get(&segment.name) else {
            continue;
        };
        let mut machines: Vec<(String, &str)> = topology
            .hosts
            .iter()
            .filter(|host| host.segment == segment.name)
            .map(|host| (host.name.clone(), "host"))
            .collect();
        for (vm, place) in elsewhere {
            let moves = step.moves.iter().any(|m| m.vm == *vm);
            if *place == segment.name && !moves {
                machines.push((vm.clone(), "vm"));
            }
        }
        for m in &step.moves {
            if m.from == segment.name {
                machines.push((m.vm.clone(), "old"));
            }
            if m.to == segment.name {
                machines.push((m.vm.clone(), "new"));
            }
        }
        let count = machines.len() as f64;
        for (index, (name, state)) in machines.into_iter().enumerate() {
            let x = centre + (index as f64 - (count - 1.0) / 2.0) * 50.0;
            let y = y + 52.0;
            let (fill, stroke, text, dash) = match state {
                "host" => ("#f8f9fa", "#ced4da", "#495057", ""),
                "old" => ("#ffffff", "#d9480f", "#d9480f", " stroke-dasharray=\"4 3\""),
                "new" => ("#d9480f", "#d9480f", "#ffffff", ""),
                _ => ("#ffe8cc", "#fd7e14", "#7f3b00", ""),
            };
            put(
                svg,
                format_args!(
                    "<rect x=\"{}\" y=\"{}\" width=\"46\" height=\"28\" rx=\"{}\" fill=\"{fill}\" stroke=\"{stroke}\"{dash}/>",
                    x - 23.0,
                    y - 14.0,
                    if state == "host" { 2 } else { 12 }
                ),
            );
            put(
                svg,
                format_args!(
                    "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-size=\"12\" fill=\"{text}\">{name}</text>",
                    y + 4.0
                ),
            );
            if state != "host" {
                guests.insert((name, segment.name.clone()), (x, y));
            }
        }
    }
    guests
}
