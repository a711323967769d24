//! The rules that the tree keeps, read off the tree: layers, sizes, headings, and what must not be there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// For each module the modules it may import from. A module that is missing here does not belong into `src`.
const LAYERS: &[(&str, &[&str])] = &[
    // Words.
    ("model", &[]),
    // Ground.
    ("runtime", &["model"]),
    ("host", &["model", "runtime"]),
    // Engines.
    ("store", &["model", "runtime", "host"]),
    ("discovery", &["model", "runtime", "store"]),
    ("session", &["model"]),
    ("reconcile", &["model"]),
    ("pki", &["model", "runtime"]),
    ("rpc", &["model", "runtime", "host", "session", "pki"]),
    ("io", &["model", "runtime", "host"]),
    ("image", &["model"]),
    ("nbd", &["model", "runtime", "pki", "image"]),
    ("backend", &["model", "runtime", "host", "io"]),
    ("export", &["model", "runtime", "host", "pki", "io", "nbd"]),
    // Roles.
    ("manager", &["model", "runtime", "host", "store", "discovery", "session", "pki", "rpc"]),
    (
        "block",
        &["model", "runtime", "host", "session", "reconcile", "pki", "rpc", "io", "image", "nbd", "backend", "export"],
    ),
    ("ctl", &["model", "runtime", "host", "pki", "rpc", "image", "nbd"]),
    // Tests of several layers together.
    ("simulation", &["model", "store", "session", "reconcile", "manager"]),
    // Shell.
    ("cli", &["model", "runtime", "host", "rpc", "manager", "block", "ctl"]),
];

/// What stands beside the dot-files at the top.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "proto",
    "docker-compose.yml",
    "tests",
    "README.md",
    "Makefile",
    "LICENSE",
    "CHANGELOG.md",
];

/// Lines of a file that has one idea in it.
const LONGEST: usize = 500;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let built = ["target", "artifacts", "corpus", "__pycache__"].iter().any(|name| path.ends_with(name));
        match path.is_dir() {
            true if built => {}
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

fn rust_files(below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files_below(&root().join(below), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The code of a line, without a comment at its end.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The modules that a source text names with `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for line in text.lines().map(code) {
        for rest in line.split("crate::").skip(1) {
            let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
            match rest.strip_prefix('{') {
                Some(list) => modules.extend(list.split(',').map(|item| word(item.trim())).filter(|it| !it.is_empty())),
                None => drop(modules.insert(word(rest))),
            }
        }
    }
    modules
}

#[test]
fn modules_import_only_from_the_layers_below_them() {
    let mut breaches = Vec::new();
    for (file, text) in rust_files("src") {
        let module = file.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs");
        if matches!(module, "main" | "lib") {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            breaches.push(format!("{file}: '{module}' is in no layer"));
            continue;
        };
        let known = |name: &String| LAYERS.iter().any(|(layer, _)| layer == name);
        for import in imports(&text).into_iter().filter(known) {
            if import != module && !allowed.contains(&import.as_str()) {
                breaches.push(format!("{file} imports {import}"));
            }
        }
    }
    assert_eq!(breaches, Vec::<String>::new());
}

#[test]
fn the_test_of_the_layers_sees_imports() {
    let text = "use crate::model::Name;\nuse crate::{store, nbd::Uri};\n// crate::export\nlet a = crate::host::x();";
    let expected = ["host", "model", "nbd", "store"].map(String::from);
    assert_eq!(imports(text).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn files_have_one_idea_each() {
    let sources = rust_files("src").into_iter().chain(rust_files("tests"));
    let long: Vec<String> = sources
        .filter(|(_, text)| text.lines().count() > LONGEST)
        .map(|(file, text)| format!("{file}: {} lines", text.lines().count()))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}

/// The scripts and Python sources of the tests, with their names.
fn scripts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for below in ["bench/data", "demo", "tools", "vm"] {
        files_below(&root().join("tests").join(below), &mut found);
    }
    found.retain(|path| path.extension().is_none_or(|extension| extension != "rs"));
    found.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn scripts_have_one_idea_each_and_open_by_saying_it() {
    let scripts = scripts();
    assert!(scripts.iter().any(|(file, _)| file == "tests/vm/run"), "the scripts are found");
    let mut breaches = Vec::new();
    for (file, text) in scripts {
        if text.lines().count() > LONGEST {
            breaches.push(format!("{file}: {} lines", text.lines().count()));
        }
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        if !first.starts_with("# ") && !first.starts_with("\"\"\"") {
            breaches.push(format!("{file} does not open by saying what it is for"));
        }
    }
    assert_eq!(breaches, Vec::<String>::new());
}

#[test]
fn modules_say_what_lives_in_them() {
    let silent: Vec<String> = rust_files("src")
        .into_iter()
        .filter(|(file, text)| !text.starts_with("//!") && !file.ends_with("tests.rs") && !file.contains("/tests/"))
        .map(|(file, _)| file)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn nothing_is_left_unfinished_or_silenced_without_a_reason() {
    // Spelled in halves, so that this file does not find itself.
    let signs = [["to", "do!("], ["unimpl", "emented!("], ["FIX", "ME"], ["TO", "DO"], ["#[ign", "ore]"]];
    let mut found = Vec::new();
    for (file, text) in rust_files("src").into_iter().chain(rust_files("tests")).chain(scripts()) {
        for (number, line) in text.lines().enumerate() {
            if signs.iter().any(|halves| line.contains(&halves.concat())) {
                found.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut bare = Vec::new();
    for (file, text) in rust_files("src").into_iter().chain(rust_files("tests")) {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let block = code(line).contains(concat!("uns", "afe {")) || code(line).contains(concat!("uns", "afe impl"));
            let reason = lines[number.saturating_sub(3)..=number].iter().any(|line| line.contains("SAFETY:"));
            if block && !reason {
                bare.push(format!("{file}:{}", number + 1));
            }
        }
    }
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn the_top_of_the_repository_is_as_agreed() {
    let strangers: Vec<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target" && !TOP.contains(&name.as_str()))
        .collect();
    assert_eq!(strangers, Vec::<String>::new());
}

#[test]
fn the_compose_file_describes_the_etcd_that_the_readme_names() {
    let compose: serde_json::Value = {
        let text = fs::read_to_string(root().join("docker-compose.yml")).unwrap();
        serde_norway::from_str(&text).unwrap()
    };
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (member, port) in [("etcd-1", 12379), ("etcd-2", 22379), ("etcd-3", 32379)] {
        let service = &compose["services"][member];
        assert_eq!(service["ports"][0], format!("127.0.0.1:{port}:2379"), "{member}");
        assert_eq!(service["volumes"][0], format!("{member}:/var/lib/etcd"));
        assert!(compose["volumes"].get(member).is_some(), "{member} keeps its data in a named volume");
        assert!(readme.contains(&format!("http://127.0.0.1:{port}")), "the README names port {port}");
    }
}

#[test]
fn the_commands_that_the_readme_promises_are_targets_of_make() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let promised: BTreeSet<&str> = readme
        .split(|c: char| c.is_whitespace() || c == '`')
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] == "make" && pair[1].chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .map(|pair| pair[1])
        .collect();
    assert!(promised.contains("demo") && promised.contains("test"), "the two commands");
    for target in promised {
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

/// A second guard that is asked for while the first is held waits for a writer that waits for the first: all stand still. In
/// one statement both live until its end.
#[test]
fn no_statement_of_the_manager_reads_the_view_twice() {
    let twice = |text: &str| text.split([';', '}']).any(|part| part.matches("view.read()").count() > 1);
    assert!(twice("f(Answer { a: member.view.read().a(), b: member.view.read().b() });"));
    assert!(!twice("let a = member.view.read().a(); let b = member.view.read().b();"));
    let found: Vec<String> =
        rust_files("src/manager").into_iter().filter(|(_, text)| twice(text)).map(|(file, _)| file).collect();
    assert_eq!(found, Vec::<String>::new());
}
