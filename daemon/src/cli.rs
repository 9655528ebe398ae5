//! The command line.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    checkpoint::{Operation, Request},
    control::{self, Answer},
    demo, explain, feed,
    start::{self, KnownJob, Told},
};

/// Tidemill: a fault-tolerant ETL daemon. Micro-batches from sockets and directories through YAML-configured steps to
/// files and databases, each record exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "tidemill",
    version,
    after_help = "Start with `tidemill demo`. Exit codes: 0 done, 1 failed, 2 a wrong option, 65 records were rejected (with \
                  --fail-on-rejects), 78 the configuration is wrong."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run jobs until told to stop (SIGTERM, SIGINT); SIGHUP reloads them, and starts those again that had stopped
    Run(RunArguments),
    /// Check jobs without running them
    Validate {
        /// Job files
        #[arg(required_unless_present = "config")]
        jobs: Vec<PathBuf>,
        /// The daemon's own file: checked itself, and with it the jobs that it names
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also reach every source, lookup and sink, and compare columns where they are known; claims and creates nothing
        #[arg(long)]
        connect: bool,
    },
    /// Show a job's sources, steps, sinks, the schema after each step and each sink's guarantee
    Explain {
        /// The job file
        job: PathBuf,
    },
    /// Serve a file's records over TCP: the other end of a socket source
    Feed(FeedArguments),
    /// Inspect what each sink holds, and resolve a stopped job
    Checkpoint(CheckpointArguments),
    /// Start a job of a running daemon again, from the text that its file has now: where it stopped, and the cause is fixed
    Restart {
        /// Jobs, by name
        #[arg(required = true)]
        jobs: Vec<String>,
        /// The daemon's data dir
        #[arg(long, value_name = "DIR", default_value = start::DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Print the JSON Schema of jobs, for editors
    Schema {
        /// That of the daemon's own file
        #[arg(long)]
        config: bool,
    },
    /// The main job with nothing set up: feeds posts, cleans them, prints each second's first ten, stores them, counts them
    Demo {
        /// Where the demo's files go (default: a new folder in the temporary directory)
        #[arg(long)]
        dir: Option<PathBuf>,
        /// How long posts are fed, seconds
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(3..=3600))]
        seconds: u64,
    },
}

/// `tidemill run`
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Job files; those of the daemon's file where none is given
    pub jobs: Vec<PathBuf>,
    /// The daemon's own file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ledger, spools and dead letters (default: `tidemill-data`)
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where HTTP listens: /metrics, /live, /ready, /jobs (default: 127.0.0.1:9720; not with --once)
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Work off what is there (a socket: until its peer closes), then exit
    #[arg(long)]
    pub once: bool,
    /// Take lanes at once that another owner holds, and fence it
    #[arg(long)]
    pub take_over: bool,
    /// With --once: exit with 65 where all was done and records were rejected
    #[arg(long, requires = "once")]
    pub fail_on_rejects: bool,
    /// With --once: how long a server that cannot be reached (or another owner of a lane) is waited for, e.g. 30s, 10m. Then
    /// the job has failed
    #[arg(long, value_name = "TIME", requires = "once", default_value = "5m", value_parser = tidemill_config::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
struct FeedArguments {
    /// The file; `-` is standard input
    file: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// What ends a record, sent after each; a file that has none of it is fed line by line
    #[arg(long, default_value = "\\n")]
    delimiter: String,
    /// Records per second (default: as fast as the client reads)
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Begin again at the end of the file
    #[arg(long = "loop")]
    repeat: bool,
    /// The file is JSON: send the first of these fields that a record has
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    field: Vec<String>,
}

#[derive(Debug, Args)]
struct CheckpointArguments {
    #[command(subcommand)]
    command: CheckpointCommand,
    /// The data dir
    #[arg(long, value_name = "DIR", global = true, default_value = start::DATA_DIR)]
    data_dir: PathBuf,
    /// The job, by name or by file (default: the only one that the data dir knows). Needed, as a file, where the data dir
    /// was moved or copied
    #[arg(long, value_name = "J", global = true)]
    job: Option<String>,
    /// The lane (default: all that the data dir has had, where something is shown; else the job's only one)
    #[arg(long, global = true)]
    lane: Option<String>,
    /// For commands that change something: act even where another owner holds the lane, and fence it
    #[arg(long, global = true)]
    take_over: bool,
    /// For commands that change something: do not ask. Without it a terminal is asked, and where there is none the command
    /// ends with exit code 1
    #[arg(long, short, global = true, overrides_with = "yes")]
    yes: bool,
    /// For commands that change something: say what would be changed, and change nothing
    #[arg(long, global = true, overrides_with = "dry_run")]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// Plans, positions and generations of each lane, in the ledger and in every sink
    Show {
        /// As JSON, an object for each lane
        #[arg(long)]
        json: bool,
    },
    /// All of it as JSON, an object for each lane
    Export,
    /// Resolve a stop: say how a sink, the anchor or a shard goes on. Says what it changes, and asks
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Resolve {
        /// A sink that is not at the head
        #[arg(long, value_name = "S", group = "what")]
        sink: Option<String>,
        /// The sink goes on from the head; what it lacks, it lacks
        #[arg(long, requires = "sink", conflicts_with = "catch_up")]
        join: bool,
        /// The sink is brought to the head by batches of its own
        #[arg(long, requires = "sink")]
        catch_up: bool,
        /// This sink is the anchor from now on, its mark the head
        #[arg(long, value_name = "S", group = "what")]
        anchor: Option<String>,
        /// A shard that cannot be read where it stands
        #[arg(long, value_name = "U", group = "what")]
        shard: Option<String>,
        /// The machine's clock is right: batches go on from it, also where the last one's time was ahead of it
        #[arg(long, group = "what")]
        clock: bool,
        /// With --sink: the sink goes on from the head, and what it lacks is lost to it. With --shard: records of the shard
        /// that were not read are lost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Set shards to positions: older ones, whose records are read again, or newer ones, which leaves records out. Says what
    /// it changes, and asks
    Rewind {
        /// SHARD=POSITION, of a position that exists; may be given again
        #[arg(long, required = true, value_name = "SHARD=POSITION")]
        to: Vec<String>,
    },
    /// The ledger forgets the job, or the lane; marks in sinks stay. Says what it changes, and asks
    Forget,
    /// Start over: the marks of the job are removed from every sink. Says what it changes, and asks
    Reset {
        /// Remove the marks in all sinks of the job (required: there is no other kind of reset)
        #[arg(long, required = true)]
        sinks: bool,
    },
}

/// Runs the command; the exit code.
pub async fn dispatch(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Run(arguments) => start::run(arguments).await,
        Command::Validate { jobs, config, connect } => {
            let jobs = match &config {
                Some(config) => explain::jobs_of_config(config, jobs)?,
                None => jobs,
            };
            explain::validate(&jobs, connect).await
        }
        Command::Explain { job } => explain::explain(&job).await,
        Command::Feed(arguments) => serve(arguments).await,
        Command::Checkpoint(arguments) => checkpoint(arguments).await,
        Command::Restart { jobs, data_dir } => restart(&jobs, &data_dir),
        Command::Schema { config } => {
            let schema = if config { tidemill_config::daemon_json_schema() } else { tidemill_config::json_schema() };
            println!("{}", serde_json::to_string_pretty(&schema)?);
            Ok(0)
        }
        Command::Demo { dir, seconds } => demo::run(dir, seconds).await,
    }
}

async fn serve(arguments: FeedArguments) -> anyhow::Result<u8> {
    let delimiter =
        arguments.delimiter.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t").replace("\\0", "\0");
    if let Some(rate) = arguments.rate.filter(|rate| !rate.is_finite() || *rate <= 0.0) {
        anyhow::bail!("--rate {rate}: records per second must be more than 0");
    }
    let feed = feed::Feed {
        file: arguments.file,
        delimiter: delimiter.into_bytes(),
        rate: arguments.rate,
        repeat: arguments.repeat,
        fields: arguments.field,
    };
    feed::serve(feed, &arguments.listen).await?;
    Ok(0)
}

fn restart(jobs: &[String], data_dir: &Path) -> anyhow::Result<u8> {
    for job in jobs {
        match control::send_restart(data_dir, job)? {
            Answer::Done(answer) => println!("{}", answer["done"].as_str().unwrap_or_default()),
            Answer::NotRun(why) => anyhow::bail!("{why}"),
            Answer::NoDaemon => anyhow::bail!(
                "no daemon has the data dir {}: name that of the daemon with --data-dir, or start one with `tidemill run`",
                data_dir.display()
            ),
        }
    }
    Ok(0)
}

impl CheckpointCommand {
    fn operation(&self) -> anyhow::Result<Operation> {
        Ok(match self {
            Self::Show { .. } | Self::Export => Operation::Show,
            Self::Resolve { sink: Some(sink), catch_up: true, .. } => Operation::CatchUp(sink.clone()),
            Self::Resolve { sink: Some(sink), join, accept_loss, .. } if *join || *accept_loss => {
                Operation::JoinSink(sink.clone())
            }
            Self::Resolve { sink: Some(sink), .. } => {
                anyhow::bail!("say how {sink} goes on: --join, --catch-up or --accept-loss")
            }
            Self::Resolve { anchor: Some(anchor), .. } => Operation::Anchor(anchor.clone()),
            Self::Resolve { shard: Some(shard), accept_loss: true, .. } => Operation::DropShard(shard.clone()),
            Self::Resolve { clock: true, .. } => Operation::Clock,
            Self::Resolve { .. } => {
                anyhow::bail!("records of the shard that were not read are lost: say --accept-loss")
            }
            Self::Rewind { to } => {
                let pairs = to.iter().map(|pair| {
                    let (shard, position) =
                        pair.split_once('=').ok_or_else(|| anyhow::anyhow!("--to {pair}: expected SHARD=POSITION"))?;
                    Ok((shard.to_owned(), position.to_owned()))
                });
                Operation::Rewind(pairs.collect::<anyhow::Result<_>>()?)
            }
            Self::Forget => Operation::Forget,
            Self::Reset { .. } => Operation::Reset,
        })
    }
}

async fn checkpoint(arguments: CheckpointArguments) -> anyhow::Result<u8> {
    // What it finds on its way (a damaged ledger, a file that is gone) is said here too.
    start::init_logs(false, "warn")?;
    let operation = arguments.command.operation()?;
    let jobs = start::named_jobs(&arguments.data_dir, arguments.job.as_deref())?;
    if jobs.len() > 1 && operation != Operation::Show {
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        anyhow::bail!("the data dir knows the jobs {}: say which with --job", names.join(", "));
    }
    let only = jobs.len() == 1;
    let mut shown = 0;
    for job in jobs {
        let request = Request {
            job: job.name.clone(),
            // The daemon may have another working directory.
            file: (job.told == Told::Named).then(|| job.file.canonicalize().unwrap_or_else(|_| job.file.clone())),
            lane: arguments.lane.clone(),
            operation: operation.clone(),
            take_over: arguments.take_over,
            dry_run: false,
        };
        if operation != Operation::Show {
            return change(&arguments, &job, request).await;
        }
        match ask(&arguments.data_dir, &job, &request).await {
            Ok(answer) => {
                show(&arguments, &job.name, &answer)?;
                shown += 1;
            }
            Err(error) if !only => eprintln!("job {}: {error:#}", job.name),
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(shown > 0, "none of the jobs that {} knows can be shown", arguments.data_dir.display());
    Ok(0)
}

/// Sends a request to the daemon that has the data dir, or does the work here.
async fn ask(data_dir: &Path, job: &KnownJob, request: &Request) -> anyhow::Result<serde_json::Value> {
    match control::send(data_dir, request)? {
        Answer::Done(answer) => Ok(answer),
        Answer::NotRun(why) => anyhow::bail!("{why}"),
        Answer::NoDaemon => {
            let file = job.certain_file(data_dir, request.operation == Operation::Show)?;
            start::execute_here(data_dir, request, file).await
        }
    }
}

fn show(arguments: &CheckpointArguments, job: &str, answer: &serde_json::Value) -> anyhow::Result<()> {
    let as_json = matches!(arguments.command, CheckpointCommand::Export | CheckpointCommand::Show { json: true });
    let Some(lanes) = answer.get("lanes").and_then(|lanes| lanes.as_array()) else { return Ok(()) };
    if lanes.is_empty() {
        eprintln!("job {job}: this data dir has had no lane of it yet; --lane names one of another's");
    }
    for lane in lanes {
        if as_json {
            println!("{}", serde_json::to_string_pretty(lane)?);
        } else {
            print!("{}", explain::checkpoint_table(lane));
        }
    }
    Ok(())
}

/// Says what will be changed, and changes it once the operator has agreed.
async fn change(arguments: &CheckpointArguments, job: &KnownJob, request: Request) -> anyhow::Result<u8> {
    let preview = ask(&arguments.data_dir, job, &Request { dry_run: true, ..request.clone() }).await?;
    let lines = preview.get("changes").and_then(|changes| changes.as_array());
    let lines: Vec<_> = lines.into_iter().flatten().filter_map(|line| line.as_str()).collect();
    println!("this {}:", if arguments.dry_run { "would change" } else { "changes" });
    lines.iter().for_each(|line| println!("  {line}"));
    if arguments.dry_run {
        println!("nothing was changed: --dry-run");
        return Ok(0);
    }
    if !arguments.yes && !agrees()? {
        anyhow::bail!("nothing was changed. To go on, give the same command with --yes");
    }
    let answer = ask(&arguments.data_dir, job, &request).await?;
    if let Some(done) = answer.get("done").and_then(|done| done.as_str()) {
        println!("{done}");
    }
    Ok(0)
}

/// Asks on a terminal; where there is none, nobody agrees.
fn agrees() -> anyhow::Result<bool> {
    let (input, mut output) = (std::io::stdin(), std::io::stderr());
    if !input.is_terminal() || !output.is_terminal() {
        return Ok(false);
    }
    write!(output, "Go on? [y/N] ")?;
    output.flush()?;
    // A line and no more: what follows belongs to the shell.
    let mut answer = String::new();
    input.read_line(&mut answer).map(drop)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
