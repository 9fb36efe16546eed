//! Finds the table among the tensors of a model.

/// The last parts of the table's name in common models.
const TABLES: [&str; 9] = [
    "wte.weight",             // GPT-2
    "embed_tokens.weight",    // Llama, Qwen, Mistral, Gemma, OPT
    "tok_embeddings.weight",  // Llama as Meta wrote it, Mistral
    "word_embeddings.weight", // BERT and its kin, BLOOM, Falcon
    "token_embd.weight",      // GGUF
    "embed_in.weight",        // GPT-NeoX, Pythia
    "tok_emb.weight",         // minGPT
    "shared.weight",          // T5, BART
    "emb.weight",             // RWKV
];

/// The last parts of the name of the output layer's own weight.
const HEADS: [&str; 4] = ["lm_head.weight", "embed_out.weight", "output.weight", "decoder.weight"];

/// Maximum number of candidates in a message.
const LISTED: usize = 12;

/// The table among tensors (name, shape; `None` if the shape is not known). The error lists candidates.
pub(crate) fn table<'n>(tensors: &[(&'n str, Option<&[usize]>)], asked: Option<&str>) -> Result<&'n str, String> {
    let is_table = |shape: Option<&[usize]>| shape.is_none_or(|shape| shape.len() == 2);
    if let Some(asked) = asked {
        return match tensors.iter().find(|(name, _)| *name == asked) {
            Some((name, shape)) if is_table(*shape) => Ok(name),
            Some((_, shape)) => Err(format!("{asked:?} is not a table: its shape is {:?}", shape.unwrap_or(&[]))),
            None => Err(format!("there is no tensor {asked:?}; {}", candidates(tensors))),
        };
    }
    let mut found = tensors.iter().filter(|(name, shape)| is_table(*shape) && ends_with_one(name, &TABLES));
    match (found.next(), found.next()) {
        (Some((name, _)), None) => Ok(name),
        (Some(_), Some(_)) => Err(format!("it is unsure which tensor is the table; {}", candidates(tensors))),
        (None, _) => match tensors {
            // The only tensor of a file is the table.
            [(name, shape)] if is_table(*shape) => Ok(name),
            _ => Err(format!("no tensor has the usual name of a table; {}", candidates(tensors))),
        },
    }
}

/// Whether the model has its own head. Without one it is tied: the head is the table.
pub(crate) fn has_head<'n>(mut names: impl Iterator<Item = &'n str>) -> bool {
    names.any(|name| ends_with_one(name, &HEADS))
}

/// Whether a tensor is the head, or its bias, by its name.
pub(crate) fn is_head_or_bias(name: &str) -> bool {
    ends_with_one(name, &HEADS)
        || name.strip_suffix("bias").is_some_and(|stem| ends_with_one(&format!("{stem}weight"), &HEADS))
}

/// Whether a tensor of the table's shape may be a copy of the table or of the head, by its name, for example
/// "encoder.embed_tokens.weight" or "mtp.shared_head.head.weight".
pub(crate) fn may_be_an_end(name: &str) -> bool {
    ends_with_one(name, &TABLES) || ["embed", "head"].iter().any(|part| name.contains(part))
}

/// Whether a name ends with one of these parts: "wte.weight" of "transformer.wte.weight".
fn ends_with_one(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.strip_suffix(part).is_some_and(|before| before.is_empty() || before.ends_with('.')))
}

fn candidates(tensors: &[(&str, Option<&[usize]>)]) -> String {
    let mut likely: Vec<_> = tensors.iter().filter(|(_, shape)| shape.is_none_or(|shape| shape.len() == 2)).collect();
    // Usual names of tables first, then by decreasing number of rows.
    likely.sort_by_key(|(name, shape)| {
        (!ends_with_one(name, &TABLES), std::cmp::Reverse(shape.map_or(0, |shape| shape[0])), *name)
    });
    let listed = likely.iter().take(LISTED).map(|(name, shape)| match shape {
        Some(shape) => format!("{name} {shape:?}"),
        None => name.to_string(),
    });
    let listed = listed.collect::<Vec<_>>().join(", ");
    match likely.len() {
        0 => "it has no tensor of two dimensions".to_string(),
        few if few <= LISTED => format!("choose one (`tensor`) of {listed}"),
        many => format!("choose one (`tensor`) of {listed} and {} more", many - LISTED),
    }
}

#[cfg(test)]
mod tests {
    use super::{has_head, table};

    #[test]
    fn every_family_s_table_is_found() {
        for name in [
            "wte.weight",
            "transformer.wte.weight",
            "model.embed_tokens.weight",
            "embed_tokens.weight",
            "tok_embeddings.weight",
            "embeddings.word_embeddings.weight",
            "bert.embeddings.word_embeddings.weight",
            "token_embd.weight",
            "gpt_neox.embed_in.weight",
        ] {
            let others = [
                ("bert.embeddings.position_embeddings.weight", Some(&[512, 8][..])),
                ("transformer.wpe.weight", Some(&[1024, 8][..])),
                ("lm_head.weight", Some(&[100, 8][..])),
                ("not_wte.weight", Some(&[100, 8][..])),
            ];
            let tensors: Vec<_> = others.into_iter().chain([(name, Some(&[100usize, 8][..]))]).collect();
            assert_eq!(table(&tensors, None), Ok(name));
        }
    }

    #[test]
    fn doubt_is_an_error_that_lists_names() {
        let tensors =
            [("a.wte.weight", Some(&[9usize, 2][..])), ("b.wte.weight", Some(&[7, 2][..])), ("bias", Some(&[2][..]))];
        let doubt = table(&tensors, None).unwrap_err();
        assert!(doubt.contains("unsure") && doubt.contains("a.wte.weight [9, 2], b.wte.weight [7, 2]"), "{doubt}");
        assert_eq!(table(&tensors, Some("b.wte.weight")), Ok("b.wte.weight"));
        assert!(table(&tensors, Some("bias")).unwrap_err().contains("not a table"));
        assert!(table(&tensors, Some("c")).unwrap_err().contains("no tensor \"c\""));
        assert_eq!(table(&[("anything", Some(&[9, 2][..]))], None), Ok("anything"));
        assert!(table(&[("a", Some(&[9][..])), ("b", Some(&[9][..]))], None).unwrap_err().contains("no tensor of two"));
    }

    #[test]
    fn heads_are_seen() {
        assert!(has_head(["wte.weight", "lm_head.weight"].into_iter()));
        assert!(!has_head(["wte.weight", "h.0.attn.output_weight"].into_iter()));
    }
}
