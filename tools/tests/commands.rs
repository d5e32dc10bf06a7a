//! The command without a mount: shapes of what it prints, exit codes, both forms of each command.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::{Stage, skip};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[test]
fn exit_code_tells_a_wrong_command_line_from_a_failure() {
    let stage = Stage::new();
    for args in [&["frobnicate"][..], &["images", "--frobnicate"], &["rmi"], &["mount", "only-a-name"], &[]] {
        assert_eq!(stage.run(args).code, 2, "{args:?}");
    }
    for args in [&["--help"][..], &["version"], &["help", "mount"], &["image", "--help"]] {
        assert_eq!(stage.run(args).code, 0, "{args:?}");
    }
    assert!(stage.fails(["inspect", "nothing"]).contains("no such container or image: nothing"));
    assert!(stage.fails(["history", "nothing"]).contains("no such image: nothing"));
    assert!(stage.fails(["diff", "nothing"]).contains("no such container: nothing"));
    assert_eq!(stage.run(["images", "--format", "{{.ID"]).code, 2);
}

#[test]
fn errors_are_one_line_whatever_the_name_holds() {
    let stage = Stage::new();
    let line = stage.fails(["inspect", "a\nb\x1b[31m"]);
    assert!(!line.trim_end().contains(['\n', '\x1b']), "{line:?}");
}

#[test]
fn an_empty_store_lists_headers_and_empty_lists() {
    let stage = Stage::new();
    assert_eq!(stage.ok(["images"]), "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n");
    assert_eq!(stage.ok(["ps", "-a"]), "CONTAINER ID   IMAGE   CREATED   STATUS   MOUNT POINT   NAMES\n");
    assert_eq!(stage.ok(["images", "-q"]), "");
    for args in [["images", "--format", "json"], ["ps", "--format", "json"]] {
        assert_eq!(json(&stage.ok(args)), Value::Array(vec![]));
    }
}

#[test]
fn the_store_is_a_directory_of_its_own() {
    let stage = Stage::new();
    std::fs::write(stage.make_dir("full").join("x"), "x").unwrap();
    let line = stage.fails(["--root", stage.path("full").to_str().unwrap(), "images"]);
    assert!(line.contains("full"), "{line}");
    stage.ok(["--root", stage.path("other/deep").to_str().unwrap(), "images"]);
    assert!(stage.path("other/deep/version").exists());
}

#[test]
fn an_archive_loads_from_a_file_from_standard_input_and_by_source() {
    let sample = std::fs::read(Stage::new().sample()).unwrap();
    for form in ["file", "stdin", "dash", "source", "path"] {
        let stage = Stage::new();
        let file = stage.sample().to_str().unwrap().to_string();
        let ran = match form {
            "file" => stage.run(["load", "-i", &file]),
            "stdin" => stage.feed(["load"], &sample),
            "dash" => stage.feed(["image", "load", "--input", "-"], &sample),
            "source" => stage.run(["load", &format!("oci-archive:{file}")]),
            _ => stage.run(["load", &file]),
        };
        assert_eq!((ran.code, ran.out.as_str()), (0, "Loaded image: plyfs/sample:latest\n"), "{form}: {ran:?}");
        assert_eq!(ran.err.lines().filter(|line| line.contains(": unpacked, ")).count(), 4, "{form}: {ran:?}");
    }
}

#[test]
fn a_second_load_finds_the_layers_there() {
    let stage = Stage::with_sample();
    let ran = stage.run(["load", stage.sample().to_str().unwrap()]);
    assert_eq!(ran.err.lines().filter(|line| line.ends_with(": already there")).count(), 4, "{ran:?}");
    assert_eq!(stage.ok(["images", "-q"]).lines().count(), 1);
}

#[test]
fn a_bad_source_is_named() {
    let stage = Stage::new();
    for (args, word) in [
        (&["load", "docker://redis"][..], "docker"),
        (&["load", "-i", "/no/such/file"], "/no/such/file"),
        (&["load", "oci:/no/such/dir"], "/no/such/dir"),
        (&["load", "/dev/null"], "/dev/null"),
    ] {
        let line = stage.fails(args);
        assert!(line.contains(word), "{line}");
    }
    let ran = stage.feed(["load"], b"this is no archive");
    assert!(ran.code == 1 && ran.err.lines().count() == 1 && ran.out.is_empty(), "{ran:?}");
    assert_eq!(stage.ok(["images", "-q"]), "");
}

#[test]
fn images_are_listed_in_every_way() {
    let stage = Stage::with_sample();
    stage.ok(["tag", "plyfs/sample", "harbour:v1"]);
    let table = stage.ok(["images"]);
    assert_eq!(table, stage.ok(["image", "ls"]));
    assert_eq!(table, stage.ok(["image", "list", "-a"]));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!((rows[1][0], rows[1][1]), ("harbour", "v1"));
    assert_eq!((rows[2][0], rows[2][1]), ("plyfs/sample", "latest"));
    assert_eq!(rows[1][2], rows[2][2]);
    assert!(is_hex(rows[1][2], 12), "{table}");
    assert!(rows[1].contains(&"ago"), "{table}");

    let id = stage.ok(["images", "-q"]);
    assert_eq!(id.trim_end(), rows[1][2], "one line for an image with two names");
    let whole = stage.ok(["images", "-q", "--no-trunc"]);
    assert!(
        whole.starts_with(&format!("sha256:{}", rows[1][2]))
            && is_hex(whole.trim_end().strip_prefix("sha256:").unwrap(), 64)
    );
    let digests = stage.ok(["images", "--digests"]);
    let fields: Vec<&str> = digests.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(
        digests.starts_with("REPOSITORY") && digests.lines().next().unwrap().contains("TAG      DIGEST"),
        "{digests}"
    );
    assert!(fields[2].starts_with("sha256:"), "{digests}");

    assert_eq!(stage.ok(["images", "harbour"]).lines().count(), 2);
    assert_eq!(stage.ok(["images", "harbour:v1", "-q"]), id);
    assert_eq!(stage.ok(["images", "harbour:v2", "-q"]), "");

    let list = json(&stage.ok(["images", "--format", "json"]));
    assert_eq!(list[0]["Repository"], "harbour");
    assert_eq!(list[0]["ID"], id.trim_end());
    assert_eq!(list[0]["CreatedAt"], "2024-01-01T00:00:00Z");
    assert!(list[0]["SizeBytes"].as_u64().unwrap() > 100_000);
    assert_eq!(stage.ok(["images", "--format", "{{.Repository}}:{{.Tag}}"]), "harbour:v1\nplyfs/sample:latest\n");
    let table = stage.ok(["images", "--format", "table {{.Tag}}\\t{{.Repository}}"]);
    assert_eq!(table, "TAG      REPOSITORY\nv1       harbour\nlatest   plyfs/sample\n");
    assert!(stage.fails(["images", "--format", "{{.Nope}}"]).contains("there are .Created"));
}

#[test]
fn image_is_inspected_in_json_and_by_template() {
    let stage = Stage::with_sample();
    let text = stage.ok(["inspect", "plyfs/sample"]);
    assert_eq!(text, stage.ok(["image", "inspect", "plyfs/sample"]));
    let image = &json(&text)[0];
    assert_eq!(image["RepoTags"][0], "plyfs/sample:latest");
    assert_eq!(image["Config"]["Cmd"][0], "cat");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 4);
    assert_eq!(
        stage.ok(["inspect", "-f", "{{.Os}} {{json .Config.Cmd}}", "plyfs/sample"]),
        "linux [\"cat\",\"/etc/motd\"]\n"
    );
    assert!(stage.fails(["container", "inspect", "plyfs/sample"]).contains("no such container"));
    let ran = stage.run(["inspect", "plyfs/sample", "nothing"]);
    assert_eq!((ran.code, json(&ran.out).as_array().unwrap().len()), (1, 1), "what was found is printed: {ran:?}");
}

#[test]
fn history_tells_the_steps_newest_first() {
    let stage = Stage::with_sample();
    let table = stage.ok(["history", "plyfs/sample"]);
    assert_eq!(table, stage.ok(["image", "history", "plyfs/sample"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    );
    assert_eq!(lines.len(), 6, "four layers and a step without one: {table}");
    assert!(lines[1].contains("CMD") && lines[1].contains("0B"), "{table}");
    assert!(lines[2].contains("welcome: /etc/motd replaced") && lines[2].starts_with("<missing>"), "{table}");
    assert!(lines[4].contains('…'), "cut: {table}");
    assert!(stage.ok(["history", "--no-trunc", "plyfs/sample"]).contains("a setuid program"));
    let list = json(&stage.ok(["history", "--format", "json", "plyfs/sample"]));
    assert_eq!((list[0]["SizeBytes"].as_u64(), list[0]["Layer"].as_str()), (Some(0), None));
    assert!(list[4]["Layer"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn names_go_one_by_one_and_the_image_with_the_last() {
    let stage = Stage::with_sample();
    stage.ok(["image", "tag", "plyfs/sample", "one"]);
    stage.ok(["tag", "one", "localhost:5000/two:x"]);
    assert_eq!(stage.ok(["rmi", "one"]), "Untagged: one:latest\n");
    let id = stage.ok(["images", "-q"]).trim_end().to_string();
    let line = stage.fails(["rmi", &id]);
    assert!(line.contains("-f") && line.contains("localhost:5000/two:x"), "{line}");
    assert_eq!(stage.ok(["image", "rm", "localhost:5000/two:x"]), "Untagged: localhost:5000/two:x\n");
    let gone = stage.ok(["rmi", "plyfs/sample"]);
    assert!(gone.starts_with("Untagged: plyfs/sample:latest\nDeleted: sha256:"), "{gone}");
    assert_eq!(
        gone.lines().filter(|line| line.starts_with("Deleted: ")).count(),
        5,
        "the image and four layers: {gone}"
    );
    assert_eq!(stage.ok(["images", "-q"]), "");
    assert!(stage.fails(["rmi", "one"]).contains("no such image: one"));
    assert_eq!(stage.ok(["rmi", "-f", "one"]), "");
}

#[test]
fn an_image_stays_while_a_container_uses_it() {
    let stage = Stage::with_sample();
    stage.ok(["create", "plyfs/sample", "--name", "red"]);
    let line = stage.fails(["rmi", "plyfs/sample"]);
    assert!(line.contains("container red"), "{line}");
    assert!(stage.fails(["rmi", "-f", "plyfs/sample"]).contains("container red"));
    stage.ok(["rm", "red"]);
    stage.ok(["rmi", "plyfs/sample"]);
}

#[test]
fn containers_are_made_listed_and_removed() {
    let stage = Stage::with_sample();
    let id = stage.ok(["create", "--name", "red", "plyfs/sample"]).trim_end().to_string();
    assert!(is_hex(&id, 64), "{id}");
    let other = stage.ok(["container", "create", "plyfs/sample"]).trim_end().to_string();
    assert!(stage.fails(["create", "--name", "red", "plyfs/sample"]).contains("red is taken"));
    assert!(stage.fails(["create", "--name", "a/b", "plyfs/sample"]).contains("a/b"));

    assert_eq!(stage.ok(["ps", "-q"]), "", "none is mounted");
    let all = stage.ok(["ps", "-a"]);
    assert_eq!(all, stage.ok(["container", "ls", "--all"]));
    let row = all.lines().find(|line| line.starts_with(&id[..12])).unwrap();
    assert!(row.contains("plyfs/sample:latest") && row.contains("Not mounted") && row.ends_with("red"), "{all}");
    assert_eq!(stage.ok(["ps", "-a", "-q", "--no-trunc"]).lines().count(), 2);
    let list = json(&stage.ok(["ps", "-a", "--format", "json"]));
    assert!(list.as_array().unwrap().iter().any(|row| row["Names"] == "red" && row["Pid"].is_null()));

    let container = &json(&stage.ok(["inspect", "red"]))[0];
    assert_eq!(container["Id"], id.as_str());
    assert!(std::path::Path::new(container["Upper"].as_str().unwrap()).is_dir());
    assert!(container["Log"].is_string());
    assert_eq!(stage.ok(["diff", "red"]), "");
    assert_eq!(json(&stage.ok(["container", "diff", "--format", "json", "red"])), Value::Array(vec![]));
    assert!(stage.fails(["umount", "red"]).contains("not mounted"));

    let ran = stage.run(["rm", "red", "nothing", &other[..12]]);
    assert_eq!((ran.code, ran.out), (1, format!("red\n{}\n", &other[..12])));
    assert!(ran.err.contains("no such container: nothing") && ran.err.lines().count() == 1);
    assert_eq!(stage.ok(["container", "rm", "-f", "nothing"]), "");
    assert_eq!(stage.ok(["ps", "-aq"]), "");
}

#[test]
fn a_path_is_explained_by_layer() {
    let stage = Stage::with_sample();
    let seen = |path: &str| stage.ok(["explain", "plyfs/sample", path, "--format", "{{.Seen}} {{.Place}}: {{.What}}"]);
    assert_eq!(seen("/etc/motd"), "=> layer 3: file 0644 0:0, 42 bytes\n");
    assert!(seen("usr/share/doc/draft.txt").starts_with(" layer 1: whiteout: hides"));
    let page = seen("/var/cache/page1");
    assert!(page.contains("opaque") && !page.contains("=>"), "{page}");
    assert!(stage.fails(["explain", "plyfs/sample", "a/../b"]).contains("a/../b"));
    stage.ok(["create", "--name", "red", "plyfs/sample"]);
    let table = stage.ok(["explain", "red", "/srv"]);
    assert!(table.starts_with("/srv comes from layer 2.\n") && table.contains("directory 2775 1000:1000"), "{table}");
}

#[test]
fn df_adds_up_to_what_du_says() {
    let stage = Stage::with_sample();
    stage.ok(["create", "--name", "red", "plyfs/sample"]);
    let table = stage.ok(["df"]);
    assert_eq!(table, stage.ok(["system", "df"]));
    let first: Vec<&str> = table.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(first, ["TYPE", "Images", "Containers", "Other", "Total"]);
    let rows = json(&stage.ok(["df", "--format", "json"]));
    let bytes = |row: usize| rows[row]["SizeBytes"].as_u64().unwrap();
    assert_eq!(bytes(0) + bytes(1) + bytes(2), bytes(3));
    let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(stage.path("store")).output().unwrap();
    let du: u64 = String::from_utf8_lossy(&du.stdout).split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(bytes(3), du);
    assert_eq!((rows[0]["TotalCount"].as_u64(), rows[0]["Active"].as_u64()), (Some(1), Some(1)));

    let verbose = stage.ok(["df", "-v"]);
    for word in ["Images:", "SHARED SIZE", "UNIQUE SIZE", "Layers:", "Containers:", "plyfs/sample", "red"] {
        assert!(verbose.contains(word), "{word} is missing: {verbose}");
    }
    let verbose = json(&stage.ok(["df", "-v", "--format", "json"]));
    assert_eq!(verbose["Layers"].as_array().unwrap().len(), 4);
    assert_eq!(verbose["TotalBytes"].as_u64(), Some(bytes(3)));
    assert!(stage.ok(["gc"]).starts_with("Total reclaimed space: ") && stage.ok(["system", "gc"]).ends_with("0B\n"));
}

#[test]
fn info_and_version_say_what_is_here() {
    let stage = Stage::with_sample();
    assert_eq!(stage.ok(["version"]), format!("plyfs {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(json(&stage.ok(["version", "--format", "json"]))["Version"], env!("CARGO_PKG_VERSION"));
    assert!(stage.ok(["info"]).contains(stage.path("store").to_str().unwrap()));
    assert_eq!(json(&stage.ok(["system", "info", "--format", "json"]))["Images"], "1");
    assert_eq!(stage.ok(["info", "--format", "{{.Images}}"]), "1\n");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let stage = Stage::with_sample();
    let mut child = stage
        .command()
        .args(["inspect", "plyfs/sample"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_namespace_runs_a_command_as_its_root() {
    let name = "a_namespace_runs_a_command_as_its_root";
    let stage = Stage::with_sample();
    let probe = stage.run(["unshare", "--map", "single", "true"]);
    if probe.code != 0 {
        return skip(name, &format!("no user namespaces: {}", probe.err.trim_end()));
    }
    assert_eq!(stage.ok(["unshare", "--map", "single", "--", "id", "-u"]), "0\n");
    let ids = stage.ok(["unshare", "--map", "single", "cat", "/proc/self/uid_map"]);
    assert_eq!(ids.split_whitespace().collect::<Vec<_>>(), ["0", &rustix::process::getuid().as_raw().to_string(), "1"]);
    assert_eq!(
        stage.ok(["unshare", "--map", "single", support::PLYFS, "images", "-q"]),
        stage.ok(["images", "-q"]),
        "the same store"
    );
    assert_eq!(stage.run(["unshare", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(stage.run(["unshare", "sh", "-c", "kill -9 $$"]).code, 128 + 9);
    assert!(stage.fails(["unshare", "/no/such/program"]).contains("/no/such/program"));
}
