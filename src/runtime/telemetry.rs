//! Logs: to standard error, as text or JSON, filtered by `-v` or `RUST_LOG`.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts logging. `RUST_LOG` wins over `verbosity` (0: `quiet`'s level, 1: info, 2: debug, 3 and more: trace).
///
/// # Errors
/// If logging was started before, or `RUST_LOG` cannot be parsed.
pub fn start(default: &str, verbosity: u8, format: LogFormat) -> Result<(), String> {
    let level = match verbosity {
        0 => default,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| format!("RUST_LOG='{text}' is not a log filter: {error}"))?
        }
        // Connection plumbing is only worth reading at the highest level.
        _ if verbosity < 3 => EnvFilter::new(format!("{level},h2=warn,hyper=warn,tonic=warn,tower=warn")),
        _ => EnvFilter::new(level),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| error.to_string())
}
