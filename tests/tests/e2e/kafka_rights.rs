//! A Kafka that asks for rights (`StandardAuthorizer`, SASL): what Tidemill needs, what it says where a right is missing, and
//! that the command in its message is the way out. `validate --connect` finds each before a job runs; one that is taken
//! while a job runs is waited for, and nothing is lost. No password is ever shown.

use std::{
    collections::BTreeSet,
    process::Output,
    sync::OnceLock,
    time::{Duration, Instant},
};

use rdkafka::Message;

use crate::{kafka_sink as sink, kafka_topics::Topic};
use tidemill_tests::{Daemon, Folder, PATIENCE, Run, daemon::tidemill, eventually, services};

use services::Kafka;

/// Each right costs the tests two starts of Java.
const LIMIT: Duration = Duration::from_secs(180);

/// The broker of this file.
fn broker() -> Option<&'static Kafka> {
    static STARTED: OnceLock<Option<(Folder, Kafka)>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let folder = Folder::new();
        let kafka = Kafka::private_with_rights(folder.path())?;
        Some((folder, kafka))
    });
    started.as_ref().map(|(_, kafka)| kafka)
}

/// A job from a topic to another one, with its dead letters in a third. Nothing is granted yet.
struct Trial {
    kafka: &'static Kafka,
    folder: Folder,
    name: String,
    input: Topic,
    sent: usize,
}

impl Trial {
    /// `None`: there is no broker here.
    fn new(name: &str) -> Option<Self> {
        let kafka = broker()?;
        let input = Topic::at(&kafka.brokers, &format!("{name}-in"), 2, &[]);
        for topic in ["out", "dead"] {
            sink::make_topic(&kafka.brokers, &format!("{name}-{topic}"), 2);
        }
        let folder = Folder::new();
        folder.write("password", format!("{}\n", kafka.sasl_password));
        let trial = Self { kafka, folder, name: name.to_owned(), input, sent: 0 };
        trial.folder.write("job.yaml", trial.job());
        Some(trial)
    }

    fn job(&self) -> String {
        let (name, brokers) = (&self.name, &self.kafka.sasl_brokers);
        let login = format!(
            "security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, sasl.username: {}, sasl.password: \"${{file:{}}}\"",
            self.kafka.sasl_user,
            self.folder.join("password").display()
        );
        format!(
            "job: {name}\nlanes: partition\ntrigger: asap\ntakeover_after: 2s\nsources:\n  in:\n    type: kafka\n    brokers: {brokers}\n    \
             topics: {name}-in\n    group: {name}-group\n    schema: {{ n: int64 }}\n    \
             properties: {{ {login}, session.timeout.ms: 6000, heartbeat.interval.ms: 500 }}\nsinks:\n  \
             out: {{ type: kafka, brokers: {brokers}, topic: {name}-out, transaction_timeout: 10s, properties: {{ {login} }} }}\n\
             dead_letters: {{ type: kafka, brokers: {brokers}, topic: {name}-dead, transaction_timeout: 10s, properties: {{ {login} }} }}\n"
        )
    }

    /// Sends rows to both partitions, and one record that is none to the first.
    fn send(&mut self) {
        for partition in 0..2 {
            let values: Vec<_> = (self.sent..self.sent + 10).map(|n| format!("{{\"n\": {n}}}")).collect();
            self.input.send_values(partition, &values);
        }
        self.input.send_values(0, &[format!("no row {}", self.sent)]);
        self.sent += 10;
    }

    /// Each row once in the topic, each dead letter once in its.
    fn count(&self) -> Result<(), String> {
        let values = |topic: &str| -> Vec<String> {
            let records = sink::records(&self.kafka.brokers, &format!("{}-{topic}", self.name));
            let mut values: Vec<_> =
                records.iter().map(|one| String::from_utf8_lossy(one.payload().unwrap()).into_owned()).collect();
            values.sort();
            values
        };
        let mut rows: Vec<_> =
            (0..self.sent).flat_map(|n| [format!("{{\"n\":{n}}}"), format!("{{\"n\":{n}}}")]).collect();
        let mut bad: Vec<_> = (0..self.sent).step_by(10).map(|n| format!("no row {n}")).collect();
        rows.sort();
        bad.sort();
        let (out, dead) = (values("out"), values("dead"));
        if out != rows {
            return Err(format!("{} rows of {}", out.len(), rows.len()));
        }
        if dead != bad { Err(format!("{} dead letters of {}", dead.len(), bad.len())) } else { Ok(()) }
    }

    fn validate(&self) -> String {
        let done = tidemill(&self.folder, &["validate", "--connect", "job.yaml"]);
        let said = self.shown(&done);
        assert_eq!(done.status.success(), !said.contains("lacks") && !said.contains("login"), "{said}");
        said
    }

    /// What was printed, which is never the password.
    fn shown(&self, done: &Output) -> String {
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        self.is_discreet(&said);
        said
    }

    fn is_discreet(&self, said: &str) {
        let password = std::fs::read_to_string(self.folder.join("password")).unwrap();
        assert!(!said.contains(password.trim()), "the password is shown: {said}");
    }

    /// Runs `kafka-acls.sh` as somebody who may.
    fn acls(&self, arguments: &str) {
        self.kafka.tool(Kafka::ACLS, &arguments.split_whitespace().collect::<Vec<_>>());
    }

    fn user(&self) -> String {
        format!("--allow-principal User:{}", self.kafka.sasl_user)
    }

    /// What the page on rights says is enough.
    fn grant_all(&self) {
        let (name, user) = (&self.name, self.user());
        self.acls(&format!("--add {user} --operation Read --topic {name}-in --group {name}-group"));
        self.acls(&format!("--add {user} --operation Write --topic {name}-out --topic {name}-dead"));
        let marks = format!("tidemill-marks-{name}");
        self.acls(&format!("--add {user} --operation Create --operation Read --operation Write --topic {marks}"));
        self.acls(&format!(
            "--add {user} --operation Write --transactional-id {marks}/ --resource-pattern-type prefixed"
        ));
    }

    /// Takes rights, sends, waits for what is said, gives them back, and waits until everything is there.
    fn takes_and_gives(&mut self, daemon: &mut Daemon, rights: &str, says: &str) {
        let user = self.user();
        self.acls(&format!("--remove --force {user} {rights}"));
        let began = Instant::now();
        self.send();
        eventually_within(LIMIT, || {
            assert!(daemon.is_running(), "{}", daemon.stderr());
            let said = daemon.stderr();
            if said.contains(says) { Ok(()) } else { Err(format!("{says} after {:?}: {said}", began.elapsed())) }
        });
        self.acls(&format!("--add {user} {rights}"));
        eventually_within(LIMIT, || self.count().map_err(|short| format!("{rights}: {short}\n{}", daemon.stderr())));
    }
}

fn eventually_within(limit: Duration, mut what: impl FnMut() -> Result<(), String>) {
    let began = Instant::now();
    while let Err(why) = what() {
        assert!(began.elapsed() < limit, "not in {limit:?}: {why}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The commands in a text, without the program's name and the address, which is that of the login.
fn commands(said: &str) -> BTreeSet<String> {
    let found = said.split('`').filter_map(|part| part.strip_prefix("kafka-acls.sh --bootstrap-server "));
    found.filter_map(|command| Some(command.split_once(' ')?.1.to_owned())).collect()
}

/// From nothing to a job that runs, by doing what the messages say; and nothing more was granted than what the page lists.
#[test]
fn validate_names_each_right_that_is_missing_and_its_command_gives_it() {
    let Some(mut trial) = Trial::new("rights") else { return };
    let mut given = BTreeSet::new();
    let mut rounds = Vec::new();
    loop {
        let said = trial.validate();
        let commands = commands(&said);
        if commands.is_empty() {
            assert!(said.contains("source in: reached") && said.contains("sink out: reached"), "{said}");
            break;
        }
        rounds.push(said);
        for command in commands {
            assert!(given.insert(command.clone()), "asked for twice: {command}\n{rounds:#?}");
            trial.acls(&command);
        }
        assert!(rounds.len() < 10, "{rounds:#?}");
    }
    let user = trial.user();
    let wanted = [
        "--operation Read --topic rights-in",
        "--operation Read --group rights-group",
        "--operation Write --topic rights-out",
        "--operation Write --topic rights-dead",
        "--operation Create --operation Read --operation Write --topic tidemill-marks-rights",
        "--operation Write --transactional-id tidemill-marks-rights/ --resource-pattern-type prefixed",
    ];
    assert_eq!(given, wanted.iter().map(|right| format!("--add {user} {right}")).collect(), "{rounds:#?}");
    assert!(rounds[0].contains("source in: user tidemill lacks Read on topic rights-in."), "{}", rounds[0]);
    trial.send();
    let mut daemon = Run::new(&trial.folder).job_file("job.yaml").limit(LIMIT).once();
    daemon.expect_success();
    trial.is_discreet(&(daemon.stderr() + &daemon.stdout()));
    trial.count().unwrap();
    // Now that the marks' topic is there, its rights are looked at too.
    for lacks in ["Write", "Read"] {
        trial.acls(&format!("--remove --force {user} --operation {lacks} --topic tidemill-marks-rights"));
        let said = trial.validate();
        assert!(said.contains(&format!("lacks {lacks} on topic tidemill-marks-rights.")), "{said}");
        trial.acls(&format!("--add {user} --operation {lacks} --topic tidemill-marks-rights"));
    }
}

#[test]
fn who_may_not_make_the_topic_of_the_marks_is_told_so() {
    let Some(trial) = Trial::new("maker") else { return };
    trial.grant_all();
    trial.acls(&format!("--remove --force {} --operation Create --topic tidemill-marks-maker", trial.user()));
    let said = trial.validate();
    assert!(said.contains("making the marks' topic tidemill-marks-maker"), "{said}");
    assert!(said.contains("user tidemill lacks Create on topic tidemill-marks-maker"), "{said}");
    // Somebody else makes it: the other way out.
    sink::make_topic(&trial.kafka.brokers, "tidemill-marks-maker", 9);
    let compacted = ["--alter", "--entity-type", "topics", "--entity-name", "tidemill-marks-maker"];
    trial.kafka.tool(Kafka::CONFIGS, &[&compacted[..], &["--add-config", "cleanup.policy=compact"]].concat());
    let said = trial.validate();
    assert!(said.contains("sink out: reached"), "{said}");
}

#[test]
fn a_wrong_password_is_named_and_not_shown() {
    let Some(trial) = Trial::new("login") else { return };
    trial.grant_all();
    trial.folder.write("password", "not-what-it-is\n");
    let said = trial.validate();
    assert!(said.contains("source in: the brokers do not accept the login"), "{said}");
    assert!(said.contains("sasl.password") && said.contains("the login was refused"), "{said}");
    // A daemon waits for the right one: it may be on its way.
    let mut daemon = Run::new(&trial.folder).job_file("job.yaml").start();
    eventually("what is wrong", || {
        let said = daemon.stderr();
        if said.contains("the brokers do not accept the login") { Ok(()) } else { Err(said) }
    });
    assert!(daemon.is_running());
    trial.is_discreet(&(daemon.stderr() + &daemon.stdout() + &daemon.get("/jobs").unwrap().body));
    daemon.term();
    daemon.wait();
}

#[test]
fn rights_to_read_that_are_taken_while_a_job_runs_are_waited_for_and_nothing_is_lost() {
    let Some(mut trial) = Trial::new("readers") else { return };
    trial.grant_all();
    trial.send();
    let mut daemon = Run::new(&trial.folder).job_file("job.yaml").limit(PATIENCE).spawn();
    eventually("a first batch", || trial.count());
    trial.takes_and_gives(&mut daemon, "--operation Read --topic readers-in", "lacks Read on topic readers-in.");
    trial.takes_and_gives(&mut daemon, "--operation Read --group readers-group", "lacks Read on group readers-group.");
    daemon.term();
    daemon.expect_success();
    trial.is_discreet(&daemon.stderr());
    trial.count().unwrap();
}

#[test]
fn rights_to_write_that_are_taken_while_a_job_runs_are_waited_for_and_nothing_is_lost() {
    let Some(mut trial) = Trial::new("writers") else { return };
    trial.grant_all();
    trial.send();
    let mut daemon = Run::new(&trial.folder).job_file("job.yaml").limit(PATIENCE).spawn();
    eventually("a first batch", || trial.count());
    let marks = "tidemill-marks-writers";
    for (rights, says) in [
        ("--operation Write --topic writers-out".to_owned(), "lacks Write on topic writers-out.".to_owned()),
        ("--operation Write --topic writers-dead".to_owned(), "lacks Write on topic writers-dead.".to_owned()),
        (format!("--operation Write --topic {marks}"), format!("lacks Write on topic {marks}.")),
        (
            format!("--operation Write --transactional-id {marks}/ --resource-pattern-type prefixed"),
            format!("lacks Write on transactional ids that begin with {marks}/."),
        ),
    ] {
        trial.takes_and_gives(&mut daemon, &rights, &says);
    }
    daemon.term();
    daemon.expect_success();
    trial.is_discreet(&daemon.stderr());
    trial.count().unwrap();
}
