//! `pagestone top`: the state of a server, live, on a terminal.
//!
//! ```text
//!   twice a second: status, statistics --> one screen      q, Esc, Ctrl-C: end
//! ```

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use pagestone_server::Client;
use pagestone_server::api::{Statistics, Status};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

use crate::columns::nanoseconds;
use crate::command::iostat::{self, Face};
use crate::exit::{Exit, WrongUsage};
use crate::output::printable;
use crate::size::show;

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// The pool, or where it is mounted
    pool: PathBuf,
    /// Seconds between two looks
    #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

/// As many looks are on the plot.
const HISTORY: usize = 400;

/// What is on the screen.
struct Screen {
    status: Status,
    faces: Vec<Face>,
    seconds: f64,
    rates: Vec<u64>,
    /// Why the last look failed.
    silent: Option<String>,
}

pub(crate) fn top(args: &Top) -> Result<Exit> {
    if !std::io::stdout().is_terminal() {
        return Err(WrongUsage("top needs a terminal; iostat and status print".into()).into());
    }
    let client = iostat::server(&args.pool)?;
    let status = client.status().with_context(|| args.pool.display().to_string())?;
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let ended = watch(&mut terminal, &client, status, Duration::from_secs(args.interval.into()));
    ratatui::restore();
    ended.map(|()| Exit::Ok)
}

fn watch(terminal: &mut DefaultTerminal, client: &Client, status: Status, interval: Duration) -> Result<()> {
    let mut before: Option<(Statistics, Instant)> = None;
    let mut screen = Screen { status, faces: Vec::new(), seconds: 1.0, rates: Vec::new(), silent: None };
    loop {
        match look(client, &mut screen, &mut before) {
            Ok(()) => screen.silent = None,
            Err(e) => screen.silent = Some(format!("{e:#}")),
        }
        let next = Instant::now() + interval;
        loop {
            terminal.draw(|frame| draw(frame, &screen)).context("the terminal")?;
            if !event::poll(next.saturating_duration_since(Instant::now())).context("the keyboard")? {
                break;
            }
            if let Event::Key(key) = event::read().context("the keyboard")? {
                let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                let ends = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || control_c;
                if key.kind == KeyEventKind::Press && ends {
                    return Ok(());
                }
            }
        }
    }
}

fn look(client: &Client, screen: &mut Screen, before: &mut Option<(Statistics, Instant)>) -> Result<()> {
    screen.status = client.status()?;
    let now = client.statistics()?;
    if let Some((earlier, since)) = before {
        screen.seconds = since.elapsed().as_secs_f64().max(0.001);
        screen.faces = iostat::between(&now, Some(earlier));
        let all: u64 = screen.faces.iter().flat_map(|face| &face.operations).map(|line| line.count).sum();
        screen.rates.push((all as f64 / screen.seconds) as u64);
        let from = screen.rates.len().saturating_sub(HISTORY);
        screen.rates.drain(..from);
    }
    *before = Some((now, Instant::now()));
    Ok(())
}

fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let troubles = screen.status.troubles.len().max(1) as u16 + u16::from(screen.silent.is_some());
    let [head, capacity, health, plot, table] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(3),
        Constraint::Length(troubles + 2),
        Constraint::Length(8),
        Constraint::Min(4),
    ])
    .areas(frame.area());
    frame.render_widget(heading(&screen.status), head);
    frame.render_widget(gauge(&screen.status), capacity);
    frame.render_widget(health_of(screen), health);
    let now = screen.rates.last().copied().unwrap_or(0);
    let width = usize::from(plot.width.saturating_sub(2));
    let recent = &screen.rates[screen.rates.len().saturating_sub(width)..];
    let block = Block::bordered().title(format!(" operations per second: {now} "));
    frame.render_widget(Sparkline::default().block(block).data(recent).style(Style::new().fg(Color::Blue)), plot);
    frame.render_widget(operations(screen), table);
}

fn heading(status: &Status) -> Paragraph<'static> {
    let pool = printable(&status.pool.to_string()).into_owned();
    let server = format!("process {}, worker {}, version {}", status.pid, status.worker, status.version);
    let faces: Vec<String> = status.faces.iter().map(|face| format!("{} {}", face.kind, face.at)).collect();
    let faces = printable(&faces.join(", ")).into_owned();
    Paragraph::new(vec![Line::from(vec![pool.bold(), "  ".into(), server.into()]), Line::from(faces.dim())])
}

fn gauge(status: &Status) -> Gauge<'static> {
    let part = status.used as f64 / status.size.max(1) as f64;
    let text = format!("{} of {}, {} available", show(status.used), show(status.size), show(status.available));
    let block = Block::bordered().title(" capacity ");
    Gauge::default().block(block).gauge_style(Style::new().fg(Color::Blue)).ratio(part.clamp(0.0, 1.0)).label(text)
}

fn health_of(screen: &Screen) -> Paragraph<'static> {
    let trouble = |text: String| Line::from(printable(&text).into_owned().red());
    let mut lines: Vec<Line<'static>> =
        screen.status.troubles.iter().map(|t| trouble(format!("{}: {}", t.what, t.remedy))).collect();
    if lines.is_empty() {
        lines.push("nothing is wrong, as far as is known".green().into());
    }
    lines.extend(screen.silent.iter().map(|why| trouble(format!("the server does not answer: {why}"))));
    Paragraph::new(lines).block(Block::bordered().title(" health "))
}

fn operations(screen: &Screen) -> Table<'static> {
    let head = ["face", "operation", "per second", "errors", "mean", "p50", "p99"];
    let mut lines: Vec<(u64, Row<'static>)> = Vec::new();
    let mut moved = (0, 0);
    for face in &screen.faces {
        moved = (moved.0 + face.read, moved.1 + face.written);
        for line in face.operations.iter().filter(|line| line.count > 0) {
            let rate = format!("{:.0}", line.count as f64 / screen.seconds);
            let times = [line.mean, line.p50, line.p99].map(nanoseconds);
            let cells = [face.face.clone(), line.operation.clone(), rate, line.errors.to_string()];
            lines.push((line.count, Row::new(cells.into_iter().chain(times).map(Cell::from))));
        }
    }
    lines.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let per_second = |bytes: u64| show((bytes as f64 / screen.seconds) as u64);
    let title = format!(" read {}/s, written {}/s; q: end ", per_second(moved.0), per_second(moved.1));
    let widths = [8, 12, 12, 8, 10, 10, 10].map(Constraint::Length);
    Table::new(lines.into_iter().map(|(_, row)| row), widths)
        .header(Row::new(head).style(Style::new().bold()))
        .block(Block::bordered().title(title))
}

#[cfg(test)]
mod tests {
    use pagestone_server::api::{self, Trouble};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::command::iostat::Line as Counted;

    fn screen() -> Screen {
        let face = api::Face { kind: "mount".into(), at: "/mnt\x1b[2J".into(), device: None };
        let status = Status {
            pool: "/a.pool".into(),
            pid: 1,
            worker: 2,
            takeovers: 0,
            version: "9".into(),
            uptime: 3,
            faces: vec![face],
            troubles: vec![Trouble { what: "pages are lost".into(), remedy: "check --data".into() }],
            size: 1 << 30,
            used: 1 << 29,
            available: 1 << 29,
            inodes: 5,
            read_only: false,
        };
        let read = Counted { operation: "read".into(), count: 84, errors: 0, mean: 1500, p50: 1000, p99: 5000 };
        let face = Face { face: "mount".into(), read: 4096, written: 0, operations: vec![read] };
        Screen { status, faces: vec![face], seconds: 2.0, rates: vec![1, 5, 42], silent: Some("gone".into()) }
    }

    #[test]
    fn the_screen_shows_what_is_wrong_and_what_is_done_in_any_size() -> Result<()> {
        for (width, height) in [(100, 40), (40, 12), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height))?;
            terminal.draw(|frame| draw(frame, &screen()))?;
            let shown = terminal.backend().to_string();
            assert!(!shown.contains('\x1b'), "nothing that a terminal obeys");
            if height == 40 {
                for part in
                    ["512 MiB of 1 GiB", "pages are lost: check --data", "does not answer: gone", "1.5 us", "42"]
                {
                    assert!(shown.contains(part), "{part}:\n{shown}");
                }
            }
        }
        Ok(())
    }
}
