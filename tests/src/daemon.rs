//! The daemon as a child process: started, asked, killed, stopped, ended.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Folder, PATIENCE, binary, eventually, free_port, http};

/// How the daemon is to be started: `tidemill run JOB ... --data-dir D --http ADDR`, in the folder.
#[derive(Clone, Debug)]
pub struct Run {
    folder: PathBuf,
    jobs: Vec<PathBuf>,
    data_dir: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    limit: Duration,
}

impl Run {
    /// No job yet; the data dir is `data` in the folder.
    pub fn new(folder: &Folder) -> Self {
        Self {
            folder: folder.path().to_owned(),
            jobs: Vec::new(),
            data_dir: folder.join("data"),
            arguments: Vec::new(),
            environment: Vec::new(),
            limit: PATIENCE,
        }
    }

    /// Writes a job into the folder, as `job.yaml`, `job-2.yaml`, ..., and runs it.
    #[must_use]
    pub fn job(mut self, yaml: &str) -> Self {
        let number = self.jobs.len() + 1;
        let name = if number == 1 { "job.yaml".to_owned() } else { format!("job-{number}.yaml") };
        let path = self.folder.join(name);
        fs::write(&path, yaml).unwrap();
        self.jobs.push(path);
        self
    }

    /// Runs a job that lies somewhere.
    #[must_use]
    pub fn job_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.jobs.push(path.into());
        self
    }

    /// Another data dir; relative to the folder.
    #[must_use]
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.data_dir = self.folder.join(path);
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// `--take-over`: claims at once, whoever owns the sinks.
    #[must_use]
    pub fn take_over(self) -> Self {
        self.arg("--take-over")
    }

    /// One environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Arms a failpoint: `NAME:N:ACTION`.
    #[must_use]
    pub fn failpoint(self, point: &str) -> Self {
        self.env("TIDEMILL_FAILPOINT", point)
    }

    /// How long [`Run::once`] may take, instead of [`PATIENCE`].
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it and returns at once.
    pub fn start(&self) -> Daemon {
        static STARTS: AtomicUsize = AtomicUsize::new(1);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let logs = self.folder.join("log");
        fs::create_dir_all(&logs).unwrap();
        let (out, err) = (logs.join(format!("{start}.out")), logs.join(format!("{start}.err")));
        let port = free_port();
        let mut command = Command::new(binary::tidemill());
        command.arg("run").args(&self.jobs).arg("--data-dir").arg(&self.data_dir);
        command.arg("--http").arg(format!("127.0.0.1:{port}")).args(&self.arguments);
        command.env_remove("TIDEMILL_FAILPOINT").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.folder).stdin(Stdio::null());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Daemon { child, port, out, err, limit: self.limit, ended: None }
    }

    /// Starts it and waits until it is ready.
    pub fn spawn(&self) -> Daemon {
        let mut daemon = self.start();
        daemon.wait_ready();
        daemon
    }

    /// Runs with `--once` to the end. See [`Daemon::expect_success`].
    pub fn once(&self) -> Daemon {
        let mut daemon = self.clone().arg("--once").start();
        daemon.wait();
        daemon
    }
}

/// A daemon that was started; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    port: u16,
    out: PathBuf,
    err: PathBuf,
    limit: Duration,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its HTTP listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All that it printed to stdout until now.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// All that it logged to stderr until now.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Gets a path from its HTTP, whatever the status.
    pub fn get(&self, path: &str) -> std::io::Result<http::Answer> {
        http::get(self.port, path)
    }

    /// The value of a metric (see [`http::sample`]); 0 where it is absent.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.get("/metrics").unwrap();
        http::sample(&answer.body, name, labels).unwrap_or(0.0)
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Panics
    /// Where the daemon ends first, or never is.
    pub fn wait_ready(&mut self) {
        self.wait_status("/ready", 200);
    }

    /// Waits until `path` answers with this status; returns the answer.
    ///
    /// # Panics
    /// Where the daemon ends first, or never does.
    pub fn wait_status(&mut self, path: &str, status: u16) -> http::Answer {
        eventually(&format!("{path} to answer {status}"), || {
            if let Some(status) = self.poll() {
                panic!("the daemon ended with {status}:\n{}\n{}", self.stdout(), self.stderr());
            }
            match self.get(path) {
                Ok(answer) if answer.status == status => Ok(answer),
                Ok(answer) => Err(format!("{} {}\n{}", answer.status, answer.body, self.stderr())),
                Err(e) => Err(format!("{e}\n{}", self.stderr())),
            }
        })
    }

    /// The exit status, where it has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Whether it runs (or is stopped).
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it does not end in time: it is killed, and what it said is shown.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.poll() {
                return status;
            }
            if start.elapsed() > self.limit {
                self.kill9();
                panic!("the daemon did not end in {:?}:\n{}\n{}", self.limit, self.stdout(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end, which must be exit code 0.
    ///
    /// # Panics
    /// Where it is another.
    pub fn expect_success(&mut self) {
        self.expect_code(0);
    }

    /// Waits for its end, which must be this exit code.
    ///
    /// # Panics
    /// Where it is another, with what it said.
    pub fn expect_code(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "{status}:\n{}\n{}", self.stdout(), self.stderr());
    }

    /// Waits for it to die of a failpoint's SIGKILL.
    ///
    /// # Panics
    /// Where it ends in another way: the failpoint was not reached.
    pub fn expect_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = self.wait();
        let signal = status.signal();
        assert_eq!(signal, Some(9), "{status}, not a kill:\n{}\n{}", self.stdout(), self.stderr());
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }

    /// SIGSTOP.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM.
    pub fn term(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGINT: what Ctrl-C sends.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// SIGHUP.
    pub fn hup(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        // A child that has ended but was not waited for still has its id, so no stranger is hit.
        if self.ended.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot send {signal:?} to {pid:?}: {e}"));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon said ({}):\n{}", self.err.display(), self.stderr());
        }
    }
}

/// Runs any other command of the binary in a folder, to its end.
pub fn tidemill(folder: &Folder, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(binary::tidemill());
    command.args(arguments).current_dir(folder.path()).stdin(Stdio::null()).env_remove("TIDEMILL_FAILPOINT");
    command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"))
}
