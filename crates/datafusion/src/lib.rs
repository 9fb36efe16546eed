//! tallow's tokenizer as SQL functions for [Apache DataFusion](https://docs.rs/datafusion): count, filter and encode a corpus by SQL.
//!
//! | function | result |
//! |---|---|
//! | `token_count(text)` | number of tokens: `BIGINT` |
//! | `encode(text)` | ids: a list of `UInt32` |
//! | `decode(ids)` | text. Bytes that are not UTF-8 (half a character) become U+FFFD |
//! | `bytes_per_token(text)` | bytes of UTF-8 divided by tokens: `DOUBLE`, `NULL` for a text without tokens |
//!
//! `NULL` gives `NULL`. A text is a column of `Utf8`, `LargeUtf8` or `Utf8View`, or a dictionary of one of them. Ids are a `List`,
//! `LargeList` or `FixedSizeList` of integers of any width. Ids are those of [`tallow_text::Tokenizer`] with
//! [`Specials::Text`], as `tallow prepare` makes them: text never becomes a special token.
//!
//! A second argument names another tokenizer than the session's: `token_count(text, 'o200k')`. It is a literal: `cl100k`, `o200k`,
//! `gpt2`, the path of a `tokenizer.json` or `.tiktoken` file, or a folder with a `tokenizer.json`. A path is relative to the working
//! directory of the process. Each tokenizer is loaded once per process. If its file changes, restart the process.
//!
//! DataFusion has an `encode` and a `decode` for base64 and hex. In a session with tallow's functions they are replaced.
//!
//! # Example
//! ```
//! use datafusion::prelude::*;
//!
//! # #[tokio::main]
//! # async fn main() -> datafusion::error::Result<()> {
//! let ctx = SessionContext::new();
//! tallow_datafusion::register(&ctx, "cl100k")?;
//! let rows = ctx
//!     .sql("SELECT text, token_count(text) AS tokens FROM (VALUES ('tiktoken is great!'), ('小沈阳')) AS t(text) ORDER BY tokens")
//!     .await?
//!     .collect()
//!     .await?;
//! datafusion::assert_batches_eq!(
//!     [
//!         "+--------------------+--------+",
//!         "| text               | tokens |",
//!         "+--------------------+--------+",
//!         "| 小沈阳             | 4      |",
//!         "| tiktoken is great! | 6      |",
//!         "+--------------------+--------+",
//!     ],
//!     &rows
//! );
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, GenericListArray, Int64Array, ListArray, OffsetSizeTrait, StringArray,
    UInt32Array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, UInt32Type};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, exec_err, plan_datafusion_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;
use tallow_text::{Specials, Tokenizer, count_tokens};

/// Registers the functions of [`functions`] in a session.
///
/// # Errors
/// As [`functions`]. Then nothing is registered.
pub fn register(ctx: &SessionContext, tokenizer: &str) -> Result<()> {
    functions(tokenizer)?.into_iter().for_each(|function| ctx.register_udf(function));
    Ok(())
}

/// The four functions, for registries other than a session's. `tokenizer` is the name or path of the tokenizer that they use without a
/// second argument.
///
/// # Errors
/// There is no such tokenizer, or its file cannot be used.
pub fn functions(tokenizer: &str) -> Result<[ScalarUDF; 4]> {
    open(tokenizer).map_err(|why| plan_datafusion_err!("{why}"))?;
    Ok([Kind::TokenCount, Kind::Encode, Kind::Decode, Kind::BytesPerToken].map(|kind| {
        // Any number of any type: `Function` checks its arguments itself, and says in one line what is wrong.
        let any = vec![TypeSignature::VariadicAny, TypeSignature::Nullary];
        let signature = Signature::one_of(any, Volatility::Immutable);
        ScalarUDF::new_from_impl(Function { kind, tokenizer: tokenizer.to_string(), signature })
    }))
}

/// The tokenizer with this name or path, loaded once per process. The lock is held while a file is read, so that threads that ask together
/// read it once.
fn open(name: &str) -> Result<Tokenizer, String> {
    static OPEN: Mutex<BTreeMap<String, Tokenizer>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tokenizer) = open.get(name) {
        return Ok(tokenizer.clone());
    }
    let path = Path::new(name);
    let tokenizer = match Tokenizer::bundled(name).filter(|_| !path.exists()) {
        Some(bundled) => Ok(bundled),
        None if path.is_dir() => Tokenizer::from_pretrained(name, None),
        None if path.exists() => Tokenizer::from_file(path),
        None => {
            let advice =
                "name cl100k, o200k, gpt2, a tokenizer.json or .tiktoken file, or a folder with a tokenizer.json";
            return Err(format!("there is no tokenizer {name:?}: {advice}"));
        }
    };
    let tokenizer = tokenizer.map_err(|error| error.to_string())?.with_specials(Specials::Text); // a corpus is data
    Ok(open.entry(name.to_string()).or_insert(tokenizer).clone())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    TokenCount,
    Encode,
    Decode,
    BytesPerToken,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    kind: Kind,
    /// Name or path of the tokenizer that is used without a second argument.
    tokenizer: String,
    signature: Signature,
}

impl Function {
    /// The type that a text or a list of ids is cast to before it is read, or `None` if it is neither.
    fn input(&self, given: &DataType) -> Option<DataType> {
        use DataType::{Dictionary, FixedSizeList, LargeList, LargeUtf8, List, Null, Utf8, Utf8View};
        match (self.kind, given) {
            (Kind::Decode, Null) => Some(DataType::new_list(DataType::UInt32, true)),
            (Kind::Decode, List(item) | LargeList(item) | FixedSizeList(item, _)) => match item.data_type() {
                Null => Some(DataType::new_list(DataType::UInt32, true)), // `[]`
                ids if !ids.is_integer() => None,
                _ if matches!(given, FixedSizeList(..)) => Some(List(item.clone())),
                _ => Some(given.clone()),
            },
            (Kind::Decode, _) => None,
            (_, Null) => Some(Utf8),
            (_, Utf8 | LargeUtf8 | Utf8View) => Some(given.clone()),
            (_, Dictionary(_, value)) if matches!(**value, Utf8 | LargeUtf8 | Utf8View) => Some((**value).clone()),
            _ => None,
        }
    }

    /// The tokenizer of a call: that of its second argument, or else the session's.
    fn tokenizer(&self, second: Option<&ScalarValue>) -> Result<Tokenizer, String> {
        let name: &str = match second.map(ScalarValue::try_as_str) {
            None => &self.tokenizer,
            Some(Some(Some(name))) => name,
            Some(_) => return Err("the tokenizer must be a string such as 'cl100k'".to_string()),
        };
        open(name)
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.kind {
            Kind::TokenCount => "token_count",
            Kind::Encode => "encode",
            Kind::Decode => "decode",
            Kind::BytesPerToken => "bytes_per_token",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::TokenCount => DataType::Int64,
            Kind::Encode => DataType::new_list(DataType::UInt32, true),
            Kind::Decode => DataType::Utf8,
            Kind::BytesPerToken => DataType::Float64,
        })
    }

    fn is_strict(&self) -> bool {
        true
    }

    /// The type of the result. All arguments are checked here, while the query is planned.
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let name = self.name();
        let what = if self.kind == Kind::Decode { "ids" } else { "text" };
        let ([input] | [input, _]) = args.arg_fields else {
            return plan_err!(
                "{name} takes 1 or 2 arguments, not {}: {name}({what}[, tokenizer])",
                args.arg_fields.len()
            );
        };
        if self.input(input.data_type()).is_none() {
            let cast = match self.kind {
                Kind::Decode => "a list of integers, such as the result of encode".to_string(),
                _ => format!("text: {name}(CAST(… AS VARCHAR)) takes any column"),
            };
            return plan_err!("{name} takes {cast}; this argument is of type {}", input.data_type());
        }
        let second = match args.scalar_arguments.get(1) {
            Some(None) => return plan_err!("{name}: the tokenizer must be a literal such as 'cl100k', not a column"),
            Some(Some(literal)) => Some(*literal),
            None => None,
        };
        self.tokenizer(second).map_err(|why| plan_datafusion_err!("{name}: {why}"))?;
        Ok(Arc::new(Field::new(name, self.return_type(&[])?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = self.name();
        let second = match args.args.get(1) {
            Some(ColumnarValue::Scalar(literal)) => Some(literal),
            Some(ColumnarValue::Array(_)) => return exec_err!("{name}: the tokenizer must be a literal, not a column"),
            None => None,
        };
        let tokenizer = self.tokenizer(second).map_err(|why| exec_datafusion_err!("{name}: {why}"))?;
        let input = args.args[0].to_array(1)?; // a constant is one row
        let Some(kind) = self.input(input.data_type()) else {
            return exec_err!("{name} does not take the type {}", input.data_type());
        };
        let input = cast(&input, &kind)?;
        let result = match (self.kind, &kind) {
            (Kind::Decode, DataType::LargeList(_)) => decode(input.as_list::<i64>(), &tokenizer),
            (Kind::Decode, _) => decode(input.as_list::<i32>(), &tokenizer),
            (Kind::Encode, _) => encode(texts(&input), input.nulls().cloned(), &tokenizer),
            (Kind::TokenCount, _) => {
                let counts = texts(&input).map(|text| text.map(|text| count(&tokenizer, text)).transpose());
                counts.collect::<Result<Int64Array, _>>().map(|counts| Arc::new(counts) as ArrayRef)
            }
            (Kind::BytesPerToken, _) => {
                let ratio = |text: &str| {
                    count(&tokenizer, text).map(|tokens| (tokens > 0).then(|| text.len() as f64 / tokens as f64))
                };
                let ratios = texts(&input).map(|text| text.map(ratio).transpose().map(Option::flatten));
                ratios.collect::<Result<Float64Array, _>>().map(|ratios| Arc::new(ratios) as ArrayRef)
            }
        };
        let result = result.map_err(|why| exec_datafusion_err!("{name}: {why}"))?;
        match &args.args[0] {
            ColumnarValue::Array(_) => Ok(ColumnarValue::Array(result)),
            ColumnarValue::Scalar(_) => ScalarValue::try_from_array(&result, 0).map(ColumnarValue::Scalar),
        }
    }
}

/// The texts of an array of one of the three types of strings.
fn texts(array: &ArrayRef) -> Box<dyn Iterator<Item = Option<&str>> + '_> {
    match array.data_type() {
        DataType::Utf8 => Box::new(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => Box::new(array.as_string::<i64>().iter()),
        _ => Box::new(array.as_string_view().iter()),
    }
}

fn count(tokenizer: &Tokenizer, text: &str) -> Result<i64, String> {
    count_tokens(tokenizer, text).map(|tokens| tokens as i64).map_err(|error| error.to_string())
}

/// An offset into the values of a result.
fn offset(values: usize) -> Result<i32, String> {
    let advice = "lower datafusion.execution.batch_size";
    i32::try_from(values).map_err(|_| format!("the result of one batch has more than {} values: {advice}", i32::MAX))
}

fn encode<'a>(
    texts: impl Iterator<Item = Option<&'a str>>,
    nulls: Option<NullBuffer>,
    tokenizer: &Tokenizer,
) -> Result<ArrayRef, String> {
    let (mut ids, mut offsets) = (Vec::<u32>::new(), vec![0]);
    for text in texts {
        if let Some(text) = text {
            tokenizer.encode_into(text, &mut ids).map_err(|error| error.to_string())?;
        }
        offsets.push(offset(ids.len())?);
    }
    let item = Arc::new(Field::new_list_field(DataType::UInt32, true));
    let lists = ListArray::new(item, OffsetBuffer::new(offsets.into()), Arc::new(UInt32Array::from(ids)), nulls);
    Ok(Arc::new(lists))
}

fn decode<O: OffsetSizeTrait>(lists: &GenericListArray<O>, tokenizer: &Tokenizer) -> Result<ArrayRef, String> {
    // A slice of a list array keeps all of its values.
    let bounds: Vec<usize> = lists.value_offsets().iter().map(|offset| offset.as_usize()).collect();
    let first = bounds[0];
    let given = lists.values().slice(first, bounds[lists.len()] - first);
    let ids = cast(&given, &DataType::UInt32).map_err(|error| error.to_string())?; // what does not fit becomes null
    let ids = ids.as_primitive::<UInt32Type>();
    let (mut bytes, mut offsets) = (String::new(), vec![0]);
    for row in 0..lists.len() {
        if lists.is_valid(row) {
            let (start, end) = (bounds[row] - first, bounds[row + 1] - first);
            if let Some(bad) = (start..end).find(|at| ids.is_null(*at)) {
                let (at, name) = (bad - start, tokenizer.name());
                let id = ScalarValue::try_from_array(&given, bad).map_err(|error| error.to_string())?;
                return Err(format!(
                    "{id} at position {at} of a list is not an id of {name}: correct the list, or filter it out"
                ));
            }
            let advice = "name the tokenizer that made the ids: decode(ids, 'NAME')";
            bytes += &tokenizer.decode(&ids.values()[start..end]).map_err(|error| format!("{error}; {advice}"))?;
        }
        offsets.push(offset(bytes.len())?);
    }
    let offsets = OffsetBuffer::new(offsets.into());
    Ok(Arc::new(StringArray::new(offsets, bytes.into_bytes().into(), lists.nulls().cloned())))
}
