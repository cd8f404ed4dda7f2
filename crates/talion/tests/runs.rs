//! Evaluations that are kept: killed, resumed, compared, checked, reported.

mod common;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::networks;

const NETWORKS: [&str; 6] = ["--model", "model", "--trn", "trn", "--surrogate", "other"];

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_talion"));
    command.current_dir(folder).args(arguments);
    command
}

fn talion(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn evaluation(run: &str) -> Vec<&str> {
    let size = ["--images", "72", "--adaptive-images", "20", "--run", run];
    ["evaluate"].iter().chain(&NETWORKS).chain(&size).copied().collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// SIGKILL at twenty moments of its work, resumed each time: the run ends as one that nobody disturbed.
#[test]
fn a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    networks(folder);
    let whole = done(&talion(folder, &evaluation("whole")));
    assert!(whole.contains("TRN") && whole.contains("undefended"), "{whole}");

    let mut killed = 0;
    for attempt in 0..200_u64 {
        let mut child = command(folder, &evaluation("killed"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // from before the database is there to the middle of an attack
        std::thread::sleep(Duration::from_millis(30 + 97 * attempt % 700));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        if killed == 20 {
            break;
        }
    }
    assert_eq!(killed, 20, "the run was over before it had been killed often enough");
    done(&talion(folder, &evaluation("killed")));
    let said = done(&talion(folder, &["runs", "diff", "whole", "killed"]));
    assert!(!said.is_empty());

    // both are listed; a third folder, of a run that holds something else, is named as damaged
    std::fs::create_dir(folder.join("runs")).unwrap();
    for run in ["whole", "killed"] {
        std::fs::rename(folder.join(run), folder.join("runs").join(run)).unwrap();
    }
    let listed = done(&talion(folder, &["runs", "list"]));
    assert!(listed.contains("whole") && listed.contains("killed") && listed.contains("100"), "{listed}");
    check_and_report(folder);
}

/// What is kept of a run can be checked, shown and reported; what has been changed is found.
fn check_and_report(folder: &Path) {
    let verify: Vec<&str> = ["runs", "verify", "runs/whole"].iter().chain(&NETWORKS).copied().collect();
    done(&talion(folder, &verify));
    let wrong = ["runs", "verify", "runs/whole", "--model", "other", "--trn", "trn", "--surrogate", "other"];
    let output = talion(folder, &wrong);
    assert!(
        !output.status.success() && text(&output.stderr).contains("undefended"),
        "{}",
        text(&output.stderr)
    );

    let shown = done(&talion(folder, &["--json", "runs", "show", "runs/whole"]));
    let summary: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(summary["complete"], true);
    let headlines = summary["headlines"].as_array().unwrap();
    assert_eq!(headlines.len(), 2);
    let trn = &headlines[1];
    assert_eq!(trn["contender"], "TRN");
    let share = |value: &serde_json::Value| value["count"].as_u64().unwrap();
    assert!(share(&trn["worst"]) <= share(&trn["adaptive"]));
    for wanted in ["noise", "oblivious", "transfer", "blackbox", "bpda", "detached", "exact"] {
        let threats = trn["threats"].as_array().unwrap();
        assert!(threats.iter().any(|threat| threat[0] == wanted), "{wanted} is missing");
    }
    let verdicts = summary["verdicts"].as_array().unwrap();
    let found = |name: &str| {
        let verdict = verdicts.iter().find(|verdict| verdict["name"] == name).unwrap();
        verdict["finding"].as_str().unwrap().to_owned()
    };
    assert_eq!(found("exact-gradients"), "pass");
    assert_eq!(found("step-size-was-swept"), "not-run");

    done(&talion(folder, &["report", "runs/whole", "runs/killed", "-o", "page.html"]));
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("</html>") && page.contains("TRN"));
    assert!(!page.contains("http://") || !page.contains("src=\"http"), "the page needs no network");

    // one changed byte of one image
    let chunks = std::fs::read_dir(folder.join("runs/killed/chunks")).unwrap();
    let chunk = chunks.map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&chunk).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&chunk, bytes).unwrap();
    let verify: Vec<&str> = ["runs", "verify", "runs/killed"].iter().chain(&NETWORKS).copied().collect();
    let output = talion(folder, &verify);
    let name = chunk.file_name().unwrap().to_string_lossy().into_owned();
    assert!(!output.status.success() && text(&output.stderr).contains(&name), "{}", text(&output.stderr));
    // resumed, the run makes it again
    let output = talion(folder, &evaluation("runs/killed"));
    assert!(text(&output.stderr).contains("attacked again"), "{}", text(&output.stderr));
    done(&talion(folder, &verify));
    done(&talion(folder, &["runs", "diff", "runs/whole", "runs/killed"]));
}

#[test]
fn another_configuration_is_refused_and_the_papers_protocol_carries_a_banner() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    networks(folder);
    let paper: Vec<&str> = ["evaluate", "--protocol", "paper", "--images", "8", "--run", "r"]
        .iter()
        .chain(&NETWORKS)
        .copied()
        .collect();
    done(&talion(folder, &paper));
    let page = std::fs::read_to_string(folder.join("r/report.html")).unwrap().to_lowercase();
    assert!(!page.contains("robust"), "nobody who knows the defence attacked it");
    let other: Vec<&str> = paper.iter().copied().chain(["--seed", "2"]).collect();
    let output = talion(folder, &other);
    assert!(
        !output.status.success() && text(&output.stderr).contains("other settings"),
        "{}",
        text(&output.stderr)
    );
    // the same again is done at once, and changes nothing
    let before = std::fs::read(folder.join("r/latency.json")).unwrap();
    done(&talion(folder, &paper));
    assert_eq!(std::fs::read(folder.join("r/latency.json")).unwrap(), before);
}
