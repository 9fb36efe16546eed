//! The functions against tiktoken's and tokenizers' ids (tests/golden) and against `tallow_text::Tokenizer`, on every type of column.

mod functions;
mod program;
mod wrong;

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, UInt32Type};
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use serde_json::Value;

/// A file or folder of the repository.
fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn golden_json(name: &str) -> Value {
    let path = file("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids_of(ids: &Value) -> Vec<u32> {
    ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The paragraphs of assets/story.txt, English and Chinese.
fn story() -> Vec<String> {
    let text = std::fs::read_to_string(file("assets/story.txt")).unwrap();
    let paragraphs: Vec<String> = text.split("\n\n").map(str::to_string).collect();
    assert!(paragraphs.len() > 100 && paragraphs.iter().any(|text| text.contains("阿豆")));
    paragraphs
}

fn session() -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3));
    tallow_datafusion::register(&ctx, "cl100k").unwrap();
    ctx
}

/// A session with one table `t` of one column `x`, in as many partitions as there are arrays.
fn session_with(partitions: Vec<ArrayRef>) -> SessionContext {
    let batch = |column| RecordBatch::try_from_iter_with_nullable([("x", column, true)]).unwrap();
    let batches: Vec<Vec<RecordBatch>> = partitions.into_iter().map(|column| vec![batch(column)]).collect();
    let ctx = session();
    let table = MemTable::try_new(batches[0][0].schema(), batches).unwrap();
    ctx.register_table("t", Arc::new(table)).unwrap();
    ctx
}

async fn rows(ctx: &SessionContext, query: &str) -> Result<Vec<RecordBatch>> {
    ctx.sql(query).await?.collect().await
}

/// The first column of a query's result.
async fn column(ctx: &SessionContext, query: &str) -> ArrayRef {
    let frame = ctx.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let batch = datafusion::arrow::compute::concat_batches(&schema, &batches).unwrap();
    batch.column(0).clone()
}

/// A column of lists of ids, as `encode` returns them.
fn id_lists(column: &ArrayRef) -> Vec<Option<Vec<u32>>> {
    assert_eq!(column.data_type(), &DataType::new_list(DataType::UInt32, true));
    let lists = column.as_list::<i32>().iter();
    lists.map(|list| list.map(|ids| ids.as_primitive::<UInt32Type>().values().to_vec())).collect()
}
