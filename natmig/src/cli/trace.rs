//! `natmig trace`.

mod capture;
mod event;
mod filter;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};

use self::{capture::Capture, event::EventView, filter::FilterArgs};
use super::client::ClientArgs;
use crate::{
    config::{DEFAULT_INSTANCE, check_instance},
    router::tracer::{Tracer, Waited},
};

/// How long one waits for events at a time.
const WAIT: Duration = Duration::from_millis(250);

/// Show packets as natmig sees them: what came in, what became of it and why.
///
/// One tracer at a time. While it runs, every packet costs a little more; when it ends, however it
/// ends, tracing is off again within three seconds. Events that do not fit the buffer are lost, and
/// it is said how many.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig trace --count 10                                # the next ten packets\n  \
    natmig trace --address 10.1.1.10 --address 10.1.3.0/24 # from, to or quoting these\n  \
    natmig trace --vm web1                                 # whatever its addresses are\n  \
    natmig trace --verdict dropped --duration 60s          # what is dropped, and why\n  \
    natmig trace --reason anchored,pass_no_neighbor        # counters, by name or number\n  \
    natmig trace --sample 1000 --write out.pcapng          # one in 1000, for Wireshark\n  \
    natmig trace --json | jq -r .verdict\n\n\
The counters' names are those of `natmig stats --all`.\n\
In a line, addresses behind => are the packet's as it went on.")]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    instance: String,
    #[command(flatten)]
    filter: FilterArgs,
    /// End after this many packets.
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Write the packets to this file, before and after, in the format of Wireshark.
    #[arg(long, value_name = "FILE.pcapng")]
    write: Option<PathBuf>,
    /// `--json` prints one object per line; the controller is asked for --vm only.
    #[command(flatten)]
    client: ClientArgs,
}

/// Reads a time such as `30`, `30s`, `500ms`, `5m` or `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write a number and ms, s, m or h".to_owned()),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "write a number and ms, s, m or h".to_owned())?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| error.to_string())
}

/// Set by a signal: the trace ends in an orderly way.
static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: libc::c_int) {
    ENDING.store(true, Ordering::Relaxed);
}

/// Ends in an orderly way when told to.
fn catch_signals() -> nix::Result<()> {
    // Without SA_RESTART: waiting ends at once.
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store an atomic.
        unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Names of interfaces by index.
#[derive(Debug, Default)]
struct Names(HashMap<u32, String>);

impl Names {
    /// The interface's name; `#7` for one that is gone.
    fn name(&mut self, ifindex: u32) -> String {
        if !self.0.contains_key(&ifindex) {
            self.read();
        }
        self.0
            .entry(ifindex)
            .or_insert_with(|| format!("#{ifindex}"))
            .clone()
    }

    fn read(&mut self) {
        let Ok(all) = nix::net::if_::if_nameindex() else {
            return;
        };
        self.0.extend(all.iter().map(|interface| {
            let name = interface.name().to_string_lossy().into_owned();
            (interface.index(), name)
        }));
    }
}

/// Where events go.
struct Output {
    lines: Option<BufWriter<io::Stdout>>,
    json: bool,
    capture: Option<Capture<BufWriter<File>>>,
}

impl Output {
    fn write(&mut self, event: &EventView) -> anyhow::Result<()> {
        if let Some(capture) = &mut self.capture {
            capture.write(event)?;
        }
        match &mut self.lines {
            Some(lines) if self.json => {
                serde_json::to_writer(&mut *lines, event)?;
                writeln!(lines)?;
            }
            Some(lines) => writeln!(lines, "{event}")?,
            None => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if let Some(lines) = &mut self.lines {
            lines.flush()?;
        }
        if let Some(capture) = &mut self.capture {
            capture.flush()?;
        }
        Ok(())
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_instance(&args.instance).map_err(anyhow::Error::msg)?;
    let filter = args.filter.resolve(&args.client)?;
    let capture = match &args.write {
        None => None,
        Some(path) => {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            Some(Capture::new(BufWriter::new(file))?)
        }
    };
    let mut output = Output {
        // Packets that are written to a file are only shown if that is asked for.
        lines: (args.client.json || capture.is_none()).then(|| BufWriter::new(io::stdout())),
        json: args.client.json,
        capture,
    };
    catch_signals()?;
    let mut tracer = Tracer::start(&args.instance, &filter)?;
    let outcome = follow(&mut tracer, args, &mut output);
    let (seen, unloaded) = match outcome {
        // A reader that has seen enough, like `head`, is no error.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        other => other?,
    };
    let lost = tracer.lost();
    drop(tracer);
    if unloaded {
        eprintln!("natmig: instance {} was unloaded", args.instance);
    }
    if lost > 0 {
        eprintln!(
            "natmig: {seen} packets; {lost} more were lost because the buffer was full: filter more, or use --sample"
        );
    } else if let Some(path) = &args.write {
        eprintln!("natmig: {seen} packets in {}; none lost", path.display());
    } else if !args.client.json {
        eprintln!("natmig: {seen} packets; none lost");
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Writes events until it is enough; how many, and whether the instance was unloaded.
fn follow(tracer: &mut Tracer, args: &Args, output: &mut Output) -> anyhow::Result<(u64, bool)> {
    let mut names = Names::default();
    let start = Instant::now();
    let mut seen = 0;
    let mut told = 0;
    let is_over = |seen| {
        args.count.is_some_and(|count| seen >= count)
            || args
                .duration
                .is_some_and(|duration| start.elapsed() >= duration)
            || ENDING.load(Ordering::Relaxed)
    };
    while !is_over(seen) {
        let left = args
            .duration
            .map_or(WAIT, |duration| duration.saturating_sub(start.elapsed()));
        if tracer.wait(left.min(WAIT))? == Waited::Unloaded {
            return Ok((seen, true));
        }
        // The rest of the buffer comes after the next renewal of the lease.
        for _ in 0..1000 {
            if args.count.is_some_and(|count| seen >= count) {
                break;
            }
            let Some(event) = tracer.next_event() else {
                break;
            };
            let time = tracer.time(&event);
            output.write(&EventView::new(&event, time, &mut names))?;
            seen += 1;
        }
        output.flush()?;
        let lost = tracer.lost();
        if lost > told && !args.client.json && args.write.is_none() {
            eprintln!("natmig: {} packets were lost here", lost - told);
            told = lost;
        }
    }
    // What came before the end is of the trace, too.
    tracer.stop()?;
    while args.count.is_none_or(|count| seen < count) {
        let Some(event) = tracer.next_event() else {
            break;
        };
        let time = tracer.time(&event);
        output.write(&EventView::new(&event, time, &mut names))?;
        seen += 1;
    }
    output.flush()?;
    Ok((seen, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "s", "5 s", "5d", "-1s", "1e30h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
