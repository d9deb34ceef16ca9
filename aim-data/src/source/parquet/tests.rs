use std::fs::File;
use std::sync::Arc;

use arrow_array::{BinaryArray, RecordBatch};
use arrow_schema::{DataType, Field as Column, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::*;
use crate::sampler::Mixture;

const GROUPS: u64 = 24;
const ROWS: u64 = 16;

/// A file of row groups of the same size.
fn write(path: &Path) {
    let column = Column::new("jpg", DataType::Binary, false);
    let schema = Arc::new(Schema::new(vec![column]));
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROWS as usize))
        .set_dictionary_enabled(false)
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
    let rows = (0..GROUPS * ROWS).map(|row| row.to_le_bytes().repeat(20));
    let images = BinaryArray::from_iter_values(rows);
    writer.write(&RecordBatch::try_new(schema, vec![Arc::new(images)]).unwrap()).unwrap();
    writer.close().unwrap();
}

/// How often row groups are decoded in an epoch, with batches made so many samples ahead.
fn decodes(source: ParquetSource, window: Option<usize>, ahead: u64) -> u64 {
    let source = Arc::new(source);
    let parts: Vec<(Arc<dyn Source>, f64)> = vec![(Arc::clone(&source) as _, 1.0)];
    let mixture =
        Mixture::with_window(parts, window.and_then(std::num::NonZeroUsize::new)).unwrap();
    let read = |place| {
        let index = mixture.draw(5, place).index;
        let sample = source.read(index, 0).unwrap();
        assert_eq!(sample.payload, Payload::Encoded(index.to_le_bytes().repeat(20)));
    };
    let len = GROUPS * ROWS;
    for place in 0..len + ahead {
        // One thread is ahead, another still at what the step before asked for.
        if place < len {
            read(place);
        }
        if let Some(behind) = place.checked_sub(ahead) {
            read(behind);
        }
    }
    source.cache.loads()
}

#[test]
fn an_epoch_decodes_each_row_group_once_though_batches_are_made_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write(&path);
    let open = |cache| {
        ParquetSource::with_cache(path.to_str().unwrap(), DecodeLimits::default(), cache).unwrap()
    };
    let source = open(1);
    let largest = source.largest_group();
    assert_eq!((source.groups.len() as u64, source.shuffle_window()), (GROUPS, Some(1)));
    // The smallest cache holds the group that is left and the one that is entered.
    assert_eq!(decodes(source, None, 10), GROUPS);
    let source = open(8 * largest);
    assert_eq!(source.shuffle_window(), Some(4));
    assert_eq!(decodes(source, None, 40), GROUPS);
    // Windows that fill the cache alone push each other out.
    let whole = decodes(open(8 * largest), Some(8), 40);
    assert!(whole > GROUPS + 20, "{whole}");
}
