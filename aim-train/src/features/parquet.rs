//! The finished file as parquet: `key` (string), `index` (int64), `label` (int64, null where there is none), and a
//! fixed-size list of floats for each layer; tokens of an image one after the other.

use std::fs::OpenOptions;
use std::sync::Arc;

use aim_data::source::Source;
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::columns::Columns;
use super::finish::give_name;
use super::journal::{Job, Journal};
use super::{ElementType, Request, beside};
use crate::durable;
use crate::error::TrainError;

/// Bytes of features in a row group: what a reader has to hold at once.
const ROW_GROUP_BYTES: u64 = 64 << 20;
/// Bytes of features handed to the writer at once.
const BATCH_BYTES: u64 = 8 << 20;

/// Encodes the unfinished file, which is removed when the parquet file is complete.
pub(super) fn finish(
    job: &Job,
    request: &Request,
    source: &dyn Source,
    journal: &Journal,
    mut columns: Columns,
    indices: &mut dyn Iterator<Item = u64>,
) -> Result<(), TrainError> {
    let path = beside(&request.out, ".partial.parquet");
    let created = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
    let file = created.map_err(|source| TrainError::io("create", &path, source))?;
    let failed = |error: ParquetError| {
        let source = match error {
            // A full disk arrives wrapped.
            ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
                Ok(inner) => *inner,
                Err(inner) => std::io::Error::other(inner),
            },
            other => std::io::Error::other(other),
        };
        TrainError::io("write", &path, source)
    };
    let row_bytes = (columns.shape().row_bytes * job.columns.len() as u64).max(1);
    let rows_at_once = |bytes: u64| (bytes / row_bytes).clamp(1, 1 << 16);
    let schema = Arc::new(schema(job)?);
    let properties = properties(job, rows_at_once(ROW_GROUP_BYTES) as usize)?;
    let mut writer =
        ArrowWriter::try_new(&file, schema.clone(), Some(properties)).map_err(failed)?;
    let step = rows_at_once(BATCH_BYTES);
    let mut row = 0;
    while row < journal.rows {
        let count = step.min(journal.rows - row);
        let images: Vec<u64> = indices.take(count as usize).collect();
        let keys = images.iter().map(|&index| Some(source.key(index)));
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter(keys)),
            Arc::new(Int64Array::from_iter_values(images.iter().map(|&index| index as i64))),
            Arc::new(Int64Array::from_iter(images.iter().map(|&i| source.label(i).map(i64::from)))),
        ];
        for column in 0..job.columns.len() {
            let mut bytes = vec![0; (count * columns.shape().row_bytes) as usize];
            columns.read(column, row, &mut bytes)?;
            arrays.push(Arc::new(lists(job, &bytes).map_err(|e| failed(e.into()))?));
        }
        let batch = RecordBatch::try_new(schema.clone(), arrays);
        writer.write(&batch.map_err(|error| failed(error.into()))?).map_err(failed)?;
        row += count;
    }
    writer.close().map_err(failed)?;
    durable::sync_file(&file, &path)?;
    give_name(&path, &request.out)?;
    durable::remove_file(&columns.path)
}

fn element(job: &Job) -> DataType {
    if job.dtype == ElementType::Fp16 { DataType::Float16 } else { DataType::Float32 }
}

fn item(job: &Job) -> Arc<Field> {
    Arc::new(Field::new("item", element(job), false))
}

fn list_len(job: &Job) -> Result<i32, TrainError> {
    i32::try_from(job.row_values()).map_err(|_| TrainError::Unsupported {
        what: "lists of more than 2^31 values in .parquet",
        instead: "write .safetensors, or pooled features",
    })
}

fn schema(job: &Job) -> Result<Schema, TrainError> {
    let list = DataType::FixedSizeList(item(job), list_len(job)?);
    let mut fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("index", DataType::Int64, false),
        Field::new("label", DataType::Int64, true),
    ];
    fields.extend(job.columns.iter().map(|name| Field::new(name, list.clone(), false)));
    Ok(Schema::new(fields))
}

/// Plain floats without compression: they do not compress, and statistics over them say nothing.
fn properties(job: &Job, rows: usize) -> Result<WriterProperties, TrainError> {
    let entry = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let layers =
        serde_json::to_string(&job.layers).map_err(|_| TrainError::Internal("layers are JSON"))?;
    let shape = serde_json::to_string(&job.row_shape())
        .map_err(|_| TrainError::Internal("a shape is JSON"))?;
    Ok(WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by("aim-cli".into())
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(Some(rows))
        .set_key_value_metadata(Some(vec![
            entry("layers", layers),
            entry("row_shape", shape),
            entry("weights", job.weights().to_owned()),
        ]))
        .build())
}

/// Rows of one column as lists.
fn lists(job: &Job, bytes: &[u8]) -> Result<FixedSizeListArray, ArrowError> {
    let values: ArrayRef = if job.dtype == ElementType::Fp16 {
        let (values, _) = bytes.as_chunks::<2>();
        Arc::new(Float16Array::from_iter_values(values.iter().map(|b| f16::from_le_bytes(*b))))
    } else {
        let (values, _) = bytes.as_chunks::<4>();
        Arc::new(Float32Array::from_iter_values(values.iter().map(|b| f32::from_le_bytes(*b))))
    };
    let len = i32::try_from(job.row_values()).unwrap_or(i32::MAX);
    debug_assert!(values.len().is_multiple_of(job.row_values().max(1)), "whole rows");
    FixedSizeListArray::try_new(item(job), len, values, None)
}
