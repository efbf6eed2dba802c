//! How one request and its one response lie on a libp2p stream: a length of four bytes, then the bytes.
//! What they mean is for [`crate::message`]; here they are only kept short.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use std::io;

/// Longest request and longest response. Larger answers are asked for in pages.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Carries opaque bytes both ways.
#[derive(Clone, Copy, Default)]
pub(super) struct BytesCodec;

impl request_response::Codec for BytesCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read_payload(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read_payload(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        payload: Vec<u8>,
    ) -> io::Result<()> {
        write_payload(io, &payload).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        payload: Vec<u8>,
    ) -> io::Result<()> {
        write_payload(io, &payload).await
    }
}

/// Reads one payload. A stream that ends early is an error: so a peer that gave no answer is told from one that gave an empty answer.
async fn read_payload(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(too_long(length));
    }
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    Ok(payload)
}

async fn write_payload(io: &mut (impl AsyncWrite + Unpin), payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= PAYLOAD_BYTES_MAX);
    let length = length.ok_or_else(|| too_long(payload.len()))?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(payload).await?;
    io.flush().await
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("payload of {length} bytes, at most {PAYLOAD_BYTES_MAX} are taken"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::Cursor;

    #[test]
    fn a_payload_reads_back() {
        let mut wire = Vec::new();
        block_on(write_payload(&mut wire, b"who has 10.77.0.9?")).unwrap();
        assert_eq!(
            block_on(read_payload(&mut Cursor::new(wire))).unwrap(),
            b"who has 10.77.0.9?"
        );
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_memory_is_taken() {
        let wire = u32::MAX.to_be_bytes();
        assert_eq!(
            block_on(read_payload(&mut Cursor::new(wire)))
                .unwrap_err()
                .kind(),
            io::ErrorKind::InvalidData
        );
        assert!(
            block_on(write_payload(
                &mut Vec::new(),
                &vec![0; PAYLOAD_BYTES_MAX + 1]
            ))
            .is_err()
        );
    }

    #[test]
    fn no_answer_is_not_an_empty_answer() {
        assert_eq!(
            block_on(read_payload(&mut Cursor::new([])))
                .unwrap_err()
                .kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            block_on(read_payload(&mut Cursor::new([0; 4]))).unwrap(),
            b""
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(wire: Vec<u8>) {
            if let Ok(payload) = block_on(read_payload(&mut Cursor::new(&wire))) {
                assert_eq!(payload, wire[4..4 + payload.len()]);
            }
        }
    }
}
