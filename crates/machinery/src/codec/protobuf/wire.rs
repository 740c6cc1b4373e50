//! Protobuf's wire format: reading fields, and writing them from the last to the first, which
//! makes every length known when it is needed.

use crate::codec::Error;

/// One value as it lies on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Wire<'a> {
    pub fn bytes(self) -> Result<&'a [u8], Error> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::Malformed("a length-delimited field has another wire type")),
        }
    }

    pub fn str(self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::Malformed("a text is not UTF-8"))
    }

    pub fn varint(self) -> Result<u64, Error> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(Error::Malformed("a number has another wire type")),
        }
    }

    pub fn double(self) -> Result<f64, Error> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            Self::Fixed32(bits) => Ok(f32::from_bits(bits).into()),
            _ => Err(Error::Malformed("a float has another wire type")),
        }
    }
}

/// The fields of a message in their order on the wire.
pub fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

const SHORT: Error = Error::Malformed("unexpected EOF");

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), Error> {
        let tag = varint(&mut self.rest)?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| Error::Malformed("a huge field number"))?;
        if number == 0 {
            return Err(Error::Malformed("field number 0"));
        }
        let value = match tag & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| SHORT)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Error::Malformed("groups are not supported")),
        };
        Ok((number, value))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }
}

pub fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(SHORT)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Error::Malformed("a varint of more than ten bytes"))
}

/// A buffer that grows towards its front.
pub struct Reverse {
    buffer: Vec<u8>,
    /// Where the written bytes begin.
    start: usize,
}

impl Reverse {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buffer: vec![0; capacity], start: capacity }
    }

    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Puts bytes before everything written so far.
    pub fn raw_bytes(&mut self, bytes: &[u8]) {
        if bytes.len() > self.start {
            self.grow(bytes.len());
        }
        let end = self.start;
        self.start -= bytes.len();
        self.buffer[self.start..end].copy_from_slice(bytes);
    }

    fn grow(&mut self, more: usize) {
        let written = self.len();
        let mut larger = vec![0; (self.buffer.len() * 2).max(written + more)];
        let start = larger.len() - written;
        larger[start..].copy_from_slice(&self.buffer[self.start..]);
        (self.buffer, self.start) = (larger, start);
    }

    pub fn varint(&mut self, mut number: u64) {
        let mut bytes = [0; 10];
        let mut length = 0;
        while number >= 0x80 {
            bytes[length] = number as u8 | 0x80;
            number >>= 7;
            length += 1;
        }
        bytes[length] = number as u8;
        self.raw_bytes(&bytes[..=length]);
    }

    pub fn tag_and_length(&mut self, number: u32, length: usize) {
        self.varint(length as u64);
        self.varint(u64::from(number) << 3 | 2);
    }

    pub fn field_bytes(&mut self, number: u32, bytes: &[u8]) {
        self.raw_bytes(bytes);
        self.tag_and_length(number, bytes.len());
    }

    pub fn field_varint(&mut self, number: u32, value: u64) {
        self.varint(value);
        self.varint(u64::from(number) << 3);
    }

    pub fn field_double(&mut self, number: u32, value: f64) {
        self.raw_bytes(&value.to_bits().to_le_bytes());
        self.varint(u64::from(number) << 3 | 1);
    }

    /// Writes a message by a closure and puts tag and length before it.
    pub fn nested(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.len();
        write(self)?;
        self.tag_and_length(number, self.len() - before);
        Ok(())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.buffer.drain(..self.start);
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Reverse::with_capacity(1);
            out.varint(number);
            assert_eq!(varint(&mut out.finish().as_slice()).unwrap(), number);
        }
    }

    #[test]
    fn truncated_fields_are_errors() {
        for bytes in [&[0x0a][..], &[0x0a, 5, 1], &[0x80], &[0x09, 1], &[0x0b], &[0]] {
            assert!(fields(bytes).any(|f| f.is_err()), "{bytes:?}");
        }
    }
}
