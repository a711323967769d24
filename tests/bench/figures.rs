//! One table of everything that was measured.

use std::fmt;
use std::time::Duration;

#[derive(Default)]
pub struct Figures {
    rows: Vec<(String, String, &'static str)>,
}

impl Figures {
    pub fn add(&mut self, what: impl Into<String>, value: f64, unit: &str, goal: Option<&'static str>) {
        self.rows.push((what.into(), format!("{value:.2} {unit}"), goal.unwrap_or("")));
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<76} {:>14}  goal", "figure", "measured")?;
        self.rows.iter().try_for_each(|(what, value, goal)| writeln!(f, "{what:<76} {value:>14}  {goal}"))
    }
}

/// The value below which `share` of the samples lie, in milliseconds.
pub fn percentile(samples: &mut [Duration], share: f64) -> f64 {
    samples.sort();
    let rank = (samples.len() as f64 * share).ceil() as usize;
    samples.get(rank.saturating_sub(1)).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1000.0)
}
