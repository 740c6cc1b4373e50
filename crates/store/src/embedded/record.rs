//! Bytes on disk: records, and the batches that carry them.
//!
//! ```text
//! batch:   magic 4 │ payload length 4 │ sequence 8 │ salt 8 │ crc 4 │ zero 4 │ payload │ zeros
//! record:  body length 4 │ crc 4 │ kind 1 │ numbers 8 each │ key length 4 │ key │ value
//! ```
//!
//! All numbers are little-endian. A batch begins at a multiple of [`BLOCK_BYTES`] and is what one
//! sync makes durable. Its checksum covers the header and the payload; each record has its own as
//! well, so that a single old value can be read and checked without its batch. The salt is drawn
//! anew for each file: bytes inside a value never pass for a batch of this file.

use crate::Revision;

/// Every batch begins at a multiple of this, so that no write touches a sector written before.
pub const BLOCK_BYTES: usize = 512;
pub const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"GLB1";
const RECORD_HEADER_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Opens a segment. `revision` is the newest one written before it.
    Segment {
        number: u32,
        revision: Revision,
    },
    Put {
        revision: Revision,
        lease: i64,
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        revision: Revision,
        key: &'a [u8],
    },
    Grant {
        id: i64,
        ttl_seconds: i64,
        deadline_ms: i64,
    },
    Revoke {
        id: i64,
    },
    Compact {
        revision: Revision,
    },
    /// One live version in a checkpoint.
    Version {
        meta: Meta,
        key: &'a [u8],
        value: &'a [u8],
    },
    /// Closes a checkpoint of `count` versions, the state as of `revision`.
    End {
        revision: Revision,
        count: i64,
    },
}

/// The numbers of one version of one key. All zero but `mod_revision` for a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub mod_revision: Revision,
    pub create_revision: Revision,
    pub version: i64,
    /// 0 for none.
    pub lease: i64,
}

impl<'a> Record<'a> {
    /// The record as (kind, numbers, how many of them, key, value).
    fn parts(&self) -> (u8, [i64; 4], usize, &'a [u8], &'a [u8]) {
        const NONE: &[u8] = &[];
        match *self {
            Self::Segment { number, revision } => {
                (1, [i64::from(number), revision, 0, 0], 2, NONE, NONE)
            }
            Self::Put { revision, lease, key, value } => {
                (2, [revision, lease, 0, 0], 2, key, value)
            }
            Self::Delete { revision, key } => (3, [revision, 0, 0, 0], 1, key, NONE),
            Self::Grant { id, ttl_seconds, deadline_ms } => {
                (4, [id, ttl_seconds, deadline_ms, 0], 3, NONE, NONE)
            }
            Self::Revoke { id } => (5, [id, 0, 0, 0], 1, NONE, NONE),
            Self::Compact { revision } => (6, [revision, 0, 0, 0], 1, NONE, NONE),
            Self::Version { meta: m, key, value } => {
                (7, [m.mod_revision, m.create_revision, m.version, m.lease], 4, key, value)
            }
            Self::End { revision, count } => (8, [revision, count, 0, 0], 2, NONE, NONE),
        }
    }

    fn from_parts(kind: u8, n: [i64; 4], key: &'a [u8], value: &'a [u8]) -> Option<Self> {
        Some(match kind {
            1 => Self::Segment { number: u32::try_from(n[0]).ok()?, revision: n[1] },
            2 => Self::Put { revision: n[0], lease: n[1], key, value },
            3 => Self::Delete { revision: n[0], key },
            4 => Self::Grant { id: n[0], ttl_seconds: n[1], deadline_ms: n[2] },
            5 => Self::Revoke { id: n[0] },
            6 => Self::Compact { revision: n[0] },
            7 => {
                let [mod_revision, create_revision, version, lease] = n;
                Self::Version {
                    meta: Meta { mod_revision, create_revision, version, lease },
                    key,
                    value,
                }
            }
            8 => Self::End { revision: n[0], count: n[1] },
            _ => return None,
        })
    }
}

fn numbers_of(kind: u8) -> Option<usize> {
    [2, 2, 1, 3, 1, 1, 4, 2].get(usize::from(kind).checked_sub(1)?).copied()
}

/// Where a record lies, relative to its batch or its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub offset: u32,
    pub length: u32,
}

/// Records on their way to disk.
pub struct Batch(Vec<u8>);

impl Batch {
    pub fn new() -> Self {
        Self(vec![0; HEADER_BYTES])
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == HEADER_BYTES
    }

    /// Bytes so far, header included, padding not.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, record: &Record<'_>) -> Span {
        let (kind, numbers, count, key, value) = record.parts();
        let start = self.0.len();
        self.0.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        self.0.push(kind);
        numbers[..count].iter().for_each(|n| self.0.extend_from_slice(&n.to_le_bytes()));
        self.0.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value);
        let (head, body) = self.0[start..].split_at_mut(RECORD_HEADER_BYTES);
        head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        Span { offset: start as u32, length: (self.0.len() - start) as u32 }
    }

    /// The finished bytes, padded to a multiple of `block_bytes`. May be called again with other
    /// numbers when the first ones could not be written.
    pub fn seal(
        &mut self,
        sequence: u64,
        salt: u64,
        payload_end: usize,
        block_bytes: usize,
    ) -> &[u8] {
        self.0.truncate(payload_end);
        let payload_bytes = (payload_end - HEADER_BYTES) as u32;
        let header = Header { payload_bytes, sequence, salt };
        let crc = header.crc(&self.0[HEADER_BYTES..]);
        self.0[..24].copy_from_slice(&header.encode());
        self.0[24..28].copy_from_slice(&crc.to_le_bytes());
        self.0.resize(payload_end.next_multiple_of(block_bytes), 0);
        &self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub payload_bytes: u32,
    pub sequence: u64,
    pub salt: u64,
}

impl Header {
    /// The header and the checksum that the batch must have; `None` when this begins no batch.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<(Self, u32)> {
        let payload_bytes = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
        let salt = u64::from_le_bytes(bytes[16..24].try_into().ok()?);
        let crc = u32::from_le_bytes(bytes[24..28].try_into().ok()?);
        (bytes[..4] == MAGIC).then_some((Self { payload_bytes, sequence, salt }, crc))
    }

    fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes
    }

    pub fn crc(&self, payload: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.encode());
        crc.update(payload);
        crc.finalize()
    }
}

/// Decodes the record at the beginning of `bytes` and tells its length; `None` when a checksum or
/// the structure is wrong.
pub fn decode(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let end = RECORD_HEADER_BYTES.checked_add(length)?;
    let body = bytes.get(RECORD_HEADER_BYTES..end)?;
    if crc32fast::hash(body) != crc {
        return None;
    }
    let (&kind, mut rest) = body.split_first()?;
    let mut numbers = [0; 4];
    for number in &mut numbers[..numbers_of(kind)?] {
        let (bytes, tail) = rest.split_first_chunk::<8>()?;
        (*number, rest) = (i64::from_le_bytes(*bytes), tail);
    }
    let (key_bytes, rest) = rest.split_first_chunk::<4>()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
    Some((Record::from_parts(kind, numbers, key, value)?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record<'static>> {
        let meta = Meta { mod_revision: 9, create_revision: 3, version: 4, lease: -7 };
        vec![
            Record::Segment { number: 3, revision: 41 },
            Record::Put { revision: 42, lease: 5, key: b"/a", value: b"value" },
            Record::Put { revision: 43, lease: 0, key: b"/empty", value: b"" },
            Record::Delete { revision: 44, key: b"/a" },
            Record::Grant { id: 5, ttl_seconds: 60, deadline_ms: 1_790_000_000_000 },
            Record::Revoke { id: 5 },
            Record::Compact { revision: 43 },
            Record::Version { meta, key: b"/v", value: b"w" },
            Record::End { revision: 9, count: 1 },
        ]
    }

    #[test]
    fn records_come_back_and_a_flipped_bit_does_not() {
        let mut batch = Batch::new();
        let spans: Vec<Span> = samples().iter().map(|record| batch.push(record)).collect();
        let end = batch.len();
        let bytes = batch.seal(7, 99, end, BLOCK_BYTES).to_vec();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        for (record, span) in samples().iter().zip(&spans) {
            let at = span.offset as usize;
            let (decoded, length) = decode(&bytes[at..]).unwrap();
            assert_eq!((decoded, length), (*record, span.length as usize));
            let mut broken = bytes.clone();
            broken[at + span.length as usize - 1] ^= 1;
            assert_eq!(decode(&broken[at..]), None);
            let (header, crc) = Header::decode(broken[..HEADER_BYTES].try_into().unwrap()).unwrap();
            assert_ne!(header.crc(&broken[HEADER_BYTES..end]), crc);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut bytes: Vec<u8> =
            (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for start in 0..1024 {
            bytes[start] = 12;
            assert_eq!(decode(&bytes[start..]), None);
        }
    }
}
