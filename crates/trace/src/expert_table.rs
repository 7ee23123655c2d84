//! Loads as a table: CSV with the columns `layer_id,expert_id,count`, as SGLang's recorder writes them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use csv::{ReaderBuilder, StringRecord, Trim};
use eplb_core::{ExpertId, LayerId};
use ndarray::Array3;

use crate::counts::Counts;
use crate::error::TraceError;

/// Columns that must be there; others are ignored.
pub(crate) const COLUMNS: [&str; 3] = ["layer_id", "expert_id", "count"];

/// Cells that a table may have whatever its number of lines; beyond that, cells per line. One wrong digit in an id
/// must not allocate a matrix of the size of the digit.
const CELLS: u64 = 1 << 18;
const CELLS_PER_LINE: u64 = 256;

/// Reads a table as one step, `[1, L, E]` with `L` and `E` one above the largest ids. Pairs that are not given are 0.
pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Counts, TraceError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(bytes);
    let header = reader.headers().map_err(|e| csv_error(file, bytes, &e))?.clone();
    let columns = columns(file, &header)?;

    let mut rows: Vec<Row> = Vec::new();
    let mut lines = HashMap::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(|e| csv_error(file, bytes, &e))? {
        let row = Row::parse(file, &record, line_of(bytes, record.position()), columns)?;
        match lines.entry((row.layer, row.expert)) {
            Entry::Vacant(place) => place.insert(row.line),
            Entry::Occupied(first) => {
                return Err(TraceError::CsvRepeated {
                    file: file.to_owned(),
                    layer: LayerId(row.layer),
                    expert: ExpertId(row.expert),
                    first: *first.get(),
                    second: row.line,
                });
            }
        };
        rows.push(row);
    }
    let mut counts = Array3::zeros(shape(file, &rows)?);
    for row in &rows {
        counts[[0, row.layer as usize, row.expert as usize]] = row.count;
    }
    Counts::of_values(file.to_owned(), counts.view())
}

/// One line of a table.
struct Row {
    line: u64,
    layer: u32,
    expert: u32,
    count: f64,
}

impl Row {
    fn parse(file: &str, record: &StringRecord, line: u64, columns: [usize; 3]) -> Result<Self, TraceError> {
        let bad = |reason: String| TraceError::Csv { file: file.to_owned(), line, reason };
        // The reader has checked that every record has as many fields as the header.
        let field = |i: usize| record.get(columns[i]).unwrap_or_default();
        let id = |i: usize| {
            field(i).parse::<u32>().ok().filter(|&id| id < i32::MAX as u32).ok_or_else(|| {
                bad(format!("{} is {:?}, expected a whole number, 0 or more", COLUMNS[i], field(i)))
            })
        };
        let (layer, expert) = (id(0)?, id(1)?);
        let count: f64 = field(2).parse().map_err(|_| {
            bad(format!("count of layer {layer} expert {expert} is {:?}, expected a number", field(2)))
        })?;
        if !(count.is_finite() && count >= 0.0) {
            return Err(bad(format!(
                "count of layer {layer} expert {expert} is {count}; counts are finite, 0 or more"
            )));
        }
        Ok(Self { line, layer, expert, count })
    }
}

/// Where the three columns are.
fn columns(file: &str, header: &StringRecord) -> Result<[usize; 3], TraceError> {
    let place = |name: &str| {
        let mut places = (0..header.len()).filter(|&i| header[i].eq_ignore_ascii_case(name));
        places.next().filter(|_| places.next().is_none())
    };
    match COLUMNS.map(place) {
        [Some(layer), Some(expert), Some(count)] => Ok([layer, expert, count]),
        _ => Err(TraceError::CsvHeader {
            file: file.to_owned(),
            found: header.iter().collect::<Vec<_>>().join(",").chars().take(80).collect(),
        }),
    }
}

/// `[1, L, E]`, refused where so few lines cannot mean so large a matrix.
fn shape(file: &str, rows: &[Row]) -> Result<(usize, usize, usize), TraceError> {
    let last_layer = rows.iter().max_by_key(|row| row.layer);
    let last_expert = rows.iter().max_by_key(|row| row.expert);
    let (Some(last_layer), Some(last_expert)) = (last_layer, last_expert) else {
        return Err(TraceError::EmptyTrace { file: file.to_owned(), shape: vec![1, 0, 0] });
    };
    let (layers, experts) = (u64::from(last_layer.layer) + 1, u64::from(last_expert.expert) + 1);
    if layers * experts > CELLS.max(rows.len() as u64 * CELLS_PER_LINE) {
        let line = if layers > experts { last_layer.line } else { last_expert.line };
        return Err(TraceError::Csv {
            file: file.to_owned(),
            line,
            reason: format!(
                "the ids here make a table of {layers} layers and {experts} experts, of which {} lines are given; \
                 is an id wrong?",
                rows.len()
            ),
        });
    }
    Ok((1, layers as usize, experts as usize))
}

/// The line of a record, counted from 1. The reader's own number is that of the first blank line before it.
fn line_of(bytes: &[u8], position: Option<&csv::Position>) -> u64 {
    let Some(position) = position else { return 1 };
    let start = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let before = bytes.get(start..).unwrap_or_default().iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    position.line() + before.filter(|&&b| b == b'\n').count() as u64
}

fn csv_error(file: &str, bytes: &[u8], error: &csv::Error) -> TraceError {
    let line = line_of(bytes, error.position());
    let reason = match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".into(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields, but the header names {expected_len} columns")
        }
        _ => error.to_string(),
    };
    TraceError::Csv { file: file.to_owned(), line, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn table(text: &str) -> Result<Array3<f64>, String> {
        read("t.csv", text.as_bytes()).map(|counts| counts.window(0..1)).map_err(|e| e.to_string())
    }

    #[test]
    fn columns_may_stand_in_any_order_and_missing_pairs_are_0() {
        let expected = array![[[5.0, 0.0, 1.5], [0.0, 0.0, 7.0]]];
        assert_eq!(table("layer_id,expert_id,count\n0,0,5\n1,2,7\n0,2,1.5\n").unwrap(), expected);
        let other = "\u{feff}note, COUNT ,expert_id,layer_id\r\nx,7,2,1\r\n\r\n,5e0,0,0\r\n\"a,b\",1.5,2,0";
        assert_eq!(table(other).unwrap(), expected);
    }

    #[test]
    fn bad_tables_name_the_line() {
        let with = |rows: &str| table(&format!("layer_id,expert_id,count\n{rows}")).unwrap_err();
        assert_eq!(
            with("0,0,5\n0,1,many\n"),
            "t.csv, line 3: count of layer 0 expert 1 is \"many\", expected a number"
        );
        assert_eq!(
            with("0,0,NaN\n"),
            "t.csv, line 2: count of layer 0 expert 0 is NaN; counts are finite, 0 or more"
        );
        assert!(with("0,0,-3\n").contains("is -3;") && with("0,0,inf\n").contains("is inf;"));
        assert!(with("0,-1,3\n").contains("line 2: expert_id is \"-1\""));
        assert!(with("0.5,1,3\n").contains("line 2: layer_id is \"0.5\""));
        assert!(with("0,0,1\n\n0,1\n").contains("line 4: 2 fields"));
        assert_eq!(
            with("0,0,1\n3,4,1\n0,1,1\n3,4,1\n"),
            "t.csv: layer 3 expert 4 is given twice, in line 3 and in line 5; keep one"
        );
        assert!(with("").contains("empty trace"));
    }

    #[test]
    fn a_header_is_required() {
        for text in [
            "",
            "\n\n",
            "0,1,5\n0,2,6\n",
            "layer_id,expert_id\n0,1\n",
            "layer_id,count,expert_id,count\n1,2,3,4\n",
        ] {
            let message = table(text).unwrap_err();
            assert!(message.contains("must name the columns layer_id,expert_id,count"), "{message}");
        }
    }

    #[test]
    fn a_wrong_id_allocates_nothing() {
        let message = table("layer_id,expert_id,count\n0,0,1\n2000000000,3,1\n1,1999999999,1\n").unwrap_err();
        assert!(
            message.starts_with("t.csv, line 3: the ids here make a table of 2000000001 layers"),
            "{message}"
        );
        assert!(table("layer_id,expert_id,count\n4294967295,0,1\n").unwrap_err().contains("layer_id is"));
        assert!(table("layer_id,expert_id,count\n511,511,1\n").is_ok());
    }

    #[test]
    fn other_encodings_are_refused() {
        let message = read("t.csv", b"layer_id,expert_id,count\n0,0,\xff\n").unwrap_err().to_string();
        assert_eq!(message, "t.csv, line 2: not UTF-8 text");
    }
}
