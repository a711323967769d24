//! Results: tables for people, JSON, YAML and bare names for scripts.

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns and sentences for people
    #[default]
    Table,
    /// The same with more columns, where there are more
    Wide,
    /// One JSON document
    Json,
    /// The same as YAML
    Yaml,
    /// Only names (of services: ids), one a line
    Name,
}

/// Writes to standard output; a reader that has gone away is no error.
pub fn say(text: &str) -> Result<()> {
    offer(text).map(|_somebody_reads| ())
}

/// Writes to standard output; whether somebody still reads it.
pub fn offer(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("writing the result"),
    }
}

/// A table without borders, as wide as the terminal where there is one.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.add_rows(rows);
    // The first column starts at the margin; the last is not padded.
    let lines = table.to_string();
    lines.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line).trim_end())).collect()
}

pub fn document<T: Serialize>(format: Format, value: &T) -> Result<String> {
    match format {
        Format::Yaml => serde_norway::to_string(value).context("writing YAML"),
        Format::Json | Format::Table | Format::Wide | Format::Name => {
            Ok(serde_json::to_string_pretty(value).context("writing JSON")? + "\n")
        }
    }
}

/// Prints a list in the chosen format.
pub fn list<T: Serialize>(
    format: Format,
    items: &[T],
    name: impl Fn(&T) -> String,
    people: impl FnOnce(&[T]) -> String,
) -> Result<()> {
    say(&match format {
        Format::Table | Format::Wide => people(items),
        Format::Name => items.iter().map(|item| name(item) + "\n").collect(),
        Format::Json | Format::Yaml => document(format, &items)?,
    })
}

/// Prints one thing in the chosen format.
pub fn one<T: Serialize>(format: Format, item: &T, name: &str, people: impl FnOnce(&T) -> String) -> Result<()> {
    say(&match format {
        Format::Table | Format::Wide => people(item),
        Format::Name => format!("{name}\n"),
        Format::Json | Format::Yaml => document(format, item)?,
    })
}

/// `Key: value` lines, values aligned.
pub fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    rows.iter().map(|(key, value)| format!("{:<1$}  {value}\n", format!("{key}:"), width + 1)).collect()
}
