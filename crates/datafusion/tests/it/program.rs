//! The program `tallow-sql`.

use std::process::{Command, Output};

use crate::file;

fn sql(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tallow-sql")).args(args).output().unwrap()
}

/// What a query prints; nothing on standard error, which is no terminal.
fn printed(args: &[&str]) -> String {
    let output = sql(args);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.is_empty(), "{args:?}: {err}");
    out
}

fn table(name: &str, path: &str) -> String {
    format!("--table={name}={}", file("tests/golden").join(path).display())
}

#[test]
fn it_counts_in_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(own("a.csv"), "id,text\n1,Hello world\n2,\n").unwrap();
    std::fs::write(own("b.json"), "{\"text\": \"Hello world\"}\n{\"text\": null}\n").unwrap();
    std::fs::copy(own("b.json"), own("c.ndjson")).unwrap();
    std::fs::copy(own("b.json"), own("d.ndjson")).unwrap();
    let query = "SELECT sum(token_count(text)) AS tokens FROM docs";
    // tiktoken's count, without the separator behind each of the 117 documents.
    for (table, tokens) in [
        (table("docs", "corpus.parquet"), 10229 - 117),
        (table("docs", "corpus.jsonl"), 10229 - 117),
        (format!("--table=docs={}", own("a.csv")), 2),
        (format!("--table=docs={}", own("b.json")), 2),
        (format!("--table=docs={}", own("*.ndjson")), 4),
    ] {
        assert_eq!(printed(&[query, &table, "--json"]), format!("{{\"tokens\":{tokens}}}\n"), "{table}");
    }
}

#[test]
fn it_prints_a_table_or_lines() {
    let query = "SELECT text, token_count(text) AS tokens, encode(text) AS ids, decode(NULL) AS none \
                 FROM (VALUES ('Hello world'), ('a\u{1b}[31m')) AS t(text) ORDER BY tokens";
    assert_eq!(
        printed(&[query]),
        "+-------------+--------+-----------------------+------+
| text        | tokens | ids                   | none |
+-------------+--------+-----------------------+------+
| Hello world | 2      | [9906, 1917]          |      |
| a\u{FFFD}[31m      | 4      | [64, 91535, 2148, 76] |      |
+-------------+--------+-----------------------+------+
"
    );
    assert_eq!(
        printed(&[&query.replace("ORDER BY", "WHERE text LIKE 'Hello%' ORDER BY"), "--json", "--tokenizer", "gpt2"]),
        "{\"text\":\"Hello world\",\"tokens\":2,\"ids\":[15496,995],\"none\":null}\n"
    );
    let two = [table("a", "corpus.parquet"), table("b", "corpus.jsonl")];
    let joined = "SELECT count(*) AS n FROM a JOIN b ON a.id = b.id AND encode(a.text) = encode(b.text)";
    assert_eq!(printed(&[joined, &two[0], &two[1], "--json"]), "{\"n\":120}\n");
    assert_eq!(printed(&["SELECT id FROM a WHERE id < 0", &two[0]]), "+----+\n| id |\n+----+\n+----+\n");
}

#[test]
fn wrong_commands_are_one_line() {
    let docs = table("docs", "corpus.parquet");
    for (args, line) in [
        (&["SELECT token_count(id) FROM docs", &docs][..], "error: Error during planning: token_count takes text"),
        (&["SELECT decode([199000])"], "error: Execution error: decode: id 199000 at position 0 is not a token"),
        (&["SELECT 1", "--tokenizer", "cl200k"], "error: Error during planning: there is no tokenizer \"cl200k\""),
        (&["SELECT 1", "--table", "docs=a.txt"], "error: Execution error: --table docs=a.txt: the path must end in"),
        (&["SELECT 1", "--table", "docs=absent.parquet"], "error: Execution error: --table docs=absent.parquet: "),
        (
            &["SELECT 1", "--table", "docs=absent-*.jsonl"],
            "error: Execution error: --table docs=absent-*.jsonl: No files found",
        ),
        (&["SELEC 1"], "error: "),
        (
            &["SELECT absent FROM docs", &docs],
            "error: Schema error: No field named absent. Valid fields are docs.id, docs.text.",
        ),
        (&["SELECT x FROM absent"], "error: Error during planning: table 'datafusion.public.absent' not found"),
    ] {
        let output = sql(args);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(err.starts_with(line) && err.trim_end().lines().count() == 1, "{args:?}: {err}");
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{args:?}");
    }
    assert_eq!(sql(&["SELECT 1", "--table", "docs"]).status.code(), Some(2));
}
