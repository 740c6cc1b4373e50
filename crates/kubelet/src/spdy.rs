//! SPDY/3.1 frames, as port-forwarding and older exec clients speak them (draft-mbelshe-httpbis-
//! spdy-00, version 3 frames). A codec without I/O; [`crate::spdy_session`] runs it.
//!
//! Header blocks are compressed with one zlib stream per direction for the whole connection,
//! primed with a dictionary that the protocol fixes.

use std::sync::LazyLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The names and values of a header block, names in lower case.
pub type Headers = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    RstStream {
        stream: u32,
        code: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_stream: u32,
        code: u32,
    },
    Headers {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// Settings and window updates, which peers of this protocol use carry nothing for us in.
    Other {
        kind: u16,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error("SPDY version {0} is not supported")]
    Version(u16),
    #[error("a frame is malformed: {0}")]
    Malformed(&'static str),
    #[error("a header block cannot be decompressed")]
    Decompress(#[source] flate2::DecompressError),
    #[error("a header block cannot be compressed")]
    Compress(#[source] flate2::CompressError),
}

const VERSION: u16 = 3;
/// The largest frame accepted, and the largest header block after decompression, in bytes.
const MAX_FRAME: usize = 1 << 20;
const MAX_HEADERS: usize = 256 << 10;
const FLAG_FIN: u8 = 1;

/// The dictionary: common header names and values with their lengths, then common words.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const WITH_LENGTH: &str = "options head post put delete trace accept accept-charset \
        accept-encoding accept-language accept-ranges age allow authorization cache-control \
        connection content-base content-encoding content-language content-length \
        content-location content-md5 content-range content-type date etag expect expires from \
        host if-match if-modified-since if-none-match if-range if-unmodified-since \
        last-modified location max-forwards pragma proxy-authenticate proxy-authorization range \
        referer retry-after server te trailer transfer-encoding upgrade user-agent vary via \
        warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
        keep-alive origin";
    const CODES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414\
        415416417502504505";
    const WORDS: &str = "203 Non-Authoritative Information204 No Content301 Moved Permanently\
        400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error\
        501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
        Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
        image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
        publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for word in WITH_LENGTH.split_whitespace() {
        let word = word.replace('_', " ");
        bytes.put_u32(word.len() as u32);
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(CODES.as_bytes());
    bytes.extend_from_slice(WORDS.as_bytes());
    bytes
});

/// Turns bytes into frames.
pub struct Decoder {
    zlib: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl Decoder {
    /// Takes the next whole frame off the front of `buffer`; `None` when more bytes are needed.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        if buffer.len() < 8 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
        if length > MAX_FRAME {
            return Err(CodecError::TooLarge(length));
        }
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        let mut frame = buffer.split_to(8 + length).freeze();
        let first = frame.get_u32();
        let flags = frame.get_u8();
        frame.advance(3);
        let fin = flags & FLAG_FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: first, bytes: frame, fin }));
        }
        let version = (first >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(CodecError::Version(version));
        }
        self.control(first as u16, fin, frame).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, CodecError> {
        let need = |body: &Bytes, bytes: usize| {
            if body.len() < bytes { Err(CodecError::Malformed("too short")) } else { Ok(()) }
        };
        let id = |value: u32| value & 0x7fff_ffff;
        match kind {
            1 => {
                need(&body, 10)?;
                let stream = id(body.get_u32());
                body.advance(6);
                Ok(Frame::SynStream { stream, headers: self.headers(&body)?, fin })
            }
            2 => {
                need(&body, 4)?;
                let stream = id(body.get_u32());
                Ok(Frame::SynReply { stream, headers: self.headers(&body)?, fin })
            }
            3 => {
                need(&body, 8)?;
                Ok(Frame::RstStream { stream: id(body.get_u32()), code: body.get_u32() })
            }
            6 => {
                need(&body, 4)?;
                Ok(Frame::Ping { id: body.get_u32() })
            }
            7 => {
                need(&body, 8)?;
                Ok(Frame::GoAway { last_stream: id(body.get_u32()), code: body.get_u32() })
            }
            8 => {
                need(&body, 4)?;
                let stream = id(body.get_u32());
                Ok(Frame::Headers { stream, headers: self.headers(&body)?, fin })
            }
            other => Ok(Frame::Other { kind: other }),
        }
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, CodecError> {
        let plain = self.inflate(block)?;
        parse_headers(&plain).ok_or(CodecError::Malformed("header block"))
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut plain = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            let (before_in, before_out) = (self.zlib.total_in(), self.zlib.total_out());
            let done = self.zlib.decompress(block, &mut chunk, FlushDecompress::Sync);
            let used = (self.zlib.total_in() - before_in) as usize;
            let made = (self.zlib.total_out() - before_out) as usize;
            block = &block[used..];
            plain.extend_from_slice(&chunk[..made]);
            if plain.len() > MAX_HEADERS {
                return Err(CodecError::TooLarge(plain.len()));
            }
            match done {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(CodecError::Decompress)?;
                }
                Err(error) => return Err(CodecError::Decompress(error)),
                Ok(Status::StreamEnd) => return Err(CodecError::Malformed("compression ended")),
                Ok(_) if block.is_empty() && made < chunk.len() => return Ok(plain),
                Ok(_) if used == 0 && made == 0 => {
                    return Err(CodecError::Malformed("compression stalls"));
                }
                Ok(_) => {}
            }
        }
    }
}

fn parse_headers(mut plain: &[u8]) -> Option<Headers> {
    let count = take_u32(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = take_text(&mut plain)?;
        let values = take_text(&mut plain)?;
        // Several values of one name are joined by zero bytes; callers here use one.
        headers
            .push((name.to_lowercase(), values.split('\0').next().unwrap_or_default().to_owned()));
    }
    Some(headers)
}

fn take_u32(plain: &mut &[u8]) -> Option<u32> {
    let (head, rest) = plain.split_first_chunk::<4>()?;
    *plain = rest;
    Some(u32::from_be_bytes(*head))
}

fn take_text(plain: &mut &[u8]) -> Option<String> {
    let length = take_u32(plain)? as usize;
    let (head, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    String::from_utf8(head.to_vec()).ok()
}

/// Turns frames into bytes.
pub struct Encoder {
    zlib: Compress,
}

impl Encoder {
    pub fn new() -> Result<Self, CodecError> {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&DICTIONARY).map_err(CodecError::Compress)?;
        Ok(Self { zlib })
    }

    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), CodecError> {
        match frame {
            Frame::SynStream { stream, headers, fin } => {
                let mut body = BytesMut::new();
                body.put_u32(*stream);
                body.put_u32(0);
                body.put_u16(0);
                self.deflate(headers, &mut body)?;
                control(out, 1, *fin, &body);
            }
            Frame::SynReply { stream, headers, fin } => {
                let mut body = BytesMut::new();
                body.put_u32(*stream);
                self.deflate(headers, &mut body)?;
                control(out, 2, *fin, &body);
            }
            Frame::Headers { stream, headers, fin } => {
                let mut body = BytesMut::new();
                body.put_u32(*stream);
                self.deflate(headers, &mut body)?;
                control(out, 8, *fin, &body);
            }
            Frame::RstStream { stream, code } => control(out, 3, false, &two(*stream, *code)),
            Frame::Ping { id } => control(out, 6, false, &id.to_be_bytes()),
            Frame::GoAway { last_stream, code } => {
                control(out, 7, false, &two(*last_stream, *code));
            }
            Frame::Data { stream, bytes, fin } => {
                out.put_u32(*stream & 0x7fff_ffff);
                out.put_u32(u32::from(u8::from(*fin)) << 24 | bytes.len() as u32);
                out.extend_from_slice(bytes);
            }
            Frame::Other { .. } => {}
        }
        Ok(())
    }

    fn deflate(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<(), CodecError> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut rest = plain.as_slice();
        let mut chunk = [0u8; 4096];
        loop {
            let (before_in, before_out) = (self.zlib.total_in(), self.zlib.total_out());
            self.zlib
                .compress(rest, &mut chunk, FlushCompress::Sync)
                .map_err(CodecError::Compress)?;
            rest = &rest[(self.zlib.total_in() - before_in) as usize..];
            let made = (self.zlib.total_out() - before_out) as usize;
            out.extend_from_slice(&chunk[..made]);
            if rest.is_empty() && made < chunk.len() {
                return Ok(());
            }
        }
    }
}

fn two(first: u32, second: u32) -> [u8; 8] {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&first.to_be_bytes());
    body[4..].copy_from_slice(&second.to_be_bytes());
    body
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, body: &[u8]) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(u8::from(fin)) << 24 | body.len() as u32);
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header_strategy() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z-]{1,12}", "[ -~]{0,40}"), 0..6)
    }

    fn frame_strategy() -> impl Strategy<Value = Frame> {
        let id = 1u32..0x7fff_ffff;
        prop_oneof![
            (id.clone(), header_strategy(), any::<bool>())
                .prop_map(|(stream, headers, fin)| Frame::SynStream { stream, headers, fin }),
            (id.clone(), header_strategy(), any::<bool>())
                .prop_map(|(stream, headers, fin)| Frame::SynReply { stream, headers, fin }),
            (id.clone(), any::<u32>()).prop_map(|(stream, code)| Frame::RstStream { stream, code }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            (id, prop::collection::vec(any::<u8>(), 0..200), any::<bool>())
                .prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes: bytes.into(), fin }),
        ]
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        // The checksum that zlib names the dictionary by.
        let mut zlib = Compress::new(Compression::best(), true);
        assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), 0xe3c6_a7c2);
    }

    proptest! {
        #[test]
        fn frames_come_back(frames in prop::collection::vec(frame_strategy(), 1..12), cut in 1usize..50) {
            let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::default());
            let mut wire = BytesMut::new();
            for frame in &frames {
                encoder.encode(frame, &mut wire).unwrap();
            }
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::default();
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }

        #[test]
        fn any_header_block_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            let mut body = BytesMut::new();
            body.put_u32(1);
            body.extend_from_slice(&bytes);
            let mut buffer = BytesMut::new();
            control(&mut buffer, 2, false, &body);
            let _ = decoder.decode(&mut buffer);
        }
    }
}
