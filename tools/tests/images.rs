//! Commands about images beyond load and list: filters, prune, tree, inspect, save, fsck; what they print and how they end.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::process::{Command, Stdio};

use serde_json::Value;
use support::Stage;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The sample image under three names of two images: `labelled` is a commit of it.
fn stage() -> Stage {
    let stage = Stage::with_sample();
    stage.ok(["create", "plyfs/sample", "--name", "box"]);
    let change =
        ["--change", "LABEL tier=web", "--change", "EXPOSE 80", "--change", "USER me", "--change", "WORKDIR /srv"];
    stage.ok(["commit", "box", "labelled:v1"].iter().chain(&change));
    stage.ok(["tag", "labelled:v1", "harbour.example/team/app:v2"]);
    stage.ok(["rm", "box"]);
    stage
}

#[test]
fn filters_choose_images_and_an_unknown_one_is_an_error() {
    let stage = stage();
    let names = |filters: &[&str]| {
        let mut args = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        filters.iter().for_each(|filter| args.extend(["--filter", *filter]));
        let mut names: Vec<String> = stage.ok(args).lines().map(str::to_string).collect();
        names.sort();
        names
    };
    let labelled = ["harbour.example/team/app:v2", "labelled:v1"];
    assert_eq!(names(&["label=tier=web"]), labelled);
    assert_eq!(names(&["label=tier"]), labelled);
    assert_eq!(names(&["label=tier=db"]), Vec::<String>::new());
    assert_eq!(names(&["label!=tier"]), ["plyfs/sample:latest"]);
    assert_eq!(names(&["since=plyfs/sample"]), labelled);
    assert_eq!(names(&["before=labelled:v1"]), ["plyfs/sample:latest"]);
    assert_eq!(names(&["until=1971-01-01"]), Vec::<String>::new());
    assert_eq!(names(&["reference=labelled"]), ["labelled:v1"]);
    assert_eq!(
        names(&["reference=*/*/app:v?", "reference=plyfs/*"]),
        ["harbour.example/team/app:v2", "plyfs/sample:latest"]
    );
    assert_eq!(names(&["dangling=true"]), Vec::<String>::new());
    assert_eq!(names(&["dangling=false", "label=tier", "reference=labelled"]), ["labelled:v1"]);
    stage.ok(["tag", "plyfs/sample", "labelled:v1"]);
    stage.ok(["tag", "plyfs/sample", "harbour.example/team/app:v2"]);
    assert_eq!(names(&["dangling=true"]), ["<none>:<none>"]);
    assert!(
        stage.fails(["images", "--filter", "colour=red"]).contains("'colour' is no filter; there are dangling, before")
    );
    assert!(stage.fails(["images", "-f", "dangling=maybe"]).contains("neither true nor false"));
    assert!(stage.fails(["images", "-f", "dangling"]).contains("write KEY=VALUE"));
    assert!(stage.fails(["images", "-f", "before=none"]).contains("no such image"));
}

#[test]
fn prune_takes_dangling_images_and_all_that_are_unused_with_a() {
    let stage = stage();
    let out = stage.ok(["image", "prune", "-f"]);
    assert_eq!(out, "Total reclaimed space: 0B\n");
    stage.ok(["tag", "plyfs/sample", "labelled:v1"]);
    stage.ok(["tag", "plyfs/sample", "harbour.example/team/app:v2"]);
    let out = stage.ok(["prune"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "Deleted Images:");
    assert!(
        lines[1].starts_with("deleted: sha256:") && lines[lines.len() - 1].starts_with("Total reclaimed space: "),
        "{out}"
    );
    let id = stage.ok(["create", "plyfs/sample", "--name", "user"]);
    assert_eq!(stage.ok(["image", "prune", "-a", "-f"]), "Total reclaimed space: 0B\n", "a container uses it");
    let out = stage.ok(["container", "prune", "-f"]);
    assert!(out.starts_with(&format!("Deleted Containers:\n{id}\nTotal reclaimed space: ")), "{out}");
    assert_eq!(stage.ok(["image", "prune", "-af", "--filter", "label=none"]), "Total reclaimed space: 0B\n");
    let out = stage.ok(["system", "prune", "--all", "--force"]);
    assert!(out.contains("untagged: labelled:v1\n") && out.contains("untagged: plyfs/sample:latest\n"), "{out}");
    assert_eq!(stage.ok(["images", "-q"]), "");
    assert!(stage.ok(["fsck"]).ends_with("nothing is wrong\n"));
}

#[test]
fn a_removal_tells_untagged_and_deleted_and_takes_many_ids_at_once() {
    let stage = stage();
    assert_eq!(stage.ok(["rmi", "labelled:v1"]), "Untagged: labelled:v1\n");
    stage.ok(["tag", "harbour.example/team/app:v2", "labelled:v1"]);
    let id = stage.ok(["images", "-q", "labelled"]).trim().to_string();
    assert!(stage.fails(["rmi", &id]).contains("several names"));
    stage.ok(["create", "labelled:v1", "--name", "user"]);
    assert!(stage.fails(["rmi", "-f", &id]).contains("container user"));
    stage.ok(["rm", "user"]);
    let all = stage.ok(["image", "ls", "-q"]);
    let ids: Vec<&str> = all.split_whitespace().chain([id.as_str(), id.as_str()]).collect();
    let out = stage.ok(["image", "rm", "-f"].iter().copied().chain(ids));
    assert_eq!(out.lines().filter(|line| line.starts_with("Untagged: ")).count(), 3, "{out}");
    assert!(out.lines().filter(|line| line.starts_with("Deleted: sha256:")).count() >= 6, "{out}");
    assert_eq!(stage.run(["rmi", "none"]).code, 1);
    assert_eq!(stage.run(["rmi", "-f", "none"]).code, 0);
}

#[test]
fn inspect_has_the_fields_that_people_look_for() {
    let stage = stage();
    let all = json(&stage.ok(["image", "inspect", "labelled:v1"]));
    let image = &all[0];
    assert_eq!(image["Config"]["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
    assert_eq!(image["Config"]["Labels"]["tier"], "web");
    assert_eq!((&image["Config"]["User"], &image["Config"]["WorkingDir"]), (&"me".into(), &"/srv".into()));
    for key in ["Env", "Cmd", "Entrypoint", "Volumes", "OnBuild", "StopSignal"] {
        assert!(image["Config"].get(key).is_some(), "{key}");
    }
    assert_eq!(image["RootFS"]["Type"], "layers");
    assert_eq!(image["RepoTags"].as_array().unwrap().len(), 2);
    let layers = image["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), image["RootFS"]["Layers"].as_array().unwrap().len());
    for (layer, id) in layers.iter().zip(image["RootFS"]["Layers"].as_array().unwrap()) {
        assert_eq!(&layer["DiffID"], id);
        assert!(layer["Digest"].as_str().unwrap().starts_with("sha256:"), "{layer}");
        assert!(layer["ChainID"].as_str().unwrap().starts_with("sha256:"), "{layer}");
        assert!(layer["Size"].as_u64().unwrap() > 0 && layer["DiskSize"].as_u64().unwrap() > 0, "{layer}");
        assert_eq!(layer["SharedWith"], serde_json::json!(["plyfs/sample:latest"]));
    }
    assert_eq!(
        stage.ok(["inspect", "-f", "{{.Config.User}}", "plyfs/sample"]),
        "\n",
        "absent is empty, as docker has it"
    );
}

#[test]
fn a_tree_draws_shared_layers_once() {
    let stage = stage();
    stage.ok(["create", "plyfs/sample", "--name", "box"]);
    let upper = stage.ok(["inspect", "-f", "{{.Upper}}", "box"]);
    for name in ["one", "two"] {
        std::fs::write(std::path::Path::new(upper.trim()).join(name), name).unwrap();
        stage.ok(["commit", "box", name]);
    }
    let tree = stage.ok(["tree"]);
    let line = |word: &str| tree.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {tree}"));
    assert!(line("plyfs/sample:latest").contains("labelled:v1"), "{tree}");
    assert!(line("one:latest").trim_start().starts_with(['├', '└']), "{tree}");
    let indent = |word: &str| line(word).find(['├', '└']);
    assert_eq!(indent("one:latest"), indent("two:latest"), "{tree}");
    assert_eq!(tree, stage.ok(["image", "tree"]));
    assert!(!stage.ok(["tree", "one"]).contains("two:latest"));
}

#[test]
fn a_saved_archive_loads_again_and_a_failed_save_leaves_no_file() {
    let stage = stage();
    let file = stage.path("two.tar");
    stage.ok(["save", "labelled:v1", "plyfs/sample", "-o", file.to_str().unwrap()]);
    let ids = stage.ok(["images", "-q", "--no-trunc"]);
    stage.ok(["image", "prune", "-af"]);
    let out = stage.ok(["load", "-q", "-i", file.to_str().unwrap()]);
    assert_eq!(out.lines().collect::<Vec<_>>(), ["Loaded image: labelled:v1", "Loaded image: plyfs/sample:latest"]);
    let mut again: Vec<String> = stage.ok(["images", "-q", "--no-trunc"]).lines().map(str::to_string).collect();
    let mut ids: Vec<String> = ids.lines().map(str::to_string).collect();
    again.sort();
    ids.sort();
    assert_eq!(again, ids);
    let through = stage
        .command()
        .args(["image", "save", "--format", "oci-archive", "labelled:v1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ran = stage.feed(["load", "-q"], &through.wait_with_output().unwrap().stdout);
    assert_eq!(ran.out, "Loaded image: labelled:v1\n");
    let missing = stage.path("missing.tar");
    assert!(stage.fails(["save", "none", "-o", missing.to_str().unwrap()]).contains("no such image"));
    let left = std::fs::read_dir(stage.path(""))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("missing"));
    assert_eq!(left.count(), 0);
}

#[test]
fn an_archive_is_not_sent_to_a_terminal() {
    let stage = Stage::with_sample();
    // script(1) from util-linux gives the command a terminal.
    let run = format!("{} save plyfs/sample", support::PLYFS);
    let ran = Command::new("script")
        .args(["-qec", &run, "/dev/null"])
        .env("PLYFS_ROOT", stage.path("store"))
        .stdin(Stdio::null())
        .output();
    let ran = match ran {
        Err(error) => {
            return support::skip(
                "an_archive_is_not_sent_to_a_terminal",
                &format!("script: {error}; install util-linux"),
            );
        }
        Ok(ran) => ran,
    };
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(!ran.status.success() && text.contains("standard output is the terminal; name a file with -o"), "{text}");
}

#[test]
fn fsck_tells_what_is_wrong_and_exits_accordingly() {
    let stage = stage();
    let out = stage.ok(["fsck"]);
    assert!(out.starts_with("2 images, ") && out.ends_with("nothing is wrong\n"), "{out}");
    assert_eq!(stage.ok(["system", "fsck", "-q"]), "");
    let layers = stage.path("store/layers");
    let layer = std::fs::read_dir(&layers).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(layer.join("bodies")).unwrap();
    let ran = stage.run(["fsck"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains(layer.to_str().unwrap()) && ran.out.contains("fsck --repair"), "{ran:?}");
    let ran = stage.run(["fsck", "--repair"]);
    assert!(ran.out.contains(": removed"), "{ran:?}");
    stage.ok(["load", "-q", stage.sample().to_str().unwrap()]);
    assert!(stage.ok(["fsck"]).ends_with("nothing is wrong\n"));
}
