//! Which columns hold image, label and text, and their values.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, PrimitiveArray};
use arrow_schema::{DataType, Schema};

use crate::source::{Field, Fields};

const IMAGES: [&str; 8] = ["image", "img", "jpg", "png", "webp", "jpeg", "pixel_values", "bytes"];
const LABELS: [&str; 7] = ["label", "labels", "class", "cls", "target", "y", "fine_label"];
const TEXTS: [&str; 4] = ["caption", "text", "txt", "TEXT"];
const METADATA: [&str; 2] = ["json", "metadata"];
/// Largest description of a data set that is looked at, in bytes.
const MAX_INFO: usize = 16 << 20;

/// The columns of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// Path of the leaf with the bytes: `image.bytes` or `jpg`.
    pub(super) image_leaf: String,
    pub(super) label: Option<String>,
    pub(super) text: Option<String>,
    pub(super) metadata: Option<String>,
}

impl Columns {
    pub(super) fn find(schema: &Schema, fields: &Fields) -> Result<Self, String> {
        let all = || {
            let fields = schema.fields().iter().take(64);
            let names: Vec<String> =
                fields.map(|field| format!("{} ({})", field.name(), field.data_type())).collect();
            format!("the columns are {}", names.join(", "))
        };
        let kind = |name: &str| schema.field_with_name(name).ok().map(|field| field.data_type());
        let leaf = |name: &str| kind(name).and_then(|kind| image_leaf(name, kind));
        let image_leaf = if fields.image.is_empty() {
            let every = || schema.fields().iter().map(|field| field.name().as_str());
            let usual = IMAGES.iter().find_map(|name| leaf(name));
            let mut rest = every().filter_map(leaf);
            match (usual, rest.next(), rest.next()) {
                (Some(leaf), ..) | (None, Some(leaf), None) => leaf,
                (None, None, _) => return Err(format!("no column holds images: {}", all())),
                _ => return Err(format!("choose the image with `?image=NAME`: {}", all())),
            }
        } else {
            let found = fields.image.iter().find_map(|name| leaf(name));
            found.ok_or_else(|| {
                format!("no column of bytes called {}: {}", fields.image_names(), all())
            })?
        };
        fields.label.must_be_a_column()?;
        let pick = |field: &Field, usual: &[&str], fits: fn(&DataType) -> bool| {
            let names = field.names(usual);
            let found = names.iter().find(|name| kind(name).is_some_and(fits));
            match (field, found) {
                (Field::Named(name), None) => Err(format!("no usable column `{name}`: {}", all())),
                (_, found) => Ok(found.map(|&name| name.to_owned())),
            }
        };
        Ok(Self {
            image_leaf,
            label: pick(&fields.label, &LABELS, DataType::is_integer)?,
            text: pick(&fields.text, &TEXTS, is_text)?,
            metadata: pick(&fields.metadata, &METADATA, is_text)?,
        })
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// The leaf with the bytes of an image column.
fn image_leaf(name: &str, kind: &DataType) -> Option<String> {
    match kind {
        DataType::Struct(fields) => {
            let bytes = fields.iter().find(|field| field.name() == "bytes")?;
            is_binary(bytes.data_type()).then(|| format!("{name}.bytes"))
        }
        kind => is_binary(kind).then(|| name.to_owned()),
    }
}

/// Class names of a `ClassLabel` feature, from the metadata that Hugging Face's `datasets` writes.
pub(super) fn class_names(metadata: &HashMap<String, String>, label: &str) -> Option<Vec<String>> {
    let text = metadata.get("huggingface").filter(|text| text.len() <= MAX_INFO)?;
    let info: serde_json::Value = serde_json::from_str(text).ok()?;
    let feature = info.get("info")?.get("features")?.get(label)?;
    if feature.get("_type")?.as_str()? != "ClassLabel" {
        return None;
    }
    let names = feature.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// An image's bytes in a row.
pub(super) enum Value {
    Bytes(Vec<u8>),
    /// No bytes, and why.
    Null(&'static str),
    /// More than wanted: this many.
    TooLarge(u64),
}

/// The bytes in a row of an image column (or of the structure that holds them).
pub(super) fn value_at(array: &dyn Array, row: usize, max_bytes: u64) -> Value {
    if array.is_null(row) {
        return Value::Null("the row has no image (null)");
    }
    let bytes = match array.data_type() {
        DataType::Struct(_) => {
            return match array.as_struct().columns().first() {
                Some(inner) if inner.is_null(row) => {
                    Value::Null("the image has no bytes, only a path; embed the files")
                }
                Some(inner) if !matches!(inner.data_type(), DataType::Struct(_)) => {
                    value_at(&**inner, row, max_bytes)
                }
                _ => Value::Null("the image has no bytes"),
            };
        }
        DataType::Binary => array.as_binary::<i32>().value(row),
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        DataType::BinaryView => array.as_binary_view().value(row),
        _ => return Value::Null("the column holds no bytes"),
    };
    if bytes.len() as u64 > max_bytes {
        return Value::TooLarge(bytes.len() as u64);
    }
    Value::Bytes(bytes.to_vec())
}

/// The text in a row.
pub(super) fn string_at(array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Some(array.as_string_view().value(row).to_owned()),
        _ => None,
    }
}

/// All values of an integer column.
pub(super) fn integers(array: &dyn Array) -> Result<Vec<Option<i128>>, String> {
    fn of<T: ArrowPrimitiveType>(array: &dyn Array) -> Vec<Option<i128>>
    where
        T::Native: Into<i128>,
    {
        let array: &PrimitiveArray<T> = array.as_primitive();
        array.iter().map(|value| value.map(Into::into)).collect()
    }
    Ok(match array.data_type() {
        DataType::Int8 => of::<Int8Type>(array),
        DataType::Int16 => of::<Int16Type>(array),
        DataType::Int32 => of::<Int32Type>(array),
        DataType::Int64 => of::<Int64Type>(array),
        DataType::UInt8 => of::<UInt8Type>(array),
        DataType::UInt16 => of::<UInt16Type>(array),
        DataType::UInt32 => of::<UInt32Type>(array),
        DataType::UInt64 => of::<UInt64Type>(array),
        other => return Err(format!("expected integers, found {other}")),
    })
}
