//! What `symphony` is to people and scripts: help that teaches, an environment variable for every option, stable output.

use crate::stage::{Backing, Cluster, Outcome, finish, finish_with, symphony, tool, words};
use clap::{Arg, ArgAction, Command, CommandFactory};
use symphony::cli::Cli;

/// Every command with the words that lead to it.
fn commands() -> Vec<(Vec<String>, Command)> {
    fn walk(path: Vec<String>, command: &Command, all: &mut Vec<(Vec<String>, Command)>) {
        for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
            let path = [path.clone(), vec![child.get_name().to_owned()]].concat();
            walk(path, child, all);
        }
        all.push((path, command.clone()));
    }
    let mut root = Cli::command();
    root.build();
    let mut all = Vec::new();
    walk(Vec::new(), &root, &mut all);
    all
}

fn is_built_in(argument: &Arg) -> bool {
    use ArgAction::{Help, HelpLong, HelpShort, Version};
    matches!(argument.get_action(), Help | HelpLong | HelpShort | Version)
}

fn run(line: &str) -> Outcome {
    finish(symphony(words(line)))
}

#[test]
fn every_option_has_an_environment_variable_of_its_own() {
    let mut without = Vec::new();
    for (path, command) in commands() {
        for argument in command.get_arguments().filter(|argument| !argument.is_positional() && !is_built_in(argument)) {
            match argument.get_env() {
                Some(name) => assert!(name.to_string_lossy().starts_with("SYMPHONY_"), "{path:?} {name:?}"),
                None => without.push(format!("{} --{}", path.join(" "), argument.get_id())),
            }
        }
    }
    assert!(without.is_empty(), "options without an environment variable: {without:?}");
}

#[test]
fn every_command_and_argument_says_what_it_is_for() {
    for (path, command) in commands() {
        assert!(command.get_about().is_some() || path.is_empty(), "{path:?} is not described");
        for argument in command.get_arguments().filter(|argument| !is_built_in(argument)) {
            let obvious = ["name", "shell", "driver"].contains(&argument.get_id().as_str());
            assert!(argument.get_help().is_some() || obvious, "{path:?} {} is not described", argument.get_id());
        }
    }
}

#[test]
fn the_help_of_every_command_is_shown_and_names_its_environment() {
    for (path, command) in commands() {
        let line = format!("{} --help", path.join(" "));
        let text = run(&line).succeeds();
        assert!(text.contains("Usage:"), "{line}: {text}");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            if let Some(name) = argument.get_env() {
                assert!(text.contains(&*name.to_string_lossy()), "{line} does not name {name:?}");
            }
        }
    }
    for noun in ["manager run", "block run", "dev", "ctl", "ctl volume create", "ctl pool create", "ctl block init"] {
        let text = run(&format!("{noun} --help")).succeeds();
        assert!(text.contains("symphony ctl") || text.contains("control.sock"), "{noun} gives no example: {text}");
    }
}

#[test]
fn completions_are_scripts_that_their_shell_understands() {
    let script = run("completions bash").succeeds();
    assert!(script.contains("volume") && script.contains("--etcd-endpoints"));
    let mut command = crate::support::process::mortal("bash");
    command.arg("-n");
    let outcome = finish_with(command, script.into_bytes());
    assert_eq!(outcome.stderr, "");
    outcome.succeeds();
    for shell in ["zsh", "fish"] {
        assert!(run(&format!("completions {shell}")).succeeds().contains("volume"));
    }
}

#[test]
fn what_is_asked_wrongly_ends_with_code_2_and_says_what_is_wrong() {
    run("ctl").fails(2, &["Usage"]);
    run("ctl volume").fails(2, &["Usage"]);
    run("frobnicate").fails(2, &["frobnicate"]);
    run("ctl volume create x").fails(2, &["--size"]);
    run("ctl volume list --colour red").fails(2, &["--colour"]);
    run("ctl volume list -o xml").fails(2, &["xml", "json"]);
    run("manager run --listen-port 99999").fails(2, &["99999", "listen-port"]);
    run("ctl --timeout soon volume list").fails(2, &["soon"]);
}

#[test]
fn a_manager_s_address_wins_over_a_socket() {
    // Nobody listens on port 1.
    run("ctl --socket /x --manager 127.0.0.1:1 volume list").fails(5, &["127.0.0.1:1"]);
}

#[test]
fn the_version_is_told() {
    assert_eq!(run("--version").succeeds(), format!("symphony {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn documents_in_json_and_yaml_have_stable_names_and_say_the_same() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    for (noun, reference) in [("volume", "db"), ("pool", "main"), ("service", &cluster.service_id())] {
        let json = ctl.json(&format!("{noun} get {reference}"));
        let yaml = ctl.ok(&format!("{noun} get {reference} -o yaml"));
        let yaml: serde_json::Value = serde_norway::from_str(&yaml).expect("YAML");
        assert_eq!(json, yaml);
        let list = ctl.json(&format!("{noun} list"));
        let list = list.as_array().expect("a list");
        assert!(list.contains(&json), "{noun}: {list:?}");
        assert!(json["meta"]["id"].is_string() && json["meta"]["name"].is_string(), "{json}");
        assert!(json["meta"]["created_at"].is_string() && json["meta"]["generation"].is_number(), "{json}");
    }
    let volume = ctl.json("volume get db");
    assert_eq!(volume["status"]["phase"], "ready");
    for export in volume["status"]["exports"].as_array().expect("exports") {
        let uri: Result<symphony::nbd::Uri, _> = export["uri"].as_str().expect("an URI").parse();
        assert_eq!(uri.expect("an URI").export, "db");
    }
    assert_eq!(ctl.ok("volume list -o name"), "db\n");
    assert_eq!(ctl.ok("volume get db -o name"), "db\n");
    assert_eq!(ctl.ok("pool list -o name"), "main\n");
    let services = ctl.names("service");
    assert!(services.contains(&cluster.service_id()), "{services:?}");
    ctl.check();
}

#[test]
fn tables_have_a_header_and_a_line_for_each_object() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    for (noun, rows) in [("volume", 1), ("pool", 1), ("service", 2)] {
        let table = ctl.ok(&format!("{noun} list"));
        assert_eq!(table.lines().count(), 1 + rows, "{table}");
        assert!(table.lines().all(|line| !line.starts_with(' ') && !line.ends_with(' ')), "{table}");
    }
    let text = ctl.ok("volume get db");
    assert!(text.contains("Size:") && text.contains("nbd://"), "{text}");
    ctl.check();
}

#[test]
fn options_can_come_from_the_environment() {
    let cluster = Cluster::start(Backing::Embedded);
    let environment = [
        ("SYMPHONY_SOCKET", cluster.ctl().socket.into_os_string()),
        ("SYMPHONY_OUTPUT", "json".into()),
        ("SYMPHONY_NO_WAIT", "true".into()),
        ("SYMPHONY_VOLUME_SIZE", "1MiB".into()),
        ("SYMPHONY_VOLUME_POOL", "main".into()),
    ];
    let mut command = symphony(["ctl", "volume", "create", "db"]);
    command.envs(environment);
    let made: serde_json::Value = serde_json::from_str(&finish(command).succeeds()).expect("JSON");
    assert_eq!(made["spec"]["size"], 1 << 20);
    crate::stage::until("the volume to be ready", || {
        (cluster.ctl().text("volume get db", "/status/phase") == "ready").then_some(())
    });
    cluster.ctl().check();
}

#[test]
fn a_reader_that_goes_away_early_is_no_error() {
    let cluster = Cluster::start(Backing::Embedded);
    let socket = cluster.ctl().socket;
    let line = format!(
        "set -o pipefail; '{}' ctl --socket '{}' service list | true",
        env!("CARGO_BIN_EXE_symphony"),
        socket.display()
    );
    tool("bash", &["-c", &line]).succeeds();
    cluster.ctl().check();
}

#[test]
fn logs_can_be_json_documents_a_line() {
    let mut cluster = Cluster::bare(Backing::Embedded);
    cluster.manager.add_arguments(&["--log-format", "json", "-v"]);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.init_manager("");
    cluster.ctl().check();
    let log = cluster.manager.log();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
}
