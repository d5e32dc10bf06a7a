//! docs/semantics.md and docs/hostile-inputs.md name tests that exist.

use std::collections::BTreeSet;
use std::path::Path;

/// Where the tests are that the page may name; it says so itself.
const PROGRAMS: [&str; 6] = [
    "../mountd/tests/semantics",
    "../mountd/tests/crash",
    "../crates/backing/tests",
    "../crates/store/tests",
    "../tests/tests",
    "../tools/tests",
];

#[test]
fn every_test_that_semantics_md_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("../docs/semantics.md")).unwrap();
    let tests: BTreeSet<String> = PROGRAMS.iter().flat_map(|dir| known(&here.join(dir))).collect();
    for dir in PROGRAMS {
        assert!(page.contains(&format!("`{}`", dir.trim_start_matches("../"))), "the page does not say {dir}");
    }
    // What others get wrong is a table: the last cell of a row names the tests.
    let (page, table) = page.split_once("\n## Where others fall\n").expect("the table");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 15, "the table has {} rows", rows.len());
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let names: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}: no test is named");
        for name in names {
            assert!(tests.contains(name), "there is no test {name}");
        }
    }
    // Each difference is a section that ends with the line `Test: ` and the names of its tests.
    let mut named = 0;
    for section in page.split("\n### ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let line = section.lines().find_map(|line| line.strip_prefix("Test: "));
        let line = line.unwrap_or_else(|| panic!("{title}: no test is named"));
        for name in line.split('`').skip(1).step_by(2) {
            assert!(tests.contains(name), "{title}: there is no test {name}");
            named += 1;
        }
    }
    assert!(named > 10, "the page names {named} tests");
}

/// Where the tests are that docs/hostile-inputs.md names.
const ROOMS: [&str; 12] = [
    "../crates/layer/src",
    "../crates/layer/tests",
    "../crates/overlay/src",
    "../crates/overlay/tests",
    "../crates/backing/src",
    "../crates/store/src",
    "../crates/store/tests",
    "../crates/registry/src",
    "../crates/registry/tests",
    "../mountd/tests",
    "../tests/tests",
    "../tools/tests",
];

#[test]
fn every_test_that_hostile_inputs_md_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("../docs/hostile-inputs.md")).unwrap();
    let tests: BTreeSet<String> = ROOMS.iter().flat_map(|dir| known(&here.join(dir))).collect();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| input "));
    let mut inputs = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, _, named] = cells[..] else { panic!("not three columns: {row}") };
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            assert!(tests.contains(name), "there is no test {name}: {row}");
        }
        inputs += 1;
    }
    assert!(inputs > 60, "the page tells of {inputs} inputs");
}

/// The names of all tests in a directory: functions under `#[test]`, and what runners of their own list as `("name", ...)`.
fn known(dir: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            names.extend(known(&path));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            let name = match line.strip_prefix("(\"") {
                Some(listed) => listed.split('"').next(),
                None if line != "#[test]" => None,
                None => {
                    let function = lines.find(|line| !line.starts_with("#["));
                    function.and_then(|line| line.strip_prefix("fn ")).and_then(|line| line.split('(').next())
                }
            };
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

#[test]
fn mountd_md_lists_every_option_as_the_program_knows_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mountd.md");
    let page = std::fs::read_to_string(page).unwrap();
    let cell = |text: &str| text.replace('|', "\\|");
    let rows: Vec<_> = mountd::options::OPTIONS
        .iter()
        .map(|known| format!("| `{}` | {} |", cell(known.spelled), cell(known.meaning)))
        .collect();
    let missing: Vec<_> = rows.iter().filter(|row| !page.contains(row.as_str())).map(String::as_str).collect();
    assert!(missing.is_empty(), "docs/mountd.md lacks or tells otherwise:\n{}", missing.join("\n"));
    let stale = page.lines().filter(|line| line.starts_with("| `") && !rows.iter().any(|row| row == line));
    assert_eq!(stale.collect::<Vec<_>>(), Vec::<&str>::new(), "docs/mountd.md has rows of no option");
}
