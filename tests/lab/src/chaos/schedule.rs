//! What happens in a chaos run, and when: a pure function of seed, length and topology.
//!
//! Migrations are planned in *lanes*, faults in *tracks*. Each is a sequence, one thing after the
//! other, with the earliest time of each; lanes and tracks run side by side. Which faults a track may
//! hold is chosen so that all of them together leave a way to success: one link or router of the
//! fabric at a time, around which there are others, one controller and one member of etcd at a time,
//! and everything heals.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    routing::{self, Routes},
    topology::{RoutedLink, Tier, Topology},
};

/// Traffic flows undisturbed for so long.
const QUIET: Duration = Duration::from_secs(2);

/// Everything that is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Migrations, by the VMs that move together.
    pub lanes: Vec<Lane>,
    /// Faults.
    pub tracks: Vec<Track>,
}

/// VMs that migrate as one, and their migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The VMs.
    pub vms: Vec<String>,
    /// Their migrations.
    pub migrations: Vec<Planned>,
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it is due, from the beginning of the run.
    pub at: Duration,
    /// Where each VM of the lane goes.
    pub to: Vec<To>,
    /// How it is activated.
    pub how: How,
    /// Whether it waits for routers that cannot be reached, instead of being aborted.
    pub waits: bool,
    /// How long the guests pause.
    pub pause: Duration,
}

/// Where a VM goes, from wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// So many racks further, at least one and never around to where it is.
    Ahead(usize),
    /// Home; if it is there, to the next rack.
    Home,
}

/// How a migration is activated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The guests are unplugged first; it commits as soon as it is prepared, and never waits long.
    Immediate,
    /// It is prepared, the guests move, then it is activated.
    Manual,
    /// It is prepared, the guests move and are heard.
    OnAnnounce,
    /// It is prepared, then aborted; the guests stay.
    Abort,
}

/// Names of the daemons that are on no router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPlane {
    /// Controllers.
    pub controllers: Vec<String>,
    /// Members of etcd.
    pub etcd: Vec<String>,
}

/// Faults, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// What they hit.
    pub name: &'static str,
    /// The faults.
    pub faults: Vec<Fault>,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it is due, from the beginning of the run.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What breaks.
    pub what: What,
}

/// What breaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A router's agent gets SIGKILL; it is started again.
    KillAgent(String),
    /// A router's agent gets SIGSTOP, then SIGCONT.
    StopAgent(String),
    /// A controller gets SIGKILL; it is started again.
    KillController(String),
    /// A controller gets SIGSTOP, then SIGCONT.
    StopController(String),
    /// A member of etcd gets SIGKILL; it is started again with what it has on disk.
    KillEtcd(String),
    /// A member of etcd gets SIGSTOP, then SIGCONT.
    StopEtcd(String),
    /// A router's link to the management network goes down.
    CutManagement(String),
    /// A link of the fabric goes down.
    CutFabric(String, String),
    /// A router loses its power: agent, links and all that is in its kernel of natmig's.
    Reboot(String),
}

impl What {
    /// Its kind, in a word or two.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillAgent(_) => "agent killed",
            Self::StopAgent(_) => "agent stopped",
            Self::KillController(_) => "controller killed",
            Self::StopController(_) => "controller stopped",
            Self::KillEtcd(_) => "etcd killed",
            Self::StopEtcd(_) => "etcd stopped",
            Self::CutManagement(_) => "management link cut",
            Self::CutFabric(..) => "fabric link cut",
            Self::Reboot(_) => "router rebooted",
        }
    }

    /// The router that nothing else may happen to meanwhile.
    pub fn router(&self) -> Option<&str> {
        match self {
            Self::KillAgent(router)
            | Self::StopAgent(router)
            | Self::CutManagement(router)
            | Self::Reboot(router) => Some(router),
            Self::KillController(_)
            | Self::StopController(_)
            | Self::KillEtcd(_)
            | Self::StopEtcd(_)
            | Self::CutFabric(..) => None,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutFabric(a, b) => write!(f, "{} {a} – {b}", self.kind()),
            Self::KillAgent(name)
            | Self::StopAgent(name)
            | Self::KillController(name)
            | Self::StopController(name)
            | Self::KillEtcd(name)
            | Self::StopEtcd(name)
            | Self::CutManagement(name)
            | Self::Reboot(name) => write!(f, "{} {name}", self.kind()),
        }
    }
}

/// The same choices for the same seed (`SplitMix64`).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    /// Choices of one lane or track, which those of others leave alone.
    fn new(seed: u64, part: u64) -> Self {
        let mut dice = Self(seed ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        dice.draw();
        dice
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which must not be 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    fn one_of<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let limit = u64::try_from(choices.len()).unwrap_or(u64::MAX);
        choices.get(usize::try_from(self.below(limit.max(1))).unwrap_or(0))
    }

    /// True so many times in a hundred.
    fn percent(&mut self, part: u64) -> bool {
        self.below(100) < part
    }

    /// A time between two, in milliseconds.
    fn time(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

impl Schedule {
    /// What a seed plans for a run of this length. `control_plane` names controllers and members of
    /// etcd, if there are any.
    pub fn new(
        seed: u64,
        length: Duration,
        topology: &Topology,
        control_plane: &ControlPlane,
    ) -> Self {
        let lanes = (0..).zip(topology.groups().into_values());
        let lanes = lanes.map(|(number, vms)| {
            let mut dice = Dice::new(seed, 1 + number);
            let migrations = migrations(&mut dice, length, vms.len(), topology.segments.len());
            Lane { vms, migrations }
        });
        let mut tracks = vec![
            Track {
                name: "fabric",
                faults: fabric(&mut Dice::new(seed, 1001), length, topology),
            },
            Track {
                name: "controllers",
                faults: controllers(&mut Dice::new(seed, 1002), length, control_plane),
            },
            Track {
                name: "etcd",
                faults: etcd(&mut Dice::new(seed, 1005), length, control_plane),
            },
        ];
        for part in [1003, 1004] {
            tracks.push(Track {
                name: "agents",
                faults: agents(&mut Dice::new(seed, part), length, topology),
            });
        }
        Self {
            lanes: lanes.collect(),
            tracks,
        }
    }
}

fn migrations(dice: &mut Dice, length: Duration, vms: usize, racks: usize) -> Vec<Planned> {
    let mut planned = Vec::new();
    let further = u64::try_from(racks).unwrap_or(u64::MAX).saturating_sub(1);
    let mut at = QUIET + dice.time(0, 1500);
    while at < length && further > 0 {
        let mut to = || {
            if dice.percent(35) {
                To::Home
            } else {
                To::Ahead(1 + usize::try_from(dice.below(further)).unwrap_or(0))
            }
        };
        let to = (0..vms).map(|_| to()).collect();
        let how = match dice.below(100) {
            0..25 => How::Immediate,
            25..57 => How::Manual,
            57..88 => How::OnAnnounce,
            _ => How::Abort,
        };
        planned.push(Planned {
            at,
            to,
            how,
            // Nobody keeps guests paused for as long as a router is away.
            waits: dice.percent(50) && how != How::Immediate,
            pause: dice.time(5, 120),
        });
        at += dice.time(300, 2500);
    }
    planned
}

/// Faults with pauses between them, all healed by the end.
fn faults(
    dice: &mut Dice,
    length: Duration,
    pauses: [u64; 2],
    mut next: impl FnMut(&mut Dice) -> Option<(What, Duration)>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut at = QUIET + dice.time(pauses[0], pauses[1]);
    while let Some((what, lasts)) = next(dice) {
        if at + lasts > length {
            break;
        }
        faults.push(Fault { at, lasts, what });
        at += lasts + dice.time(pauses[0], pauses[1]);
    }
    faults
}

fn agents(dice: &mut Dice, length: Duration, topology: &Topology) -> Vec<Fault> {
    faults(dice, length, [1500, 7000], |dice| {
        let router = dice.one_of(&topology.routers)?.name.clone();
        Some(match dice.below(3) {
            0 => (What::KillAgent(router), dice.time(50, 3000)),
            1 => (What::StopAgent(router), dice.time(300, 4000)),
            _ => (What::CutManagement(router), dice.time(500, 5000)),
        })
    })
}

fn controllers(dice: &mut Dice, length: Duration, control_plane: &ControlPlane) -> Vec<Fault> {
    faults(dice, length, [3000, 10_000], |dice| {
        let controller = dice.one_of(&control_plane.controllers)?.clone();
        Some(if dice.percent(60) {
            (What::KillController(controller), dice.time(20, 2000))
        } else {
            (What::StopController(controller), dice.time(300, 6000))
        })
    })
}

fn etcd(dice: &mut Dice, length: Duration, control_plane: &ControlPlane) -> Vec<Fault> {
    // Without a majority nothing goes on, which is no fault of natmig's.
    let members: &[String] = match &control_plane.etcd[..] {
        members @ [_, _, _, ..] => members,
        _ => &[],
    };
    faults(dice, length, [2000, 8000], |dice| {
        let member = dice.one_of(members)?.clone();
        Some(if dice.percent(50) {
            (What::KillEtcd(member), dice.time(20, 3000))
        } else {
            (What::StopEtcd(member), dice.time(200, 4000))
        })
    })
}

fn fabric(dice: &mut Dice, length: Duration, topology: &Topology) -> Vec<Fault> {
    let links = topology.routed_links();
    let cuts: Vec<What> = links
        .iter()
        .filter(|link| !link.external && survives(topology, &links, |other| other == *link))
        .map(|link| What::CutFabric(link.ends[0].node.clone(), link.ends[1].node.clone()))
        .collect();
    // A rack behind one router would be cut off with it.
    let reboots: Vec<What> = topology
        .routers
        .iter()
        .filter(|router| router.tier != Tier::Edge)
        .filter(|router| {
            let is_its = |link: &RoutedLink| link.ends.iter().any(|end| end.node == router.name);
            survives(topology, &links, is_its)
        })
        .map(|router| What::Reboot(router.name.clone()))
        .collect();
    faults(dice, length, [3000, 9000], |dice| {
        let choices = if dice.percent(60) { &cuts } else { &reboots };
        let what = dice.one_of(choices)?.clone();
        Some((what, dice.time(1000, 5000)))
    })
}

/// Whether all racks and the outside reach each other without some links.
fn survives(topology: &Topology, links: &[RoutedLink], cut: impl Fn(&RoutedLink) -> bool) -> bool {
    let live: Vec<bool> = links.iter().map(|link| !cut(link)).collect();
    let tables = routing::routes(topology, links, &live);
    let whole = routing::routes(topology, links, &vec![true; links.len()]);
    let racks = topology
        .segments
        .iter()
        .flat_map(|segment| &segment.routers);
    let outside = topology.outside.iter().map(|outside| &outside.name);
    let reaches = |tables: &BTreeMap<String, Routes>, node: &String| -> Vec<_> {
        let routes = tables.get(node).into_iter().flat_map(BTreeMap::keys);
        let links = |prefix: &ipnet::IpNet| {
            let ends = links.iter().flat_map(|link| link.ends[0].prefixes());
            ends.into_iter().any(|link| link.trunc() == *prefix)
        };
        routes.filter(|prefix| !links(prefix)).copied().collect()
    };
    racks
        .chain(outside)
        .all(|node| reaches(&tables, node) == reaches(&whole, node))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::chaos;

    const LENGTH: Duration = Duration::from_mins(30);

    fn three() -> ControlPlane {
        let names = |what: &str| (1..4).map(|number| format!("{what}{number}")).collect();
        ControlPlane {
            controllers: names("controller"),
            etcd: names("etcd"),
        }
    }

    fn schedule(seed: u64) -> Schedule {
        Schedule::new(seed, LENGTH, &chaos::topology().unwrap(), &three())
    }

    #[test]
    fn a_seed_repeats_its_schedule_and_no_other_does() {
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
    }

    #[test]
    fn a_longer_run_begins_as_a_shorter_one() {
        let topology = chaos::topology().unwrap();
        let short = Schedule::new(3, LENGTH / 2, &topology, &three());
        for (short, long) in short.lanes.iter().zip(&schedule(3).lanes) {
            assert!(long.migrations.starts_with(&short.migrations));
        }
    }

    #[test]
    fn every_kind_of_fault_and_migration_is_planned() {
        let schedule = schedule(1);
        let faults = schedule.tracks.iter().flat_map(|track| &track.faults);
        let kinds: BTreeSet<_> = faults.map(|fault| fault.what.kind()).collect();
        assert_eq!(kinds.len(), 9, "{kinds:?}");
        for lane in &schedule.lanes {
            for how in [How::Immediate, How::Manual, How::OnAnnounce, How::Abort] {
                assert!(lane.migrations.iter().any(|planned| planned.how == how));
            }
            assert!(lane.migrations.len() > 300);
        }
        assert_eq!(
            schedule.lanes.iter().map(|lane| lane.vms.len()).max(),
            Some(2)
        );
    }

    #[test]
    fn faults_of_a_track_never_overlap_and_all_heal() {
        for seed in 0..50 {
            for track in schedule(seed).tracks {
                for pair in track.faults.windows(2) {
                    assert!(pair[0].at + pair[0].lasts < pair[1].at);
                }
                assert!(
                    track
                        .faults
                        .iter()
                        .all(|fault| fault.at + fault.lasts <= LENGTH)
                );
                let is_fabric = |what: &What| matches!(what, What::CutFabric(..) | What::Reboot(_));
                let fabric = track
                    .faults
                    .iter()
                    .filter(|fault| is_fabric(&fault.what))
                    .count();
                let expected = if track.name == "fabric" {
                    track.faults.len()
                } else {
                    0
                };
                assert_eq!(fabric, expected, "one fault of the fabric at a time");
            }
        }
    }

    #[test]
    fn etcd_keeps_its_majority() {
        let topology = chaos::topology().unwrap();
        let mut control_plane = three();
        control_plane.etcd.pop();
        let schedule = Schedule::new(1, LENGTH, &topology, &control_plane);
        let faults = schedule.tracks.iter().flat_map(|track| &track.faults);
        let is_etcd = |what: &What| matches!(what, What::KillEtcd(_) | What::StopEtcd(_));
        assert!(!faults.clone().any(|fault| is_etcd(&fault.what)));
        assert!(faults.count() > 100);
    }

    #[test]
    fn what_would_cut_a_rack_off_is_never_planned() {
        let topology = chaos::topology().unwrap();
        let links = topology.routed_links();
        let at = |a: &str, b: &str| {
            let is = |link: &RoutedLink| link.ends[0].node == a && link.ends[1].node == b;
            links.iter().find(|link| is(link)).unwrap().clone()
        };
        let [one, other] = [at("agg1", "edge1"), at("agg2", "edge1")];
        assert!(survives(&topology, &links, |link| *link == one));
        assert!(!survives(&topology, &links, |link| *link == one || *link == other));
        let mut single = topology.clone();
        single
            .fabric
            .retain(|link| link.between != ["agg2", "edge1"]);
        for seed in 0..20 {
            let faults = fabric(&mut Dice::new(seed, 1), LENGTH, &single);
            assert!(!faults.is_empty());
            for fault in faults {
                assert_ne!(fault.what, What::CutFabric("agg1".into(), "edge1".into()));
                assert_ne!(fault.what, What::Reboot("agg1".into()));
            }
        }
    }
}
