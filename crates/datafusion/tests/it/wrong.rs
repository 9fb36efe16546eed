//! Arguments that are wrong are one line that says what to do.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, ListArray, StringArray};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;

use crate::{rows, session, session_with};

async fn error(ctx: &SessionContext, query: &str) -> String {
    let error = rows(ctx, query).await.expect_err(query);
    error.find_root().strip_backtrace()
}

#[tokio::test]
async fn wrong_arguments_are_one_line_while_the_query_is_planned() {
    let text = session_with(vec![Arc::new(StringArray::from(vec!["cl100k"]))]);
    let number = session_with(vec![Arc::new(Int64Array::from(vec![1]))]);
    for (ctx, call, line) in [
        (
            &number,
            "token_count(x)",
            "token_count takes text: token_count(CAST(… AS VARCHAR)) takes any column; this argument is of type Int64",
        ),
        (
            &number,
            "bytes_per_token(x)",
            "bytes_per_token takes text: bytes_per_token(CAST(… AS VARCHAR)) takes any column; this argument is of type Int64",
        ),
        (
            &text,
            "decode(x)",
            "decode takes a list of integers, such as the result of encode; this argument is of type Utf8",
        ),
        (
            &text,
            "decode([x])",
            "decode takes a list of integers, such as the result of encode; this argument is of type List(Utf8)",
        ),
        (&text, "encode(x, x)", "encode: the tokenizer must be a literal such as 'cl100k', not a column"),
        (&text, "encode(x, 7)", "encode: the tokenizer must be a string such as 'cl100k'"),
        (&text, "encode(x, NULL)", "encode: the tokenizer must be a string such as 'cl100k'"),
        (
            &text,
            "encode(x, 'base64')",
            "encode: there is no tokenizer \"base64\": name cl100k, o200k, gpt2, a tokenizer.json or .tiktoken file, or a folder with a \
             tokenizer.json",
        ),
        (&text, "encode(x, 'cl100k', 'gpt2')", "encode takes 1 or 2 arguments, not 3: encode(text[, tokenizer])"),
        (&text, "decode(encode(x), 'cl100k', 1)", "decode takes 1 or 2 arguments, not 3: decode(ids[, tokenizer])"),
        (&text, "encode()", "encode takes 1 or 2 arguments, not 0: encode(text[, tokenizer])"),
    ] {
        for query in [format!("SELECT {call} FROM t"), format!("SELECT 1 FROM t WHERE {call} IS NULL")] {
            // Not even planned: nothing was read.
            let planned = async { ctx.sql(&query).await?.create_physical_plan().await };
            assert!(planned.await.is_err(), "{query}");
            assert_eq!(error(ctx, &query).await, format!("Error during planning: {line}"), "{query}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let torn = folder.path().join("torn.json");
    std::fs::write(&torn, "{\"version\":").unwrap();
    let line = error(&text, &format!("SELECT encode(x, '{}') FROM t", torn.display())).await;
    assert!(line.contains("torn.json: not a usable tokenizer.json") && !line.contains('\n'), "{line}");
    let error = tallow_datafusion::register(&SessionContext::new(), "cl200k").unwrap_err().to_string();
    assert!(error.starts_with("Error during planning: there is no tokenizer \"cl200k\": name cl100k, "), "{error}");
}

#[tokio::test]
async fn ids_without_a_token_are_one_line() {
    let lists = |ids: &[Option<i64>]| {
        let lists = [None, Some(vec![Some(9906)]), Some(ids.to_vec())];
        session_with(vec![Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)) as ArrayRef])
    };
    let correct = "is not an id of cl100k_base: correct the list, or filter it out";
    let other = "name the tokenizer that made the ids: decode(ids, 'NAME')";
    for (ids, line) in [
        (&[Some(5), Some(-1)][..], format!("-1 at position 1 of a list {correct}")),
        (&[Some(1 << 40)], format!("1099511627776 at position 0 of a list {correct}")),
        (&[Some(5), Some(6), None], format!("NULL at position 2 of a list {correct}")),
        (
            &[Some(5), Some(199_000)],
            format!("id 199000 at position 1 is not a token of cl100k_base, whose largest id is 100276; {other}"),
        ),
    ] {
        assert_eq!(error(&lists(ids), "SELECT decode(x) FROM t").await, format!("Execution error: decode: {line}"));
    }
    let line = error(&session(), "SELECT decode([9906, -1])").await;
    assert_eq!(line, format!("Execution error: decode: -1 at position 1 of a list {correct}"));
    // Below a null there is nothing to decode.
    let ctx = lists(&[Some(1917)]);
    assert_eq!(rows(&ctx, "SELECT decode(x) FROM t").await.unwrap()[0].num_rows(), 3);
}
