//! What was looked at, for people and for programs.

use super::*;
use serde_json::{Value, json};

/// Puts the cursor into the upper left corner and clears the screen.
pub(super) const HOME: &str = "\x1b[H\x1b[J";

const HEADER: [&str; 13] = [
    "VOLUME",
    "IOPS",
    "READ/S",
    "WRITE/S",
    "AVERAGE",
    "P50",
    "P99",
    "DEPTH",
    "CONNECTIONS",
    "ERRORS",
    "OPERATIONS",
    "READ",
    "WRITTEN",
];

/// Rates between two looks.
struct Rates {
    seconds: f64,
    iops: f64,
    read: f64,
    written: f64,
    /// Requests in flight, on average: the time that all of them took by the time that has passed (Little's law).
    depth: f64,
}

fn rates(since: &Figures) -> Rates {
    let seconds = since.elapsed.as_secs_f64();
    let per_second = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
    let total = since.total();
    Rates {
        seconds,
        iops: per_second(total.operations() as f64),
        read: per_second(since.of(Operation::Read).bytes as f64),
        written: per_second(since.of(Operation::Write).bytes as f64),
        depth: per_second(total.time.as_secs_f64()),
    }
}

fn average(seen: &OperationFigures) -> Option<Duration> {
    let count = u128::from(seen.operations());
    let nanos = seen.time.as_nanos().checked_div(count)?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// Three figures and a unit.
fn amount(value: f64, units: &[&str], step: f64) -> String {
    let (mut value, mut power) = (value, 0);
    while value >= step * 0.9995 && power + 1 < units.len() {
        value /= step;
        power += 1;
    }
    let unit = units.get(power).copied().unwrap_or_default();
    match value {
        value if power == 0 && value.fract() == 0.0 => format!("{value}{unit}"),
        value if value < 9.995 => format!("{value:.2}{unit}"),
        value if value < 99.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    }
}

fn bytes(value: f64) -> String {
    amount(value, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 1024.0)
}

fn time(value: Option<Duration>) -> String {
    value.map_or_else(|| "-".to_owned(), |time| amount(time.as_nanos() as f64, &["ns", "us", "ms", "s"], 1000.0))
}

fn row(look: &Look) -> [String; HEADER.len()] {
    let (rates, recent, total) = (rates(&look.since), look.since.total(), look.now.figures.total());
    let all = |operation| look.now.figures.of(operation).bytes as f64;
    [
        look.now.name.to_string(),
        amount(rates.iops, &["", "k", "M"], 1000.0),
        bytes(rates.read),
        bytes(rates.written),
        time(average(&recent)),
        time(recent.latency.per_mille(500)),
        time(recent.latency.per_mille(990)),
        amount(rates.depth, &[""], 1000.0),
        look.now.figures.connections.to_string(),
        total.errors.to_string(),
        total.operations().to_string(),
        bytes(all(Operation::Read)),
        bytes(all(Operation::Write)),
    ]
}

pub(super) fn people(looks: &[Look], wide: bool) -> String {
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(["REFUSED", "THROTTLED", "LIMITS"]);
    }
    let rows = looks.iter().map(|look| {
        let mut row = row(look).to_vec();
        if wide {
            let figures = &look.now.figures;
            row.extend([figures.refused.to_string(), figures.throttled.to_string(), look.now.limits.to_string()]);
        }
        row
    });
    table(&header, rows.collect())
}

/// Lines that follow each other: nobody knows yet how wide the columns will be.
pub(super) fn lines(looks: &[Look], first: bool) -> String {
    let line = |at: &str, cells: &[String; HEADER.len()]| {
        let [name, rest @ ..] = cells;
        let rest: String = rest.iter().map(|cell| format!("  {cell:>11}")).collect();
        format!("{at:<24}  {name:<16}{rest}\n")
    };
    let header = if first { line("WHEN", &HEADER.map(str::to_owned)) } else { String::new() };
    looks.iter().fold(header, |text, look| text + &line(&look.at.to_string(), &row(look)))
}

/// Documents that follow each other.
pub(super) fn stream(format: Format, looks: &[Look]) -> Result<String> {
    let mut text = String::new();
    for look in looks {
        text += &match format {
            Format::Yaml => format!("---\n{}", output::document(format, &document(look))?),
            Format::Name => format!("{}\n", look.now.name),
            Format::Json | Format::Table | Format::Wide => document(look).to_string() + "\n",
        };
    }
    Ok(text)
}

/// All there is to know, with field names that stay.
pub(super) fn document(look: &Look) -> Value {
    let (figures, rates) = (&look.now.figures, rates(&look.since));
    json!({
        "at": look.at,
        "volume": {"id": look.now.id, "name": look.now.name},
        "limits": look.now.limits,
        "now": {"in_flight": figures.in_flight, "connections": figures.connections},
        "interval": {
            "seconds": rates.seconds,
            "iops": rates.iops,
            "read_bytes_per_second": rates.read,
            "written_bytes_per_second": rates.written,
            "queue_depth": rates.depth,
            "refused": look.since.refused,
            "throttled": look.since.throttled,
            "all": operation(&look.since.total()),
            "operations": operations(&look.since),
        },
        "total": {
            "seconds": figures.elapsed.as_secs_f64(),
            "refused": figures.refused,
            "throttled": figures.throttled,
            "all": operation(&figures.total()),
            "operations": operations(figures),
        },
    })
}

fn operations(figures: &Figures) -> Value {
    let each = Operation::ALL.map(|kind| (kind.as_str().to_owned(), operation(figures.of(kind))));
    Value::Object(each.into_iter().collect())
}

fn operation(seen: &OperationFigures) -> Value {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    json!({
        "operations": seen.operations(),
        "bytes": seen.bytes,
        "errors": seen.errors,
        "latency_seconds": {
            "average": seconds(average(seen)),
            "p50": seconds(seen.latency.per_mille(500)),
            "p99": seconds(seen.latency.per_mille(990)),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Latency, Limits};

    fn look() -> Look {
        let read = OperationFigures {
            latency: Latency::new([(100_000, 150), (2_000_000, 50)]),
            time: Duration::from_secs(1),
            bytes: 200 * 4096,
            errors: 0,
        };
        let failed = OperationFigures { latency: Latency::new([(64, 3)]), errors: 3, ..OperationFigures::default() };
        let mut figures = Figures { elapsed: Duration::from_secs(2), connections: 1, ..Figures::default() };
        figures.operations[Operation::Read as usize] = read;
        figures.operations[Operation::Write as usize] = failed;
        let limits = Limits { iops: Some(100), ..Limits::NONE };
        let (id, name) = (VolumeId::from_bytes([1; 16]), "db".parse().unwrap());
        let now = VolumeFigures { id, name, limits, figures: figures.clone() };
        Look { at: Timestamp::from_millis(0), now, since: figures }
    }

    #[test]
    fn a_row_says_how_much_how_fast_and_how_well() {
        let expected =
            ["db", "102", "400KiB", "0B", "4.93ms", "100us", "2.00ms", "0.50", "1", "3", "203", "800KiB", "0B"];
        assert_eq!(row(&look()), expected.map(str::to_owned));
        let idle = Look { since: Figures::default(), ..look() };
        assert_eq!(row(&idle)[1..8], ["0", "0B", "0B", "-", "-", "-", "0"].map(str::to_owned));
        assert!(people(&[look()], true).contains("100 operations/s"));
        assert_eq!(lines(&[look()], true).lines().count(), 2);
    }

    #[test]
    fn numbers_have_three_figures_and_the_unit_that_fits() {
        for (value, text) in [(0.0, "0ns"), (999.0, "999ns"), (999.9, "1.00us"), (12_345.0, "12.3us"), (1e12, "1000s")]
        {
            assert_eq!(amount(value, &["ns", "us", "ms", "s"], 1000.0), text);
        }
        assert_eq!((bytes(1536.0), bytes(1024.0 * 1024.0 * 99.96)), ("1.50KiB".into(), "100MiB".into()));
    }

    #[test]
    fn programs_find_every_figure_by_its_name() {
        let document = document(&look());
        for (pointer, value) in [
            ("/volume/name", json!("db")),
            ("/limits/iops", json!(100)),
            ("/now/connections", json!(1)),
            ("/interval/iops", json!(101.5)),
            ("/interval/queue_depth", json!(0.5)),
            ("/total/operations/read/bytes", json!(200 * 4096)),
            ("/total/operations/flush/latency_seconds/p99", Value::Null),
            ("/total/all/errors", json!(3)),
        ] {
            assert_eq!(document.pointer(pointer), Some(&value), "{pointer}");
        }
    }
}
