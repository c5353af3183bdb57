//! `natmig top`.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::{
    output,
    stats::sample::{self, Sample},
    trace::parse_duration,
};
use crate::{
    config::{DEFAULT_INSTANCE, check_instance},
    router::reader::{Reader, TransactionView},
};

/// Busiest bindings that are shown.
const BUSIEST: usize = 20;

/// Show live what this router does: rates by interface, the busiest bindings, transactions, and what
/// was lost.
///
/// `q`, Escape or Ctrl-C ends it. Where standard output is no terminal it is printed once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig top\n  \
    natmig top --interval 5s\n  \
    natmig top --once               # one look, for scripts")]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// How often it is measured.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// Print it once and end.
    #[arg(long)]
    once: bool,
}

/// What is shown.
struct View {
    title: String,
    interfaces: Vec<Vec<String>>,
    bindings: Vec<Vec<String>>,
    transactions: Vec<Vec<String>>,
}

const INTERFACES: [&str; 7] = [
    "INTERFACE",
    "ROLE",
    "SENT/S",
    "PASSED/S",
    "DROPPED/S",
    "BYTES/S",
    "LOST",
];
const BINDINGS: [&str; 6] = ["IDENTITY", "LOCATOR", "WHERE", "TO/S", "FROM/S", "BYTES/S"];
const TRANSACTIONS: [&str; 3] = ["TRANSACTION", "PHASE", "ENTRIES"];

impl View {
    fn new(
        instance: &str,
        before: &Sample,
        now: &Sample,
        transactions: &[TransactionView],
    ) -> Self {
        let rates = now.interface_rates(before);
        let interfaces = now.interfaces.iter().map(|interface| {
            let empty = sample::InterfaceRates::new();
            let rates = rates.get(&interface.ifindex).unwrap_or(&empty);
            let of = |class| sample::class_rate(interface, rates, class);
            let [sent, passed, dropped] = ["sent", "passed", "dropped"].map(of);
            let bytes = sent.bytes_per_second + passed.bytes_per_second + dropped.bytes_per_second;
            let lost: u64 = interface
                .counters
                .iter()
                .filter(|counter| counter.name.ends_with("_lost"))
                .map(|counter| counter.packets)
                .sum();
            vec![
                interface.interface.clone(),
                interface.role.to_owned(),
                sample::short(sent.packets_per_second),
                sample::short(passed.packets_per_second),
                sample::short(dropped.packets_per_second),
                sample::short(bytes),
                lost.to_string(),
            ]
        });
        let interfaces = interfaces.collect();
        let rates = now.binding_rates(before);
        let mut busiest: Vec<_> = now
            .bindings
            .iter()
            .filter_map(|binding| Some((binding, rates.get(&binding.identity)?)))
            .filter(|(_, (to, from))| to.packets_per_second + from.packets_per_second > 0.0)
            .collect();
        busiest.sort_by(|(_, one), (_, other)| {
            let packets =
                |(to, from): &sample::BindingRates| to.packets_per_second + from.packets_per_second;
            packets(other).total_cmp(&packets(one))
        });
        let bindings = busiest
            .into_iter()
            .take(BUSIEST)
            .map(|(binding, (to, from))| {
                vec![
                    binding.identity.to_string(),
                    output::or_dash(binding.locator),
                    binding.place.to_owned(),
                    sample::short(to.packets_per_second),
                    sample::short(from.packets_per_second),
                    sample::short(to.bytes_per_second + from.bytes_per_second),
                ]
            });
        let transactions: Vec<Vec<String>> = transactions
            .iter()
            .map(|held| {
                vec![
                    held.transaction.to_string(),
                    held.phase.to_owned(),
                    held.entries.to_string(),
                ]
            })
            .collect();
        Self {
            title: format!(
                "instance {instance}: {} bindings, {} transactions",
                now.bindings.len(),
                transactions.len()
            ),
            interfaces,
            bindings: bindings.collect(),
            transactions,
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = |count: usize| u16::try_from(count + 3).unwrap_or(u16::MAX);
        let [title, interfaces, bindings, transactions] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(rows(self.interfaces.len())),
            Constraint::Min(4),
            Constraint::Length(rows(self.transactions.len().min(5))),
        ])
        .areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(format!("{}   q quits", self.title)), title);
        let table = |header: &[&'static str], rows: &[Vec<String>], name: &'static str| {
            let widths = vec![Constraint::Fill(1); header.len()];
            let cells = rows
                .iter()
                .map(|row| Row::new(row.iter().cloned().map(Cell::from)));
            Table::new(cells.collect::<Vec<_>>(), widths)
                .header(Row::new(header.to_vec()).style(bold))
                .block(Block::bordered().title(name))
        };
        frame.render_widget(
            table(&INTERFACES, &self.interfaces, "interfaces"),
            interfaces,
        );
        frame.render_widget(
            table(&BINDINGS, &self.bindings, "busiest bindings"),
            bindings,
        );
        frame.render_widget(
            table(&TRANSACTIONS, &self.transactions, "transactions"),
            transactions,
        );
    }

    fn print(&self) -> io::Result<()> {
        output::line(&self.title)?;
        output::line("")?;
        output::table(&INTERFACES, self.interfaces.clone())?;
        output::line("")?;
        output::table(&BINDINGS, self.bindings.clone())?;
        output::line("")?;
        output::table(&TRANSACTIONS, self.transactions.clone())
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_instance(&args.instance).map_err(anyhow::Error::msg)?;
    let reader = Reader::open(&args.instance)?;
    let before = Sample::read(&reader, true)?;
    if args.once || !io::stdout().is_terminal() {
        std::thread::sleep(args.interval);
        let now = Sample::read(&reader, true)?;
        View::new(&args.instance, &before, &now, &reader.transactions()).print()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, args, &reader, before);
    ratatui::try_restore()?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Draws until a key ends it.
fn show(
    terminal: &mut DefaultTerminal,
    args: &Args,
    reader: &Reader,
    mut before: Sample,
) -> anyhow::Result<()> {
    let mut view = View::new(&args.instance, &before, &before, &reader.transactions());
    let mut next = Instant::now() + args.interval;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(next.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let interrupt =
                key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
        if Instant::now() >= next {
            let now = Sample::read(reader, true)?;
            view = View::new(&args.instance, &before, &now, &reader.transactions());
            before = now;
            next = Instant::now() + args.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn everything_is_drawn() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let view = View {
            title: "instance default: 1 bindings, 1 transactions".to_owned(),
            interfaces: vec![row(&["eth1", "access", "1.00M", "0", "0", "64.00M", "0"])],
            bindings: vec![row(&["10.1.1.10", "10.1.3.130", "away", "5", "6", "700"])],
            transactions: vec![row(&["7", "prepared", "4"])],
        };
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for part in ["1.00M", "10.1.3.130", "prepared", "q quits"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
