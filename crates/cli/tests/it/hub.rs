//! The environment of the Hub's clients, as a user sets it.

use std::path::Path;

use crate::server::{Fault, Server, small};

/// The environment, as a user sets it, through the binary.
#[test]
fn the_environment_is_honoured() {
    let tokenizer = std::fs::read(crate::support::golden("byte_level.json")).unwrap();
    let server = Server::new(&[("model.safetensors", small()), ("tokenizer.json", tokenizer)], Fault::None);
    let home = tempfile::tempdir().unwrap();
    let (out, secret) = (home.path().join("rows.safetensors"), home.path().join("secret"));
    std::fs::write(&secret, "hf_from_file\n").unwrap();
    let tallow = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        for name in
            ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"]
        {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", format!("{}/", server.hub.endpoint))
            .env("HF_HOME", home.path())
            .env("HF_TOKEN_PATH", &secret);
        let output = command.envs(env.iter().copied()).args(args).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let pull = ["pull", "owner/name", "-o", out.to_str().unwrap()];
    let token = || server.asked().iter().find_map(|asked| asked.token.clone());
    let (ok, said) = tallow(&pull, &[]);
    assert!(ok && said.contains("50 rows x 8 columns of transformer.wte.weight, f32"), "{said}");
    assert_eq!(token().unwrap(), "Bearer hf_from_file");
    assert!(home.path().join("hub/models--owner--name/tallow").is_dir());
    // The second call asks nobody, online or not.
    for env in [&[][..], &[("HF_HUB_OFFLINE", "1")]] {
        let (ok, said) = tallow(&pull, env);
        assert!(ok && server.asked().is_empty(), "{said}");
    }
    let (ok, said) = tallow(&["pull", "owner/other", "-o", "x"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(!ok && said.contains("HF_HUB_OFFLINE") && said.lines().count() == 1, "{said}");
    // HF_TOKEN comes before the file. HF_HUB_DISABLE_IMPLICIT_TOKEN sends no token.
    let other = home.path().join("other").display().to_string();
    assert!(tallow(&pull, &[("HF_TOKEN", "hf_from_env"), ("HF_HUB_CACHE", &other)]).0);
    assert_eq!(token().unwrap(), "Bearer hf_from_env");
    let third = home.path().join("third").display().to_string();
    assert!(tallow(&pull, &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_HUB_CACHE", &third)]).0);
    assert_eq!(token(), None);
    // A tokenizer by the repository's name.
    let (ok, said) = tallow(&["encode", "-", "--tokenizer", "owner/name"], &[]);
    assert!(ok, "{said}");
    let (ok, said) = tallow(&["neighbors", "owner/name", "7", "--ids", "-k", "2"], &[]);
    assert!(ok && said.lines().count() == 4, "{said}");
    let (ok, said) = tallow(&["encode", "-", "--tokenizer", "owner/nothing"], &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(!ok && said.contains("no connection") && !said.contains("hf_from"), "{said}");
}

/// A repository without a tokenizer.json: what it has is taken, or listed.
#[test]
fn other_tokenizers_of_a_repository() {
    let ranks = (0..=255u8).map(|byte| {
        use base64::Engine;
        format!("{} {byte}\n", base64::prelude::BASE64_STANDARD.encode([byte]))
    });
    let server = Server::new(&[("small.tiktoken", ranks.collect::<String>().into_bytes())], Fault::None);
    let run = |server: &Server, cache: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.env("HF_ENDPOINT", &server.hub.endpoint).env("HF_HUB_CACHE", cache).env_remove("HF_HUB_OFFLINE");
        let output = command.args(["show", "ab", "--json", "--tokenizer", "owner/name"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let cache = tempfile::tempdir().unwrap();
    assert!(run(&server, cache.path()).contains("\"ids\":[97,98]"));
    let server =
        Server::new(&[("tokenizer.model", vec![1]), ("a.tiktoken", vec![1]), ("b.tiktoken", vec![1])], Fault::None);
    let cache = tempfile::tempdir().unwrap();
    let said = run(&server, cache.path());
    assert!(said.contains("no tokenizer.json") && said.contains("tokenizer.model"), "{said}");
}
