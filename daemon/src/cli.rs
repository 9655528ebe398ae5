//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    checkpoint::{Operation, Request},
    control, demo, explain, feed, start,
};

/// Tidemill: a fault-tolerant ETL daemon. Micro-batches from sockets and directories through YAML-configured steps to
/// files and databases, each record exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "tidemill",
    version,
    after_help = "Start with `tidemill demo`. Exit codes: 0 done, 1 failed, 78 the configuration is wrong."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// Whether this process will hold batches.
    pub fn runs_jobs(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run jobs until told to stop (SIGTERM, SIGINT); SIGHUP reloads them
    Run(RunArguments),
    /// Check jobs without running them
    Validate {
        /// Job files
        #[arg(required = true)]
        jobs: Vec<PathBuf>,
        /// Also try to reach every sink; claims and creates nothing
        #[arg(long)]
        connect: bool,
        /// The daemon's file, whose `memory` the jobs have to fit into
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show a job's sources, steps, sinks, the schema after each step and each sink's guarantee
    Explain {
        /// The job file
        job: PathBuf,
    },
    /// Serve a file's records over TCP: the other end of a socket source
    Feed(FeedArguments),
    /// Look at the ledger and the marks, and the ways out of a stop
    Checkpoint(CheckpointArguments),
    /// Print the JSON Schema of jobs, for editors
    Schema,
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
    /// The job, by name or by file (default: the only one that the data dir knows)
    #[arg(long, value_name = "J", global = true)]
    job: Option<String>,
    /// The lane (default: all that the data dir has had, where something is shown; else the job's only one)
    #[arg(long, global = true)]
    lane: Option<String>,
    /// Act even where another owner holds the lane, and fence it
    #[arg(long, global = true)]
    take_over: bool,
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
    /// A way out of a stop
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
        /// Yes: records may be lost, or stay twice
        #[arg(long)]
        accept_loss: bool,
    },
    /// Set shards to positions
    Rewind {
        /// SHARD=POSITION; may be given again
        #[arg(long, required = true, value_name = "SHARD=POSITION")]
        to: Vec<String>,
    },
    /// The ledger forgets the job; marks in sinks stay
    Forget,
    /// Start over: every sink forgets its marks
    Reset {
        /// Yes, in every sink
        #[arg(long, required = true)]
        sinks: bool,
    },
}

/// Runs the command; the exit code.
pub async fn dispatch(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Run(arguments) => start::run(arguments).await,
        Command::Validate { jobs, connect, config } => {
            explain::validate(&jobs, connect, start::memory(config.as_deref())?).await
        }
        Command::Explain { job } => explain::explain(&job).await,
        Command::Feed(arguments) => serve(arguments).await,
        Command::Checkpoint(arguments) => checkpoint(arguments).await,
        Command::Schema => {
            println!("{}", serde_json::to_string_pretty(&tidemill_config::json_schema())?);
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
    let as_json = matches!(arguments.command, CheckpointCommand::Export | CheckpointCommand::Show { json: true });
    let files = start::job_files(&arguments.data_dir, arguments.job.as_deref())?;
    if files.len() > 1 && operation != Operation::Show {
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        anyhow::bail!("the data dir knows the jobs {}: say which with --job", names.join(", "));
    }
    for (job, file) in files {
        let request =
            Request { job, lane: arguments.lane.clone(), operation: operation.clone(), take_over: arguments.take_over };
        let answer = match control::send(&arguments.data_dir, &request)? {
            Some(answer) => answer,
            None => start::execute_here(&arguments.data_dir, &request, &file).await?,
        };
        if let Some(done) = answer.get("done").and_then(|done| done.as_str()) {
            println!("{done}");
        }
        let Some(lanes) = answer.get("lanes").and_then(|lanes| lanes.as_array()) else { continue };
        if lanes.is_empty() {
            eprintln!("job {}: this data dir has had no lane of it yet; --lane names one of another's", request.job);
        }
        for lane in lanes {
            if as_json {
                println!("{}", serde_json::to_string_pretty(lane)?);
            } else {
                print!("{}", explain::checkpoint_table(lane));
            }
        }
    }
    Ok(0)
}
