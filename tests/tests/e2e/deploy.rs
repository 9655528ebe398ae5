//! What lies in `deploy/` is used as it stands: each file is checked by the tool that will read it.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
};

use tidemill_tests::{
    Folder, PATIENCE, Run,
    needs::{output, python_with, tool},
    root,
};

/// `systemd-analyze security` on the unit, 0.0 (nothing allowed) to 10.0; what is above is a sandbox that got holes.
const MOST_EXPOSURE: f64 = 1.5;

fn deploy(name: &str) -> PathBuf {
    root().join("deploy").join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// The unit with a program that exists on every machine in the place of an installed `tidemill`.
fn unit_in(folder: &Folder) -> PathBuf {
    let text = read(&deploy("systemd/tidemill.service"));
    let installed = "ExecStart=/usr/bin/tidemill ";
    assert!(text.contains(installed), "the unit starts {installed}");
    folder.write("tidemill.service", text.replace(installed, "ExecStart=/bin/true "))
}

/// systemd gives the configuration directory to root: whoever is somebody else reads it as other users do.
#[test]
fn the_units_user_can_read_its_configuration() {
    let text = read(&deploy("systemd/tidemill.service"));
    let setting = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    assert_eq!(setting("DynamicUser"), "yes");
    let mode = u32::from_str_radix(setting("ConfigurationDirectoryMode"), 8).unwrap();
    assert_eq!(mode & 0o005, 0o005, "{mode:o}");
}

#[test]
fn systemd_accepts_the_unit() {
    let Some(systemd) = tool("systemd-analyze") else { return };
    let folder = Folder::new();
    let done = Command::new(systemd).args(["verify", "--man=no"]).arg(unit_in(&folder)).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    // Every complaint about the unit is a line that begins with its name or path; other units of the machine are not ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("tidemill")).collect();
    assert!(done.status.success() && ours.is_empty(), "{}\n{said}", done.status);
}

#[test]
fn the_unit_is_a_tight_sandbox() {
    let Some(systemd) = tool("systemd-analyze") else { return };
    let folder = Folder::new();
    let mut command = Command::new(systemd);
    command.args(["security", "--offline=true", "--no-pager"]).arg(unit_in(&folder));
    let said = output(&mut command);
    let level = said.lines().find_map(|line| line.split_once("exposure level for tidemill.service: ")).unwrap().1;
    let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
    assert!(level <= MOST_EXPOSURE, "exposure {level} is above {MOST_EXPOSURE}:\n{said}");
}

#[test]
fn the_unit_is_told_that_the_daemon_is_ready_alive_and_stopping() {
    let folder = Folder::new();
    folder.write("in/a.txt", "one\n");
    let job = "job: notify\nsources: { in: { type: directory, path: in, codec: text, settle: 10ms } }\n\
               sinks: { out: { type: files, path: out, codec: json } }\n";
    let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let run = Run::new(&folder).job(job).env("NOTIFY_SOCKET", folder.join("notify")).env("WATCHDOG_USEC", "1000000");
    let mut daemon = run.start();
    wait_for_message(&socket, "READY=1");
    wait_for_message(&socket, "WATCHDOG=1");
    wait_for_message(&socket, "WATCHDOG=1");
    daemon.hup();
    wait_for_message(&socket, "RELOADING=1");
    wait_for_message(&socket, "READY=1");
    daemon.term();
    wait_for_message(&socket, "STOPPING=1");
    daemon.expect_success();
}

/// Reads messages until one has this line. A watchdog that never comes ends in the socket's time limit.
fn wait_for_message(socket: &UnixDatagram, line: &str) {
    let mut seen = Vec::new();
    for _ in 0..1000 {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {line} came ({e}), but {seen:?}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.lines().any(|found| found == line) {
            return;
        }
        seen.push(message);
    }
    panic!("no {line} among 1000 messages");
}

#[test]
fn kubernetes_accepts_the_manifests() {
    let Some(python) = python_with("kubernetes_validate") else { return };
    let manifests = [
        "kubernetes/namespace.yaml",
        "kubernetes/service.yaml",
        "kubernetes/statefulset.yaml",
        "kubernetes-scaled/deployment.yaml",
    ]
    .map(deploy);
    let validate = |files: &[PathBuf]| {
        let mut command = Command::new(&python);
        command.args(["-c", "import sys; from kubernetes_validate.__main__ import main; sys.exit(main())", "--strict"]);
        command.args(files).output().unwrap()
    };
    let done = validate(&manifests);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    // The judge can say no: a misspelt key is found.
    let folder = Folder::new();
    let wrong = read(&manifests[2]).replace("readinessProbe", "readynessProbe");
    assert!(!validate(&[folder.write("wrong.yaml", wrong)]).status.success());
}

#[test]
fn pods_run_as_nobody_with_probes_and_files_that_exist() {
    pod_of("kubernetes", "statefulset.yaml");
    pod_of("kubernetes-scaled", "deployment.yaml");
}

fn pod_of(folder: &str, manifest: &str) {
    let manifest: serde_yaml::Value = serde_yaml::from_str(&read(&deploy(folder).join(manifest))).unwrap();
    let pod = &manifest["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/live");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");

    let kustomization: serde_yaml::Value =
        serde_yaml::from_str(&read(&deploy(folder).join("kustomization.yaml"))).unwrap();
    let generated = kustomization["configMapGenerator"].as_sequence().unwrap();
    let files = generated.iter().flat_map(|map| map["files"].as_sequence().unwrap());
    for file in files.chain(kustomization["resources"].as_sequence().unwrap()) {
        let path = deploy(folder).join(file.as_str().unwrap());
        assert!(path.is_file(), "kustomization.yaml names {}, which does not exist", path.display());
    }
}

#[test]
fn prometheus_accepts_the_configuration_and_the_alerts_fire() {
    let Some(promtool) = tool("promtool") else { return };
    for arguments in [
        &["check", "config", "prometheus.yml"],
        &["check", "rules", "alerts.yml"],
        &["test", "rules", "alerts_test.yml"],
    ] {
        output(Command::new(&promtool).args(arguments).current_dir(deploy("prometheus")));
    }
}

#[test]
fn alerts_speak_of_metrics_that_the_daemon_has() {
    let known = read(&root().join("daemon/src/metrics.rs"));
    let alerts = read(&deploy("prometheus/alerts.yml"));
    let rules: serde_yaml::Value = serde_yaml::from_str(&alerts).unwrap();
    let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
    let words = rules.iter().flat_map(|rule| {
        rule["expr"].as_str().unwrap().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect::<Vec<_>>()
    });
    let names: std::collections::BTreeSet<&str> = words.filter_map(|word| word.strip_prefix("tidemill_")).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(known.contains(&format!("\"{name}\"")), "alerts.yml asks for tidemill_{name}, which no daemon has");
    }
    // Every alert has a test, so that none is dead.
    let tested = read(&deploy("prometheus/alerts_test.yml"));
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(tested.contains(name), "alerts_test.yml lacks {name}");
    }
}

/// No engine here builds the image; what can be known without one is: every line is an instruction with the arguments it
/// needs, sources of `COPY --from` are stages, the last stage drops root and starts the binary that the first one made.
#[test]
fn the_containerfile_is_well_formed() {
    let text = read(&deploy("Containerfile")).replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let instructions: Vec<(&str, &str)> = lines.map(|line| line.split_once(' ').unwrap()).collect();
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"];
    let mut stages = Vec::new();
    for (name, arguments) in &instructions {
        assert!(known.contains(name), "{name} is no instruction that this file needs");
        if *name == "FROM" {
            stages.push(arguments.split_once(" AS ").map_or("", |(_, stage)| stage));
        }
        if let Some((_, rest)) = arguments.split_once("--from=") {
            let stage = rest.split(' ').next().unwrap();
            assert!(stages.contains(&stage), "COPY --from={stage}, but the stages are {stages:?}");
        }
        if ["ENTRYPOINT", "CMD"].contains(name) {
            serde_json::from_str::<Vec<String>>(arguments).unwrap_or_else(|e| panic!("{name} is no JSON array: {e}"));
        }
    }
    assert_eq!(instructions.first().map(|(name, _)| *name), Some("FROM"));
    let last = &instructions[instructions.iter().rposition(|(name, _)| *name == "FROM").unwrap()..];
    let value = |name: &str| last.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1;
    assert_ne!(value("USER").split(':').next(), Some("0"));
    assert!(value("ENTRYPOINT").contains("/usr/bin/tidemill"));
    assert!(instructions.iter().any(|(name, text)| *name == "RUN" && text.contains("/image/usr/bin/tidemill")));
}
