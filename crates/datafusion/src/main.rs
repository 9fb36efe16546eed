//! The program `tallow-sql`: SQL over files, with tallow's functions, in one process.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionContext};
use futures_util::StreamExt;

/// Runs one SQL query over Parquet, CSV and JSON Lines files.
///
/// Beside DataFusion's functions there are token_count(text), encode(text), decode(ids) and bytes_per_token(text). A second argument names
/// another tokenizer than --tokenizer.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The query, such as "SELECT sum(token_count(text)) FROM docs"
    query: String,
    /// A table: a file, or a quoted pattern such as 'docs=corpus/*.parquet'. Its name ends in .parquet, .csv (with a header), or in .json, .jsonl
    /// or .ndjson (an object per line)
    #[arg(long = "table", value_name = "NAME=PATH", value_parser = name_and_path)]
    tables: Vec<(String, String)>,
    /// cl100k, o200k, gpt2, a tokenizer.json or .tiktoken file, or a folder with a tokenizer.json
    #[arg(long, value_name = "FILE", default_value = "cl100k")]
    tokenizer: String,
    /// Print a JSON object per row, in place of a table
    #[arg(long)]
    json: bool,
}

fn name_and_path(text: &str) -> Result<(String, String), String> {
    let both = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    both.map(|(name, path)| (name.to_string(), path.to_string())).ok_or_else(|| "write NAME=PATH".to_string())
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = error.find_root().strip_backtrace();
            eprintln!("error: {}", message.lines().collect::<Vec<_>>().join(" "));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let ctx = SessionContext::new();
    tallow_datafusion::register(&ctx, &args.tokenizer)?;
    for (name, path) in &args.tables {
        add_table(&ctx, name, path).await?;
    }
    let plan = ctx.sql(&args.query).await?.create_physical_plan().await?;
    let mut batches = execute_stream(plan.clone(), ctx.task_ctx())?;
    // Where rows appear on the same terminal at once, they are the progress.
    let silent = !stderr().is_terminal() || args.json && stdout().is_terminal();
    let progress = (!silent).then(|| tokio::spawn(show_progress(plan)));
    let (schema, mut kept) = (batches.schema(), Vec::new());
    let result = loop {
        match batches.next().await {
            Some(Ok(batch)) if args.json => {
                let mut lines = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
                lines.write(&batch)?;
                lines.finish()?;
                print(&lines.into_inner())?;
            }
            Some(Ok(batch)) => kept.push(batch),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    if let Some(progress) = progress {
        progress.abort();
        let _ = progress.await; // it was aborted
        eprint!("\r\x1b[K");
    }
    result?;
    if !args.json {
        let table = pretty_format_batches_with_schema(schema, &kept)?.to_string();
        // Control characters of a corpus do not reach the terminal.
        print(table.replace(|c: char| c.is_control() && c != '\n', "\u{FFFD}").as_bytes())?;
        print(b"\n")?;
    }
    Ok(())
}

async fn add_table(ctx: &SessionContext, name: &str, path: &str) -> Result<()> {
    let ending = Path::new(path).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    // Without it DataFusion takes a file of another ending for a file without rows.
    let extension = format!(".{ending}");
    let added = match ending {
        "parquet" => ctx.register_parquet(name, path, ParquetReadOptions::default()).await,
        "csv" => ctx.register_csv(name, path, CsvReadOptions::new()).await,
        "json" | "jsonl" | "ndjson" => {
            ctx.register_json(name, path, JsonReadOptions::default().file_extension(&extension)).await
        }
        _ => exec_err!("the path must end in .parquet, .csv, .json, .jsonl or .ndjson"),
    };
    added.map_err(|error| exec_datafusion_err!("--table {name}={path}: {}", error.find_root().message()))?;
    if ctx.table(name).await?.schema().fields().is_empty() {
        return exec_err!("--table {name}={path}: the files are empty");
    }
    Ok(())
}

/// Writes to standard output. If nobody reads it any more, the program ends.
fn print(bytes: &[u8]) -> Result<()> {
    match stdout().lock().write_all(bytes) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Rows that the scans of a plan have read.
fn rows_read(plan: &Arc<dyn ExecutionPlan>) -> usize {
    match plan.children() {
        children if children.is_empty() => plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0),
        children => children.into_iter().map(rows_read).sum(),
    }
}

async fn show_progress(plan: Arc<dyn ExecutionPlan>) {
    let start = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        eprint!("\r{} rows read, {:.0} s\x1b[K", rows_read(&plan), start.elapsed().as_secs_f64());
    }
}
