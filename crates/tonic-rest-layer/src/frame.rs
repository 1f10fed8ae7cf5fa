//! gRPC's frames: a flag byte, the length in four bytes, the message.
//!
//! Source: grpc's `doc/PROTOCOL-HTTP2.md`.

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

/// The length of a frame's head.
pub(crate) const HEAD: usize = 5;

/// The frame of a message without fields.
pub(crate) const EMPTY: Bytes = Bytes::from_static(&[0; HEAD]);

/// A reply message larger than this is refused, so that a length field alone cannot claim memory.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why the bytes of a reply are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// We announce no encoding, so none may be used.
    #[error("the reply is compressed")]
    Compressed,
    #[error("the reply is too large")]
    TooLarge,
    #[error("the reply is cut off")]
    CutOff,
}

/// Finishes a frame that was begun with [`HEAD`] bytes of room. A request is never near the four bytes' limit.
pub(crate) fn finish(mut frame: Vec<u8>) -> Bytes {
    let length = (frame.len() - HEAD) as u32;
    frame[0] = 0;
    frame[1..HEAD].copy_from_slice(&length.to_be_bytes());
    frame.into()
}

/// Puts messages together from the pieces that a body comes in.
#[derive(Debug, Default)]
pub(crate) struct Deframer {
    pending: BytesMut,
    /// A piece that has not been copied: nearly always it is exactly one frame.
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

    /// Takes the next message, or `None` when more has to come first.
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

    /// Says whether the body ended where a frame did.
    pub(crate) fn end(&self) -> Result<(), FrameError> {
        if self.whole.is_empty() && self.pending.is_empty() { Ok(()) } else { Err(FrameError::CutOff) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whatever_the_pieces() {
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
    fn what_cannot_be_a_frame_is_refused() {
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
