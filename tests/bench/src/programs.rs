//! The benchmarks' own eBPF programs: loading, attaching, running, and their maps.

use std::{io, path::Path, thread};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray, RingBuf, xdp::DevMap},
    programs::{
        ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions,
        Xdp, XdpMode, xdp::XdpLinkId,
    },
};
use natmig_bench_ebpf::{BINDINGS, Captured, Generator};

use crate::traffic::{Area, Density, Family};

/// A [`Generator`] as aya takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element(Generator);

// SAFETY: a generator is plain data without padding.
unsafe impl Pod for Element {}

/// The programs, loaded, and their maps.
pub struct Programs {
    ebpf: Ebpf,
    generators: PerCpuArray<MapData, Element>,
    arrived: PerCpuArray<MapData, u64>,
    capture: Array<MapData, u32>,
    captured: RingBuf<MapData>,
    devices: DevMap<MapData>,
    subjects: ProgramArray<MapData>,
}

/// What a test run said.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// The verdict of the last repetition.
    pub verdict: u32,
}

impl Programs {
    /// Loads all programs of the object.
    pub fn load(object: &Path) -> Result<Self> {
        let mut ebpf =
            Ebpf::load_file(object).with_context(|| format!("cannot load {}", object.display()))?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
                program.load()
            } else {
                <&mut SchedClassifier>::try_from(program)?.load()
            };
            loaded.with_context(|| format!("the kernel refuses program {name}"))?;
        }
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        Ok(Self {
            generators: take("GENERATORS")?.try_into()?,
            arrived: take("ARRIVED")?.try_into()?,
            capture: take("CAPTURE")?.try_into()?,
            captured: take("CAPTURED")?.try_into()?,
            devices: take("DEVICES")?.try_into()?,
            subjects: take("PROGRAMS")?.try_into()?,
            ebpf,
        })
    }

    fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Attaches an XDP program to an interface of the calling thread's namespace.
    pub fn attach(&mut self, name: &str, interface: &str) -> Result<XdpLinkId> {
        self.xdp(name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach {name} to {interface}"))
    }

    /// Attaches a classifier to the ingress of an interface of the calling thread's namespace.
    pub fn attach_classifier(&mut self, name: &str, interface: &str) -> Result<()> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        program
            .attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(())
    }

    /// Makes a device of the calling thread's namespace one that programs can send to.
    pub fn add_device(&mut self, ifindex: u32) -> Result<()> {
        self.devices
            .set(ifindex, ifindex, None, 0)
            .with_context(|| format!("device {ifindex} in the device map"))
    }

    /// Makes a program the one that `step_subject_*` call, and `step_empty` the one of `step_call`.
    pub fn set_subject(&mut self, subject: Option<&Xdp>) -> Result<()> {
        let empty = self.xdp("step_empty")?.fd()?.try_clone()?;
        self.subjects.set(0, &empty, 0)?;
        match subject {
            Some(subject) => self.subjects.set(1, subject.fd()?, 0)?,
            None => self.subjects.set(1, &empty, 0)?,
        }
        Ok(())
    }

    /// Says what a CPU generates.
    pub fn set_generator(&mut self, cpu: usize, generator: Generator) -> Result<()> {
        let mut generators = self.generators.get(&0, 0)?.to_vec();
        *generators.get_mut(cpu).with_context(|| no_cpu(cpu))? = Element(generator);
        self.generators
            .set(0, PerCpuValues::try_from(generators)?, 0)
            .context("the generators' map")
    }

    /// Whether a CPU has generated anything since it was said what.
    pub fn has_begun(&self, cpu: usize, generator: &Generator) -> Result<bool> {
        let generators = self.generators.get(&0, 0)?;
        let Element(of_cpu) = generators.get(cpu).with_context(|| no_cpu(cpu))?;
        Ok(of_cpu.state != generator.state)
    }

    /// Packets that arrived in a lane so far.
    pub fn arrived(&self, lane: u32) -> Result<u64> {
        Ok(self.arrived.get(&lane, 0)?.iter().sum())
    }

    /// Has sinks hand over their frames, or no longer.
    pub fn set_capture(&mut self, on: bool) -> Result<()> {
        Ok(self.capture.set(0, u32::from(on), 0)?)
    }

    /// Takes the frames that were handed over.
    pub fn captured(&mut self) -> Vec<Captured> {
        let mut frames = Vec::new();
        while let Some(item) = self.captured.next() {
            if let Ok(frame) = bytemuck::try_pod_read_unaligned(&item) {
                frames.push(frame);
            }
        }
        frames
    }

    /// Puts [`BINDINGS`] dense bindings into the hash map of a family. The first CPU's generator, which
    /// counts them, is lost.
    pub fn fill(&mut self, family: Family) -> Result<()> {
        let generator = Generator {
            destination: Area::Identities(Density::Dense).side_for(family),
            source: Area::Locators(Density::Dense).side_for(family),
            ..Generator::default()
        };
        self.set_generator(0, generator)?;
        let ran = thread::scope(|scope| {
            let filling = scope.spawn(|| {
                pin(0)?;
                self.run("fill", &[0; 64], None, BINDINGS)
            });
            filling.join()
        });
        let ran = ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(
            ran.verdict == TRANSMIT,
            "the hash map of {family:?} could not be filled"
        );
        Ok(())
    }

    /// Runs a program on a packet `repeat` times, each time as the time before left it.
    pub fn run(
        &mut self,
        name: &str,
        packet: &[u8],
        ingress: Option<u32>,
        repeat: u32,
    ) -> Result<Ran> {
        let length = u32::try_from(packet.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, length, 0, ingress.unwrap_or(0), 0, 0];
        let run = self.xdp(name)?.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: ingress.map(|_| bytemuck::bytes_of(&context)),
            repeat,
            ..TestRunOptions::new()
        })?;
        Ok(Ran {
            verdict: run.return_value,
        })
    }

    /// Sends frames with a generator, from the calling thread's namespace, until a signal comes.
    pub fn generate(&self, name: &str, packet: &[u8]) -> Result<()> {
        let program: &Xdp = self
            .ebpf
            .program(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        let run = program.test_run(TestRunOptions {
            data_in: Some(packet),
            repeat: BURST,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::new()
        });
        match run {
            Ok(_) => Ok(()),
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            Err(error) => Err(error).context("cannot send frames with BPF_PROG_TEST_RUN"),
        }
    }
}

fn no_cpu(cpu: usize) -> String {
    format!("CPU {cpu} is none that programs can run on")
}

/// Frames that a generator sends in one call, unless a signal ends it: none can go on for ever.
const BURST: u32 = 1 << 22;

/// `XDP_TX`.
pub const TRANSMIT: u32 = 3;

/// Keeps the calling thread on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("CPU {cpu}"))
}

/// Lets the calling thread run before everything else, so that other work on the machine disturbs
/// less; where that is not allowed, it runs like any other. Threads that it starts do not inherit it.
pub fn hurry(priority: i32) {
    schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, priority);
}

/// Lets the calling thread run like any other, but with the largest share.
pub fn insist() {
    schedule(libc::SCHED_OTHER, 0);
    // SAFETY: the call has no preconditions; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } != 0 {
        thread::yield_now();
    }
}

fn schedule(policy: i32, priority: i32) {
    // SAFETY: all zero is a valid value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: the parameters are valid; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        thread::yield_now();
    }
}
