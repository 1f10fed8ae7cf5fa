//! gRPC's frames: a flag byte, the length in four bytes, the message.
//!
//! Source: grpc's `doc/PROTOCOL-HTTP2.md`.

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

/// The length of a frame's header, in bytes.
pub(crate) const HEAD: usize = 5;

/// The frame of a message without fields.
pub(crate) const EMPTY: Bytes = Bytes::from_static(&[0; HEAD]);

/// The maximum size of a reply message. Without it, a length field alone could make the layer allocate up to 4 GiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why the bytes of a reply are not frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The layer accepts no encoding, so a reply must not have one.
    #[error("the reply is compressed")]
    Compressed,
    #[error("the reply is too large")]
    TooLarge,
    #[error("the reply is cut off")]
    CutOff,
}

/// Writes the header of a frame, whose first [`HEAD`] bytes are reserved for it. The message must be smaller than 4 GiB.
pub(crate) fn finish(mut frame: Vec<u8>) -> Bytes {
    let length = (frame.len() - HEAD) as u32;
    frame[0] = 0;
    frame[1..HEAD].copy_from_slice(&length.to_be_bytes());
    frame.into()
}

/// Extracts messages from the chunks of a body.
#[derive(Debug, Default)]
pub(crate) struct Deframer {
    pending: BytesMut,
    /// A chunk that has not been copied. Usually it is exactly one frame.
    whole: Bytes,
}

impl Deframer {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if self.pending.is_empty() && self.whole.is_empty() {
            self.whole = piece;
        } else {
            self.pending.extend_from_slice(&std::mem::take(&mut self.whole));
            self.pending.extend_from_slice(&piece);
        }
    }

    /// Returns the next message. `None` if it is not complete yet.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let bytes: &[u8] = if self.whole.is_empty() { &self.pending } else { &self.whole };
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [flag, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if flag != 0 {
            return Err(FrameError::Compressed);
        }
        if length > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        if rest.len() < length {
            return Ok(None);
        }
        if self.whole.is_empty() {
            self.pending.advance(HEAD);
            Ok(Some(self.pending.split_to(length).freeze()))
        } else {
            self.whole.advance(HEAD);
            Ok(Some(self.whole.split_to(length)))
        }
    }

    /// Fails if the body ended inside a frame.
    pub(crate) fn end(&self) -> Result<(), FrameError> {
        if self.whole.is_empty() && self.pending.is_empty() { Ok(()) } else { Err(FrameError::CutOff) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_extracted_from_chunks_of_any_size() {
        let stream = [b"\0\0\0\0\x02hi".as_slice(), b"\0\0\0\0\0", b"\0\0\0\0\x03you"].concat();
        for size in 1..=stream.len() {
            let mut deframer = Deframer::default();
            let mut messages = Vec::new();
            for piece in stream.chunks(size) {
                deframer.push(Bytes::copy_from_slice(piece));
                while let Some(message) = deframer.next().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, ["hi", "", "you"], "in pieces of {size}");
            assert_eq!(deframer.end(), Ok(()));
        }
    }

    #[test]
    fn invalid_frames_are_rejected() {
        let next = |bytes: &'static [u8]| {
            let mut deframer = Deframer::default();
            deframer.push(Bytes::from_static(bytes));
            let next = deframer.next();
            (next, deframer.end())
        };
        assert_eq!(next(b"\x01\0\0\0\0").0, Err(FrameError::Compressed));
        assert_eq!(next(b"\0\xff\xff\xff\xff").0, Err(FrameError::TooLarge));
        assert_eq!(next(b"\0\0\0\0\x02h"), (Ok(None), Err(FrameError::CutOff)));
    }
}
